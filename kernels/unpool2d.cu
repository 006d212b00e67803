// 2-D and 3-D unpooling by indices: the way back from the windows (OD, OH, OW) to the image (D, H, W).
//
//   y[n][d][h][w][c] = x of the window with indices[n][od][oh][ow][c] == (d*H + h)*W + w, else 0
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
// Layout NHWC, with DIMS = 3 NDHWC. Everything gathers: a thread owns four channels of one output
// (one where C is no multiple of 4), lanes run along the channels, then along the row. One writer per
// element, windows in raster order: no atomics, the same bits every time. An index that a max pooling
// made lies in its own window, so a cell asks only the windows that hold it: with stride S, 8/(S*S)
// bytes of x and index per cell (8/(S*S*S) in volumes) and 4 of y, memory-bound. Indices made by hand
// may lie anywhere: find_strays says in which images one does, and there each cell asks all windows:
// right, but slow.
//
// Takes any kernel, stride and padding, and any index.

#include "common.cuh"
#include "channels.cuh"
#include "depth.cuh"
#include "window.cuh"

// strays[n][part] = whether an index of this part of image n names a cell of the image that its own
// window does not hold. A block is one part; its threads stride over the windows and channels.
extern "C" __global__ void __launch_bounds__(256) find_strays(
    int* __restrict__ strays,         // (N, PARTS)
    const int* __restrict__ indices,  // (N, OD, OH, OW, C)
    int N, int D, int H, int W, int C, int KD, int KH, int KW, int OD, int OH, int OW,
    int SD, int SH, int SW, int PF, int PT, int PL, int PARTS) {
    WINDOWS_HAVE_NO_DEPTH;
    const int n = blockIdx.x / PARTS, part = blockIdx.x % PARTS;
    const unsigned count = (unsigned)OD * OH * OW * C;
    const int* image = indices + (long long)n * count;
    int stray = 0;
    for (unsigned i = part * blockDim.x + threadIdx.x; i < count; i += PARTS * blockDim.x) {
        const int index = image[i];
        if (index < 0 || index >= D * H * W) continue;
        const unsigned row = i / C / OW;
        const int kd = index / W / H - int(row / OH * SD) + PF;
        const int kh = index / W % H - int(row % OH * SH) + PT;
        const int kw = index % W - int(i / C % OW * SW) + PL;
        stray |= kd < 0 || kd >= KD || kh < 0 || kh >= KH || kw < 0 || kw >= KW;
    }
    stray = __syncthreads_or(stray);
    if (threadIdx.x == 0) strays[blockIdx.x] = stray;
}

// The windows that may name cell i of an axis: those that hold it, or all.
__device__ __forceinline__ Span candidates(int i, int K, int S, int P, int O, bool all) {
    return all ? Span{0, O} : windows_over(i, K, S, P, 1, O);
}

// Four flags per access where there are enough: all threads of an image ask for the same ones.
__device__ __forceinline__ bool any_of(const int* flags, int count) {
    int any = 0;
    if (count % 4 == 0 && aligned16(flags)) {
#pragma unroll 2
        for (int i = 0; i < count; i += 4) {
            const int4 four = *reinterpret_cast<const int4*>(flags + i);
            any |= four.x | four.y | four.z | four.w;
        }
        return any;
    }
#pragma unroll 1
    for (int i = 0; i < count; ++i) any |= flags[i];
    return any;
}

