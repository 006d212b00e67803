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
// them in raster order, lanes run along the channels: loads coalesce. Traffic: 4 bytes per cell of x
// and little more: memory-bound, if enough loads are under way.
//
// Few and large regions have too few threads for that: a batch of 32 images of 112 x 112 x 64 as one
// region each has 512 threads, with some 64 bytes each on their way, 32 KB, where an H200 (4.8 TB/s,
// 0.7 us) needs about 3 MB. There the launcher takes the kernels named _shared: a block of TX x TY
// threads cuts a region, or one of its slices, into TY interleaved parts,
//
//                 TX threads along the channels
//      cell 0        y = 0                          part of thread row y: cells y, y + TY, ...
//      cell 1        y = 1                          then the TY parts are joined in shared memory,
//      ...           ...                            pairwise, and the slices by the kernels _join
//
// in an order that sizes alone decide; the winner of a maximum does not depend on any order.
//
// The backward pass gathers: a cell h lies in the regions floor(h*OH / H) <= oh < ceil((h+1)*OH / H),
// the same formula with H and OH exchanged. One writer per cell, raster order: no atomics, the same
// bits every time. Takes any sizes with (H + 1) * (OH + 1) and (W + 1) * (OW + 1) within int32.

#include "common.cuh"
#include "channels.cuh"
#include "column_sum.cuh"
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
    stored* y, const stored* x, int N, int H, int W, int C, int OH, int OW) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const Place p = place_of<V>(i, OH, OW, C);
    if (p.n >= N) return;
    const Span rows = region(p.h, H, OH), columns = region(p.w, W, OW);
    const stored* image = x + (long long)p.n * H * W * C + p.c;
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
    stored* __restrict__ y,        // (N, OH, OW, C)
    const stored* __restrict__ x,  // (N, H, W, C)
    int N, int H, int W, int C, int OH, int OW) {
    if (C % 4 == 0)
        avg_forward<4>(y, x, N, H, W, C, OH, OW);
    else
        avg_forward<1>(y, x, N, H, W, C, OH, OW);
}

// What a block of TX x TY threads reads, a slice of a region, and where thread (x, y) starts in it.
struct Slice {
    int n, oh, ow, c;     // the region, and this thread's first channel; c >= C in idle threads
    int base, row, wide;  // the region's first cell h*W + w, the cells of a row of it, and of the image
    int cell, end;        // this thread's first cell in the region, and the end of the slice

    // The place h*W + w of a cell of the region. No division where regions are as wide as the image.
    __device__ __forceinline__ int at(int i) const {
        return wide == row ? base + i : base + i / row * wide + i % row;
    }
};

template <int V>
__device__ __forceinline__ Slice slice_of_thread(
    int H, int W, int C, int OH, int OW, int slices) {
    const int tiles = (C / V + blockDim.x - 1) / blockDim.x;
    const int slice = blockIdx.x % slices, region_number = blockIdx.x / slices / tiles;
    const int oh = region_number / OW % OH, ow = region_number % OW;
    const Span rows = region(oh, H, OH), columns = region(ow, W, OW);
    const int wide = columns.end - columns.begin, cells = (rows.end - rows.begin) * wide;
    const int each = (cells + slices - 1) / slices;
    return {region_number / OW / OH, oh, ow,
            int(blockIdx.x / slices % tiles * blockDim.x + threadIdx.x) * V,
            rows.begin * W + columns.begin, wide, W,
            slice * each + int(threadIdx.y), min((slice + 1) * each, cells)};
}

// Where a block's results go: (N, OH, OW, slices, C).
__device__ __forceinline__ long long slice_offset(const Slice& s, int C, int OH, int OW, int slices) {
    return ((((long long)s.n * OH + s.oh) * OW + s.ow) * slices + blockIdx.x % slices) * C + s.c;
}

