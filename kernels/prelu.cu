// PReLU: a leaky ReLU with a learned slope, one for all or one per channel.
//
//   forward    y[r][c] = x[r][c] > 0 ? x[r][c] : w[c]*x[r][c]
//   backward   dx[r][c] = x[r][c] > 0 ? dy[r][c] : w[c]*dy[r][c]
//              partial[j][c] = sum of x[r][c]*dy[r][c] over the rows r of chunk j with x[r][c] <= 0
//
// An activation of any layout with the channels last is a matrix of rows r and channels c. shared
// says that w holds one slope for all channels. In both kernels a block of TX x TY threads takes TX
// columns and one chunk of rows, and a thread every TY-th row of its column: a warp reads whole rows
// back to back, also when there are few channels. The backward pass reads x and dy once for dx and
// the sum, which are added pairwise through shared memory; the caller adds the chunks in ascending
// order. No atomics: the order depends on the shape alone. 8 bytes of traffic per element forward,
// 12 backward: memory-bound. Any rows and C.

#include "common.cuh"
#include "column_sum.cuh"

extern "C" __global__ void __launch_bounds__(256) prelu_forward(
    float* __restrict__ y,             // (rows, C)
    const float* __restrict__ x,       // (rows, C)
    const float* __restrict__ weight,  // (C), or (1) if shared
    int rows, int C, int chunk_rows, bool shared) {
    const int c = blockIdx.y * blockDim.x + threadIdx.x;
    if (c >= C) return;
    const long long begin = (long long)blockIdx.x * chunk_rows;
    const long long end = min(begin + chunk_rows, (long long)rows);
    const float slope = weight[shared ? 0 : c];
#pragma unroll 4
    for (long long r = begin + threadIdx.y; r < end; r += blockDim.y) {
        const float v = x[r * C + c];
        y[r * C + c] = v > 0.0f ? v : slope * v;
    }
}

extern "C" __global__ void __launch_bounds__(256) prelu_backward(
    float* __restrict__ dx,            // (rows, C)
    float* __restrict__ partial,       // (chunks, C)
    const float* __restrict__ dy,      // (rows, C)
    const float* __restrict__ x,       // (rows, C)
    const float* __restrict__ weight,  // (C), or (1) if shared
    int rows, int C, int chunk_rows, bool shared) {
    __shared__ float sums[256];
    const int TY = blockDim.y;
    const int c = blockIdx.y * blockDim.x + threadIdx.x;
    const long long begin = (long long)blockIdx.x * chunk_rows;
    const long long end = min(begin + chunk_rows, (long long)rows);

    float sum = 0.0f;
    if (c < C) {
        const float slope = weight[shared ? 0 : c];
#pragma unroll 4
        for (long long r = begin + threadIdx.y; r < end; r += TY) {
            const float v = x[r * C + c], g = dy[r * C + c];
            dx[r * C + c] = v > 0.0f ? g : slope * g;
            sum += (v > 0.0f ? 0.0f : v) * g;
        }
    }
    sum = sum_of_column(sums, sum);
    if (threadIdx.y == 0 && c < C) partial[(long long)blockIdx.x * C + c] = sum;
}
