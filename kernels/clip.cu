// Gradient clipping over flat buffers of gradients, in place.
//
//   norm    sqrt(sum of g squared), over one or several buffers
//   scale   g *= min(1, max_norm / (norm + 1e-6))
//   clamp   g = min(max(g, -limit), limit)
//
// sum_of_squares: a block adds the squares of one chunk. A thread takes four consecutive elements of
// every 1024, then the 256 sums are added pairwise through shared memory. clip_coefficient: one
// block adds the sums of the chunks in the same way. gradient_norm: both in one launch, over the parts
// of an optimizer's step, whose gradients may lie in slices; a block takes every gridDim.x-th part,
// and the last block to finish adds the sums of all. Sums are kept in double precision, so that the
// square of any float fits, and the order of additions depends on the sizes alone. The coefficient
// stays in device memory: the host never waits. Traffic is 4 bytes per element for the norm, 8 for
// scale and clamp: memory-bound. A NaN or an infinite norm makes every gradient NaN or 0, as in
// PyTorch. Any n.

#include "common.cuh"
#include "last_block.cuh"
#include "update.cuh"

constexpr int CLIP_THREADS = 256;

// The sum of all threads' values, for thread 0.
__device__ __forceinline__ double block_sum(double value) {
    __shared__ double sums[CLIP_THREADS];
    const int t = threadIdx.x;
    sums[t] = value;
    for (int half = CLIP_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();  // the upper half's sums are written by other threads
        if (t < half) sums[t] += sums[t + half];
    }
    return sums[t];
}

extern "C" __global__ void __launch_bounds__(CLIP_THREADS) sum_of_squares(
    double* __restrict__ partial,  // (chunks)
    const float* __restrict__ g,   // (n)
    int n, int chunk) {            // chunk is a multiple of 4
    const unsigned begin = blockIdx.x * (unsigned)chunk, total = n;
    const unsigned end = total - begin < (unsigned)chunk ? total : begin + chunk;
    double sum = 0.0;
    for (unsigned i = begin + threadIdx.x * 4u; i < end; i += CLIP_THREADS * 4u) {
        const float4 v = load_four(g, i, end);
        sum += (double)v.x * v.x + (double)v.y * v.y + (double)v.z * v.z + (double)v.w * v.w;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// One block: the norm and the coefficient from the sums of the chunks.
__device__ __forceinline__ void join_norm(
    float* norm, float* coefficient, const volatile double* partial, int chunks, float max_norm) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < chunks; i += CLIP_THREADS) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x != 0) return;
    const double length = sqrt(sum), share = max_norm / (length + 1e-6);
    *norm = (float)length;
    *coefficient = share > 1.0 ? 1.0f : (float)share;
}

extern "C" __global__ void __launch_bounds__(CLIP_THREADS) clip_coefficient(
    float* __restrict__ norm,             // (1)
    float* __restrict__ coefficient,      // (1)
    const double* __restrict__ partial,   // (chunks)
    int chunks, float max_norm) {
    join_norm(norm, coefficient, partial, chunks, max_norm);
}

extern "C" __global__ void __launch_bounds__(CLIP_THREADS) gradient_norm(
    float* __restrict__ norm,          // (1)
    float* __restrict__ coefficient,   // (1)
    double* partial,                   // (blocks)
    unsigned* __restrict__ arrived,    // (1): 0, last_block.cuh
    float* __restrict__ g,             // (n), updated where it is summed
    const int* __restrict__ table,     // (parts, 15): update.cuh
    const float* __restrict__ slices,  // of parts that are summed
    int parts, float max_norm) {
    double sum = 0.0;
    for (int row = blockIdx.x; row < parts; row += gridDim.x) {
        const Part part = part_of_table(table, row);
        const Quad quad = quad_of(part);
        const float4 v = gradient_of(part, quad, g, slices);
        if (threadIdx.x < SLICE_THREADS >> part.lane_bits && quad.count) {
            if (part.slices) store_quad(g + quad.at, quad.count, v);
            sum += (double)v.x * v.x + (double)v.y * v.y + (double)v.z * v.z + (double)v.w * v.w;
        }
        __syncthreads();  // lane 0 has read the sums that the next part replaces
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
    if (last_to_arrive(arrived, gridDim.x))
        join_norm(norm, coefficient, partial, gridDim.x, max_norm);
}

extern "C" __global__ void clip_scale(
    float* __restrict__ g,                  // (n), updated
    const float* __restrict__ coefficient,  // (1)
    int n) {
    const float factor = *coefficient;
    map_four(g, g, n, [factor](float v) { return factor * v; });
}

extern "C" __global__ void clip_clamp(
    float* __restrict__ g,  // (n), updated
    int n, float limit) {
    map_four(g, g, n, [limit](float v) { return v > limit ? limit : v < -limit ? -limit : v; });
}
