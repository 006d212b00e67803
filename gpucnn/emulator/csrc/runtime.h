// Shared declarations of the emulator's runtime: one launch, its blocks, threads and memory.
//
// A launch runs on one host thread. Every CUDA thread of the current block is a fiber on its own
// stack; blocks run one after another, those of a cooperative launch in turns (grid.cpp). All state
// is therefore plain globals, guarded by the lock that the Python side holds during a launch.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulator {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using Address = std::uintptr_t;

struct Dim3 {
    u32 x, y, z;
};

constexpr u32 kMaxThreads = 1024;
constexpr u32 kMaxWarps = 32;
constexpr u32 kMostFibers = 8192;  // of all blocks of a cooperative launch; mirrored in raw_kernel.py
constexpr u32 kDynamicSharedBytes = 256 * 1024;

enum FaultKind : std::int32_t {
    kNoFault,
    kOutOfBounds,
    kMisaligned,
    kUninitialisedRead,
    kRace,
    kDivergentBarrier,
    kBadMask,
    kAssert,
};

enum Space : std::int32_t { kNowhere, kGlobal, kStaticShared, kDynamicShared };

// Field order and types are mirrored by ctypes structures in launch.py.

struct Region {  // one stretch of host memory that arguments point into
    u8* host;
    u64 bytes;
    u64 misalignment;   // of the first byte, relative to the allocation it belongs to
    u64 poison_offset;  // of the first byte within an allocation that starts uninitialised
    u32 writable;
    u32 poisoned;  // 0, or the salt of the poison pattern
    u8* device;    // set by the runtime: where kernels see the region
};

struct Variable {  // one static shared variable, as an offset into the thread-local segment
    u64 offset;
    u64 bytes;
};

struct Argument {
    std::int32_t region;  // -1: a null pointer, -2: a scalar in `value`
    u32 padding;
    u64 value;  // byte offset into the region, or the scalar's bits
};

struct Fault {
    std::int32_t kind;
    std::int32_t space;
    std::int32_t index;  // region or variable number within the space, or -1
    u32 size;            // of the access in bytes; for a bad index, the column of its bracket
    u32 is_write;
    u32 has_other;
    std::int64_t offset;  // of the access within its region or variable
    u64 extent;           // bytes of that region or variable
    u64 address;
    u64 pc;        // return address in the kernel library, relative to its base; 0 when unknown
    u64 other_pc;  // of the access or wait on the other side
    u32 block[3];
    u32 thread[3];
    u32 other_block[3];
    u32 other_thread[3];
    char text[512];
};

struct Launch {
    void (*kernel)(void**);
    void* (*static_shared)();  // address of the thread-local anchor
    u64 anchor_offset;
    u64 static_shared_bytes;
    const Variable* variables;
    const Argument* arguments;
    Region* regions;
    u64 variable_count;
    u64 argument_count;
    u64 region_count;
    u8* image_begin;  // the kernel library's own data, open to its kernels
    u8* image_end;
    u32 grid[3];
    u32 block[3];
    u32 shared_bytes;
    u32 check;
    u32 order;  // 0 forward, 1 reverse, 2 shuffled by seed
    u32 seed;
    u32 count;  // the library was compiled for counting (count.h)
    u32 cooperative;  // blocks may wait for each other
};

// ---- execution state -------------------------------------------------------------------------

enum ThreadState : u8 { kReady, kAtBarrier, kAtWarp, kAtGrid, kDone };

struct Thread {
    u32 stack;
    ThreadState state;
    u8 warp_operation;
    u32 mask;      // of the warp operation waited for; at the grid, the bits of the word
    u32 argument;  // its operand: a shuffle's source lane; at the grid, the bits as they were
    u64 value;     // what the lane contributes; at the grid, the address of the word
    u64 result;    // what the lane receives
    Address pc;    // of the wait
    Dim3 index;
};

// The clock ticks at every synchronisation. An access recorded at time c happened before the
// current one if a synchronisation that both threads took part in has a time greater than c.
struct Warp {
    u64 full_clock;  // of the last rendezvous of all live lanes
    u64 pair_clock[32][32];
    u32 live;     // lanes that have not returned
    u32 waiting;  // lanes at a warp operation
};

