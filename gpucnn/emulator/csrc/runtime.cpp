// Runs a launch: blocks one after another or in turns (grid.cpp), each block's threads as fibers.
#include "runtime.h"

#include <time.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <utility>
#include <vector>

#include "count.h"
#include "fiber.h"
#include "stacks.h"

namespace emulator {

State state;

}  // namespace emulator

// What kernels see. They declare these const, so that the compiler may keep them in registers: for
// one thread they never change.
__attribute__((visibility("default"))) emulator::Dim3 threadIdx, blockIdx, blockDim, gridDim;
alignas(1024) __attribute__((
    visibility("default"))) char gpucnn_dynamic_shared[emulator::kDynamicSharedBytes];

namespace emulator {
namespace {

constexpr u64 kSliceNanoseconds = 100'000'000;

// Of the current block.
struct Schedule {
    // Threads that may run, oldest first: a ring that holds each thread at most once.
    u16 ready[kMaxThreads];
    u32 ready_head, ready_count;
    u32 next_thread, done_count;
    u32 barrier_count, barrier_kind;
    u32 barrier_sum;
    u32 barrier_result;
    std::vector<u16> thread_order;  // position -> thread
};
Schedule own;

// Of a block that waits for others.
struct PutAway {
    Schedule schedule;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    Dim3 index;
    u64 number, block_clock, barrier_clock;
};
std::vector<std::unique_ptr<PutAway>> put_away;  // by turn

std::vector<u32> block_order;  // empty: forward
std::vector<u16> first_order;  // of the threads of the first block
std::vector<void*> argument_slots;

u64 next_block, block_count;
u32 running_stack;
void* stack_pointers[kMostFibers];  // of fibers that wait, by stack
u64 slice_end;
void* host_stack_pointer;
bool slice_over;

u64 now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return static_cast<u64>(t.tv_sec) * 1'000'000'000 + static_cast<u64>(t.tv_nsec);
}

u64 random_next(u64& s) {  // splitmix64
    u64 z = (s += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

template <class T>
void shuffle(std::vector<T>& items, u64 seed) {
    for (std::size_t i = items.size(); i > 1; --i)
        std::swap(items[i - 1], items[random_next(seed) % i]);
}

void set_current(u32 thread) {
    state.current = thread;
    threadIdx = state.threads[thread].index;
}

void fiber_main();

u32 pop_ready() {
    const u32 thread = own.ready[own.ready_head];
    own.ready_head = (own.ready_head + 1) % kMaxThreads;
    --own.ready_count;
    return thread;
}

void start_next_thread() {
    const u32 thread = own.thread_order[own.next_thread++];
    state.threads[thread].stack = running_stack;
    set_current(thread);
}

// Sees that there is a thread to go on with, in this block or in one whose turn it is then.
void find_thread() {
    if (own.ready_count || own.next_thread < state.thread_count) return;
    const bool for_others = own.done_count == state.thread_count || waits_at_grid();
    if (!for_others) report_stuck();
    if (!grid_take_turn()) report_stuck_grid();
}

// Leaves the current fiber until someone makes its thread ready again.
void wait() {
    const u32 stack = running_stack;
    void* next;
    find_thread();
    if (own.ready_count) {
        const u32 thread = pop_ready();
        running_stack = state.threads[thread].stack;
        set_current(thread);
        if (running_stack == stack) return;
        next = stack_pointers[running_stack];
    } else {
        next = new_fiber(running_stack, fiber_main);
        start_next_thread();
    }
    switch_stack(&stack_pointers[stack], next);
}

void begin_block() {
    const u64 number = block_order.empty() ? next_block : block_order[next_block];
    ++next_block;
    const Launch& launch = *state.launch;
    blockIdx.x = static_cast<u32>(number % launch.grid[0]);
    blockIdx.y = static_cast<u32>(number / launch.grid[0] % launch.grid[1]);
    blockIdx.z = static_cast<u32>(number / launch.grid[0] / launch.grid[1]);
    state.block_clock = state.turn_clock = state.barrier_clock = ++state.clock;
    state.block_number = number;
    for (u32 i = 0; i < state.thread_count; ++i) state.threads[i].state = kReady;
    for (u32 w = 0; w * 32 < state.thread_count; ++w) {
        const u32 lanes = state.thread_count - w * 32;
        state.warps[w].live = lanes >= 32 ? ~0u : (1u << lanes) - 1;
        state.warps[w].waiting = 0;
    }
    own.next_thread = own.done_count = own.barrier_count = own.ready_head = own.ready_count = 0;
    if (own.thread_order.empty()) own.thread_order = first_order;
    if (launch.order == 2) shuffle(own.thread_order, launch.seed * 0x10001ull + number);
    async_copies_begin_block();
    if (launch.check) {
        turn_begins();
        publish_begin_block();
    }
}

// Looks for lanes that wait for the one that just returned.
void check_waiting_lanes(u32 thread) {
    Warp& warp = state.warps[thread >> 5];
    warp.live &= ~(1u << (thread & 31));
    for (u32 lanes = warp.waiting; lanes; lanes &= lanes - 1) {
        const u32 other = (thread & ~31u) + static_cast<u32>(__builtin_ctz(lanes));
        const Thread& t = state.threads[other];
        if (t.mask >> (thread & 31) & 1) {
            Fault& fault = state.fault;
            std::snprintf(fault.text, sizeof fault.text, "exited lane %u in mask 0x%08x",
                          thread & 31, t.mask);
            state.current = other;
            raise_fault(kBadMask, t.pc);
        }
    }
}

// All threads of the block have returned.
void end_block() {
    raise_unwritten();
    const bool turns = state.launch->cooperative;
    if (turns) grid_block_done();
    if (turns ? grid_all_done() : next_block == block_count || now() > slice_end) {
        slice_over = true;
        release_stack(running_stack);
        leave_to_host();
    }
    if (!turns) begin_block();
}

// The life of a fiber: it runs threads, and then whole blocks, for as long as nobody waits, so a
// kernel without barriers runs as a plain loop.
void fiber_main() {
    for (;;) {
        state.launch->kernel(argument_slots.data());
        state.threads[state.current].state = kDone;
        ++own.done_count;
        check_waiting_lanes(state.current);
        if (own.done_count == state.thread_count) end_block();
        find_thread();
        if (own.ready_count) {
            const u32 thread = pop_ready(), stack = state.threads[thread].stack;
            set_current(thread);
            release_stack(std::exchange(running_stack, stack));
            void* abandoned;
            switch_stack(&abandoned, stack_pointers[stack]);
        }
        start_next_thread();
    }
}

void open_barrier() {
    raise_unwritten();
    own.barrier_result = own.barrier_sum;
    own.barrier_count = 0;
    own.barrier_sum = 0;
    state.barrier_clock = ++state.clock;
    if (state.launch->check) publish_barrier();
    if (state.launch->count) count_barrier(state.threads[0].pc);
    for (u16 thread : own.thread_order) make_ready(thread);
}

}  // namespace

void leave_to_host() {
    void* abandoned;
    switch_stack(&abandoned, host_stack_pointer);
    __builtin_unreachable();
}

void make_ready(u32 thread) {
    state.threads[thread].state = kReady;
    own.ready[(own.ready_head + own.ready_count++) % kMaxThreads] = static_cast<u16>(thread);
}

bool begin_next_block() {
    if (next_block == block_count) return false;
    begin_block();
    return true;
}

void schedule_change_block(u32 from, u32 to) {
    const std::size_t turns = std::max(from + 1, to + 1);  // kNobody + 1 is 0
    if (put_away.size() < turns) put_away.resize(turns);
    const u32 count = state.thread_count, warps = (count + 31) / 32;
    if (from != kNobody) {
        put_away[from] = std::make_unique<PutAway>(
            PutAway{std::move(own),
                    {state.threads, state.threads + count},
                    {state.warps, state.warps + warps},
                    blockIdx,
                    state.block_number,
                    state.block_clock,
                    state.barrier_clock});
        own = Schedule{};
    }
    if (const auto other = std::move(put_away[to])) {
        own = std::move(other->schedule);
        std::copy_n(other->threads.data(), count, state.threads);
        std::copy_n(other->warps.data(), warps, state.warps);
        blockIdx = other->index;
        state.block_number = other->number;
        state.block_clock = other->block_clock;
        state.barrier_clock = other->barrier_clock;
        state.turn_clock = ++state.clock;
        if (state.launch->check) turn_begins();
    }
}

// Called by a thread that completed its warp's rendezvous: `lanes` may go on, lowest first.
void release_lanes(u32 warp, u32 lanes) {
    if (state.launch->order == 1) {
        for (u32 lane = 32; lane-- > 0;)
            if (lanes >> lane & 1) make_ready(warp * 32 + lane);
    } else {
        for (; lanes; lanes &= lanes - 1)
            make_ready(warp * 32 + static_cast<u32>(__builtin_ctz(lanes)));
    }
}

void wait_for_release() { wait(); }

}  // namespace emulator

using namespace emulator;

EXPORT u32 gpucnn_barrier(u32 kind, u32 predicate) {
    Thread& self = state.threads[state.current];
    self.pc = CALLER;
    if (own.barrier_count == 0) {
        own.barrier_kind = kind;
        own.barrier_sum = kind == 2 ? 1 : 0;
    } else if (own.barrier_kind != kind) {
        std::snprintf(state.fault.text, sizeof state.fault.text, "kinds");
        raise_fault(kDivergentBarrier, self.pc);
    }
    const u32 truth = predicate != 0;
    own.barrier_sum = kind == 2   ? own.barrier_sum & truth
                      : kind == 3 ? own.barrier_sum | truth
                                  : own.barrier_sum + truth;
    self.state = kAtBarrier;
    if (++own.barrier_count == state.thread_count) open_barrier();
    wait();
    return own.barrier_result;
}

EXPORT void gpucnn_assert_failed(const char* expression, const char*, int) {
    std::snprintf(state.fault.text, sizeof state.fault.text, "%s", expression);
    raise_fault(kAssert, CALLER);
}

// Prepares a launch. 0: ready to run; -1: out of memory.
EXPORT int gpucnn_begin(Launch* launch) {
    if (!make_stacks()) return -1;
    state.launch = launch;
    state.fault = state.unwritten = Fault{};
    state.thread_count = launch->block[0] * launch->block[1] * launch->block[2];
    state.launch_clock = ++state.clock;
    block_count = u64{launch->grid[0]} * launch->grid[1] * launch->grid[2];
    next_block = 0;
    gridDim = {launch->grid[0], launch->grid[1], launch->grid[2]};
    blockDim = {launch->block[0], launch->block[1], launch->block[2]};
    for (u32 i = 0; i < state.thread_count; ++i)
        state.threads[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y,
                                  i / blockDim.x / blockDim.y};

    own = Schedule{};
    put_away.clear();
    grid_begin_launch();
    first_order.resize(state.thread_count);
    for (u32 i = 0; i < state.thread_count; ++i)
        first_order[i] = static_cast<u16>(launch->order == 1 ? state.thread_count - 1 - i : i);
    block_order.clear();
    if (launch->order && block_count < (u64{1} << 26)) {
        block_order.resize(block_count);
        for (u64 i = 0; i < block_count; ++i)
            block_order[i] = static_cast<u32>(launch->order == 1 ? block_count - 1 - i : i);
        if (launch->order == 2) shuffle(block_order, launch->seed);
    }
    forget_turns();
    release_all_stacks();
    if (!memory_begin_launch(*launch)) return -1;
    if (launch->check) publish_begin_launch();
    if (launch->count) count_begin_launch();

    argument_slots.resize(launch->argument_count);
    static std::vector<u64> values;
    values.assign(launch->argument_count + 1, 0);
    for (u64 i = 0; i < launch->argument_count; ++i) {
        const Argument& a = launch->arguments[i];
        values[i] = a.region >= 0
                        ? reinterpret_cast<u64>(launch->regions[a.region].device) + a.value
                    : a.region == -2 ? a.value
                                     : 0;
        argument_slots[i] = &values[i];
    }
    return 0;
}

// Runs for about a tenth of a second. 0: finished; 1: call again; 2: a fault, left in *fault.
EXPORT int gpucnn_run(Fault* fault) {
    slice_end = now() + kSliceNanoseconds;
    slice_over = false;
    release_all_stacks();
    if (state.launch->cooperative)
        grid_take_turn();
    else
        begin_block();
    void* fiber = new_fiber(running_stack, fiber_main);
    start_next_thread();
    switch_stack(&host_stack_pointer, fiber);
    if (!slice_over) {
        *fault = state.fault;
        return 2;
    }
    return next_block == block_count ? 0 : 1;
}

// Ends a launch; with `keep_results`, what kernels wrote reaches the host's arrays.
EXPORT void gpucnn_end(int keep_results) {
    std::fflush(stdout);
    memory_end_launch(*const_cast<Launch*>(state.launch), keep_results != 0);
}
