// Order between blocks: the "last block done" idiom, and barriers of the grid.
//
// Blocks are unordered, so what one block wrote another may not touch, except through: a write; a
// __threadfence() by the writer, or by a thread that met the writer at a barrier in between; an
// atomic on some word (the release); later an atomic on the same word by a thread of the other block
// (the acquire); and that same thread, or one that meets it at a barrier, reads. A release hands on
// what its block had acquired before it fenced, maybe by another word. To wait for a word to change is
// an atomic on it; among the blocks of a cooperative launch order is not followed from word to word.
#include <algorithm>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "runtime.h"

namespace emulator {
namespace {

struct Acquire {
    Address address;
    u32 thread;
    u64 clock;
};

struct Release {
    u64 block_clock;  // identifies the block
    u64 block;        // so does this, in a cooperative launch
    u64 clock;
    u32 thread;
    u64 own;                // writes of that thread before this clock are published
    u64 others;             // and those of every thread of the block before this one
    std::vector<u64> each;  // and those of thread i before each[i], where fenced by itself
    std::vector<Acquire> through;  // and what others had published by then
};

struct OwnBlock {
    std::vector<Acquire> acquires;
    u64 fence[kMaxThreads];  // clock of each thread's last fence
    u64 barrier_before_fence[kMaxThreads];
    u64 fence_before_barrier[kMaxThreads];
    bool fenced_since_barrier;
    bool fence_met_barrier;  // some fence_before_barrier belongs to this block
};

std::unordered_map<Address, std::vector<Release>> releases;
OwnBlock own;
std::vector<std::unique_ptr<OwnBlock>> put_away;  // blocks that wait for others, by turn

// True if a release publishes what the thread of its block did at this time.
bool covers(const Release& release, u64 clock, u32 thread) {
    return clock < release.others || (release.thread == thread && clock < release.own) ||
           (!release.each.empty() && clock < release.each[thread]);
}

}  // namespace

void publish_begin_launch() {
    releases.clear();
    publish_begin_block();
}

void publish_begin_block() {
    own.acquires.clear();
    own.fenced_since_barrier = own.fence_met_barrier = false;
}

void publish_change_block(u32 from, u32 to) {
    for (const u32 turn : {from, to}) {
        if (turn == kNobody) continue;
        if (put_away.size() <= turn) put_away.resize(turn + 1);
        if (!put_away[turn]) put_away[turn] = std::make_unique<OwnBlock>();
        std::swap(own, *put_away[turn]);
    }
}

void publish_barrier() {
    if (!own.fenced_since_barrier) return;
    own.fenced_since_barrier = false;
    own.fence_met_barrier = true;
    std::copy_n(own.fence, state.thread_count, own.fence_before_barrier);
}

void publish_fence() {
    own.fence[state.current] = ++state.clock;
    own.barrier_before_fence[state.current] = state.barrier_clock;
    own.fenced_since_barrier = true;
}

void publish_atomic(Address address) {
    const u32 self = state.current;
    const bool turns = state.launch->cooperative;
    const auto known = releases.find(address);
    if (known != releases.end()) {
        const bool acquired = std::any_of(
            own.acquires.begin(), own.acquires.end(),
            [&](const Acquire& a) { return a.address == address && a.thread == self; });
        // Where blocks take turns, others may have released more since.
        if (turns || (!acquired && known->second.front().block_clock != state.block_clock))
            own.acquires.push_back({address, self, ++state.clock});
    }
    const bool fenced = own.fence[self] >= state.block_clock;
    if (!fenced && !own.fence_met_barrier) return;
    Release release{state.block_clock, state.block_number, ++state.clock, self, 0, 0, {}, {}};
    if (fenced) {
        release.own = own.fence[self];
        release.others = own.barrier_before_fence[self];
    }
    if (own.fence_met_barrier)
        release.each.assign(own.fence_before_barrier,
                            own.fence_before_barrier + state.thread_count);
    if (!turns)
        for (const Acquire& a : own.acquires)
            if (a.address != address && (a.clock < release.own ? happens_before(a.clock, a.thread)
                                         : own.fence_met_barrier &&
                                               a.clock < own.fence_before_barrier[a.thread]))
                release.through.push_back(a);
    auto& list = releases[address];
    // A later release of the same thread publishes at least as much, to whoever is still to come.
    if (!turns && !list.empty() && list.back().block_clock == state.block_clock &&
        list.back().thread == self)
        list.pop_back();
    list.push_back(std::move(release));
}

// True if what was acquired from this word by this time publishes what the thread did at `clock`.
// seen: words that have been looked through, up to when.
bool reaches(const Acquire& acquire, u64 clock, u32 thread, std::vector<Acquire>& seen) {
    for (const Acquire& s : seen)
        if (s.address == acquire.address && s.clock >= acquire.clock) return false;
    seen.push_back(acquire);
    const auto& list = releases[acquire.address];
    auto after = std::upper_bound(list.begin(), list.end(), clock,
                                  [](u64 c, const Release& r) { return c < r.block_clock; });
    if (after != list.begin()) {
        const u64 block = std::prev(after)->block_clock;
        while (after != list.begin() && std::prev(after)->block_clock == block) {
            --after;
            if (after->clock < acquire.clock && covers(*after, clock, thread)) return true;
        }
    }
    for (const Release& r : list) {
        if (r.clock > acquire.clock) break;
        for (const Acquire& before : r.through)
            if (reaches(before, clock, thread, seen)) return true;
    }
    return false;
}

bool has_acquired() { return !own.acquires.empty(); }

bool published(u64 clock, u32 thread) {
    const bool turns = state.launch->cooperative;
    const u64 writer = turns ? block_at(clock) : 0;
    std::vector<Acquire> seen;
    for (const Acquire& acquire : own.acquires) {
        if (!happens_before(acquire.clock, acquire.thread)) continue;
        if (!turns) {
            if (reaches(acquire, clock, thread, seen)) return true;
            continue;
        }
        for (const Release& r : releases[acquire.address])
            if (r.block == writer && r.clock < acquire.clock && covers(r, clock, thread))
                return true;
    }
    return false;
}

}  // namespace emulator

EXPORT void gpucnn_fence() {
    if (emulator::state.launch->check) emulator::publish_fence();
}
