// 2-D pooling to a given size: OH x OW regions that cover the image, sizes differing by one at most,
//
//   region oh: rows  floor(oh*H / OH) <= h < ceil((oh+1)*H / OH),  columns likewise
//
//   avg   y[n][oh][ow][c] = mean of x[n][h][w][c] over the region
//   max   y[n][oh][ow][c] = its maximum, index = h*W + w of it: the first in raster order; a NaN
//         beats numbers, the last NaN the others
//
//      H = 5, OH = 3:   region 0: rows 0 1    region 1: rows 1 2 3    region 2: rows 3 4
//
// Layout NHWC. A thread owns four channels of one region (one where C is no multiple of 4) and reads
// them in raster order, lanes run along the channels: loads coalesce. A whole image as one region has
// N*C/4 threads, each with H*W loads: enough for the last layers of a network, where C is large.
// Traffic: 4 bytes per cell of x and little more: memory-bound.
//
// The backward pass gathers: a cell h lies in the regions floor(h*OH / H) <= oh < ceil((h+1)*OH / H),
// the same formula with H and OH exchanged. One writer per cell, raster order: no atomics, the same
// bits every time. Takes any sizes with (H + 1) * (OH + 1) and (W + 1) * (OW + 1) within int32.

#include "common.cuh"
#include "channels.cuh"
#include "window.cuh"

// The positions along an axis of n that share something with position i of an axis of m laid over it;
// (n + 1) * (m + 1) fits int32.
__device__ __forceinline__ Span region(int i, int n, int m) {
    return {i * n / m, ((i + 1) * n + m - 1) / m};
}

__device__ __forceinline__ float area(int oh, int ow, int H, int W, int OH, int OW) {
    const Span rows = region(oh, H, OH), columns = region(ow, W, OW);
    return float(rows.end - rows.begin) * float(columns.end - columns.begin);
}

template <int V>
__device__ __forceinline__ void avg_forward(
    float* y, const float* x, int N, int H, int W, int C, int OH, int OW) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const Place p = place_of<V>(i, OH, OW, C);
    if (p.n >= N) return;
    const Span rows = region(p.h, H, OH), columns = region(p.w, W, OW);
    const float* image = x + (long long)p.n * H * W * C + p.c;
    Channels<float, V> sum = all_channels<float, V>(0.0f);
    for (int h = rows.begin; h < rows.end; ++h)
        for (int w = columns.begin; w < columns.end; ++w) {
            const Channels<float, V> cell = load_channels<V>(image + ((long long)h * W + w) * C);
#pragma unroll
            for (int v = 0; v < V; ++v) sum.at[v] += cell.at[v];
        }
    const float count = area(p.h, p.w, H, W, OH, OW);
#pragma unroll
    for (int v = 0; v < V; ++v) sum.at[v] /= count;
    store_channels(y + (long long)i * V, sum);
}

extern "C" __global__ void __launch_bounds__(256, 4) adaptive_avg_pool2d_forward(
    float* __restrict__ y,        // (N, OH, OW, C)
    const float* __restrict__ x,  // (N, H, W, C)
    int N, int H, int W, int C, int OH, int OW) {
    if (C % 4 == 0)
        avg_forward<4>(y, x, N, H, W, C, OH, OW);
    else
        avg_forward<1>(y, x, N, H, W, C, OH, OW);
}

// dx[n][h][w][c] = sum of dy[n][oh][ow][c] / area over the regions that hold (h, w)
template <int V>
__device__ __forceinline__ void avg_backward(
    float* dx, const float* dy, int N, int H, int W, int C, int OH, int OW) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const Place p = place_of<V>(i, H, W, C);
    if (p.n >= N) return;
    const Span rows = region(p.h, OH, H), columns = region(p.w, OW, W);
    const float* image = dy + (long long)p.n * OH * OW * C + p.c;
    Channels<float, V> sum = all_channels<float, V>(0.0f);
    for (int oh = rows.begin; oh < rows.end; ++oh)
        for (int ow = columns.begin; ow < columns.end; ++ow) {
            const Channels<float, V> gradient =
                load_channels<V>(image + ((long long)oh * OW + ow) * C);
            const float share = 1.0f / area(oh, ow, H, W, OH, OW);
#pragma unroll
            for (int v = 0; v < V; ++v) sum.at[v] += gradient.at[v] * share;
        }
    store_channels(dx + (long long)i * V, sum);
}

