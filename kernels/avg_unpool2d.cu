// 2-D unpooling of averages: the way back from the windows (OH, OW) to the image (H, W).
//
//   y[n][h][w][c] = mean of x[n][oh][ow][c] over the windows that hold cell (h, w), else 0
//
// Layout NHWC. A thread owns four channels of one output (one where C is no multiple of 4), lanes run
// along the channels, then along the row. Forward a cell gathers its windows, backward a window
// gathers its cells: one writer per element, raster order, no atomics, the same bits every time.
// Traffic per cell and stride S: 4/(S*S) bytes of x, 4 of y: memory-bound. Takes any kernel, stride
// and padding.

#include "common.cuh"
#include "channels.cuh"
#include "window.cuh"

// The number of windows that hold cell (h, w).
__device__ __forceinline__ float holders(const Windows& s, int h, int w) {
    const Span rows = windows_over(h, s.KH, s.SH, s.PT, 1, s.OH);
    const Span columns = windows_over(w, s.KW, s.SW, s.PL, 1, s.OW);
    return float(max(rows.end - rows.begin, 0)) * float(max(columns.end - columns.begin, 0));
}

template <int V>
__device__ __forceinline__ void repeat_forward(stored* y, const stored* x, const Windows& s) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const Place p = place_of<V>(i, s.H, s.W, s.C);
    if (p.n >= s.N) return;
    Channels<float, V> sum = sum_of_windows<V>(x, s, p, [](int, int) { return 1.0f; });
    const float count = fmaxf(holders(s, p.h, p.w), 1.0f);
#pragma unroll
    for (int v = 0; v < V; ++v) sum.at[v] /= count;
    store_channels(y + (long long)i * V, sum);
}

extern "C" __global__ void __launch_bounds__(256) avg_repeat_forward(
    stored* __restrict__ y,        // (N, H, W, C)
    const stored* __restrict__ x,  // (N, OH, OW, C)
    int N, int H, int W, int C, int KH, int KW, int OH, int OW,
    int SH, int SW, int PT, int PL) {
    const Windows s = {N, H, W, C, KH, KW, OH, OW, SH, SW, PT, PL};
    if (C % 4 == 0)
        repeat_forward<4>(y, x, s);
    else
        repeat_forward<1>(y, x, s);
}

// dx[n][oh][ow][c] = sum of dy / (windows that hold the cell) over the cells of the window
template <int V>
__device__ __forceinline__ void repeat_backward(stored* dx, const stored* dy, const Windows& s) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const Place p = place_of<V>(i, s.OH, s.OW, s.C);
    if (p.n >= s.N) return;
    store_channels(
        dx + (long long)i * V,
        sum_of_cells<V>(dy, s, p, [&](int h, int w) { return 1.0f / holders(s, h, w); }));
}

extern "C" __global__ void __launch_bounds__(256, 4) avg_repeat_backward(
    stored* __restrict__ dx,        // (N, OH, OW, C)
    const stored* __restrict__ dy,  // (N, H, W, C)
    int N, int H, int W, int C, int KH, int KW, int OH, int OW,
    int SH, int SW, int PT, int PL) {
    const Windows s = {N, H, W, C, KH, KW, OH, OW, SH, SW, PT, PL};
    if (C % 4 == 0)
        repeat_backward<4>(dx, dy, s);
    else
        repeat_backward<1>(dx, dy, s);
}
