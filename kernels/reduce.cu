// Sums in a fixed order: the columns of a matrix, and the slices of a split matrix product.
//
//   column_sum   partial[j][c] = sum of x[r][c] over the rows r of chunk j
//   sum_slices   y[i] = sum over s of partial[s][i] (+ bias[i % C])
//
// column_sum: a block of TX x TY threads takes TX columns and one chunk of rows. A thread adds every
// TY-th row of its column, then the TY sums of a column are added pairwise through shared memory.
// TX is the power of two that covers C, 32 at most, so that a warp reads whole rows back to back
// also when there are few channels. sum_slices: one thread per element, slices in ascending order.
// No atomics: the order of additions depends on the shape alone.

#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) column_sum(
    float* __restrict__ partial,  // (chunks, C)
    const float* __restrict__ x,  // (rows, C)
    int rows, int C, int chunk_rows) {
    __shared__ float sums[256];
    const int TX = blockDim.x, TY = blockDim.y;
    const int c = blockIdx.y * TX + threadIdx.x;
    const long long begin = (long long)blockIdx.x * chunk_rows;
    const long long end = min(begin + chunk_rows, (long long)rows);

    float sum = 0.0f;
    if (c < C)
        for (long long r = begin + threadIdx.y; r < end; r += TY) sum += x[r * C + c];
    sums[threadIdx.y * TX + threadIdx.x] = sum;

    for (int half = TY / 2; half > 0; half /= 2) {
        __syncthreads();  // the upper half's sums are written by other warps
        if (threadIdx.y < half)
            sums[threadIdx.y * TX + threadIdx.x] += sums[(threadIdx.y + half) * TX + threadIdx.x];
    }
    if (threadIdx.y == 0 && c < C) partial[(long long)blockIdx.x * C + c] = sums[threadIdx.x];
}

extern "C" __global__ void sum_slices(
    float* __restrict__ y,              // (n)
    const float* __restrict__ partial,  // (slices, n)
    const float* __restrict__ bias,     // (C) or null
    int slices, int n, int C) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float sum = 0.0f;
    for (int s = 0; s < slices; ++s) sum += partial[(long long)s * n + i];
    y[i] = bias ? sum + bias[i % C] : sum;
}
