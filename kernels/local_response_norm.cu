// Local response normalisation, across channels or within a channel.
//
//   y_i = x_i * s_i^-beta,  s_i = k + a * sum of x_j^2 over the window of i
//   dx_j = dy_j * s_j^-beta - 2 a beta x_j * sum of dy_i * y_i / s_i over the i whose window holds j
//
// The window of channel c is c-before .. c+after of its pixel, that of a cell of an image the same
// interval of rows and of columns of its channel; both end at the border. Index i is held by the
// windows of i-after .. i+before: the backward pass gathers over the mirrored window, one writer per
// element, in ascending order, without atomics.
//
//     across, before = 2, after = 1       c-2 [c-1] [c] [c+1]    lanes own neighbouring channels, so
//     of channels c and c+1:              [c-1] [c] [c+1] c+2    their windows overlap in the caches
//
// Layout NHWC. A thread owns four channels of a pixel (one where C is no multiple of 4). Across, it
// reads the channels that its four windows hold once, four at a time as 16 bytes: a warp's request is
// 512 contiguous bytes, moved by 16 from one to the next.
// Within, it reads the n*n cells of the window as 16 bytes each, from the caches but for the first.
// Forward keeps s, so that backward takes one power per element, not one per window; a power of 0.75
// is two square roots. Traffic: 12 bytes per element forward, 20 backward: memory-bound for small n.
// The least would be 8 and 12, at the price of every bracket and power of a window once more.
// Any sizes; offsets are 32-bit, an array has fewer than 2^31 elements; k > 0.

#include "common.cuh"
#include "channels.cuh"

// s^-beta
__device__ __forceinline__ float inverse_power(float s, float beta) {
    if (beta == 0.75f) {
        const float root = sqrtf(s);
        return 1.0f / (root * sqrtf(root));
    }
    return powf(s, -beta);
}

// Adds value(j).at[0], value(j).at[1], ... of the channels j, j+1, ... over the windows
// c+v-before .. c+v+after, v < V, of one pixel; j is a multiple of V.
template <int V, class F>
__device__ __forceinline__ void add_across(
    Channels<float, V>& sum, int C, int c, int before, int after, F value) {
    const int begin = max(0, c - before) / V * V, end = c + V + min(after, C - c - V);
#pragma unroll 2
    for (int j = begin; j < end; j += V) {
        const Channels<float, V> term = value(j);
#pragma unroll
        for (int u = 0; u < V; ++u)
#pragma unroll
            for (int v = 0; v < V; ++v)
                if (j + u - c - v >= -before && j + u - c - v <= after) sum.at[v] += term.at[u];
    }
}

// Adds value(h*W + w) over the cells of the window of one cell.
template <int V, class F>
__device__ __forceinline__ void add_within(
    Channels<float, V>& sum, int H, int W, int h, int w, int before, int after, F value) {
    const int h0 = max(0, h - before), h1 = h + min(after, H - 1 - h);
    const int w0 = max(0, w - before), w1 = w + min(after, W - 1 - w);
    for (int i = h0; i <= h1; ++i)
        for (int j = w0; j <= w1; ++j) {
            const Channels<float, V> term = value((unsigned)(i * W + j));
#pragma unroll
            for (int v = 0; v < V; ++v) sum.at[v] += term.at[v];
        }
}

// y and s of V channels at offset o.
template <int V>
__device__ __forceinline__ void store_response(
    stored* y, float* s, const stored* x, unsigned o, const Channels<float, V>& bracket,
    float beta) {
    Channels<float, V> own = load_channels<V>(x + o);
#pragma unroll
    for (int v = 0; v < V; ++v) own.at[v] *= inverse_power(bracket.at[v], beta);
    store_channels(y + o, own);
    store_channels(s + o, bracket);
}

// dy * y / s of V channels at offset o.
template <int V>
__device__ __forceinline__ Channels<float, V> weighted_response(
    const stored* dy, const stored* y, const float* s, unsigned o) {
    Channels<float, V> v = load_channels<V>(dy + o);
    const Channels<float, V> response = load_channels<V>(y + o), bracket = load_channels<V>(s + o);
#pragma unroll
    for (int u = 0; u < V; ++u) v.at[u] *= response.at[u] / bracket.at[u];
    return v;
}

// dx of V channels at offset o; sum is that of dy * y / s over the mirrored window.
template <int V>
__device__ __forceinline__ void store_gradient(
    stored* dx, const stored* dy, const stored* x, const float* s, unsigned o,
    const Channels<float, V>& sum, float a, float beta) {
    Channels<float, V> own = load_channels<V>(dy + o);
    const Channels<float, V> value = load_channels<V>(x + o), bracket = load_channels<V>(s + o);
#pragma unroll
    for (int v = 0; v < V; ++v)
        own.at[v] = own.at[v] * inverse_power(bracket.at[v], beta) -
                    2.0f * a * beta * value.at[v] * sum.at[v];
    store_channels(dx + o, own);
}

