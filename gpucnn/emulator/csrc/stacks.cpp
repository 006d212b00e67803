#include "stacks.h"

#include <sys/mman.h>

#include <vector>

#include "fiber.h"

namespace emulator {

Stacks stacks;

namespace {

constexpr std::size_t kStackBytes = 256 * 1024;
constexpr std::size_t kGuardBytes = 4096;

char* pool;
u32 made;
std::vector<u32> free_stacks;

u32 acquire_stack() {
    if (!free_stacks.empty()) {
        const u32 stack = free_stacks.back();
        free_stacks.pop_back();
        return stack;
    }
    const u32 stack = made++;
    mprotect(pool + stack * kStackBytes, kGuardBytes, PROT_NONE);
    return stack;
}

}  // namespace

bool make_stacks() {
    if (pool) return true;
    const std::size_t bytes = kMostFibers * kStackBytes;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return false;
    pool = static_cast<char*>(memory);
    stacks = {reinterpret_cast<Address>(pool), reinterpret_cast<Address>(pool) + bytes};
    free_stacks.reserve(kMostFibers);
    return true;
}

void* new_fiber(u32& stack, void (*entry)()) {
    stack = acquire_stack();
    // Tops at one stride would share the same few cache sets.
    char* top = pool + (stack + 1) * kStackBytes - (stack % 61) * 192 - 64;
    const Address aligned = reinterpret_cast<Address>(top) & ~Address{63};
    return make_fiber(reinterpret_cast<char*>(aligned), entry);
}

void release_stack(u32 stack) { free_stacks.push_back(stack); }

void release_all_stacks() {
    free_stacks.clear();
    for (u32 i = made; i-- > 0;) free_stacks.push_back(i);
}

}  // namespace emulator
