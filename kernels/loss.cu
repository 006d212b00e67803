// Cross-entropy of the rows of a matrix of scores, and what turns losses of rows into one number.
//
//   cross_entropy                 label y[r], weight w[c] of a class, s = smoothing
//     loss[r] = (1-s)*w[y]*-log p[y] + s/C * sum over c of w[c]*-log p[c],   counts[r] = w[y]
//     dx[r][j] = ((1-s)*w[y] + s/C * sum over c of w[c])*p[j] - (1-s)*w[y]*[j == y] - s/C*w[j]
//   cross_entropy_probabilities   probabilities t[r][c] instead of a label
//     loss[r] = sum over c of v[c]*-log p[c],  v[c] = w[c]*((1-s)*t[c] + s/C),   counts[r] = 1
//     dx[r][j] = p[j] * sum over c of v[c] - v[j]
//   mean_of_rows                  y = sum of losses / sum of counts
//   scale_mean                    y[i] = dy/counts * x[i], the gradient of the mean
//   scale_rows                    y[r][c] = factor[r] * x[r][c], that of losses not added up
//
// with p = softmax(x[r]) and -log p[c] = (m - x[c]) + log(sum over j of exp(x[j] - m)), m the maximum
// of the row: large scores do not overflow, and a score far below the maximum costs its distance,
// not infinity. A NaN or +inf score makes its row NaN, and so does a label outside 0..C-1, which
// cannot be reported from here; a row labelled ignore_index is 0 and counts 0.
//
// One warp per row: lanes walk over the row 32 elements at a time, coalesced, and meet in shuffles.
// Loss and gradient come from one pass over memory: the row is read again from the L1 cache. Traffic
// is 8 bytes per element, 12 with probabilities: memory-bound, and one launch where there would be
// four. The caller adds losses and counts with column_sum, in a fixed order. weight and dx may be
// null. Any C.

#include "common.cuh"
#include "warp.cuh"
#include "row.cuh"

extern "C" __global__ void __launch_bounds__(256) cross_entropy(
    float* __restrict__ losses,        // (rows, 2): loss and count
    float* __restrict__ dx,            // (rows, C) or null
    const float* __restrict__ x,       // (rows, C)
    const int* __restrict__ target,    // (rows)
    const float* __restrict__ weight,  // (C) or null
    int rows, int C, float smoothing, int ignore_index) {
    const int lane = threadIdx.x % 32;
    const long long row = row_of_warp();
    if (row >= rows) return;  // a whole warp, so that the shuffles below have all lanes
    x += row * C;
    if (dx) dx += row * C;
    const int label = target[row];
    if (label == ignore_index) {
        if (lane < 2) losses[2 * row + lane] = 0.0f;
        if (dx)
            for (int c = lane; c < C; c += 32) dx[c] = 0.0f;
        return;
    }
    const bool known = label >= 0 && label < C;
    const float own = !known ? NOT_A_NUMBER : weight ? weight[label] : 1.0f;
    const float share = smoothing / C;

    float largest, sum, distances = 0.0f, weights = C;
    log_sum_exp(x, C, largest, sum);
    if (smoothing > 0.0f) {  // else the distances are not used: one of them may be infinite
        weights = 0.0f;
#pragma unroll 4
        for (int c = lane; c < C; c += 32) {
            const float w = weight ? weight[c] : 1.0f;
            distances += w * (largest - x[c]);
            weights += w;
        }
        distances = warp_sum(distances);
        weights = warp_sum(weights);
    }
    if (lane == 0) {
        const float log_sum = logf(sum);
        float loss = known ? own * ((largest - x[label]) + log_sum) : own;
        if (smoothing > 0.0f)
            loss = (1.0f - smoothing) * loss + share * (distances + weights * log_sum);
        losses[2 * row] = loss;
        losses[2 * row + 1] = known ? own : 0.0f;
    }
    if (!dx) return;
    const float pull = (1.0f - smoothing) * own;
    const float push = (pull + share * weights) / sum;
#pragma unroll 4
    for (int c = lane; c < C; c += 32) {
        const float wanted = share * (weight ? weight[c] : 1.0f) + (c == label ? pull : 0.0f);
        dx[c] = push * expf(x[c] - largest) - wanted;
    }
}

extern "C" __global__ void __launch_bounds__(256) cross_entropy_probabilities(
    float* __restrict__ losses,        // (rows, 2): loss and count
    float* __restrict__ dx,            // (rows, C) or null
    const float* __restrict__ x,       // (rows, C)
    const float* __restrict__ target,  // (rows, C)
    const float* __restrict__ weight,  // (C) or null
    int rows, int C, float smoothing) {
    const int lane = threadIdx.x % 32;
    const long long row = row_of_warp();
    if (row >= rows) return;  // a whole warp
    x += row * C;
    target += row * C;

    float largest, sum, distances = 0.0f, total = 0.0f;
    log_sum_exp(x, C, largest, sum);
#pragma unroll 4
    for (int c = lane; c < C; c += 32) {
        const float v =
            (weight ? weight[c] : 1.0f) * ((1.0f - smoothing) * target[c] + smoothing / C);
        if (v != 0.0f) distances += v * (largest - x[c]);  // a class that cannot be may be at -inf
        total += v;
    }
    distances = warp_sum(distances);
    total = warp_sum(total);
    if (lane == 0) {
        losses[2 * row] = distances + total * logf(sum);
        losses[2 * row + 1] = 1.0f;
    }
    if (!dx) return;
    dx += row * C;
    const float push = total / sum;
#pragma unroll 4
    for (int c = lane; c < C; c += 32) {
        const float v =
            (weight ? weight[c] : 1.0f) * ((1.0f - smoothing) * target[c] + smoothing / C);
        dx[c] = push * expf(x[c] - largest) - v;
    }
}

extern "C" __global__ void mean_of_rows(
    float* __restrict__ y,             // (1)
    const float* __restrict__ totals) {  // (2): sum of losses, sum of counts
    *y = totals[0] / totals[1];
}

// Where nothing counts the mean is NaN, but no score could change it: the gradient is 0.
extern "C" __global__ void scale_mean(
    float* __restrict__ y,             // (n)
    const float* __restrict__ x,       // (n)
    const float* __restrict__ dy,      // (1)
    const float* __restrict__ totals,  // (2)
    int n) {
    const float factor = totals[1] == 0.0f ? 0.0f : *dy / totals[1];
    map_four(y, x, n, [factor](float v) { return factor * v; });
}

extern "C" __global__ void __launch_bounds__(256) scale_rows(
    float* __restrict__ y,             // (rows, C)
    const float* __restrict__ x,       // (rows, C)
    const float* __restrict__ factor,  // (rows)
    int rows, int C) {
    const long long row = row_of_warp();
    if (row >= rows) return;
    const float s = factor[row];
#pragma unroll 4
    for (int c = threadIdx.x % 32; c < C; c += 32) y[row * C + c] = s * x[row * C + c];
}
