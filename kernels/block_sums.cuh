// Sums over a block's lanes, kept in registers by many threads: what a weight gradient ends with.
//
// A block's threads are `lanes` lanes of `owners` owners: thread lane * owners + owner holds in `own`
// a part of each of the owner's VALUES sums; threads behind the last lane hold nothing. Lanes are
// added pairwise, upper half to lower half, so that the order depends on `lanes` alone; the sums are
// right in lane 0. scratch: VALUES * 128 floats, one per thread of the upper half, side by side.
template <int VALUES>
__device__ __forceinline__ void add_lanes(float* scratch, float (&own)[VALUES], int lanes, int owners) {
    constexpr int SLOTS = 128;
    const int thread = threadIdx.x, lane = thread / owners;
    while (lanes > 1) {
        const int half = (lanes + 1) / 2;
        __syncthreads();  // scratch, or what lay in its place, was read by all
        if (lane >= half && lane < lanes)
#pragma unroll
            for (int i = 0; i < VALUES; ++i) scratch[i * SLOTS + thread - half * owners] = own[i];
        __syncthreads();  // the upper half has written
        if (lane + half < lanes)
#pragma unroll
            for (int i = 0; i < VALUES; ++i) own[i] += scratch[i * SLOTS + thread];
        lanes = half;
    }
}
