// Softmax over the rows of a matrix, and its logarithm.
//
//   softmax_forward       y[r][c] = exp(x[r][c] - m) / sum over j of exp(x[r][j] - m)
//   softmax_backward      dx[r][c] = y[r][c] * (dy[r][c] - sum over j of dy[r][j] * y[r][j])
//   log_softmax_forward   y[r][c] = (x[r][c] - m) - log(sum over j of exp(x[r][j] - m))
//   log_softmax_backward  dx[r][c] = dy[r][c] - exp(y[r][c]) * sum over j of dy[r][j]
//
// with m the maximum of the row, so that large scores do not overflow.
//
// One warp per row: lanes walk over the row 32 elements at a time, coalesced, and meet in shuffles;
// no shared memory, no barrier, sums in a fixed order. A row is read again from the L1 cache, not
// from memory, so the traffic is 8 bytes per element forward and 12 backward: memory-bound. Any C;
// few classes leave lanes idle, but then there is little to do.

#include "common.cuh"
#include "warp.cuh"
#include "row.cuh"

extern "C" __global__ void __launch_bounds__(256) softmax_forward(
    float* __restrict__ y,        // (rows, C)
    const float* __restrict__ x,  // (rows, C)
    int rows, int C) {
    const int lane = threadIdx.x % 32;
    const long long row = row_of_warp();
    if (row >= rows) return;  // a whole warp, so that the shuffles below have all lanes
    x += row * C;
    y += row * C;

    float largest, sum;
    log_sum_exp(x, C, largest, sum);
#pragma unroll 4
    for (int c = lane; c < C; c += 32) y[c] = expf(x[c] - largest) / sum;
}

extern "C" __global__ void __launch_bounds__(256) softmax_backward(
    float* __restrict__ dx,        // (rows, C)
    const float* __restrict__ dy,  // (rows, C)
    const float* __restrict__ y,   // (rows, C)
    int rows, int C) {
    const int lane = threadIdx.x % 32;
    const long long row = row_of_warp();
    if (row >= rows) return;  // a whole warp
    dx += row * C;
    dy += row * C;
    y += row * C;

    float sum = 0.0f;
#pragma unroll 4
    for (int c = lane; c < C; c += 32) sum = fmaf(dy[c], y[c], sum);
    sum = warp_sum(sum);
#pragma unroll 4
    for (int c = lane; c < C; c += 32) dx[c] = y[c] * (dy[c] - sum);
}

extern "C" __global__ void __launch_bounds__(256) log_softmax_forward(
    float* __restrict__ y,        // (rows, C)
    const float* __restrict__ x,  // (rows, C)
    int rows, int C) {
    const int lane = threadIdx.x % 32;
    const long long row = row_of_warp();
    if (row >= rows) return;  // a whole warp
    x += row * C;
    y += row * C;

    float largest, sum;
    log_sum_exp(x, C, largest, sum);
    const float log_sum = logf(sum);
#pragma unroll 4
    for (int c = lane; c < C; c += 32) y[c] = x[c] - largest - log_sum;
}

extern "C" __global__ void __launch_bounds__(256) log_softmax_backward(
    float* __restrict__ dx,        // (rows, C)
    const float* __restrict__ dy,  // (rows, C)
    const float* __restrict__ y,   // (rows, C)
    int rows, int C) {
    const int lane = threadIdx.x % 32;
    const long long row = row_of_warp();
    if (row >= rows) return;  // a whole warp
    dx += row * C;
    dy += row * C;
    y += row * C;

    float sum = 0.0f;
#pragma unroll 4
    for (int c = lane; c < C; c += 32) sum += dy[c];
    sum = warp_sum(sum);
#pragma unroll 4
    for (int c = lane; c < C; c += 32) dx[c] = dy[c] - expf(y[c]) * sum;
}
