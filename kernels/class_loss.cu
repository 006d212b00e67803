// Losses of the rows of a matrix against class indices y[r], with a weight w[c] of each class.
//
//   nll            loss[r] = -w[y]*x[y],                                            counts[r] = w[y]
//                  dx[r][c] = -w[y]*[c == y]
//   multi_margin   loss[r] = w[y]/C * sum over c != y of max(0, margin - x[y] + x[c])^p, counts[r] = 1
//                  dx[r][c] = w[y]/C * slope of the term of c,  dx[r][y] = -their sum;  p is 1 or 2
//   crammer_singer loss[r] = w[y] * max(0, margin - x[y] + largest other x[c])^p,       counts[r] = 1
//                  dx: the slope for the first largest other class, less it for y
//   one_vs_all     loss[r] = w[y] * sum over c of max(0, margin - t[c]*x[c])^p, t[y] = 1, else -1
//                  dx[r][c] = -t[c] * w[y] * slope of the term of c,                    counts[r] = 1
//
// A label outside 0..C-1, which cannot be reported from here, makes its row NaN; in nll a row
// labelled ignore_index is 0 and counts 0. Exactly at the margin the slope is 0.
//
// One warp per row: lanes walk over the row 32 elements at a time, coalesced, and meet in shuffles.
// nll reads one score of a row and writes 4 bytes per element of dx; the others move 8 per
// element: memory-bound. The caller adds losses and counts with column_sum, in a fixed order.
// weight and dx may be null. Any C.

#include "common.cuh"
#include "warp.cuh"
#include "row.cuh"

extern "C" __global__ void __launch_bounds__(256) nll(
    float* __restrict__ losses,        // (rows, 2): loss and count
    float* __restrict__ dx,            // (rows, C) or null
    const float* __restrict__ x,       // (rows, C)
    const int* __restrict__ target,    // (rows)
    const float* __restrict__ weight,  // (C) or null
    int rows, int C, int ignore_index) {
    const int lane = threadIdx.x % 32;
    const long long row = row_of_warp();
    if (row >= rows) return;
    const int label = target[row];
    const bool ignored = label == ignore_index, known = label >= 0 && label < C;
    const float own = ignored ? 0.0f : !known ? NOT_A_NUMBER : weight ? weight[label] : 1.0f;
    if (lane == 0) {
        losses[2 * row] = ignored || !known ? own : -own * x[row * C + label];
        losses[2 * row + 1] = known ? own : 0.0f;
    }
    if (!dx) return;
    const float other = ignored || known ? 0.0f : NOT_A_NUMBER;
#pragma unroll 4
    for (int c = lane; c < C; c += 32) dx[row * C + c] = c == label ? -own : other;
}

// d(m^p)/dm of what a score exceeds its bound by; a NaN stays.
__device__ __forceinline__ float power_slope(float m, int p) {
    return p == 2 ? 2.0f * m : m > 0.0f ? 1.0f : m;
}

__device__ __forceinline__ float excess(float m) { return m <= 0.0f ? 0.0f : m; }

extern "C" __global__ void __launch_bounds__(256) multi_margin(
    float* __restrict__ losses,        // (rows, 2): loss and count
    float* __restrict__ dx,            // (rows, C) or null
    const float* __restrict__ x,       // (rows, C)
    const int* __restrict__ target,    // (rows)
    const float* __restrict__ weight,  // (C) or null
    int rows, int C, int p, float margin) {
    const int lane = threadIdx.x % 32;
    const long long row = row_of_warp();
    if (row >= rows) return;  // a whole warp, so that the shuffles below have all lanes
    x += row * C;
    const int label = target[row];
    const bool known = label >= 0 && label < C;
    const float scale = known ? (weight ? weight[label] : 1.0f) / C : NOT_A_NUMBER;
    const float base = known ? margin - x[label] : 0.0f;
    // By how much a class trespasses; a NaN does.
    auto excess_of = [&](int c) { return c == label ? 0.0f : excess(base + x[c]); };

    float sum = 0.0f, slopes = 0.0f;
#pragma unroll 4
    for (int c = lane; c < C; c += 32) {
        const float m = excess_of(c);
        sum += p == 2 ? m * m : m;
        slopes += power_slope(m, p);
    }
    sum = warp_sum(sum);
    slopes = warp_sum(slopes);
    if (lane == 0) {
        losses[2 * row] = scale * sum;
        losses[2 * row + 1] = 1.0f;
    }
    if (!dx) return;
#pragma unroll 4
    for (int c = lane; c < C; c += 32)
        dx[row * C + c] = scale * (c == label ? -slopes : power_slope(excess_of(c), p));
}