template <int V>
__device__ __forceinline__ void unpool_forward(
    stored* y, const stored* x, const int* indices, const int* strays, int N, int D, int H, int W,
    int C, int KD, int KH, int KW, int OD, int OH, int OW, int SD, int SH, int SW, int PF, int PT,
    int PL, int PARTS, int LAST) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const Place p = place_of<V>(i, D * H, W, C);
    if (p.n >= N) return;
    const bool all = any_of(strays + p.n * PARTS, PARTS);
    const Span slabs = candidates(DIMS == 3 ? p.h / H : 0, KD, SD, PF, OD, all);
    const Span rows = candidates(DIMS == 3 ? p.h % H : p.h, KH, SH, PT, OH, all);
    const Span columns = candidates(p.w, KW, SW, PL, OW, all);
    const int here = p.h * W + p.w;
    Channels<float, V> sum = all_channels<float, V>(0.0f);
    for (int od = slabs.begin; od < slabs.end; ++od)
        for (int oh = rows.begin; oh < rows.end; ++oh)
            for (int ow = columns.begin; ow < columns.end; ++ow) {
                const long long o = ((((long long)p.n * OD + od) * OH + oh) * OW + ow) * C + p.c;
                const Channels<int, V> index = load_channels<V>(indices + o);
                const Channels<float, V> value = load_channels<V>(x + o);
#pragma unroll
                for (int v = 0; v < V; ++v)
                    if (index.at[v] == here)
                        sum.at[v] = LAST ? value.at[v] : sum.at[v] + value.at[v];
            }
    store_channels(y + (long long)i * V, sum);
}

extern "C" __global__ void __launch_bounds__(256, 4) max_unpool2d_forward(
    stored* __restrict__ y,           // (N, D, H, W, C)
    const stored* __restrict__ x,     // (N, OD, OH, OW, C)
    const int* __restrict__ indices,  // (N, OD, OH, OW, C)
    const int* __restrict__ strays,   // (N, PARTS)
    int N, int D, int H, int W, int C, int KD, int KH, int KW, int OD, int OH, int OW,
    int SD, int SH, int SW, int PF, int PT, int PL, int PARTS, int LAST) {
    WINDOWS_HAVE_NO_DEPTH;
    if (C % 4 == 0)
        unpool_forward<4>(y, x, indices, strays, N, D, H, W, C, KD, KH, KW, OD, OH, OW,
                          SD, SH, SW, PF, PT, PL, PARTS, LAST);
    else
        unpool_forward<1>(y, x, indices, strays, N, D, H, W, C, KD, KH, KW, OD, OH, OW,
                          SD, SH, SW, PF, PT, PL, PARTS, LAST);
}

// dx[n][od][oh][ow][c] = dy of the cell that it names, 0 if (LAST) a later window names it too. A
// thread owns one element: the cells of neighbouring channels lie apart.
extern "C" __global__ void __launch_bounds__(256, 4) max_unpool2d_backward(
    stored* __restrict__ dx,          // (N, OD, OH, OW, C)
    const stored* __restrict__ dy,    // (N, D, H, W, C)
    const int* __restrict__ indices,  // (N, OD, OH, OW, C)
    const int* __restrict__ strays,   // (N, PARTS)
    int N, int D, int H, int W, int C, int KD, int KH, int KW, int OD, int OH, int OW,
    int SD, int SH, int SW, int PF, int PT, int PL, int PARTS, int LAST) {
    WINDOWS_HAVE_NO_DEPTH;
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const Place p = place_of<1>(i, OD * OH, OW, C);
    if (p.n >= N) return;
    const int index = indices[i];
    float gradient = 0.0f;
    if (index >= 0 && index < D * H * W) {
        gradient = to_float(dy[((long long)p.n * D * H * W + index) * C + p.c]);
        if (LAST) {
            const bool all = any_of(strays + p.n * PARTS, PARTS);
            const int row = index / W, own = p.h * OW + p.w;
            const Span slabs = candidates(DIMS == 3 ? row / H : 0, KD, SD, PF, OD, all);
            const Span rows = candidates(DIMS == 3 ? row % H : row, KH, SH, PT, OH, all);
            const Span columns = candidates(index % W, KW, SW, PL, OW, all);
            for (int od = max(slabs.begin, DIMS == 3 ? p.h / OH : 0); od < slabs.end; ++od)
                for (int oh = max(rows.begin, p.h - od * OH); oh < rows.end; ++oh)
                    for (int ow = columns.begin; ow < columns.end; ++ow) {
                        const int window = (od * OH + oh) * OW + ow;
                        if (window > own &&
                            indices[((long long)p.n * OD * OH * OW + window) * C + p.c] == index)
                            gradient = 0.0f;
                    }
        }
    }
    set(dx[i], gradient);
}
