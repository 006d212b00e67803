// Groups the accesses of lanes into requests of warps, and folds each complete request into the
// counters of its instruction.
//
// Lanes run one after another, so a request is put together piece by piece: the n-th execution of
// an instruction by each lane of a warp, since the last barrier of the block or the last warp
// operation in which the whole warp took part, is one request. It is complete when every lane that
// has not returned took part; what is still open when the next barrier opens never will be, because
// lanes diverged, and is folded as it is.
#include "count.h"

#include <algorithm>
#include <array>
#include <memory>
#include <unordered_map>
#include <vector>

#include "check.h"

namespace emulator {
namespace {

constexpr u32 kSectorWords = 8, kBanks = 32;
// A warp whose lanes run further apart than this, with no barrier in between, has its oldest
// requests folded incomplete.
constexpr std::size_t kMostOpen = std::size_t{1} << 20;
constexpr u32 kFolded = 0;  // the mask of a request that no lane can join any more

struct Request {
    u32 lanes;     // that took part
    u32 word[32];  // address of each lane's access, in words from the start of its space
};

// The requests of one warp at one instruction.
struct Queue {
    u64 since = 0;                 // clock of the synchronisation behind which executions count
    u64 folded = 0;                // requests before the first open one
    std::size_t head = 0;          // of the first open request in `open`
    std::vector<Request> open;
    std::array<u64, 32> executed;  // by each lane
};

struct Site {
    AccessCount count{};
    std::array<std::unique_ptr<Queue>, kMaxWarps> queues;
    u32 next = 0;  // site + 1 of the same instruction, with another space or size
};

std::vector<Site> sites;
std::vector<u32> site_of_pc;  // by offset in the library: site + 1
std::vector<AccessCount> access_counts;
std::vector<EventCount> event_counts;
std::unordered_map<u64, u64> events;  // pc << 3 | event -> times
std::vector<u64> read_sectors, written_sectors;  // one bit for each sector of the arena
u64 rendezvous_clock[kMaxWarps];
u64 barrier_block, barriers, most_barriers;
std::vector<u64> barriers_put_away;  // of blocks that wait for others, by turn
Counts counts;

// The distinct values among those that `at` gives for the lanes of a request, in order of lane.
template <class F>
u32 distinct(u32 lanes, u32* found, F at) {
    u32 count = 0;
    for (; lanes; lanes &= lanes - 1) {
        const u32 value = at(static_cast<u32>(__builtin_ctz(lanes)));
        u32 i = count;
        while (i > 0 && found[i - 1] != value) --i;
        if (i == 0) found[count++] = value;
    }
    return count;
}

void mark(std::vector<u64>& sectors, u32 sector) {
    const std::size_t at = sector >> 6;
    if (at >= sectors.size()) sectors.resize(at + 1 + sectors.size() / 2);
    sectors[at] |= u64{1} << (sector & 63);
}

void fold_global(AccessCount& count, const Request& request) {
    u32 words[32], sectors[32];
    const u32 word_count = distinct(request.lanes, words, [&](u32 l) { return request.word[l]; });
    const u32 touched =
        distinct(request.lanes, sectors, [&](u32 l) { return request.word[l] / kSectorWords; });
    const u32 bytes = word_count * (count.size < 4 ? 4 : count.size);
    const u32 ideal = (bytes + 4 * kSectorWords - 1) / (4 * kSectorWords);
    count.sectors += touched;
    count.ideal_sectors += ideal;
    count.coalesced += touched <= ideal;
    if (count.access == kAtomic) return;
    auto& footprint = count.access == kRead ? read_sectors : written_sectors;
    for (u32 i = 0; i < touched; ++i) mark(footprint, sectors[i]);
}

// A shared-memory request of up to 4 bytes a lane goes over the banks at once, one of 8 bytes in two
// half-warps, one of 16 bytes in four quarter-warps. Each part takes as many wavefronts as the most
// words that it asks of one bank; lanes that ask for the same word share it.
void fold_shared(AccessCount& count, const Request& request) {
    const u32 words_per_lane = count.size <= 4 ? 1 : count.size / 4;
    const u32 lanes_per_part = 32 / words_per_lane;
    for (u32 first = 0; first < 32; first += lanes_per_part) {
        const u32 part = request.lanes & static_cast<u32>((u64{1} << lanes_per_part) - 1) << first;
        if (!part) continue;
        u32 words[32], asked[kBanks] = {}, most = 0;
        const u32 n = distinct(part, words, [&](u32 l) { return request.word[l]; });
        for (u32 i = 0; i < n; ++i)
            for (u32 w = 0; w < words_per_lane; ++w)
                most = std::max(most, ++asked[(words[i] + w) % kBanks]);
        count.wavefronts += most;
        count.conflicts += most - 1;
        count.worst = std::max(count.worst, most);
    }
}

void fold(AccessCount& count, Request& request) {
    if (request.lanes == kFolded) return;
    ++count.requests;
    count.lanes += static_cast<u32>(__builtin_popcount(request.lanes));
    count.space == kGlobal ? fold_global(count, request) : fold_shared(count, request);
    request.lanes = kFolded;
}

void close(AccessCount& count, Queue& queue, std::size_t end) {
    for (std::size_t i = queue.head; i < end; ++i) fold(count, queue.open[i]);
    queue.folded += end - queue.head;
    queue.head = end;
}

u32 site_at(Address pc, u32 space, u32 size, Access access) {
    const u64 offset = pc - reinterpret_cast<Address>(state.launch->image_begin);
    if (offset >= site_of_pc.size()) site_of_pc.resize(offset + 4096);
    u32* link = &site_of_pc[offset];
    while (*link) {
        Site& site = sites[*link - 1];
        const AccessCount& c = site.count;
        if (c.space == space && c.size == size && c.access == access) return *link - 1;
        link = &site.next;
    }
    *link = static_cast<u32>(sites.size()) + 1;
    Site& site = sites.emplace_back();  // leaves `link` dangling
    site.count.pc = offset;
    site.count.space = space;
    site.count.access = access;
    site.count.size = size;
    return static_cast<u32>(sites.size()) - 1;
}

void join(Site& site, u32 word) {
    const u32 warp = state.current >> 5, lane = state.current & 31;
    const u32 live = state.warps[warp].live;
    const u64 since = std::max(state.barrier_clock, rendezvous_clock[warp]);
    auto& slot = site.queues[warp];
    if (!slot) slot = std::make_unique<Queue>();
    Queue& queue = *slot;
    if (queue.since != since) {
        close(site.count, queue, queue.open.size());
        queue.open.clear();
        queue.head = 0;
        queue.folded = 0;
        queue.executed.fill(0);
        queue.since = since;
    }
    const u64 n = queue.executed[lane]++;
    if (n < queue.folded) {
        Request late{1u << lane, {}};
        late.word[lane] = word;
        return fold(site.count, late);
    }
    const std::size_t at = queue.head + (n - queue.folded);
    if (at == queue.open.size()) {
        if (queue.open.size() - queue.head >= kMostOpen) close(site.count, queue, queue.head + kMostOpen / 2);
        if (queue.head > 64 && queue.head > queue.open.size() / 2) {
            queue.open.erase(queue.open.begin(),
                             queue.open.begin() + static_cast<std::ptrdiff_t>(queue.head));
            queue.head = 0;
        }
        queue.open.push_back({kFolded, {}});
    }
    Request& request = queue.open[queue.head + (n - queue.folded)];
    request.lanes |= 1u << lane;
    request.word[lane] = word;
    if ((live & ~request.lanes) == 0) {
        fold(site.count, request);
        while (queue.head < queue.open.size() && queue.open[queue.head].lanes == kFolded) {
            ++queue.head;
            ++queue.folded;
        }
        if (queue.head == queue.open.size()) {
            queue.open.clear();
            queue.head = 0;
        }
    }
}

}  // namespace

void count_begin_launch() {
    sites.clear();
    site_of_pc.clear();
    events.clear();
    read_sectors.clear();
    written_sectors.clear();
    std::fill(std::begin(rendezvous_clock), std::end(rendezvous_clock), 0);
    barrier_block = barriers = most_barriers = 0;
    barriers_put_away.clear();
}

void count_access(Address address, u64 bytes, Access access, Address pc) {
    u32 space;
    u64 offset;
    if (address - arena.base < arena.bytes) {
        space = kGlobal;
        offset = address - arena.base;
    } else if (address - static_shared.base < static_shared.bytes) {
        space = kStaticShared;
        offset = address - static_shared.base;
    } else if (address - dynamic_shared.base < kDynamicSharedBytes) {
        space = kStaticShared;
        // Behind the static variables, where a GPU has it.
        offset = address - dynamic_shared.base + (static_shared.bytes + 127) / 128 * 128;
    } else {
        return;  // the stack, or constants of the library
    }
    if (bytes == 0) return;
    // A copy of more than 16 bytes, or of an odd size, goes in pieces of one size.
    const u64 bits = address | bytes | 16;
    const u32 piece = static_cast<u32>(bits & (~bits + 1));
    const u32 site = site_at(pc, space, piece, access);
    for (u64 at = offset; at < offset + bytes; at += piece)
        join(sites[site], static_cast<u32>(at >> 2));
}

void count_event(Event event, Address pc, u64 times) {
    events[(pc - reinterpret_cast<Address>(state.launch->image_begin)) << 3 | event] += times;
}

void count_barrier(Address pc) {
    count_event(kBarrierEvent, pc, 1);
    if (barrier_block != state.block_clock) {
        barrier_block = state.block_clock;
        barriers = 0;
    }
    most_barriers = std::max(most_barriers, ++barriers);
}

void count_change_block(u32 from, u32 to) {
    const std::size_t turns = std::max(from + 1, to + 1);  // kNobody + 1 is 0
    if (barriers_put_away.size() < turns) barriers_put_away.resize(turns);
    if (from != kNobody) barriers_put_away[from] = barriers;
    barriers = barriers_put_away[to];
    barrier_block = state.block_clock;
}

void count_rendezvous(u32 warp) { rendezvous_clock[warp] = state.clock; }

}  // namespace emulator

