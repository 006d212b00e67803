// Faults: who did it, and where; who waits for what can no longer happen.
#include <cstdio>
#include <utility>
#include <vector>

#include "runtime.h"

namespace emulator {
namespace {

std::vector<std::pair<u64, u64>> turns;  // clock, block number; kept only when checking

}  // namespace

void forget_turns() { turns.clear(); }

void turn_begins() { turns.emplace_back(state.turn_clock, state.block_number); }

void complete_fault(Fault& fault, FaultKind kind, Address pc) {
    fault.kind = kind;
    fault.pc = pc;
    describe_block(state.block_number, fault.block);
    describe_thread(state.current, fault.thread);
}

void leave_with_fault() {
    // What came of a value that nothing has written is not the first cause.
    if (state.unwritten.kind != kNoFault && state.fault.kind != kRace)
        state.fault = state.unwritten;
    leave_to_host();
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

u64 block_at(u64 clock) {
    std::size_t low = 0, high = turns.size();
    while (high - low > 1) {
        const std::size_t middle = (low + high) / 2;
        (turns[middle].first <= clock ? low : high) = middle;
    }
    return high ? turns[low].second : 0;
}

void describe_block_at(u64 clock, u32 out[3]) { describe_block(block_at(clock), out); }

void describe_block(u64 number, u32 out[3]) {
    const Launch& launch = *state.launch;
    out[0] = static_cast<u32>(number % launch.grid[0]);
    out[1] = static_cast<u32>(number / launch.grid[0] % launch.grid[1]);
    out[2] = static_cast<u32>(number / launch.grid[0] / launch.grid[1]);
}

void report_stuck() {
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

}  // namespace emulator
