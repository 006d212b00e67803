// Asynchronous copies into shared memory: what was read lands when its thread waits for it. Until
// then the destination holds NaNs, so that a kernel that reads too early computes nonsense, and it
// counts as written at both times, so that whoever else touches it in between races.
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "check.h"

namespace emulator {
namespace {

struct Copy {
    Address to;
    u32 size;
    u32 group;
    u8 value[16];
};

struct Copies {
    std::vector<Copy> of[kMaxThreads];
    u32 committed[kMaxThreads];
};

Copies current;
std::vector<std::unique_ptr<Copies>> put_away;  // of blocks that wait for others, by turn

}  // namespace

void async_copies_begin_block() {
    for (u32 i = 0; i < state.thread_count; ++i) {
        current.of[i].clear();
        current.committed[i] = 0;
    }
}

void async_copies_change_block(u32 from, u32 to) {
    for (const u32 turn : {from, to}) {
        if (turn == kNobody) continue;
        if (put_away.size() <= turn) put_away.resize(turn + 1);
        if (!put_away[turn]) put_away[turn] = std::make_unique<Copies>();
        std::swap(current, *put_away[turn]);
    }
}

}  // namespace emulator

using namespace emulator;

EXPORT void gpucnn_copy_begin(Address to, const void* value, u32 size) {
    Copy copy{to, size, current.committed[state.current], {}};
    std::memcpy(copy.value, value, size);
    current.of[state.current].push_back(copy);
}

EXPORT void gpucnn_copy_commit() { ++current.committed[state.current]; }

// Lands all groups but the `pending` youngest.
EXPORT void gpucnn_copy_wait(u32 pending) {
    std::vector<Copy>& own = current.of[state.current];
    std::size_t landed = 0;
    const u32 committed = current.committed[state.current];
    for (; landed < own.size() && own[landed].group + pending < committed; ++landed) {
        const Copy& copy = own[landed];
        if (state.launch->check) check_access(copy.to, copy.size, kWrite, CALLER);
        std::memcpy(reinterpret_cast<void*>(copy.to), copy.value, copy.size);
    }
    own.erase(own.begin(), own.begin() + static_cast<std::ptrdiff_t>(landed));
}
