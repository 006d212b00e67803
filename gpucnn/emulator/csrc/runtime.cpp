// Runs a launch: blocks one after another, each block's threads as fibers.
#include "runtime.h"

#include <time.h>

#include <cstdio>
#include <cstring>
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

// Threads that may run, oldest first: a ring that holds each thread at most once.
u16 ready[kMaxThreads];
u32 ready_head, ready_count;

std::vector<u32> block_order;   // empty: forward
std::vector<u16> thread_order;  // position -> thread
std::vector<void*> argument_slots;
std::vector<std::pair<u64, u64>> block_starts;  // clock, block number; kept only when checking

u64 next_block, block_count;
u32 next_thread, done_count;
u32 barrier_count, barrier_kind;
u32 barrier_sum;
u32 barrier_result;
u32 running_stack;
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

void push_ready(u32 thread) {
    state.threads[thread].state = kReady;
    ready[(ready_head + ready_count++) % kMaxThreads] = static_cast<u16>(thread);
}

u32 pop_ready() {
    const u32 thread = ready[ready_head];
    ready_head = (ready_head + 1) % kMaxThreads;
    --ready_count;
    return thread;
}

void start_next_thread() {
    const u32 thread = thread_order[next_thread++];
    state.threads[thread].stack = running_stack;
    set_current(thread);
}

// Every thread that is left waits for something that can no longer happen.
[[noreturn]] void report_stuck() {
    u32 at_barrier = kMaxThreads, at_warp = kMaxThreads, done = kMaxThreads;
    for (u32 i = state.thread_count; i-- > 0;) {
        const ThreadState s = state.threads[i].state;
        if (s == kAtBarrier) at_barrier = i;
        if (s == kAtWarp) at_warp = i;
        if (s == kDone) done = i;
    }
    const u32 waiting = at_barrier < kMaxThreads ? at_barrier : at_warp;
    Fault& fault = state.fault;
    if (at_barrier < kMaxThreads && done < kMaxThreads) {
        std::snprintf(fault.text, sizeof fault.text, "returned");
        fault.has_other = 1;
        describe_thread(done, fault.other_thread);
    } else if (at_barrier < kMaxThreads && at_warp < kMaxThreads) {
        std::snprintf(fault.text, sizeof fault.text, "warp");
        fault.has_other = 1;
        describe_thread(at_warp, fault.other_thread);
        fault.other_pc = state.threads[at_warp].pc;
    } else {
        std::snprintf(fault.text, sizeof fault.text, "lanes");
    }
    state.current = waiting;
    raise_fault(kDivergentBarrier, state.threads[waiting].pc);
}

// Leaves the current fiber until someone makes its thread ready again.
void wait() {
    Thread& self = state.threads[state.current];
    void* next;
    if (ready_count) {
        const u32 thread = pop_ready();
        if (thread == state.current) return;
        running_stack = state.threads[thread].stack;
        set_current(thread);
        next = state.threads[thread].stack_pointer;
    } else if (next_thread < state.thread_count) {
        next = new_fiber(running_stack, fiber_main);
        start_next_thread();
    } else {
        report_stuck();
    }
    switch_stack(&self.stack_pointer, next);
}

