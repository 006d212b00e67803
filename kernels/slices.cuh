// Sums over the slices of an array, in an order that depends on their number alone.
//
// Blocks that share a long sum leave its parts behind as `count` slices, side by side. A block of
// 256 threads adds them up for 256 >> lane_bits quads of four neighbouring elements: thread
// lane * quads + quad is one of 2^lane_bits lanes of a quad, which takes every 2^lane_bits-th
// slice; lane 0 then adds the sums of the lanes, in ascending order. Many slices of few elements
// keep as many loads in flight as few slices of many: eight of 16 bytes per thread.

constexpr int SLICE_THREADS = 256;
constexpr int SLICES_IN_FLIGHT = 8;

// The first `count` of four neighbours, 0 in place of the others: 16 bytes at once where they are
// aligned.
__device__ __forceinline__ float4 load_quad(const float* a, int count) {
    if (count >= 4 && aligned16(a)) return *reinterpret_cast<const float4*>(a);
    return make_float4(count > 0 ? a[0] : 0.0f, count > 1 ? a[1] : 0.0f, count > 2 ? a[2] : 0.0f,
                       count > 3 ? a[3] : 0.0f);
}

__device__ __forceinline__ void store_quad(float* y, int count, float4 v) {
    if (count >= 4 && aligned16(y)) {
        *reinterpret_cast<float4*>(y) = v;
        return;
    }
    if (count > 0) y[0] = v.x;
    if (count > 1) y[1] = v.y;
    if (count > 2) y[2] = v.z;
    if (count > 3) y[3] = v.w;
}

__device__ __forceinline__ void add_quad(float4& sum, float4 v) {
    sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
}

// Which quad of its block a thread works on, and in which lane.
__device__ __forceinline__ int quad_of_thread(int lane_bits) {
    return threadIdx.x & ((SLICE_THREADS >> lane_bits) - 1);
}

// The sum of a quad, right in lane 0. part: the quad in the first slice; stride: elements between
// slices; left: how many of the four exist. All threads of the block take part.
__device__ __forceinline__ float4 sum_of_slices(
    const float* part, int count, long long stride, int left, int lane_bits) {
    __shared__ float4 sums[SLICE_THREADS];
    const int lanes = 1 << lane_bits, quads = SLICE_THREADS >> lane_bits;
    const int lane = threadIdx.x >> (8 - lane_bits);
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (left >= 4 && stride % 4 == 0 && aligned16(part)) {
        for (int first = lane; first < count; first += SLICES_IN_FLIGHT * lanes) {
            float4 parts[SLICES_IN_FLIGHT];
#pragma unroll
            for (int j = 0; j < SLICES_IN_FLIGHT; ++j) {
                const int slice = first + j * lanes;
                parts[j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (slice < count)
                    parts[j] = *reinterpret_cast<const float4*>(part + slice * stride);
            }
#pragma unroll
            for (int j = 0; j < SLICES_IN_FLIGHT; ++j) add_quad(sum, parts[j]);
        }
    } else if (left > 0) {
        for (int slice = lane; slice < count; slice += lanes)
            add_quad(sum, load_quad(part + slice * stride, left));
    }
    if (lanes == 1) return sum;
    sums[threadIdx.x] = sum;
    __syncthreads();  // lane 0 reads what the others have written
    if (lane == 0)
        for (int other = 1; other < lanes; ++other) add_quad(sum, sums[other * quads + threadIdx.x]);
    return sum;
}
