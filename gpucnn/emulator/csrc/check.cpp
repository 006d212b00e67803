// Memory as the checks see it: where arguments are placed, and what happens off the hot path.
#include "check.h"

#include <sys/mman.h>

#include <cstdio>
#include <utility>
#include <vector>

extern char gpucnn_dynamic_shared[];

namespace emulator {

Tracked arena{0, 0, nullptr, nullptr, kGlobal};
Tracked static_shared{0, 0, nullptr, nullptr, kStaticShared};
Tracked dynamic_shared{0, 0, nullptr, nullptr, kDynamicShared};
u16* region_of_granule;
u16* variable_of_word;
Region* regions;
u64* region_begin;
const Variable* variables;

namespace {

constexpr u64 kGranule = u64{1} << kGranuleShift;
constexpr u64 kSmallestGap = 4096, kLargestGap = 1 << 20;
constexpr u64 kKeptArenaBytes = 64 << 20;

// Zeroed address space that costs memory only where it is touched.
struct Mapping {
    void* memory = nullptr;
    u64 bytes = 0;

    void* reserve(u64 wanted) {
        if (wanted <= bytes) return memory;
        release();
        void* found = mmap(nullptr, wanted, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (found == MAP_FAILED) return nullptr;
        bytes = wanted;
        return memory = found;
    }
    void release() {
        if (memory) munmap(memory, bytes);
        memory = nullptr;
        bytes = 0;
    }
};

Mapping arena_memory, arena_cells, arena_bytes, static_cells, static_bytes, dynamic_cells,
    dynamic_bytes;
std::vector<u16> granules, words;
std::vector<u64> begins;

Mapping& byte_mapping(const Tracked& tracked) {
    return tracked.space == kGlobal         ? arena_bytes
           : tracked.space == kStaticShared ? static_bytes
                                            : dynamic_bytes;
}

u64 round_up(u64 value, u64 unit) { return (value + unit - 1) / unit * unit; }

u64 gap_for(u64 bytes) {
    const u64 gap = round_up(bytes, kGranule);
    return gap < kSmallestGap ? kSmallestGap : gap > kLargestGap ? kLargestGap : gap;
}

// Arguments are copied apart, with gaps that belong to nobody, so that an overrun cannot end
// unnoticed in a neighbouring array. Alignment stays what it would be in a 256-byte aligned
// allocation, as on the GPU.
bool place_regions(Launch& launch) {
    begins.assign(launch.region_count, 0);
    u64 at = kLargestGap;
    for (u64 i = 0; i < launch.region_count; ++i) {
        const Region& region = launch.regions[i];
        if (i)
            at += gap_for(region.bytes > launch.regions[i - 1].bytes ? region.bytes
                                                                     : launch.regions[i - 1].bytes);
        at = round_up(at, kGranule) + region.misalignment % kGranule;
        begins[i] = at;
        at += region.bytes;
    }
    const u64 bytes = round_up(at + kLargestGap, kGranule);
    auto* memory = static_cast<u8*>(arena_memory.reserve(bytes));
    if (!memory) return false;
    arena.base = reinterpret_cast<Address>(memory);
    arena.bytes = bytes;
    arena.cells = static_cast<Cell*>(arena_cells.reserve(bytes / 4 * sizeof(Cell)));
    if (!arena.cells) return false;
    if (arena.byte_cells)
        arena.byte_cells = static_cast<Cell*>(arena_bytes.reserve(bytes * sizeof(Cell)));
    granules.assign(bytes >> kGranuleShift, 0);
    for (u64 i = 0; i < launch.region_count; ++i) {
        Region& region = launch.regions[i];
        region.device = memory + begins[i];
        if (region.bytes == 0) continue;
        std::memcpy(region.device, region.host, region.bytes);
        for (u64 g = begins[i] >> kGranuleShift;
             g <= (begins[i] + region.bytes - 1) >> kGranuleShift; ++g)
            granules[g] = static_cast<u16>(i + 1);
    }
    region_of_granule = granules.data();
    region_begin = begins.data();
    regions = launch.regions;
    return true;
}

Address static_shared_base(const Launch& launch) {
    return reinterpret_cast<Address>(launch.static_shared()) - launch.anchor_offset;
}

bool reserve_shared_cells(const Launch& launch) {
    static_shared.cells = static_cast<Cell*>(
        static_cells.reserve((launch.static_shared_bytes / 4 + 1) * sizeof(Cell)));
    dynamic_shared.cells =
        static_cast<Cell*>(dynamic_cells.reserve(kDynamicSharedBytes / 4 * sizeof(Cell)));
    return static_shared.cells && dynamic_shared.cells;
}

bool place_shared(const Launch& launch) {
    static_shared.base = static_shared_base(launch);
    static_shared.bytes = launch.static_shared_bytes;
    if (static_shared.byte_cells)
        static_shared.byte_cells = static_cast<Cell*>(
            static_bytes.reserve((launch.static_shared_bytes + 4) * sizeof(Cell)));
    words.assign(launch.static_shared_bytes / 4 + 1, 0);
    for (u64 i = 0; i < launch.variable_count; ++i) {
        const Variable& v = launch.variables[i];
        for (u64 w = v.offset / 4; w < (v.offset + v.bytes + 3) / 4; ++w)
            words[w] = static_cast<u16>(i + 1);
    }
    variable_of_word = words.data();
    variables = launch.variables;
    dynamic_shared.base = reinterpret_cast<Address>(gpucnn_dynamic_shared);
    dynamic_shared.bytes = launch.shared_bytes;
    return reserve_shared_cells(launch);
}

// The shared memory of a block that waits for others, and what is known of it.
struct PutAway {
    std::vector<u8> statics, dynamic;
    Mapping static_cells, static_bytes, dynamic_cells, dynamic_bytes;
};

std::vector<PutAway> put_away;  // by turn of the block

void swap_cells(PutAway& other) {
    std::swap(static_cells, other.static_cells);
    std::swap(static_bytes, other.static_bytes);
    std::swap(dynamic_cells, other.dynamic_cells);
    std::swap(dynamic_bytes, other.dynamic_bytes);
    static_shared.byte_cells = static_cast<Cell*>(static_bytes.memory);
    dynamic_shared.byte_cells = static_cast<Cell*>(dynamic_bytes.memory);
}

void forget_put_away() {
    for (PutAway& block : put_away)
        for (Mapping* m : {&block.static_cells, &block.static_bytes, &block.dynamic_cells,
                           &block.dynamic_bytes})
            m->release();
    put_away.clear();
}

std::vector<std::vector<u8>> unaligned_copies;

// Without checks kernels work on the host's arrays in place, unless a vector load that is aligned
// on a GPU would not be aligned there.
void place_in_host_memory(Launch& launch) {
    unaligned_copies.clear();
    for (u64 i = 0; i < launch.region_count; ++i) {
        Region& region = launch.regions[i];
        region.device = region.host;
        if ((reinterpret_cast<Address>(region.host) - region.misalignment) % 16 == 0) continue;
        unaligned_copies.emplace_back(region.bytes + 2 * kGranule);
        const auto start = reinterpret_cast<Address>(unaligned_copies.back().data());
        region.device =
            reinterpret_cast<u8*>(round_up(start, kGranule) + region.misalignment % kGranule);
        std::memcpy(region.device, region.host, region.bytes);
    }
}

void locate(Fault& fault, const Place& place, u32 size, Access access, u64 offset) {
    fault.size = size;
    fault.is_write = access != kRead;
    if (!place.tracked) return;
    fault.space = place.tracked->space;
    fault.index = place.index;
    fault.extent = place.extent;
    fault.offset = static_cast<std::int64_t>(offset) - static_cast<std::int64_t>(place.begin);
}

// The region or variable that an address outside all of them is closest to.
void nearest(Place& place) {
    if (!place.tracked || place.index >= 0) return;
    const bool global = place.tracked->space == kGlobal;
    const u64 count = global ? state.launch->region_count : state.launch->variable_count;
    u64 best = ~u64{0};
    for (u64 i = 0; i < count; ++i) {
        const u64 begin = global ? region_begin[i] : variables[i].offset;
        const u64 bytes = global ? regions[i].bytes : variables[i].bytes;
        const u64 distance =
            place.offset < begin ? begin - place.offset : place.offset - (begin + bytes);
        if (distance < best && (global || begin != state.launch->anchor_offset)) {
            best = distance;
            place.index = static_cast<std::int32_t>(i);
            place.begin = begin;
            place.extent = bytes;
        }
    }
}

u32 poison_word(u64 chunk, u32 salt) {
    u32 h = static_cast<u32>(chunk) * 0x9E3779B1u ^ salt;
    h = (h ^ (h >> 15)) * 0x85EBCA6Bu;
    return kPoisonUpper << 16 | h >> 16;
}

}  // namespace

bool memory_begin_launch(Launch& launch) {
    if (launch.check) return place_regions(launch) && place_shared(launch);
    place_in_host_memory(launch);
    return true;
}

bool memory_change_block(u32 from, u32 to) {
    const Launch& launch = *state.launch;
    auto* statics = reinterpret_cast<u8*>(static_shared_base(launch));
    auto* dynamic = reinterpret_cast<u8*>(gpucnn_dynamic_shared);
    if (from != kNobody) {
        if (put_away.size() <= from) put_away.resize(from + 1);
        PutAway& own = put_away[from];
        own.statics.assign(statics, statics + launch.static_shared_bytes);
        own.dynamic.assign(dynamic, dynamic + launch.shared_bytes);
        swap_cells(own);
    }
    if (to < put_away.size() && !put_away[to].statics.empty()) {
        PutAway& other = put_away[to];
        std::memcpy(statics, other.statics.data(), other.statics.size());
        std::memcpy(dynamic, other.dynamic.data(), other.dynamic.size());
        swap_cells(other);
    }
    return !launch.check || reserve_shared_cells(launch);
}

void memory_end_launch(Launch& launch, bool keep_results) {
    forget_put_away();
    for (u64 i = 0; keep_results && i < launch.region_count; ++i) {
        const Region& region = launch.regions[i];
        if (region.writable && region.device != region.host && region.bytes)
            std::memcpy(region.host, region.device, region.bytes);
    }
    unaligned_copies.clear();
    if (arena_memory.bytes > kKeptArenaBytes) {
        arena_memory.release();
        arena_cells.release();
        arena_bytes.release();
        arena.byte_cells = nullptr;
    }
}

void out_of_bounds(Address address, u32 size, Access access, Address pc, const Place& place,
                   const char* text) {
    Fault& fault = state.fault;
    fault.index = -1;
    fault.address = address;
    Place found = place;
    nearest(found);
    locate(fault, found, size, access, place.tracked ? place.offset : 0);
    std::snprintf(fault.text, sizeof fault.text, "%s", text);
    raise_fault(kOutOfBounds, pc);
}

void report_race(const Place& place, u32 size, Access access, Address pc, const Cell& cell,
                 bool with_write) {
    Fault& fault = state.fault;
    locate(fault, place, size, access, place.offset);
    const u64 record = with_write ? cell.write : cell.read;
    const u64 clock = record >> 16;
    fault.has_other = 1;
    fault.other_pc = (with_write ? cell.write_pc : cell.read_pc) +
                     reinterpret_cast<Address>(state.launch->image_begin);
    u32 other = static_cast<u32>(record) & (kMaxThreads - 1);
    if (!with_write) {
        const u32 own = state.current;
        const u32 warp = static_cast<u32>(record) & (kMaxWarps - 1);
        u32 lanes = cell.lanes;
        if (warp == own >> 5 && (lanes & ~(1u << (own & 31)))) lanes &= ~(1u << (own & 31));
        other = warp * 32 + static_cast<u32>(__builtin_ctz(lanes));
    }
    describe_thread(other, fault.other_thread);
    describe_block_at(clock, fault.other_block);
    const bool other_reader = !with_write && (cell.read & kOtherBlockBit) && !other_block(clock);
    std::snprintf(fault.text, sizeof fault.text, "%s%s%s%s",
                  with_write ? (cell.write & kAtomicBit ? "updated atomically" : "wrote") : "read",
                  other_block(clock) || other_reader ? " blocks" : "",
                  other_reader ? " unknown" : "", has_acquired() ? " unfenced" : "");
    raise_fault(kRace, pc);
}

void report_uninitialised(const Place& place, u32 size, Address pc) {
    if (state.unwritten.kind != kNoFault) return;
    locate(state.unwritten, place, size, kRead, place.offset);
    complete_fault(state.unwritten, kUninitialisedRead, pc);
}

bool still_poison(const Region& region, u64 region_offset, u32 size) {
    // Only whole words of the allocation count: a shorter piece could equal the pattern by chance.
    for (u64 at = region_offset; at < region_offset + size;) {
        const u64 position = region.poison_offset + at;
        const u64 word_at = at - position % 4;
        if (position % 4 <= at && word_at + 4 <= region.bytes) {
            u32 value;
            std::memcpy(&value, region.device + word_at, 4);
            if (value == poison_word(position / 4, region.poisoned)) return true;
        }
        at += 4 - position % 4;
    }
    return false;
}

void check_initialised(const Place& place, u64 offset, u32 size, Address pc) {
    if (place.tracked->space != kGlobal) return report_uninitialised(place, size, pc);
    const Region& region = regions[place.index];
    if (region.poisoned && still_poison(region, offset - place.begin, size))
        report_uninitialised(place, size, pc);
}

void check_split_word(const Place& place, u64 word, u32 size, Access access, Address pc,
                      u64 floor) {
    bool all_written = true;
    const bool whole_written = place.tracked->cells[word].write >> 16 >= floor;
    for (u64 i = word * 4; i < word * 4 + 4; ++i) {
        Cell& cell = place.tracked->byte_cells[i];
        if (write_conflicts(cell, access, floor)) report_race(place, size, access, pc, cell, true);
        if (access != kRead && read_conflicts(cell, floor))
            report_race(place, size, access, pc, cell, false);
        all_written = all_written && cell.write >> 16 >= floor;
    }
    if (access == kRead && !all_written && !whole_written)
        check_initialised(place, word * 4, 4, pc);
}

void check_bytes(const Place& place, u32 size, Access access, Address pc, u64 floor) {
    Tracked& tracked = *place.tracked;
    if (!tracked.byte_cells) {
        const u64 bytes =
            (tracked.space == kDynamicShared ? kDynamicSharedBytes : tracked.bytes) + 4;
        tracked.byte_cells =
            static_cast<Cell*>(byte_mapping(tracked).reserve(bytes * sizeof(Cell)));
        if (!tracked.byte_cells) return;
    }
    for (u64 offset = place.offset; offset < place.offset + size; ++offset) {
        Cell& word = tracked.cells[offset >> 2];
        Cell& cell = tracked.byte_cells[offset];
        for (const Cell* c : {&word, &cell}) {
            if (write_conflicts(*c, access, floor)) report_race(place, size, access, pc, *c, true);
            if (access != kRead && read_conflicts(*c, floor))
                report_race(place, size, access, pc, *c, false);
        }
        word.split = 1;
        if (access == kRead) {
            if (word.write >> 16 < floor && cell.write >> 16 < floor)
                check_initialised(place, offset, 1, pc);
            record_read(cell, floor, pc);
        } else {
            record_write(cell, access, pc);
        }
    }
}

}  // namespace emulator

// The pattern that a fresh array of `words` words starts with.
EXPORT void gpucnn_poison(emulator::u32* memory, emulator::u64 words, emulator::u32 salt) {
    for (emulator::u64 i = 0; i < words; ++i) memory[i] = emulator::poison_word(i, salt);
}
