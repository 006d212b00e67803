// 2-D unpooling by indices: the way back from the windows (OH, OW) to the image (H, W).
//
//   y[n][h][w][c] = x of the window with indices[n][oh][ow][c] == h*W + w, 0 where none has it
//
// An index outside the image is skipped. Where several windows name one cell, the last in raster
// order wins and alone has a gradient (LAST), or they add up.
//
//      x, indices      y (W = 4)
//      a:1  b:2        . a b .       four windows of 2x2, each writes the cell that it names
//      c:8  d:15       . . . .
//                      c . . .
//                      . . . d
//
// Layout NHWC. Everything gathers: a thread owns four channels of one output (one where C is no
// multiple of 4), lanes run along the channels, then along the row. One writer per element, windows
// in raster order: no atomics, the same bits every time. An index that a max pooling made lies in
// its own window, so a cell asks only the windows that hold it: with stride S, 8/(S*S) bytes of x
// and index per cell and 4 of y, memory-bound. Indices made by hand may lie anywhere: find_strays
// says in which images one does, and there each cell asks all windows: right, but slow.
//
// Takes any kernel, stride and padding, and any index.

#include "common.cuh"
#include "channels.cuh"
#include "window.cuh"

// strays[n][part] = whether an index of this part of image n names a cell of the image that its own
// window does not hold. A block is one part; its threads stride over the windows and channels.
extern "C" __global__ void __launch_bounds__(256) find_strays(
    int* __restrict__ strays,         // (N, PARTS)
    const int* __restrict__ indices,  // (N, OH, OW, C)
    int N, int H, int W, int C, int KH, int KW, int OH, int OW,
    int SH, int SW, int PT, int PL, int PARTS) {
    const int n = blockIdx.x / PARTS, part = blockIdx.x % PARTS;
    const unsigned count = (unsigned)OH * OW * C;
    const int* image = indices + (long long)n * count;
    int stray = 0;
    for (unsigned i = part * blockDim.x + threadIdx.x; i < count; i += PARTS * blockDim.x) {
        const int index = image[i];
        if (index < 0 || index >= H * W) continue;
        const int kh = index / W - int(i / C / OW * SH) + PT;
        const int kw = index % W - int(i / C % OW * SW) + PL;
        stray |= kh < 0 || kh >= KH || kw < 0 || kw >= KW;
    }
    stray = __syncthreads_or(stray);
    if (threadIdx.x == 0) strays[blockIdx.x] = stray;
}

// The windows that may name cell i of an axis: those that hold it, or all.
__device__ __forceinline__ Span candidates(int i, int K, int S, int P, int O, bool all) {
    return all ? Span{0, O} : windows_over(i, K, S, P, 1, O);
}

__device__ __forceinline__ bool any_of(const int* flags, int count) {
    int any = 0;
#pragma unroll 1
    for (int i = 0; i < count; ++i) any |= flags[i];
    return any;
}

template <int V>
__device__ __forceinline__ void unpool_forward(
    float* y, const float* x, const int* indices, const int* strays, const Windows& s, int PARTS,
    int LAST) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const Place p = place_of<V>(i, s.H, s.W, s.C);
    if (p.n >= s.N) return;
    const bool all = any_of(strays + p.n * PARTS, PARTS);
    const Span rows = candidates(p.h, s.KH, s.SH, s.PT, s.OH, all);
    const Span columns = candidates(p.w, s.KW, s.SW, s.PL, s.OW, all);
    const int here = p.h * s.W + p.w;
    Channels<float, V> sum = all_channels<float, V>(0.0f);
    for (int oh = rows.begin; oh < rows.end; ++oh)
        for (int ow = columns.begin; ow < columns.end; ++ow) {
            const long long o = (((long long)p.n * s.OH + oh) * s.OW + ow) * s.C + p.c;
            const Channels<int, V> index = load_channels<V>(indices + o);
            const Channels<float, V> value = load_channels<V>(x + o);
#pragma unroll
            for (int v = 0; v < V; ++v)
                if (index.at[v] == here) sum.at[v] = LAST ? value.at[v] : sum.at[v] + value.at[v];
        }
    store_channels(y + (long long)i * V, sum);
}

extern "C" __global__ void __launch_bounds__(256, 4) max_unpool2d_forward(
    float* __restrict__ y,            // (N, H, W, C)
    const float* __restrict__ x,      // (N, OH, OW, C)
    const int* __restrict__ indices,  // (N, OH, OW, C)
    const int* __restrict__ strays,   // (N, PARTS)
    int N, int H, int W, int C, int KH, int KW, int OH, int OW,
    int SH, int SW, int PT, int PL, int PARTS, int LAST) {
    const Windows s = {N, H, W, C, KH, KW, OH, OW, SH, SW, PT, PL};
    if (C % 4 == 0)
        unpool_forward<4>(y, x, indices, strays, s, PARTS, LAST);
    else
        unpool_forward<1>(y, x, indices, strays, s, PARTS, LAST);
}

// dx[n][oh][ow][c] = dy of the cell that it names, 0 if (LAST) a later window names it too. A thread
// owns one element: the cells of neighbouring channels lie apart.
extern "C" __global__ void __launch_bounds__(256) max_unpool2d_backward(
    float* __restrict__ dx,           // (N, OH, OW, C)
    const float* __restrict__ dy,     // (N, H, W, C)
    const int* __restrict__ indices,  // (N, OH, OW, C)
    const int* __restrict__ strays,   // (N, PARTS)
    int N, int H, int W, int C, int KH, int KW, int OH, int OW,
    int SH, int SW, int PT, int PL, int PARTS, int LAST) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const Place p = place_of<1>(i, OH, OW, C);
    if (p.n >= N) return;
    const int index = indices[i];
    float gradient = 0.0f;
    if (index >= 0 && index < H * W) {
        gradient = dy[((long long)p.n * H * W + index) * C + p.c];
        if (LAST) {
            const bool all = any_of(strays + p.n * PARTS, PARTS);
            const Span rows = candidates(index / W, KH, SH, PT, OH, all);
            const Span columns = candidates(index % W, KW, SW, PL, OW, all);
            for (int oh = max(rows.begin, p.h); oh < rows.end; ++oh)
                for (int ow = oh == p.h ? max(columns.begin, p.w + 1) : columns.begin;
                     ow < columns.end; ++ow)
                    if (indices[(((long long)p.n * OH + oh) * OW + ow) * C + p.c] == index)
                        gradient = 0.0f;
        }
    }
    dx[i] = gradient;
}