extern "C" __global__ void __launch_bounds__(256, 4) adaptive_avg_pool2d_backward(
    float* __restrict__ dx,        // (N, H, W, C)
    const float* __restrict__ dy,  // (N, OH, OW, C)
    int N, int H, int W, int C, int OH, int OW) {
    if (C % 4 == 0)
        avg_backward<4>(dx, dy, N, H, W, C, OH, OW);
    else
        avg_backward<1>(dx, dy, N, H, W, C, OH, OW);
}

template <int V>
__device__ __forceinline__ void max_forward(
    float* y, int* indices, const float* x, int N, int H, int W, int C, int OH, int OW) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const Place p = place_of<V>(i, OH, OW, C);
    if (p.n >= N) return;
    const Span rows = region(p.h, H, OH), columns = region(p.w, W, OW);
    const float* image = x + (long long)p.n * H * W * C + p.c;
    Channels<float, V> best = all_channels<float, V>(-GPUCNN_INFINITY);
    Channels<int, V> index = all_channels<int, V>(rows.begin * W + columns.begin);
    for (int h = rows.begin; h < rows.end; ++h)
        for (int w = columns.begin; w < columns.end; ++w) {
            const Channels<float, V> cell = load_channels<V>(image + ((long long)h * W + w) * C);
#pragma unroll
            for (int v = 0; v < V; ++v)
                if (cell.at[v] > best.at[v] || cell.at[v] != cell.at[v])
                    best.at[v] = cell.at[v], index.at[v] = h * W + w;
        }
    store_channels(y + (long long)i * V, best);
    store_channels(indices + (long long)i * V, index);
}

extern "C" __global__ void __launch_bounds__(256, 4) adaptive_max_pool2d_forward(
    float* __restrict__ y,        // (N, OH, OW, C)
    int* __restrict__ indices,    // (N, OH, OW, C)
    const float* __restrict__ x,  // (N, H, W, C)
    int N, int H, int W, int C, int OH, int OW) {
    if (C % 4 == 0)
        max_forward<4>(y, indices, x, N, H, W, C, OH, OW);
    else
        max_forward<1>(y, indices, x, N, H, W, C, OH, OW);
}

// dx[n][h][w][c] = sum of dy[n][oh][ow][c] over the regions whose index is h*W + w
template <int V>
__device__ __forceinline__ void max_backward(
    float* dx, const float* dy, const int* indices, int N, int H, int W, int C, int OH, int OW) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const Place p = place_of<V>(i, H, W, C);
    if (p.n >= N) return;
    const Span rows = region(p.h, OH, H), columns = region(p.w, OW, W);
    const int here = p.h * W + p.w;
    Channels<float, V> sum = all_channels<float, V>(0.0f);
    for (int oh = rows.begin; oh < rows.end; ++oh)
        for (int ow = columns.begin; ow < columns.end; ++ow) {
            const long long o = (((long long)p.n * OH + oh) * OW + ow) * C + p.c;
            const Channels<int, V> winner = load_channels<V>(indices + o);
            const Channels<float, V> gradient = load_channels<V>(dy + o);
#pragma unroll
            for (int v = 0; v < V; ++v)
                if (winner.at[v] == here) sum.at[v] += gradient.at[v];
        }
    store_channels(dx + (long long)i * V, sum);
}

extern "C" __global__ void __launch_bounds__(256, 4) adaptive_max_pool2d_backward(
    float* __restrict__ dx,           // (N, H, W, C)
    const float* __restrict__ dy,     // (N, OH, OW, C)
    const int* __restrict__ indices,  // (N, OH, OW, C)
    int N, int H, int W, int C, int OH, int OW) {
    if (C % 4 == 0)
        max_backward<4>(dx, dy, indices, N, H, W, C, OH, OW);
    else
        max_backward<1>(dx, dy, indices, N, H, W, C, OH, OW);
}
