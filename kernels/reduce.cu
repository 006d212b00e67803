// Sums and maxima in a fixed order, along an axis in the middle of an array.
//
//   axis_sum     partial[o][j][c] = factor * sum of x[o][r][c] over the rows r of chunk j
//   axis_max     the largest x[o][r][c], and the first r where it stands; a NaN is larger than all
//   spread       dx[o][r][c] = factor * dy[o][c], or dy[o][c] where r is index[o][c], else 0
//   sum_slices   y[i] = sum over s of partial[s][i] (+ bias[i % C])
//
// axis_sum, axis_max: a block of TX x TY threads takes TX columns and one chunk of the rows of one o.
// A thread goes through every TY-th row of its column, then the TY results of a column are joined
// pairwise through shared memory. TX is the power of two that covers C, 32 at most, so that a warp
// reads whole rows back to back also when there are few channels. Of several chunks the last block to
// finish reduces the partial results in the same way (last_block.cuh); rows too short for a block
// (C = 1) are transposed first, so that lanes run along o. sum_slices: slices.cuh, four elements per
// thread. spread: four consecutive elements per thread. The order of operations depends on the shape
// alone. 4 bytes per element: memory-bound. Any O, R, C. With BFLOAT16 the x of axis_sum and the y of
// sum_slices are bfloat16; all else is float.

#include "common.cuh"
#include "column_sum.cuh"
#include "last_block.cuh"
#include "slices.cuh"

// What a block works on: blockIdx.x counts column groups within chunks within o.
struct Part {
    long long o, begin, end, result;  // rows begin .. end - 1 of the whole x; o * chunks + chunk
    int c, sum;                       // this thread's column; o * groups + group
};
__device__ __forceinline__ Part part_of_block(int rows, int C, int chunks, int chunk_rows) {
    const unsigned groups = (C + blockDim.x - 1) / blockDim.x;
    const long long result = blockIdx.x / groups, o = result / chunks;
    const long long begin = result % chunks * chunk_rows;
    const long long end = min(begin + chunk_rows, (long long)rows);
    const int group = blockIdx.x % groups, c = group * blockDim.x + threadIdx.x;
    return {o, o * rows + begin, o * rows + end, result, c, (int)(o * groups) + group};
}

// Of rows begin .. end - 1 of x (rows, C), right in the threads with threadIdx.y == 0.
template <class T>
__device__ __forceinline__ float sum_of_rows(
    float* sums, const T* x, long long begin, long long end, int c, int C) {
    const int TY = blockDim.y;
    float sum = 0.0f;
    if (c < C)
#pragma unroll 4
        for (long long r = begin + threadIdx.y; r < end; r += TY) sum += to_float(x[r * C + c]);
    return sum_of_column(sums, sum);
}

extern "C" __global__ void __launch_bounds__(256) axis_sum(
    float* __restrict__ y,           // (O, C), null where chunks are left as they are
    float* __restrict__ partial,     // (O, chunks, C), null for one chunk
    unsigned* __restrict__ arrived,  // (O, groups of columns), zeros; null for one chunk, or without y
    const stored* __restrict__ x,    // (O, rows, C)
    int rows, int C, int chunks, int chunk_rows, float factor) {
    __shared__ float sums[256];
    const Part part = part_of_block(rows, C, chunks, chunk_rows);
    const int c = part.c;
    const bool writes = threadIdx.y == 0 && c < C;

    float sum = sum_of_rows(sums, x, part.begin, part.end, c, C);
    if (chunks > 1) {
        if (writes) partial[part.result * C + c] = sum;
        if (!arrived || !last_to_arrive(arrived + part.sum, chunks)) return;
        sum = sum_of_rows(sums, partial, part.o * chunks, (part.o + 1) * chunks, c, C);
    }
    if (writes) y[part.o * C + c] = factor * sum;
}

// Whether v at index i goes before w at index j: NaN first, then the larger, then the first.
__device__ __forceinline__ bool goes_before(float v, int i, float w, int j) {
    const bool v_is_nan = v != v, w_is_nan = w != w;
    if (v_is_nan != w_is_nan) return v_is_nan;
    if (v_is_nan || v == w) return i < j;
    return v > w;
}