// Whether the score a of class i goes before b of class j: the larger one, NaN first of all, of
// equal ones the first. A class of -1 is none.
__device__ __forceinline__ bool goes_before(float a, int i, float b, int j) {
    if (i < 0 || j < 0) return j < 0 && i >= 0;
    const bool a_nan = a != a, b_nan = b != b;
    if (a_nan != b_nan) return a_nan;
    return a > b || (!(a < b) && i < j);
}

extern "C" __global__ void __launch_bounds__(256) crammer_singer(
    float* __restrict__ losses,        // (rows, 2): loss and count
    float* __restrict__ dx,            // (rows, C) or null
    const float* __restrict__ x,       // (rows, C)
    const int* __restrict__ target,    // (rows)
    const float* __restrict__ weight,  // (C) or null
    int rows, int C, int p, float margin) {
    const int lane = threadIdx.x % 32;
    const long long row = row_of_warp();
    if (row >= rows) return;  // a whole warp, so that the shuffles below have all lanes
    x += row * C;
    const int label = target[row];
    const bool known = label >= 0 && label < C;
    const float scale = known ? weight ? weight[label] : 1.0f : NOT_A_NUMBER;

    float largest = 0.0f;
    int worst = -1;  // its class, which a row of one class does not have
#pragma unroll 4
    for (int c = lane; c < C; c += 32) {
        const float v = x[c];
        if (c != label && goes_before(v, c, largest, worst)) largest = v, worst = c;
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        const float v = __shfl_xor_sync(0xffffffffu, largest, step);
        const int c = __shfl_xor_sync(0xffffffffu, worst, step);
        if (goes_before(v, c, largest, worst)) largest = v, worst = c;
    }
    const float m =
        worst < 0 ? 0.0f : excess(known ? margin - x[label] + largest : NOT_A_NUMBER);
    if (lane == 0) {
        losses[2 * row] = scale * (p == 2 ? m * m : m);
        losses[2 * row + 1] = 1.0f;
    }
    if (!dx) return;
    const float slope = scale * power_slope(m, p), other = known ? 0.0f : NOT_A_NUMBER;
#pragma unroll 4
    for (int c = lane; c < C; c += 32)
        dx[row * C + c] = c == label ? -slope : c == worst ? slope : other;
}

extern "C" __global__ void __launch_bounds__(256) one_vs_all(
    float* __restrict__ losses,        // (rows, 2): loss and count
    float* __restrict__ dx,            // (rows, C) or null
    const float* __restrict__ x,       // (rows, C)
    const int* __restrict__ target,    // (rows)
    const float* __restrict__ weight,  // (C) or null
    int rows, int C, int p, float margin) {
    const int lane = threadIdx.x % 32;
    const long long row = row_of_warp();
    if (row >= rows) return;  // a whole warp, so that the shuffles below have all lanes
    x += row * C;
    const int label = target[row];
    const bool known = label >= 0 && label < C;
    const float scale = known ? weight ? weight[label] : 1.0f : NOT_A_NUMBER;

    float sum = 0.0f;
#pragma unroll 4
    for (int c = lane; c < C; c += 32) {
        const float m = excess(c == label ? margin - x[c] : margin + x[c]);
        sum += p == 2 ? m * m : m;
        if (dx) dx[row * C + c] = (c == label ? -scale : scale) * power_slope(m, p);
    }
    sum = warp_sum(sum);
    if (lane == 0) {
        losses[2 * row] = scale * sum;
        losses[2 * row + 1] = 1.0f;
    }
}