template <int V>
__device__ __forceinline__ void across_forward(
    stored* y, float* s, const stored* x, int rows, int C, int before, int after, float a,
    float beta, float k) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned CV = C / V, row = i / CV;
    const int c = i % CV * V;
    if (row >= rows) return;
    const stored* pixel = x + row * C;
    Channels<float, V> sum = all_channels<float, V>(k);
    add_across<V>(sum, C, c, before, after, [&](int j) {
        Channels<float, V> v = load_channels<V>(pixel + j);
#pragma unroll
        for (int u = 0; u < V; ++u) v.at[u] = a * v.at[u] * v.at[u];
        return v;
    });
    store_response<V>(y, s, x, row * C + c, sum, beta);
}

extern "C" __global__ void __launch_bounds__(256) local_response_norm_across_forward(
    stored* __restrict__ y,        // (rows, C)
    float* __restrict__ s,         // (rows, C)
    const stored* __restrict__ x,  // (rows, C)
    int rows, int C, int before, int after, float a, float beta, float k) {
    if (C % 4 == 0)
        across_forward<4>(y, s, x, rows, C, before, after, a, beta, k);
    else
        across_forward<1>(y, s, x, rows, C, before, after, a, beta, k);
}

template <int V>
__device__ __forceinline__ void across_backward(
    stored* dx, const stored* dy, const stored* x, const stored* y, const float* s, int rows, int C,
    int before, int after, float a, float beta) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned CV = C / V, row = i / CV;
    const int c = i % CV * V;
    if (row >= rows) return;
    const unsigned o = row * C;
    Channels<float, V> sum = all_channels<float, V>(0.0f);
    add_across<V>(sum, C, c, after, before, [&](int j) {
        return weighted_response<V>(dy, y, s, o + j);
    });
    store_gradient<V>(dx, dy, x, s, o + c, sum, a, beta);
}

extern "C" __global__ void __launch_bounds__(256) local_response_norm_across_backward(
    stored* __restrict__ dx,        // (rows, C)
    const stored* __restrict__ dy,  // (rows, C)
    const stored* __restrict__ x,   // (rows, C)
    const stored* __restrict__ y,   // (rows, C)
    const float* __restrict__ s,    // (rows, C)
    int rows, int C, int before, int after, float a, float beta) {
    if (C % 4 == 0)
        across_backward<4>(dx, dy, x, y, s, rows, C, before, after, a, beta);
    else
        across_backward<1>(dx, dy, x, y, s, rows, C, before, after, a, beta);
}

template <int V>
__device__ __forceinline__ void within_forward(
    stored* y, float* s, const stored* x, int N, int H, int W, int C, int before, int after, float a,
    float beta, float k) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned CV = C / V, cell = i / CV;
    const int c = i % CV * V, w = cell % W, h = cell / W % H, n = cell / W / H;
    if (n >= N) return;
    const stored* image = x + (unsigned)n * H * W * C + c;
    Channels<float, V> sum = all_channels<float, V>(k);
    add_within<V>(sum, H, W, h, w, before, after, [&](unsigned at) {
        Channels<float, V> v = load_channels<V>(image + at * C);
#pragma unroll
        for (int u = 0; u < V; ++u) v.at[u] = a * v.at[u] * v.at[u];
        return v;
    });
    store_response<V>(y, s, x, cell * C + c, sum, beta);
}

extern "C" __global__ void __launch_bounds__(256) local_response_norm_within_forward(
    stored* __restrict__ y,        // (N, H, W, C)
    float* __restrict__ s,         // (N, H, W, C)
    const stored* __restrict__ x,  // (N, H, W, C)
    int N, int H, int W, int C, int before, int after, float a, float beta, float k) {
    if (C % 4 == 0)
        within_forward<4>(y, s, x, N, H, W, C, before, after, a, beta, k);
    else
        within_forward<1>(y, s, x, N, H, W, C, before, after, a, beta, k);
}

template <int V>
__device__ __forceinline__ void within_backward(
    stored* dx, const stored* dy, const stored* x, const stored* y, const float* s, int N, int H, int W,
    int C, int before, int after, float a, float beta) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned CV = C / V, cell = i / CV;
    const int c = i % CV * V, w = cell % W, h = cell / W % H, n = cell / W / H;
    if (n >= N) return;
    const unsigned image = (unsigned)n * H * W * C + c;
    Channels<float, V> sum = all_channels<float, V>(0.0f);
    add_within<V>(sum, H, W, h, w, after, before, [&](unsigned at) {
        return weighted_response<V>(dy, y, s, image + at * C);
    });
    store_gradient<V>(dx, dy, x, s, cell * C + c, sum, a, beta);
}

extern "C" __global__ void __launch_bounds__(256) local_response_norm_within_backward(
    stored* __restrict__ dx,        // (N, H, W, C)
    const stored* __restrict__ dy,  // (N, H, W, C)
    const stored* __restrict__ x,   // (N, H, W, C)
    const stored* __restrict__ y,   // (N, H, W, C)
    const float* __restrict__ s,    // (N, H, W, C)
    int N, int H, int W, int C, int before, int after, float a, float beta) {
    if (C % 4 == 0)
        within_backward<4>(dx, dy, x, y, s, N, H, W, C, before, after, a, beta);
    else
        within_backward<1>(dx, dy, x, y, s, N, H, W, C, before, after, a, beta);
}