// The first of the largest of rows begin .. end - 1 of x, right in the threads with threadIdx.y == 0.
// at: the index of each x; null where it is the row, counted from `first`.
struct Largest {
    float value;
    int place;
};
__device__ __forceinline__ Largest largest_of_rows(
    float* values, int* places, const float* x, const int* at, long long first, long long begin,
    long long end, int c, int C) {
    const int TX = blockDim.x, TY = blockDim.y, t = threadIdx.y * TX + threadIdx.x;
    // Behind every element, also where all are -inf.
    float best = -GPUCNN_INFINITY;
    int place = 0x7fffffff;
    if (c < C)
        for (long long r = begin + threadIdx.y; r < end; r += TY) {
            const float v = x[r * C + c];
            const int i = at ? at[r * C + c] : (int)(r - first);
            if (goes_before(v, i, best, place)) best = v, place = i;
        }
    values[t] = best, places[t] = place;

    for (int half = TY / 2; half > 0; half /= 2) {
        __syncthreads();  // the upper half's results are written by other warps
        const int other = t + half * TX;
        if (threadIdx.y < half && goes_before(values[other], places[other], values[t], places[t]))
            values[t] = values[other], places[t] = places[other];
    }
    return {values[t], places[t]};
}

extern "C" __global__ void __launch_bounds__(256) axis_max(
    float* __restrict__ y,           // (O, C)
    int* __restrict__ index,         // (O, C)
    float* __restrict__ partial,     // (O, chunks, C), null for one chunk
    int* __restrict__ at,            // (O, chunks, C): the index of each; null for one chunk
    unsigned* __restrict__ arrived,  // (O, groups of columns), zeros; null for one chunk
    const float* __restrict__ x,     // (O, rows, C)
    int rows, int C, int chunks, int chunk_rows) {
    __shared__ float values[256];
    __shared__ int places[256];
    const Part part = part_of_block(rows, C, chunks, chunk_rows);
    const int c = part.c;
    const bool writes = threadIdx.y == 0 && c < C;

    Largest best = largest_of_rows(
        values, places, x, nullptr, part.o * rows, part.begin, part.end, c, C);
    if (chunks > 1) {
        if (writes) {
            partial[part.result * C + c] = best.value;
            at[part.result * C + c] = best.place;
        }
        if (!last_to_arrive(arrived + part.sum, chunks)) return;
        const long long first = part.o * chunks;
        best = largest_of_rows(values, places, partial, at, first, first, first + chunks, c, C);
    }
    if (writes) y[part.o * C + c] = best.value, index[part.o * C + c] = best.place;
}

extern "C" __global__ void spread(
    float* __restrict__ dx,         // (O, rows, C)
    const float* __restrict__ dy,   // (O, C)
    const int* __restrict__ index,  // (O, C) or null
    int n, int rows, int C, float factor) {
    const unsigned first = first_of_four();
    if (first >= n) return;
    float values[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const unsigned i = first + j;
        if (i >= n) break;
        const unsigned c = i % C, r = i / C % rows, from = i / C / rows * C + c;
        values[j] = index ? (index[from] == (int)r ? dy[from] : 0.0f) : factor * dy[from];
    }
    store_four(dx, first, n, make_float4(values[0], values[1], values[2], values[3]));
}

extern "C" __global__ void __launch_bounds__(256) sum_slices(
    stored* __restrict__ y,             // (n)
    const float* __restrict__ partial,  // (slices, n)
    const float* __restrict__ bias,     // (C) or null
    int slices, int n, int C, int lane_bits) {
    const unsigned quads = SLICE_THREADS >> lane_bits, quad = quad_of_thread(lane_bits);
    const unsigned i = (blockIdx.x * quads + quad) * 4u;
    const int left = i < n ? min(n - i, 4u) : 0;
    float4 sum = sum_of_slices(partial + i, slices, n, left, lane_bits);
    if (threadIdx.x >= quads || !left) return;
    if (bias)
        add_quad(sum, make_float4(bias[i % C], bias[(i + 1) % C], bias[(i + 2) % C], bias[(i + 3) % C]));
    store_four(y, i, n, sum);
}