template <int V>
__device__ __forceinline__ void avg_shared(
    stored* y, float* slice_sums, const stored* x, int N, int H, int W, int C, int OH, int OW, int slices) {
    __shared__ float sums[V][256];
    const Slice s = slice_of_thread<V>(H, W, C, OH, OW, slices);
    const stored* image = x + (long long)s.n * H * W * C + s.c;
    Channels<float, V> sum = all_channels<float, V>(0.0f);
    if (s.c < C) {
#pragma unroll 4
        for (int i = s.cell; i < s.end; i += blockDim.y) {
            const Channels<float, V> cell = load_channels<V>(image + (long long)s.at(i) * C);
#pragma unroll
            for (int v = 0; v < V; ++v) sum.at[v] += cell.at[v];
        }
    }
    const float count = slices == 1 ? area(s.oh, s.ow, H, W, OH, OW) : 1.0f;
#pragma unroll
    for (int v = 0; v < V; ++v) sum.at[v] = sum_of_column(sums[v], sum.at[v]) / count;
    if (threadIdx.y != 0 || s.c >= C) return;
    const long long out = slice_offset(s, C, OH, OW, slices);
    if (y)
        store_channels(y + out, sum);
    else
        store_channels(slice_sums + out, sum);
}

// grid (regions * channel tiles * slices), block (TX, TY)
extern "C" __global__ void __launch_bounds__(256, 4) adaptive_avg_pool2d_shared(
    stored* __restrict__ y,          // (N, OH, OW, C), null unless slices is 1
    float* __restrict__ slice_sums,  // (N, OH, OW, slices, C), null if it is
    const stored* __restrict__ x,    // (N, H, W, C)
    int N, int H, int W, int C, int OH, int OW, int slices) {
    if (C % 4 == 0)
        avg_shared<4>(y, slice_sums, x, N, H, W, C, OH, OW, slices);
    else
        avg_shared<1>(y, slice_sums, x, N, H, W, C, OH, OW, slices);
}

// A thread adds the slices of one output.
extern "C" __global__ void __launch_bounds__(256) adaptive_avg_pool2d_join(
    stored* __restrict__ y,          // (N, OH, OW, C)
    const float* __restrict__ sums,  // (N, OH, OW, slices, C)
    int N, int H, int W, int C, int OH, int OW, int slices) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const Place p = place_of<1>(i, OH, OW, C);
    if (p.n >= N) return;
    const float* first = sums + (long long)(i / C) * slices * C + p.c;
    float sum = 0.0f;
    for (int slice = 0; slice < slices; ++slice) sum += first[(long long)slice * C];
    set(y[i], sum / area(p.h, p.w, H, W, OH, OW));
}

// dx[n][h][w][c] = sum of dy[n][oh][ow][c] / area over the regions that hold (h, w)
template <int V>
__device__ __forceinline__ void avg_backward(
    stored* dx, const stored* dy, int N, int H, int W, int C, int OH, int OW) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const Place p = place_of<V>(i, H, W, C);
    if (p.n >= N) return;
    const Span rows = region(p.h, OH, H), columns = region(p.w, OW, W);
    const stored* image = dy + (long long)p.n * OH * OW * C + p.c;
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
    stored* __restrict__ dx,        // (N, H, W, C)
    const stored* __restrict__ dy,  // (N, OH, OW, C)
    int N, int H, int W, int C, int OH, int OW) {
    if (C % 4 == 0)
        avg_backward<4>(dx, dy, N, H, W, C, OH, OW);
    else
        avg_backward<1>(dx, dy, N, H, W, C, OH, OW);
}

template <int V>
__device__ __forceinline__ void max_forward(
    stored* y, int* indices, const stored* x, int N, int H, int W, int C, int OH, int OW) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const Place p = place_of<V>(i, OH, OW, C);
    if (p.n >= N) return;
    const Span rows = region(p.h, H, OH), columns = region(p.w, W, OW);
    const stored* image = x + (long long)p.n * H * W * C + p.c;
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
    stored* __restrict__ y,        // (N, OH, OW, C)
    int* __restrict__ indices,     // (N, OH, OW, C)
    const stored* __restrict__ x,  // (N, H, W, C)
    int N, int H, int W, int C, int OH, int OW) {
    if (C % 4 == 0)
        max_forward<4>(y, indices, x, N, H, W, C, OH, OW);
    else
        max_forward<1>(y, indices, x, N, H, W, C, OH, OW);
}

// Whether a cell takes the maximum from another, wherever the two lie: an earlier place wins a tie,
// the last NaN all.
__device__ __forceinline__ bool beats(float value, int index, float other, int at) {
    if (value != value) return other == other || index > at;
    return value > other || (value == other && index < at);
}

