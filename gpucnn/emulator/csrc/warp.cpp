// Warp-level operations: shuffles, votes, matches, reductions and __syncwarp are one rendezvous of
// the lanes named by a mask, after which each lane has its own result.
#include <cstdio>

#include "count.h"

namespace emulator {

void release_lanes(u32 warp, u32 lanes);
void complete_multiply(Thread* lanes);
void complete_load(Thread* lanes);
u64 multiply_flops(u32 shape);

namespace {

// Mirrored in include/gpucnn_warp.h.
enum Operation : u32 {
    kSync,
    kShuffle,
    kBallot,
    kMatchAny,
    kMatchAll,
    kReduceAdd,
    kReduceMinSigned,
    kReduceMaxSigned,
    kReduceMinUnsigned,
    kReduceMaxUnsigned,
    kReduceAnd,
    kReduceOr,
    kReduceXor,
    kMultiply,
    kLoad,
};

// What a lane outside the mask hands out, undefined on a GPU: a NaN as float and as double, so that
// a result that depends on it stands out.
constexpr u64 kUndefined = 0x7FF7DEAD7FF7DEADull;

u64 reduce(u32 operation, u64 a, u64 b) {
    const auto sa = static_cast<std::int32_t>(a), sb = static_cast<std::int32_t>(b);
    const auto ua = static_cast<u32>(a), ub = static_cast<u32>(b);
    switch (operation) {
        case kReduceAdd:
            return ua + ub;
        case kReduceMinSigned:
            return static_cast<u32>(sa < sb ? sa : sb);
        case kReduceMaxSigned:
            return static_cast<u32>(sa > sb ? sa : sb);
        case kReduceMinUnsigned:
            return ua < ub ? ua : ub;
        case kReduceMaxUnsigned:
            return ua > ub ? ua : ub;
        case kReduceAnd:
            return ua & ub;
        case kReduceOr:
            return ua | ub;
        default:
            return ua ^ ub;
    }
}

void complete(u32 operation, Thread* lanes, u32 group) {
    if (operation == kMultiply) return complete_multiply(lanes);
    if (operation == kLoad) return complete_load(lanes);
    u64 common = 0;
    bool first = true;
    for (u32 rest = group; rest; rest &= rest - 1) {
        const u32 lane = static_cast<u32>(__builtin_ctz(rest));
        const u64 value = lanes[lane].value;
        if (operation == kBallot) {
            common |= (value != 0 ? u64{1} : 0) << lane;
        } else if (operation == kMatchAll) {
            if (first) common = group;
            if (value != lanes[__builtin_ctz(group)].value) common = 0;
        } else if (operation >= kReduceAdd) {
            common = first ? value : reduce(operation, common, value);
        }
        first = false;
    }
    for (u32 rest = group; rest; rest &= rest - 1) {
        const u32 lane = static_cast<u32>(__builtin_ctz(rest));
        Thread& t = lanes[lane];
        t.result = common;
        if (operation == kShuffle) {
            t.result = group >> t.argument & 1 ? lanes[t.argument].value : kUndefined;
        } else if (operation == kMatchAny) {
            u64 same = 0;
            for (u32 others = group; others; others &= others - 1) {
                const u32 other = static_cast<u32>(__builtin_ctz(others));
                if (lanes[other].value == t.value) same |= u64{1} << other;
            }
            t.result = same;
        }
    }
}

void order_lanes(Warp& warp, u32 group) {
    const u64 clock = ++state.clock;
    if (group == warp.live) {
        warp.full_clock = clock;
        return;
    }
    for (u32 a = group; a; a &= a - 1)
        for (u32 b = group; b; b &= b - 1)
            warp.pair_clock[__builtin_ctz(a)][__builtin_ctz(b)] = clock;
}

void count_operation(u32 operation, u32 warp, u32 group, u32 existing) {
    const Thread& first = state.threads[warp * 32 + static_cast<u32>(__builtin_ctz(group))];
    if (group == existing) count_rendezvous(warp);
    if (operation == kLoad) return;
    if (operation == kMultiply)
        return count_event(kMatrixEvent, first.pc, multiply_flops(first.argument));
    const Event event = operation == kSync         ? kSyncEvent
                        : operation == kShuffle    ? kShuffleEvent
                        : operation >= kReduceAdd ? kReduceEvent
                                                   : kVoteEvent;
    count_event(event, first.pc, 1);
}

}  // namespace
}  // namespace emulator

using namespace emulator;

EXPORT u64 gpucnn_warp(u32 mask, u32 operation, u64 value, u32 argument) {
    const u32 warp_number = state.current >> 5, lane = state.current & 31;
    Thread* lanes = &state.threads[warp_number * 32];
    Thread& self = lanes[lane];
    Warp& warp = state.warps[warp_number];
    self.pc = CALLER;
    auto fail = [&](const char* format, u32 a, u32 b) {
        std::snprintf(state.fault.text, sizeof state.fault.text, format, a, b);
        raise_fault(kBadMask, self.pc);
    };
    if (!(mask >> lane & 1)) fail("own lane %u is not in mask 0x%08x", lane, mask);
    // Lanes past the end of a partial last warp were never there, and nobody waits for them.
    const u32 rest = state.thread_count - warp_number * 32;
    const u32 existing = rest >= 32 ? ~0u : (1u << rest) - 1;
    const u32 exited = mask & existing & ~warp.live;
    if (exited)
        fail("exited lane %u in mask 0x%08x", static_cast<u32>(__builtin_ctz(exited)), mask);
    const u32 group = mask & existing;
    if (operation >= kMultiply && group != ~0u)
        fail("%u lanes of mask 0x%08x for a matrix instruction, which takes a full warp",
             static_cast<u32>(__builtin_popcount(group)), mask);
    bool complete_now = true;
    for (u32 others = group & ~(1u << lane); others; others &= others - 1) {
        const u32 other = static_cast<u32>(__builtin_ctz(others));
        const Thread& t = lanes[other];
        if (t.state != kAtWarp) {
            complete_now = false;
        } else if (t.mask != mask || t.warp_operation != operation) {
            Fault& fault = state.fault;
            fault.has_other = 1;
            fault.other_pc = t.pc;
            describe_thread(warp_number * 32 + other, fault.other_thread);
            fail(t.mask != mask ? "meets mask 0x%08x with mask 0x%08x" : "different operations",
                 t.mask, mask);
        }
    }
    self.state = kAtWarp;
    warp.waiting |= 1u << lane;
    self.mask = mask;
    self.warp_operation = static_cast<u8>(operation);
    self.value = value;
    self.argument = argument;
    if (complete_now) {
        warp.waiting &= ~group;
        complete(operation, lanes, group);
        order_lanes(warp, group);
        if (state.launch->count) count_operation(operation, warp_number, group, existing);
        release_lanes(warp_number, group);
    }
    wait_for_release();
    return self.result;
}

EXPORT u32 gpucnn_active_mask() { return state.warps[state.current >> 5].live; }
