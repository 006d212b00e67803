// The checks behind every instrumented memory access. The hot path is inline here, so that each
// hook in hooks.cpp gets its own copy for its size and kind; check.cpp holds what runs rarely.
#pragma once

#include <cstring>

#include "runtime.h"

namespace emulator {

// What is known of one 4-byte word, or of one byte of a word that is used in smaller pieces.
// Clocks older than the launch (global) or the block (shared) mean "never", so nothing is cleared.
struct Cell {
    u64 write;  // clock << 16 | atomic << 15 | thread
    u64 read;   // clock << 16 | several warps << 15 | other blocks << 14 | warp
    u32 lanes;  // of that warp that read since the last barrier
    u32 split;  // the word is also tracked by its bytes
    u32 write_pc, read_pc;
};

constexpr u64 kAtomicBit = 1 << 15, kSeveralBit = 1 << 15, kOtherBlockBit = 1 << 14;

struct Tracked {  // a memory space with its cells
    Address base;
    u64 bytes;
    Cell* cells;
    Cell* byte_cells;  // mapped at the first access smaller than a word
    Space space;
};

extern Tracked arena, static_shared, dynamic_shared;
extern u16* region_of_granule;  // of the arena, by kGranule bytes: region + 1
extern u16* variable_of_word;   // of static shared memory: variable + 1
extern Region* regions;
extern u64* region_begin;  // offset of each region in the arena
extern const Variable* variables;
constexpr u32 kGranuleShift = 8;

// Where an access fell.
struct Place {
    Tracked* tracked;
    u64 offset;  // within the tracked space
    std::int32_t index;
    u64 begin, extent;  // of the region or variable
};

[[noreturn]] void out_of_bounds(Address address, u32 size, Access access, Address pc,
                                const Place& place, const char* text);
[[noreturn]] void report_race(const Place& place, u32 size, Access access, Address pc,
                              const Cell& cell, bool with_write);
void report_uninitialised(const Place& place, u32 size, Address pc);
void check_bytes(const Place& place, u32 size, Access access, Address pc, u64 floor);
void check_split_word(const Place& place, u64 word, u32 size, Access access, Address pc, u64 floor);
bool still_poison(const Region& region, u64 region_offset, u32 size);
// For a read of a word that this launch has not written.
void check_initialised(const Place& place, u64 offset, u32 size, Address pc);

// Quick rejection: every word of the poison pattern has these upper bits.
constexpr u32 kPoisonUpper = 0x7FF4;

inline bool may_be_poison(Address address, u32 size) {
    u32 value = 0;
    for (Address word = address & ~Address{3}; word < address + size; word += 4) {
        std::memcpy(&value, reinterpret_cast<const void*>(word), 4);
        if (value >> 16 == kPoisonUpper) return true;
    }
    return false;
}

inline bool write_conflicts(const Cell& cell, Access access, u64 floor) {
    const u64 clock = cell.write >> 16;
    if (clock < floor) return false;
    if (access == kAtomic && (cell.write & kAtomicBit)) return false;
    const u32 thread = cell.write & (kMaxThreads - 1);
    if (other_block(clock)) return !published(clock, thread);
    return !happens_before(clock, thread);
}

inline bool read_conflicts(const Cell& cell, u64 floor) {
    const u64 clock = cell.read >> 16;
    if (clock < floor) return false;
    const u32 warp = cell.read & (kMaxWarps - 1);
    if (other_block(clock))
        return !published(clock, warp * 32 + static_cast<u32>(__builtin_ctz(cell.lanes)));
    if (cell.read & kOtherBlockBit) return !has_acquired();
    if (clock < state.barrier_clock) return false;
    if (cell.read & kSeveralBit) return true;
    for (u32 lanes = cell.lanes; lanes; lanes &= lanes - 1)
        if (!happens_before(clock, warp * 32 + static_cast<u32>(__builtin_ctz(lanes)))) return true;
    return false;
}

inline void record_write(Cell& cell, Access access, Address pc) {
    cell.write = state.clock << 16 | (access == kAtomic ? kAtomicBit : 0) | state.current;
    cell.write_pc = static_cast<u32>(pc - reinterpret_cast<Address>(state.launch->image_begin));
    // Later accesses ordered after a plain write are ordered after the reads it was ordered after.
    if (access == kWrite) cell.read = 0;
}

inline void record_read(Cell& cell, u64 floor, Address pc) {
    const u64 clock = cell.read >> 16;
    const u32 warp = state.current >> 5, lane = 1u << (state.current & 31);
    u64 flags = cell.read & kOtherBlockBit;
    if (clock < floor) {
        flags = 0;
        cell.lanes = lane;
    } else if (other_block(clock)) {
        flags = kOtherBlockBit;
        cell.lanes = lane;
    } else if (clock < state.barrier_clock) {
        cell.lanes = lane;
    } else if ((cell.read & (kMaxWarps - 1)) == warp) {
        flags |= cell.read & kSeveralBit;
        cell.lanes |= lane;
    } else {
        flags |= kSeveralBit;
        cell.lanes = lane;
    }
    cell.read = state.clock << 16 | flags | warp;
    cell.read_pc = static_cast<u32>(pc - reinterpret_cast<Address>(state.launch->image_begin));
}

inline void check_words(const Place& place, u32 size, Access access, Address pc, u64 floor) {
    for (u64 offset = place.offset; offset < place.offset + size; offset += 4) {
        Cell& cell = place.tracked->cells[offset >> 2];
        if (write_conflicts(cell, access, floor)) report_race(place, size, access, pc, cell, true);
        if (access == kRead) {
            if (cell.write >> 16 < floor && !cell.split) check_initialised(place, offset, 4, pc);
        } else if (read_conflicts(cell, floor)) {
            report_race(place, size, access, pc, cell, false);
        }
        if (cell.split) check_split_word(place, offset >> 2, size, access, pc, floor);
        if (access == kRead) {
            record_read(cell, floor, pc);
        } else {
            record_write(cell, access, pc);
        }
    }
}

// The one place that every instrumented access goes through.
inline void check_access(Address address, u32 size, Access access, Address pc) {
    if (address - stacks.begin < stacks.end - stacks.begin) return;
    Place place;
    u64 floor;
    if (address - arena.base < arena.bytes) {
        place.tracked = &arena;
        place.offset = address - arena.base;
        place.index = region_of_granule[place.offset >> kGranuleShift] - 1;
        if (place.index < 0) out_of_bounds(address, size, access, pc, place, "");
        const Region& region = regions[place.index];
        place.begin = region_begin[place.index];
        place.extent = region.bytes;
        const u64 within = place.offset - place.begin;
        if (within >= region.bytes || size > region.bytes - within)
            out_of_bounds(address, size, access, pc, place, "");
        if (!region.writable) {
            if (access != kRead) out_of_bounds(address, size, access, pc, place, "const");
            if (region.poisoned && may_be_poison(address, size))
                check_initialised(place, place.offset, size, pc);
            return;
        }
        floor = state.launch_clock;
    } else if (address - static_shared.base < static_shared.bytes) {
        place.tracked = &static_shared;
        place.offset = address - static_shared.base;
        place.index = variable_of_word[place.offset >> 2] - 1;
        if (place.index < 0) out_of_bounds(address, size, access, pc, place, "");
        const Variable& variable = variables[place.index];
        place.begin = variable.offset;
        place.extent = variable.bytes;
        const u64 within = place.offset - place.begin;
        if (within >= variable.bytes || size > variable.bytes - within)
            out_of_bounds(address, size, access, pc, place, "");
        floor = state.block_clock;
    } else if (address - dynamic_shared.base < kDynamicSharedBytes) {
        place.tracked = &dynamic_shared;
        place.offset = address - dynamic_shared.base;
        place.index = 0;
        place.begin = 0;
        place.extent = dynamic_shared.bytes;
        if (place.offset + size > dynamic_shared.bytes)
            out_of_bounds(address, size, access, pc, place, "");
        floor = state.block_clock;
    } else {
        const auto image = reinterpret_cast<Address>(state.launch->image_begin);
        if (address - image < reinterpret_cast<Address>(state.launch->image_end) - image) return;
        place.tracked = nullptr;
        out_of_bounds(address, size, access, pc, place, "");
    }
    if (((address | size) & 3) == 0) {
        check_words(place, size, access, pc, floor);
    } else {
        check_bytes(place, size, access, pc, floor);
    }
}

}  // namespace emulator
