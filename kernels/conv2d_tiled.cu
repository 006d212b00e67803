// 2-D convolution, the second rung: the same sums as conv2d_naive, as matrix products whose tiles
// are staged in shared memory. The matrices are never built: an operand computes where its element
// (m, k) lies in the image, and is zero outside (kernel of the loop: tile_matmul.cuh).
//
//                     rows m                 columns n       sum over k
//   forward           output pixel n,oh,ow   oc in group     kh, kw, c in group
//   data gradient     input pixel n,h,w      c in group      kh, kw, oc in group
//   weight gradient   kh, kw, c in group     oc in group     output pixel, cut into slices
//
// Layout NHWC; w is (OC, KH, KW, C/G). A block computes TILE_GM x TILE_GN outputs of one group; the
// launcher picks TILE_GN = 8, 16 or 32 by the channels of the group. Against the naive rung, a
// pixel is read from global memory once per TILE_GN channels and a weight once per TILE_GM pixels.
// What bounds it: per k a warp spends two shared-memory reads (16-byte broadcast + 4-byte row) on 4
// multiply-adds, half of what the arithmetic units could take.
//
// The weight gradient is cut into slices of pixels, or a small filter would occupy a few blocks
// only; sum_slices in reduce.cu adds the slices in order. Stride s wastes 1 - 1/s^2 of the data
// gradient's work on taps that meet no output. Any stride, padding, dilation, groups and channels.

#include "common.cuh"
#include "tile_matmul.cuh"

struct Geometry {
    int N, H, W, C, OC, KH, KW, OH, OW, SH, SW, PT, PL, DH, DW, G;
    int CG, OCG, g;  // channels in and out of one group, and which group
};

#define GEOMETRY(group)                                                                            \
    Geometry{N, H, W, C, OC, KH, KW, OH, OW, SH, SW, PT, PL, DH, DW, G, C / G, OC / G, (group)}

// Where an output pixel's window begins; image is null past the last pixel.
struct Window {
    const float* image;
    int h, w;
};

// One element of the filter: its offset in the window; c is -1 past the last.
struct Tap {
    int h, w, c;
};

__device__ __forceinline__ Window window_at(const Geometry& s, const float* x, int p, int P) {
    const int ow = p % s.OW, oh = p / s.OW % s.OH, n = p / s.OW / s.OH;
    return {p < P ? x + (long long)n * s.H * s.W * s.C + s.g * s.CG : nullptr,
            oh * s.SH - s.PT, ow * s.SW - s.PL};
}

// k = (kh * KW + kw) * channels + c
__device__ __forceinline__ Tap tap_at(const Geometry& s, int channels, int k, int k_end) {
    return {k / channels / s.KW * s.DH, k / channels % s.KW * s.DW, k < k_end ? k % channels : -1};
}

__device__ __forceinline__ float read_window(const Geometry& s, const Window& at, const Tap& tap) {
    const int h = at.h + tap.h, w = at.w + tap.w;
    const bool inside = at.image && tap.c >= 0 && h >= 0 && h < s.H && w >= 0 && w < s.W;
    return inside ? at.image[((long long)h * s.W + w) * s.C + tap.c] : 0.0f;
}

// x as a matrix (output pixel, filter element), for the forward pass.
struct Windows {
    static constexpr bool K_FAST = true;
    typedef Window Outer;
    typedef Tap Inner;
    Geometry s;
    const float* x;
    int P;
    __device__ __forceinline__ Outer outer(int p) const { return window_at(s, x, p, P); }
    __device__ __forceinline__ Inner inner(int k, int k_end) const {
        return tap_at(s, s.CG, k, k_end);
    }
    __device__ __forceinline__ float load(const Outer& at, const Inner& tap) const {
        return read_window(s, at, tap);
    }
};

// The same matrix transposed, (filter element, output pixel), for the weight gradient.
struct WindowsTransposed {
    static constexpr bool K_FAST = false;
    typedef Tap Outer;
    typedef Window Inner;
    Geometry s;
    const float* x;
    __device__ __forceinline__ Outer outer(int m) const {
        return tap_at(s, s.CG, m, s.KH * s.KW * s.CG);
    }
    __device__ __forceinline__ Inner inner(int p, int p_end) const {
        return window_at(s, x, p, p_end);
    }
    __device__ __forceinline__ float load(const Outer& tap, const Inner& at) const {
        return read_window(s, at, tap);
    }
};

