// 2-D average and sum pooling.
//
//   y[n][oh][ow][c] = (sum over kh, kw of x[n][oh*SH - PT + kh][ow*SW - PL + kw][c]) / divisor
//
// Cells outside the image add nothing. The divisor is 1 for sums; for averages it is the rows times
// the columns of the window that count:
//
//      row:  -PT ...  0 ......... H-1 ... H+PB-1 | past the padded image
//            INCLUDE  always              INCLUDE| ZERO
//
// Layout NHWC. A thread owns four channels of one output (one where C is no multiple of 4) and moves
// them as 16 bytes; lanes run along the channels, then along ow, so loads and stores coalesce and
// overlapping windows meet in the caches. Traffic per output and stride S: 4*S*S bytes of x, 4 of y:
// memory-bound. Takes any kernel, stride and padding.
//
// The backward pass gathers: a thread owns four channels of one input cell and adds the gradients of
// the windows that hold it, in raster order: no atomics, the same bits every time.

#include "common.cuh"
#include "channels.cuh"
#include "window.cuh"

// The cells of a window from begin on that count along one axis, at least 1.
__device__ __forceinline__ float counted(
    int begin, int K, int size, int low, int high, int INCLUDE, int ZERO) {
    const int end = begin + K, padded = size + high;
    const int from = INCLUDE ? max(begin, -low) : max(begin, 0);
    int count = min(end, INCLUDE ? padded : size) - from;
    if (ZERO) count += max(end - padded, 0);
    return max(count, 1);
}

struct Divisor {
    int PB, PR, AVERAGE, INCLUDE, ZERO;

    __device__ __forceinline__ float of(const Windows& s, int oh, int ow) const {
        if (!AVERAGE) return 1.0f;
        return counted(oh * s.SH - s.PT, s.KH, s.H, s.PT, PB, INCLUDE, ZERO) *
               counted(ow * s.SW - s.PL, s.KW, s.W, s.PL, PR, INCLUDE, ZERO);
    }
};

template <int V>
__device__ __forceinline__ void avg_forward(
    stored* y, const stored* x, const Windows& s, const Divisor& divisor) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const Place p = place_of<V>(i, s.OH, s.OW, s.C);
    if (p.n >= s.N) return;
    Channels<float, V> sum = sum_of_cells<V>(x, s, p, [](int, int) { return 1.0f; });
    const float by = divisor.of(s, p.h, p.w);
#pragma unroll
    for (int v = 0; v < V; ++v) sum.at[v] /= by;
    store_channels(y + (long long)i * V, sum);
}

extern "C" __global__ void __launch_bounds__(256) avg_pool2d_forward(
    stored* __restrict__ y,        // (N, OH, OW, C)
    const stored* __restrict__ x,  // (N, H, W, C)
    int N, int H, int W, int C, int KH, int KW, int OH, int OW,
    int SH, int SW, int PT, int PL, int PB, int PR, int AVERAGE, int INCLUDE, int ZERO) {
    const Windows s = {N, H, W, C, KH, KW, OH, OW, SH, SW, PT, PL};
    const Divisor divisor = {PB, PR, AVERAGE, INCLUDE, ZERO};
    if (C % 4 == 0)
        avg_forward<4>(y, x, s, divisor);
    else
        avg_forward<1>(y, x, s, divisor);
}

// dx[n][h][w][c] = sum of dy[n][oh][ow][c] / divisor over the windows that hold (h, w)
template <int V>
__device__ __forceinline__ void avg_backward(
    stored* dx, const stored* dy, const Windows& s, const Divisor& divisor) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const Place p = place_of<V>(i, s.H, s.W, s.C);
    if (p.n >= s.N) return;
    store_channels(
        dx + (long long)i * V,
        sum_of_windows<V>(dy, s, p, [&](int oh, int ow) { return 1.0f / divisor.of(s, oh, ow); }));
}

extern "C" __global__ void __launch_bounds__(256) avg_pool2d_backward(
    stored* __restrict__ dx,        // (N, H, W, C)
    const stored* __restrict__ dy,  // (N, OH, OW, C)
    int N, int H, int W, int C, int KH, int KW, int OH, int OW,
    int SH, int SW, int PT, int PL, int PB, int PR, int AVERAGE, int INCLUDE, int ZERO) {
    const Windows s = {N, H, W, C, KH, KW, OH, OW, SH, SW, PT, PL};
    const Divisor divisor = {PB, PR, AVERAGE, INCLUDE, ZERO};
    if (C % 4 == 0)
        avg_backward<4>(dx, dy, s, divisor);
    else
        avg_backward<1>(dx, dy, s, divisor);
}