template <int V>
__device__ __forceinline__ void max_shared(
    stored* y, int* indices, const stored* x, int N, int H, int W, int C, int OH, int OW,
    int slices) {
    __shared__ float values[V][256];
    __shared__ int places[V][256];
    const Slice s = slice_of_thread<V>(H, W, C, OH, OW, slices);
    const stored* image = x + (long long)s.n * H * W * C + s.c;
    Channels<float, V> best = all_channels<float, V>(-GPUCNN_INFINITY);
    Channels<int, V> index = all_channels<int, V>(s.base);
    if (s.c < C) {
#pragma unroll 4
        for (int i = s.cell; i < s.end; i += blockDim.y) {
            const int at = s.at(i);
            const Channels<float, V> cell = load_channels<V>(image + (long long)at * C);
#pragma unroll
            for (int v = 0; v < V; ++v)
                if (cell.at[v] > best.at[v] || cell.at[v] != cell.at[v])
                    best.at[v] = cell.at[v], index.at[v] = at;
        }
    }
    const int own = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
    for (int v = 0; v < V; ++v) values[v][own] = best.at[v], places[v][own] = index.at[v];
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();  // the upper half's winners are written by other warps
        if (threadIdx.y < half) {
            const int other = own + half * blockDim.x;
#pragma unroll
            for (int v = 0; v < V; ++v)
                if (beats(values[v][other], places[v][other], values[v][own], places[v][own]))
                    values[v][own] = values[v][other], places[v][own] = places[v][other];
        }
    }
    if (threadIdx.y == 0 && s.c < C) {
#pragma unroll
        for (int v = 0; v < V; ++v) best.at[v] = values[v][own], index.at[v] = places[v][own];
        const long long out = slice_offset(s, C, OH, OW, slices);
        store_channels(y + out, best);
        store_channels(indices + out, index);
    }
}

// grid (regions * channel tiles * slices), block (TX, TY)
extern "C" __global__ void __launch_bounds__(256, 4) adaptive_max_pool2d_shared(
    stored* __restrict__ y,        // (N, OH, OW, slices, C): the maxima of slices, and where they are
    int* __restrict__ indices,     // (N, OH, OW, slices, C)
    const stored* __restrict__ x,  // (N, H, W, C)
    int N, int H, int W, int C, int OH, int OW, int slices) {
    if (C % 4 == 0)
        max_shared<4>(y, indices, x, N, H, W, C, OH, OW, slices);
    else
        max_shared<1>(y, indices, x, N, H, W, C, OH, OW, slices);
}

// A thread compares the slices of one output.
extern "C" __global__ void __launch_bounds__(256) adaptive_max_pool2d_join(
    stored* __restrict__ y,             // (N, OH, OW, C)
    int* __restrict__ indices,          // (N, OH, OW, C)
    const stored* __restrict__ values,  // (N, OH, OW, slices, C)
    const int* __restrict__ places,     // (N, OH, OW, slices, C)
    int outputs, int C, int slices) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= outputs) return;
    const long long first = (long long)(i / C) * slices * C + i % C;
    float best = to_float(values[first]);
    int index = places[first];
    for (int slice = 1; slice < slices; ++slice) {
        const long long at = first + (long long)slice * C;
        const float value = to_float(values[at]);
        if (beats(value, places[at], best, index)) best = value, index = places[at];
    }
    set(y[i], best);
    indices[i] = index;
}

// dx[n][h][w][c] = sum of dy[n][oh][ow][c] over the regions whose index is h*W + w
template <int V>
__device__ __forceinline__ void max_backward(
    stored* dx, const stored* dy, const int* indices, int N, int H, int W, int C, int OH, int OW) {
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
    stored* __restrict__ dx,          // (N, H, W, C)
    const stored* __restrict__ dy,    // (N, OH, OW, C)
    const int* __restrict__ indices,  // (N, OH, OW, C)
    int N, int H, int W, int C, int OH, int OW) {
    if (C % 4 == 0)
        max_backward<4>(dx, dy, indices, N, H, W, C, OH, OW);
    else
        max_backward<1>(dx, dy, indices, N, H, W, C, OH, OW);
}
