// Order between blocks: the "last block done" idiom.
//
// Blocks are unordered, so what one block wrote another may not touch, except through: a write; a
// __threadfence() by the writer, or by a thread that met the writer at a barrier in between; an
// atomic on some word (the release); an atomic on the same word by a thread of the later block (the
// acquire); and that same thread, or one that meets it at a barrier, reads.
#include <algorithm>
#include <unordered_map>
#include <vector>

#include "runtime.h"

namespace emulator {
namespace {

struct Release {
    u64 block_clock;  // identifies the block
    u32 thread;
    u64 own;                // writes of that thread before this clock are published
    u64 others;             // and those of every thread of the block before this one
    std::vector<u64> each;  // and those of thread i before each[i], where fenced by itself
};

struct Acquire {
    Address address;
    u32 thread;
    u64 clock;
};

std::unordered_map<Address, std::vector<Release>> releases;
std::vector<Acquire> acquires;  // by the current block
u64 fence[kMaxThreads];         // clock of each thread's last fence
u64 barrier_before_fence[kMaxThreads];
u64 fence_before_barrier[kMaxThreads];
bool fenced_since_barrier;
bool fence_met_barrier;  // some fence_before_barrier belongs to this block

}  // namespace

void publish_begin_launch() {
    releases.clear();
    acquires.clear();
    fenced_since_barrier = fence_met_barrier = false;
}

void publish_begin_block() {
    acquires.clear();
    fenced_since_barrier = fence_met_barrier = false;
}

void publish_barrier() {
    if (!fenced_since_barrier) return;
    fenced_since_barrier = false;
    fence_met_barrier = true;
    std::copy_n(fence, state.thread_count, fence_before_barrier);
}

void publish_fence() {
    fence[state.current] = ++state.clock;
    barrier_before_fence[state.current] = state.barrier_clock;
    fenced_since_barrier = true;
}

void publish_atomic(Address address) {
    const u32 self = state.current;
    const auto known = releases.find(address);
    if (known != releases.end()) {
        const bool acquired = std::any_of(acquires.begin(), acquires.end(), [&](const Acquire& a) {
            return a.address == address && a.thread == self;
        });
        if (!acquired && known->second.front().block_clock != state.block_clock)
            acquires.push_back({address, self, ++state.clock});
    }
    const bool fenced = fence[self] >= state.block_clock;
    if (!fenced && !fence_met_barrier) return;
    Release release{state.block_clock, self, 0, 0, {}};
    if (fenced) {
        release.own = fence[self];
        release.others = barrier_before_fence[self];
    }
    if (fence_met_barrier)
        release.each.assign(fence_before_barrier, fence_before_barrier + state.thread_count);
    auto& list = releases[address];
    // A later release of the same thread publishes at least as much.
    if (!list.empty() && list.back().block_clock == state.block_clock && list.back().thread == self)
        list.pop_back();
    list.push_back(std::move(release));
}

bool has_acquired() { return !acquires.empty(); }

bool published(u64 clock, u32 thread) {
    for (const Acquire& acquire : acquires) {
        if (!happens_before(acquire.clock, acquire.thread)) continue;
        const auto& list = releases[acquire.address];
        auto after = std::upper_bound(list.begin(), list.end(), clock,
                                      [](u64 c, const Release& r) { return c < r.block_clock; });
        if (after == list.begin()) continue;
        const u64 block = std::prev(after)->block_clock;
        while (after != list.begin() && std::prev(after)->block_clock == block) {
            --after;
            if (clock < after->others) return true;
            if (after->thread == thread && clock < after->own) return true;
            if (!after->each.empty() && clock < after->each[thread]) return true;
        }
    }
    return false;
}

}  // namespace emulator

EXPORT void gpucnn_fence() {
    if (emulator::state.launch->check) emulator::publish_fence();
}