struct State {
    const Launch* launch;
    Thread threads[kMaxThreads];
    Warp warps[kMaxWarps];
    u32 thread_count;
    u32 current;
    u64 clock;
    u64 launch_clock;   // when the launch began
    u64 block_number;   // of the current block
    u64 block_clock;    // when it began
    u64 turn_clock;     // when its turn did: the same, unless it has waited for other blocks
    u64 barrier_clock;  // when its last barrier opened
    Fault fault;
    // A read of a word that nothing has written is a race if another thread writes that word before
    // the next barrier, so it is held back until then. kind is kNoFault if there is none.
    Fault unwritten;
};

extern State state;

// ---- faults (report.cpp) ---------------------------------------------------------------------

[[noreturn]] void raise_fault(FaultKind kind, Address pc);
[[noreturn]] void leave_with_fault();
[[noreturn]] void leave_to_host();  // runtime.cpp
// Every thread of the block that is left waits for something that can no longer happen.
[[noreturn]] void report_stuck();
void forget_turns();
void turn_begins();  // of the current block
void complete_fault(Fault& fault, FaultKind kind, Address pc);
inline void raise_unwritten() {
    if (state.unwritten.kind != kNoFault) leave_with_fault();
}
void describe_thread(u32 linear, u32 out[3]);
u64 block_at(u64 clock);  // the number of the block that ran then
void describe_block(u64 number, u32 out[3]);
void describe_block_at(u64 clock, u32 out[3]);

// True if an access at `clock`, in this launch, was another block's.
inline bool other_block(u64 clock) {
    if (clock >= state.turn_clock) return false;
    return !state.launch->cooperative || block_at(clock) != state.block_number;
}

// True if an earlier access by `thread` of this block, at time `clock`, is ordered before the
// current thread's next step.
inline bool happens_before(u64 clock, u32 thread) {
    if (thread == state.current || clock < state.barrier_clock) return true;
    if ((thread ^ state.current) >> 5) return false;
    const Warp& warp = state.warps[thread >> 5];
    return clock < warp.full_clock || clock < warp.pair_clock[thread & 31][state.current & 31];
}

// ---- checking (check.cpp, publish.cpp) -------------------------------------------------------

enum Access { kRead, kWrite, kAtomic };

struct Stacks {
    Address begin, end;
};
extern Stacks stacks;

bool memory_begin_launch(Launch& launch);  // false: out of address space
void memory_end_launch(Launch& launch, bool keep_results);
void publish_begin_launch();
void publish_begin_block();
void publish_barrier();
void publish_fence();
void publish_atomic(Address address);
// True if an access made at `clock` by `thread` of another block is visible to this thread through a
// fence, an atomic on one side and later an atomic on the same word on the other.
bool published(u64 clock, u32 thread);
bool has_acquired();

void async_copies_begin_block();  // async_copy.cpp

// ---- blocks that take turns (grid.cpp, and what it asks of the others) ------------------------

constexpr u32 kNobody = ~0u;

// Puts away what belongs to the block `from` and brings what belongs to `to`, in order of their
// first turns; either may be kNobody. False: out of memory.
bool memory_change_block(u32 from, u32 to);
void publish_change_block(u32 from, u32 to);
void async_copies_change_block(u32 from, u32 to);
void count_change_block(u32 from, u32 to);
void schedule_change_block(u32 from, u32 to);  // runtime.cpp
// Begins the next block of the launch, if there is one.
bool begin_next_block();
void make_ready(u32 thread);

void grid_begin_launch();
// The current block cannot go on: takes up one that can. False: none can.
bool grid_take_turn();
void grid_block_done();
bool grid_all_done();
bool waits_at_grid();  // some thread of the current block
[[noreturn]] void report_stuck_grid();
// Until another block has changed one of these bits of a word of global memory.
void wait_at_grid(Address word, u32 bits, u32 old, Address pc);
void wait_for_release();  // runtime.cpp

}  // namespace emulator

#define EXPORT extern "C" __attribute__((visibility("default")))
#define CALLER reinterpret_cast<emulator::Address>(__builtin_return_address(0))
