// Counting: what the accesses of a launch ask of the memory system. Only launches of libraries that
// were compiled for it are counted; the hooks of others do not know of it.
#pragma once

#include "runtime.h"

namespace emulator {

// Field order and types are mirrored by ctypes structures in counting.py.

struct AccessCount {  // one access instruction, for one memory space and access size
    u64 pc;
    u32 space;   // kGlobal or kStaticShared, which stands for all shared memory
    u32 access;  // Access
    u32 size;    // bytes per lane
    u32 worst;   // shared: the most words of one bank that one request asked for
    u64 requests, lanes;
    u64 sectors, ideal_sectors;  // global: 32-byte segments touched; the fewest that hold the words
    u64 coalesced;               // global: requests that touched no more than that
    u64 wavefronts, conflicts;   // shared: passes over the banks; those beyond the fewest possible
};

enum Event : u32 { kBarrierEvent, kShuffleEvent, kVoteEvent, kReduceEvent, kSyncEvent, kMatrixEvent };

struct EventCount {
    u64 pc;
    u32 event, padding;
    u64 count;
};

struct Counts {
    const AccessCount* accesses;
    const EventCount* events;
    u64 access_count, event_count;
    u64 read_footprint, written_footprint;  // global: bytes in the distinct sectors touched
    u64 most_barriers;                      // of any block
};

void count_begin_launch();
void count_access(Address address, u64 bytes, Access access, Address pc);
void count_event(Event event, Address pc, u64 times);
void count_barrier(Address pc);
// All lanes that the warp began with meet.
void count_rendezvous(u32 warp);

}  // namespace emulator
