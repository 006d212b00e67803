// Losses of the rows of a matrix.
//
//   cross_entropy   loss[r] = -factor * sum over c of q[c] * log p[c],  dx[r][c] = factor * (p[c] - q[c])
//                   p = softmax(x[r]),  q[c] = (1 - smoothing) * [c == target[r]] + smoothing / C
//   scale_rows      y[r][c] = factor[r] * x[r][c]
//
// with -log p[c] = (m - x[c]) + log(sum over j of exp(x[j] - m)), m the maximum of the row: large
// scores do not overflow, and a score far below the maximum costs its distance, not infinity. A NaN
// or +inf score, and a target outside 0..C-1 (which cannot be reported from here), make the row NaN.
//
// One warp per row: lanes walk over the row 32 elements at a time, coalesced, and meet in shuffles.
// Loss and gradient come from one pass over memory: the row is read again from the L1 cache. Traffic
// is 8 bytes per element: memory-bound, and one launch where there would be four. The caller adds
// the losses of the rows with column_sum, in a fixed order. dx may be null. Any C.

#include "common.cuh"
#include "warp.cuh"

#define NOT_A_NUMBER __int_as_float(0x7fffffff)

extern "C" __global__ void __launch_bounds__(256) cross_entropy(
    float* __restrict__ loss,         // (rows)
    float* __restrict__ dx,           // (rows, C) or null
    const float* __restrict__ x,      // (rows, C)
    const int* __restrict__ target,   // (rows)
    int rows, int C, float smoothing, float factor) {
    const int lane = threadIdx.x % 32;
    const long long row = (long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;  // a whole warp, so that the shuffles below have all lanes
    x += row * C;
    const int label = target[row];
    const bool known = label >= 0 && label < C;

    float largest = -GPUCNN_INFINITY;
#pragma unroll 4
    for (int c = lane; c < C; c += 32) largest = fmaxf(largest, x[c]);
    largest = warp_max(largest);
    float sum = 0.0f, distances = 0.0f;
#pragma unroll 4
    for (int c = lane; c < C; c += 32) {
        const float below = x[c] - largest;
        sum += expf(below);
        distances -= below;
    }
    sum = warp_sum(sum);
    distances = warp_sum(distances);

    if (lane == 0) {
        const float log_sum = logf(sum);
        float negative = known ? (largest - x[label]) + log_sum : NOT_A_NUMBER;
        // Without smoothing the distances are not used: one of them may be infinite.
        if (smoothing > 0.0f)
            negative = (1.0f - smoothing) * negative + smoothing * (distances / C + log_sum);
        loss[row] = factor * negative;
    }
    if (!dx) return;
    dx += row * C;
    const float uniform = known ? smoothing / C : NOT_A_NUMBER;
#pragma unroll 4
    for (int c = lane; c < C; c += 32) {
        const float wanted = c == label ? 1.0f - smoothing + uniform : uniform;
        dx[c] = factor * (expf(x[c] - largest) / sum - wanted);
    }
}

// The gradient of losses that were not added up: one warp per row.
extern "C" __global__ void __launch_bounds__(256) scale_rows(
    float* __restrict__ y,             // (rows, C)
    const float* __restrict__ x,       // (rows, C)
    const float* __restrict__ factor,  // (rows)
    int rows, int C) {
    const long long row = (long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    const float s = factor[row];
#pragma unroll 4
    for (int c = threadIdx.x % 32; c < C; c += 32) y[row * C + c] = s * x[row * C + c];
}
