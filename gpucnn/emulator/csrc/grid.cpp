// Blocks that wait for each other, in a cooperative launch.
//
// A block has its turn until all of its threads have returned or wait, one of them at least for a word
// of global memory that another block is to change. What belongs to it, its threads and its shared
// memory with all that is known of it, is then put away, and the next block has its turn: one that has
// not begun yet, else one whose word has changed. If there is none, they wait forever.
#include <cstdio>
#include <vector>

#include "runtime.h"

namespace emulator {
namespace {

struct Turn {
    u64 number;  // of the block
    bool done;
};

std::vector<Turn> turns;  // in the order in which the blocks began
u32 current, left;

void change_to(u32 turn) {
    if (turn == current) return;
    schedule_change_block(current, turn);
    publish_change_block(current, turn);
    async_copies_change_block(current, turn);
    if (!memory_change_block(current, turn)) {
        std::snprintf(state.fault.text, sizeof state.fault.text, "memory for a block that waits");
        raise_fault(kAssert, 0);
    }
    if (state.launch->count) count_change_block(current, turn);
    current = turn;
}

bool changed(const Thread& t) {
    const u32 now = *reinterpret_cast<const volatile u32*>(t.value);
    return (now ^ t.argument) & t.mask;
}

// Lets those threads of the current block go on whose words have changed.
bool wake_up() {
    bool any = false;
    for (u32 i = 0; i < state.thread_count; ++i) {
        if (state.threads[i].state != kAtGrid || !changed(state.threads[i])) continue;
        make_ready(i);
        any = true;
    }
    return any;
}

}  // namespace

void grid_begin_launch() {
    turns.clear();
    current = kNobody;
    const u32* grid = state.launch->grid;
    left = grid[0] * grid[1] * grid[2];
}

bool grid_take_turn() {
    raise_unwritten();
    const auto begun = static_cast<u32>(turns.size());
    if (begun < state.launch->grid[0] * state.launch->grid[1] * state.launch->grid[2]) {
        change_to(begun);
        begin_next_block();
        turns.push_back({state.block_number, false});
        return true;
    }
    const u32 first = current;
    for (u32 i = 1; i <= begun; ++i) {
        const u32 turn = (first + i) % begun;
        if (turns[turn].done) continue;
        change_to(turn);
        if (wake_up()) return true;
    }
    return false;
}

void grid_block_done() {
    turns[current].done = true;
    --left;
}

bool grid_all_done() { return left == 0; }

bool waits_at_grid() {
    for (u32 i = 0; i < state.thread_count; ++i)
        if (state.threads[i].state == kAtGrid) return true;
    return false;
}

void report_stuck_grid() {
    Fault& fault = state.fault;
    std::snprintf(fault.text, sizeof fault.text, "grid");
    for (const Turn& turn : turns)
        if (turn.done && !fault.has_other) {
            std::snprintf(fault.text, sizeof fault.text, "grid returned");
            fault.has_other = 1;
            describe_block(turn.number, fault.other_block);
        }
    for (u32 turn = 0; turn < turns.size() && !waits_at_grid(); ++turn)
        if (!turns[turn].done) change_to(turn);
    u32 waiting = 0;
    while (state.threads[waiting].state != kAtGrid) ++waiting;
    state.current = waiting;
    raise_fault(kDivergentBarrier, state.threads[waiting].pc);
}

void wait_at_grid(Address word, u32 bits, u32 old, Address pc) {
    Thread& self = state.threads[state.current];
    if (!state.launch->cooperative) {
        std::snprintf(state.fault.text, sizeof state.fault.text, "not cooperative");
        raise_fault(kDivergentBarrier, pc);
    }
    self.state = kAtGrid;
    self.value = word;
    self.mask = bits;
    self.argument = old;
    self.pc = pc;
    wait_for_release();
}

}  // namespace emulator