// dy as a matrix (input pixel, filter element of the output channels), for the data gradient.
struct Outputs {
    static constexpr bool K_FAST = true;
    typedef Window Outer;
    typedef Tap Inner;
    Geometry s;
    const float* dy;
    int P;
    __device__ __forceinline__ Outer outer(int p) const {
        const int w = p % s.W, h = p / s.W % s.H, n = p / s.W / s.H;
        return {p < P ? dy + (long long)n * s.OH * s.OW * s.OC + s.g * s.OCG : nullptr,
                h + s.PT, w + s.PL};
    }
    __device__ __forceinline__ Inner inner(int k, int k_end) const {
        return tap_at(s, s.OCG, k, k_end);
    }
    __device__ __forceinline__ float load(const Outer& at, const Inner& tap) const {
        const int h = at.h - tap.h, w = at.w - tap.w;
        if (!at.image || tap.c < 0 || h < 0 || w < 0 || h % s.SH || w % s.SW) return 0.0f;
        const int oh = h / s.SH, ow = w / s.SW;
        if (oh >= s.OH || ow >= s.OW) return 0.0f;
        return at.image[((long long)oh * s.OW + ow) * s.OC + tap.c];
    }
};

// w as a matrix (input channel, filter element of the output channels), for the data gradient.
struct Taps {
    static constexpr bool K_FAST = false;
    typedef const float* Outer;
    typedef long long Inner;
    Geometry s;
    const float* w;
    __device__ __forceinline__ Outer outer(int c) const {
        return c < s.CG ? w + (long long)s.g * s.OCG * s.KH * s.KW * s.CG + c : nullptr;
    }
    __device__ __forceinline__ Inner inner(int k, int k_end) const {
        const int oc = k % s.OCG, tap = k / s.OCG;
        return k < k_end ? ((long long)oc * s.KH * s.KW + tap) * s.CG : -1;
    }
    __device__ __forceinline__ float load(const Outer& channel, const Inner& at) const {
        return channel && at >= 0 ? channel[at] : 0.0f;
    }
};

// grid (pixel tiles, channel tiles, G)
extern "C" __global__ void __launch_bounds__(256) conv2d_tiled_forward(
    float* __restrict__ y,        // (N, OH, OW, OC)
    const float* __restrict__ x,  // (N, H, W, C)
    const float* __restrict__ w,  // (OC, KH, KW, CG)
    const float* __restrict__ b,  // (OC) or null
    int N, int H, int W, int C, int OC, int KH, int KW, int OH, int OW,
    int SH, int SW, int PT, int PL, int DH, int DW, int G) {
    const Geometry s = GEOMETRY((int)blockIdx.z);
    const int P = N * OH * OW, K = KH * KW * s.CG, oc0 = s.g * s.OCG;
    const Windows windows{s, x, P};
    const Dense<true> weights{w + (long long)oc0 * K, s.OCG, K, 1};
    tile_matmul(P, s.OCG, 0, K, windows, weights, [&](int p, int oc, float sum) {
        y[(long long)p * OC + oc0 + oc] = b ? sum + b[oc0 + oc] : sum;
    });
}

// grid (pixel tiles, channel tiles, G)
extern "C" __global__ void __launch_bounds__(256) conv2d_tiled_data_gradient(
    float* __restrict__ dx,        // (N, H, W, C)
    const float* __restrict__ dy,  // (N, OH, OW, OC)
    const float* __restrict__ w,   // (OC, KH, KW, CG)
    int N, int H, int W, int C, int OC, int KH, int KW, int OH, int OW,
    int SH, int SW, int PT, int PL, int DH, int DW, int G) {
    const Geometry s = GEOMETRY((int)blockIdx.z);
    const int P = N * H * W;
    const Outputs outputs{s, dy, P};
    const Taps taps{s, w};
    tile_matmul(P, s.CG, 0, KH * KW * s.OCG, outputs, taps, [&](int p, int c, float sum) {
        dx[(long long)p * C + s.g * s.CG + c] = sum;
    });
}

// grid (filter tiles, channel tiles, G * slices)
extern "C" __global__ void __launch_bounds__(256) conv2d_tiled_weight_gradient(
    float* __restrict__ partial,   // (slices, OC, KH, KW, CG)
    const float* __restrict__ dy,  // (N, OH, OW, OC)
    const float* __restrict__ x,   // (N, H, W, C)
    int N, int H, int W, int C, int OC, int KH, int KW, int OH, int OW,
    int SH, int SW, int PT, int PL, int DH, int DW, int G, int slice_pixels) {
    const Geometry s = GEOMETRY((int)blockIdx.z % G);
    const int K = KH * KW * s.CG, oc0 = s.g * s.OCG;
    const int slice = blockIdx.z / G, begin = slice * slice_pixels;
    const int end = begin + min(slice_pixels, N * OH * OW - begin);
    const WindowsTransposed windows{s, x};
    const Dense<false> gradients{dy + oc0, s.OCG, 1, OC};
    float* out = partial + (long long)slice * OC * K;
    tile_matmul(K, s.OCG, begin, end, windows, gradients, [&](int m, int oc, float sum) {
        out[(long long)(oc0 + oc) * K + m] = sum;
    });
}