void begin_block() {
    const u64 number = block_order.empty() ? next_block : block_order[next_block];
    ++next_block;
    const Launch& launch = *state.launch;
    blockIdx.x = static_cast<u32>(number % launch.grid[0]);
    blockIdx.y = static_cast<u32>(number / launch.grid[0] % launch.grid[1]);
    blockIdx.z = static_cast<u32>(number / launch.grid[0] / launch.grid[1]);
    state.block_clock = state.barrier_clock = ++state.clock;
    for (u32 i = 0; i < state.thread_count; ++i) state.threads[i].state = kReady;
    for (u32 w = 0; w * 32 < state.thread_count; ++w) {
        const u32 lanes = state.thread_count - w * 32;
        state.warps[w].live = lanes >= 32 ? ~0u : (1u << lanes) - 1;
        state.warps[w].waiting = 0;
    }
    next_thread = done_count = barrier_count = ready_head = ready_count = 0;
    if (launch.order == 2) shuffle(thread_order, launch.seed * 0x10001ull + number);
    async_copies_begin_block();
    if (launch.check) {
        block_starts.emplace_back(state.block_clock, number);
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

// The life of a fiber: it runs threads, and then whole blocks, for as long as nobody waits, so a
// kernel without barriers runs as a plain loop.
void fiber_main() {
    for (;;) {
        state.launch->kernel(argument_slots.data());
        Thread& self = state.threads[state.current];
        self.state = kDone;
        ++done_count;
        check_waiting_lanes(state.current);
        if (ready_count) {
            const u32 thread = pop_ready();
            release_stack(running_stack);
            running_stack = state.threads[thread].stack;
            set_current(thread);
            switch_stack(&self.stack_pointer, state.threads[thread].stack_pointer);
        }
        if (next_thread == state.thread_count) {
            if (done_count < state.thread_count) report_stuck();
            raise_unwritten();
            if (next_block == block_count || now() > slice_end) {
                slice_over = true;
                release_stack(running_stack);
                switch_stack(&self.stack_pointer, host_stack_pointer);
            }
            begin_block();
        }
        start_next_thread();
    }
}

void open_barrier() {
    raise_unwritten();
    barrier_result = barrier_sum;
    barrier_count = 0;
    barrier_sum = 0;
    state.barrier_clock = ++state.clock;
    if (state.launch->check) publish_barrier();
    if (state.launch->count) count_barrier(state.threads[0].pc);
    for (u16 thread : thread_order) push_ready(thread);
}

}  // namespace

void complete_fault(Fault& fault, FaultKind kind, Address pc) {
    fault.kind = kind;
    fault.pc = pc;
    const u32 block[3] = {blockIdx.x, blockIdx.y, blockIdx.z};
    std::memcpy(fault.block, block, sizeof block);
    describe_thread(state.current, fault.thread);
}

void leave_with_fault() {
    // What came of a value that nothing has written is not the first cause.
    if (state.unwritten.kind != kNoFault && state.fault.kind != kRace)
        state.fault = state.unwritten;
    void* abandoned;
    switch_stack(&abandoned, host_stack_pointer);
    __builtin_unreachable();
}

void raise_fault(FaultKind kind, Address pc) {
    complete_fault(state.fault, kind, pc);
    leave_with_fault();
}

void describe_thread(u32 linear, u32 out[3]) {
    const Dim3& index = state.threads[linear].index;
    out[0] = index.x;
    out[1] = index.y;
    out[2] = index.z;
}

void describe_block_at(u64 clock, u32 out[3]) {
    std::size_t low = 0, high = block_starts.size();
    while (high - low > 1) {
        const std::size_t middle = (low + high) / 2;
        (block_starts[middle].first <= clock ? low : high) = middle;
    }
    const u64 number = high ? block_starts[low].second : 0;
    const Launch& launch = *state.launch;
    out[0] = static_cast<u32>(number % launch.grid[0]);
    out[1] = static_cast<u32>(number / launch.grid[0] % launch.grid[1]);
    out[2] = static_cast<u32>(number / launch.grid[0] / launch.grid[1]);
}

// Called by a thread that completed its warp's rendezvous: `lanes` may go on, lowest first.
void release_lanes(u32 warp, u32 lanes) {
    if (state.launch->order == 1) {
        for (u32 lane = 32; lane-- > 0;)
            if (lanes >> lane & 1) push_ready(warp * 32 + lane);
    } else {
        for (; lanes; lanes &= lanes - 1)
            push_ready(warp * 32 + static_cast<u32>(__builtin_ctz(lanes)));
    }
}

void wait_for_release() { wait(); }

}  // namespace emulator

using namespace emulator;

EXPORT u32 gpucnn_barrier(u32 kind, u32 predicate) {
    Thread& self = state.threads[state.current];
    self.pc = CALLER;
    if (barrier_count == 0) {
        barrier_kind = kind;
        barrier_sum = kind == 2 ? 1 : 0;
    } else if (barrier_kind != kind) {
        std::snprintf(state.fault.text, sizeof state.fault.text, "kinds");
        raise_fault(kDivergentBarrier, self.pc);
    }
    const u32 truth = predicate != 0;
    barrier_sum = kind == 2   ? barrier_sum & truth
                  : kind == 3 ? barrier_sum | truth
                              : barrier_sum + truth;
    self.state = kAtBarrier;
    if (++barrier_count == state.thread_count) open_barrier();
    wait();
    return barrier_result;
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

    thread_order.resize(state.thread_count);
    for (u32 i = 0; i < state.thread_count; ++i)
        thread_order[i] = static_cast<u16>(launch->order == 1 ? state.thread_count - 1 - i : i);
    block_order.clear();
    if (launch->order && block_count < (u64{1} << 26)) {
        block_order.resize(block_count);
        for (u64 i = 0; i < block_count; ++i)
            block_order[i] = static_cast<u32>(launch->order == 1 ? block_count - 1 - i : i);
        if (launch->order == 2) shuffle(block_order, launch->seed);
    }
    block_starts.clear();
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
