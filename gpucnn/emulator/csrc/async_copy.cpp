// Asynchronous copies into shared memory: what was read lands when its thread waits for it. Until
// then the destination holds NaNs, so that a kernel that reads too early computes nonsense, and it
// counts as written at both times, so that whoever else touches it in between races.
#include <cstring>
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

std::vector<Copy> copies[kMaxThreads];
u32 committed[kMaxThreads];

}  // namespace

void async_copies_begin_block() {
    for (u32 i = 0; i < state.thread_count; ++i) {
        copies[i].clear();
        committed[i] = 0;
    }
}

}  // namespace emulator

using namespace emulator;

EXPORT void gpucnn_copy_begin(Address to, const void* value, u32 size) {
    Copy copy{to, size, committed[state.current], {}};
    std::memcpy(copy.value, value, size);
    copies[state.current].push_back(copy);
}

EXPORT void gpucnn_copy_commit() { ++committed[state.current]; }

// Lands all groups but the `pending` youngest.
EXPORT void gpucnn_copy_wait(u32 pending) {
    std::vector<Copy>& own = copies[state.current];
    std::size_t landed = 0;
    for (; landed < own.size() && own[landed].group + pending < committed[state.current]; ++landed) {
        const Copy& copy = own[landed];
        if (state.launch->check) check_access(copy.to, copy.size, kWrite, CALLER);
        std::memcpy(reinterpret_cast<void*>(copy.to), copy.value, copy.size);
    }
    own.erase(own.begin(), own.begin() + static_cast<std::ptrdiff_t>(landed));
}
