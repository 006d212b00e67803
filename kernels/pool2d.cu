// 2-D pooling.
//
//   y[n][oh][ow][c] = max over kh, kw of x[n][ih][iw][c],  index[n][oh][ow][c] = ih*W + iw of it
//   ih = oh*SH - PT + kh*DH,  iw = ow*SW - PL + kw*DW
//
// Cells outside the image do not compete. In the windows from row ZH or column ZW on, which reach
// past the padded image, a 0 competes with index -1, and loses a tie. The first maximum in raster
// order wins; a NaN beats numbers, the last NaN beats the others; a window without any cell inside
// has -inf and index -1.
//
//            iw = left   left+DW
//     ih = top  [0,0]     [0,1]     one window: its cells are read in raster order, so ">" keeps
//        top+DH [1,0]     [1,1]     the first of equal maxima
//
// Layout NHWC. A thread owns four channels of one output (one where C is no multiple of 4) and moves
// them as 16 bytes; lanes run along the channels, then along ow, so loads and stores coalesce and
// overlapping windows meet in the caches. Traffic per output and stride S: 4*S*S bytes of x, 8 of y
// and index: memory-bound. An index of 1 byte would do where nobody else reads it: see
// batch_norm_block_pool.cu. WINDOW = 2 or 3 is for square windows of that side: all their loads are
// in flight at once. WINDOW = 0 takes any kernel, stride, padding and dilation.
//
// The backward pass gathers: a thread owns four channels of one input cell and asks the windows that
// can hold it whether it won. One writer per cell, windows in ascending order: no atomics, the same
// bits every time. Traffic: 8/(S*S) bytes of dy and index per input cell, 4 of dx.

#include "common.cuh"
#include "channels.cuh"
#include "window.cuh"

#ifndef WINDOW
#error "WINDOW is 0, 2 or 3"
#endif

template <int V>
__device__ __forceinline__ void max_forward(
    stored* y, int* indices, const stored* x, int N, int H, int W, int C, int KH, int KW, int OH,
    int OW, int SH, int SW, int PT, int PL, int DH, int DW, int ZH, int ZW) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const Place p = place_of<V>(i, OH, OW, C);
    const int n = p.n, oh = p.h, ow = p.w, c = p.c;
    if (n >= N) return;
    const int top = oh * SH - PT, left = ow * SW - PL;
    const int kh0 = first_inside(top, DH), kh1 = end_inside(top, DH, H, KH);
    const int kw0 = first_inside(left, DW), kw1 = end_inside(left, DW, W, KW);
    const stored* image = x + (long long)n * H * W * C + c;

    const bool any = kh0 < kh1 && kw0 < kw1;
    Channels<float, V> best = all_channels<float, V>(-GPUCNN_INFINITY);
    Channels<int, V> index =
        all_channels<int, V>(any ? (top + kh0 * DH) * W + left + kw0 * DW : -1);
    auto compete = [&](const Channels<float, V>& cell, int at) {
#pragma unroll
        for (int v = 0; v < V; ++v)
            if (cell.at[v] > best.at[v] || cell.at[v] != cell.at[v])
                best.at[v] = cell.at[v], index.at[v] = at;
    };
#if WINDOW
    Channels<float, V> cells[WINDOW][WINDOW];
#pragma unroll
    for (int kh = 0; kh < WINDOW; ++kh)
#pragma unroll
        for (int kw = 0; kw < WINDOW; ++kw)
            cells[kh][kw] =
                kh >= kh0 && kh < kh1 && kw >= kw0 && kw < kw1
                    ? load_channels<V>(
                          image + ((long long)(top + kh * DH) * W + left + kw * DW) * C)
                    : all_channels<float, V>(-GPUCNN_INFINITY);  // never wins
#pragma unroll
    for (int kh = 0; kh < WINDOW; ++kh)
#pragma unroll
        for (int kw = 0; kw < WINDOW; ++kw)
            compete(cells[kh][kw], (top + kh * DH) * W + left + kw * DW);
#else
    for (int kh = kh0; kh < kh1; ++kh)
        for (int kw = kw0; kw < kw1; ++kw) {
            const int at = (top + kh * DH) * W + left + kw * DW;
            compete(load_channels<V>(image + (long long)at * C), at);
        }
#endif
    if (oh >= ZH || ow >= ZW) {
#pragma unroll
        for (int v = 0; v < V; ++v)
            if (best.at[v] < 0.0f) best.at[v] = 0.0f, index.at[v] = -1;
    }
    store_channels(y + (long long)i * V, best);
    store_channels(indices + (long long)i * V, index);
}

extern "C" __global__ void __launch_bounds__(256) max_pool2d_forward(
    stored* __restrict__ y,        // (N, OH, OW, C)
    int* __restrict__ indices,     // (N, OH, OW, C)
    const stored* __restrict__ x,  // (N, H, W, C)
    int N, int H, int W, int C, int KH, int KW, int OH, int OW,
    int SH, int SW, int PT, int PL, int DH, int DW, int ZH, int ZW) {
    if (C % 4 == 0)
        max_forward<4>(y, indices, x, N, H, W, C, KH, KW, OH, OW, SH, SW, PT, PL, DH, DW, ZH, ZW);
    else
        max_forward<1>(y, indices, x, N, H, W, C, KH, KW, OH, OW, SH, SW, PT, PL, DH, DW, ZH, ZW);
}

// dx[n][h][w][c] = sum of dy[n][oh][ow][c] over the windows with index[n][oh][ow][c] == h*W + w
template <int V>
__device__ __forceinline__ void max_backward(
    stored* dx, const stored* dy, const int* indices, int N, int H, int W, int C, int KH, int KW,
    int OH, int OW, int SH, int SW, int PT, int PL, int DH, int DW) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const Place p = place_of<V>(i, H, W, C);
    const int n = p.n, h = p.h, w = p.w, c = p.c;
    if (n >= N) return;
    const Span rows = windows_over(h, KH, SH, PT, DH, OH);
    const Span columns = windows_over(w, KW, SW, PL, DW, OW);
    const int here = h * W + w;

    Channels<float, V> sum = all_channels<float, V>(0.0f);
    for (int oh = rows.begin; oh < rows.end; ++oh)
        for (int ow = columns.begin; ow < columns.end; ++ow) {
            const long long o = (((long long)n * OH + oh) * OW + ow) * C + c;
            const Channels<int, V> winner = load_channels<V>(indices + o);
            const Channels<float, V> gradient = load_channels<V>(dy + o);
#pragma unroll
            for (int v = 0; v < V; ++v)
                if (winner.at[v] == here) sum.at[v] += gradient.at[v];
        }
    store_channels(dx + (long long)i * V, sum);
}

extern "C" __global__ void __launch_bounds__(256) max_pool2d_backward(
    stored* __restrict__ dx,          // (N, H, W, C)
    const stored* __restrict__ dy,    // (N, OH, OW, C)
    const int* __restrict__ indices,  // (N, OH, OW, C)
    int N, int H, int W, int C, int KH, int KW, int OH, int OW,
    int SH, int SW, int PT, int PL, int DH, int DW) {
    if (C % 4 == 0)
        max_backward<4>(dx, dy, indices, N, H, W, C, KH, KW, OH, OW, SH, SW, PT, PL, DH, DW);
    else
        max_backward<1>(dx, dy, indices, N, H, W, C, KH, KW, OH, OW, SH, SW, PT, PL, DH, DW);
}
