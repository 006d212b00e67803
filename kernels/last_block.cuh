// What blocks leave behind is joined by those of them that come last, in the same launch.
//
// Blocks that take the chunks 0 ... chunks - 1 of one sum arrive in any order. Each counts itself; the
// last of 32 neighbours joins what they left, and the last of these that of all. Who joins changes
// from run to run, in which order never does. A joiner in the first round reads 32 parts and the one
// in the second as many as there are groups: one alone would read them all, while the GPU waits.
//
//   chunk    0 1 2 ... 31 | 32 33 ... 63 | 64 ...
//   round 1  joined in 0  | joined in 32 | ...       the last one of each group
//   round 2  chunks 0, 32, 64, ...                   the last group
//
// Counters are back at 0 when the launch ends: atomicInc begins again behind the last.

constexpr int JOINED_AT_ONCE = 32;

// Whether this block is the last of `blocks` to come here, the same answer in all its threads. What
// the others wrote before they came can be read then.
__device__ __forceinline__ bool last_to_arrive(unsigned* arrived, int blocks) {
    __threadfence();  // what this thread wrote is seen by whoever sees its block arrive
    __syncthreads();
    bool last = false;
    if (threadIdx.x == 0 && threadIdx.y == 0) {
        last = atomicInc(arrived, blocks - 1) == (unsigned)blocks - 1;
        __threadfence();  // what is read from here on is no older than the count
    }
    return __syncthreads_or(last);
}

// Calls join(first, step, count, last) where this block is the one to join chunks first, first + step,
// ..., `count` of them: into chunk `first`, or, where `last`, for good. The sum is number `sum` of those
// that the blocks of a launch work on; each has 1 + groups counters.
template <class Join>
__device__ __forceinline__ void join_chunks(
    unsigned* arrived, int sum, int chunk, int chunks, Join join) {
    const int group = chunk / JOINED_AT_ONCE, first = group * JOINED_AT_ONCE;
    const int groups = (chunks + JOINED_AT_ONCE - 1) / JOINED_AT_ONCE;
    arrived += (long long)sum * (1 + groups);
    const int count = min(JOINED_AT_ONCE, chunks - first);
    if (!last_to_arrive(arrived + 1 + group, count)) return;
    join(first, 1, count, groups == 1);
    if (groups == 1 || !last_to_arrive(arrived, groups)) return;
    join(0, JOINED_AT_ONCE, groups, true);
}

// The parts of a warp's lanes, pairwise; right in lane 0.
template <class Part>
__device__ __forceinline__ Part join_lanes(Part own) {
#pragma unroll
    for (int half = 16; half > 0; half /= 2) own = join(own, shuffled_down(own, half));
    return own;
}

// The parts of channels begin ... end - 1, a warp for each, joined in a fixed order: lane j takes
// parts j, j + 32, ..., and the lanes meet. It works on AT_ONCE channels at a time. Parts has none(), load(channel, first, chunk), store(channel,
// chunk, part) and finish(channel, part); of its Part there are join and shuffled_down.
template <int AT_ONCE, class Parts>
__device__ __forceinline__ void join_parts(
    const Parts& parts, int begin, int end, int first, int step, int count, bool last) {
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, lane = thread % 32;
    const int warps = blockDim.x * blockDim.y / 32;
    for (int c = begin + thread / 32; c < end; c += AT_ONCE * warps) {
        typename Parts::Part own[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) own[i] = Parts::none();
        for (int j = lane; j < count; j += 32) {
            typename Parts::Part part[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i)
                part[i] = c + i * warps < end ? parts.load(c + i * warps, first, first + j * step)
                                              : Parts::none();
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) own[i] = join(own[i], part[i]);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) own[i] = join_lanes(own[i]);
        if (lane != 0) continue;
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            if (c + i * warps >= end) break;
            if (last)
                parts.finish(c + i * warps, own[i]);
            else
                parts.store(c + i * warps, first, own[i]);
        }
    }
}