using namespace emulator;

// What the hooks of a kernel compiled for counting are called.
#define HOOKS(size)                                          \
    HOOK(read##size, size, kRead)                            \
    HOOK(write##size, size, kWrite)                          \
    HOOK(volatile_read##size, size, kRead)                   \
    HOOK(volatile_write##size, size, kWrite)                 \
    HOOK(unaligned_read##size, size, kRead)                  \
    HOOK(unaligned_write##size, size, kWrite)                \
    HOOK(unaligned_volatile_read##size, size, kRead)         \
    HOOK(unaligned_volatile_write##size, size, kWrite)
#define HOOK(name, size, access)                             \
    EXPORT void gpucnn_counted_##name(Address a) {           \
        check_access(a, size, access, CALLER);               \
        count_access(a, size, access, CALLER);               \
    }

HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

EXPORT void gpucnn_counted_read_range(Address a, u64 n) {
    if (n) check_access(a, static_cast<u32>(n), kRead, CALLER);
    count_access(a, n, kRead, CALLER);
}
EXPORT void gpucnn_counted_write_range(Address a, u64 n) {
    if (n) check_access(a, static_cast<u32>(n), kWrite, CALLER);
    count_access(a, n, kWrite, CALLER);
}

// The counters of the launch that has just run, valid until the next one begins.
EXPORT const Counts* gpucnn_counts() {
    access_counts.clear();
    for (Site& site : sites) {
        for (const auto& queue : site.queues)
            if (queue) close(site.count, *queue, queue->open.size());
        access_counts.push_back(site.count);
    }
    event_counts.clear();
    for (const auto& [key, times] : events)
        event_counts.push_back({key >> 3, static_cast<u32>(key & 7), 0, times});
    const auto bytes = [](const std::vector<u64>& sectors) {
        u64 touched = 0;
        for (u64 bits : sectors) touched += static_cast<u64>(__builtin_popcountll(bits));
        return touched * 4 * kSectorWords;
    };
    counts = {access_counts.data(),      event_counts.data(),    access_counts.size(),
              event_counts.size(),       bytes(read_sectors),    bytes(written_sectors),
              most_barriers};
    return &counts;
}
