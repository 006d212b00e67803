// The three passes of a convolution over the pipelined tile loop, for any Multiplier.
//
//                     rows m                      columns n       sum over k
//   forward           output pixel n,oh,ow        oc in group     kh, kw, c in group
//   data gradient     input pixel n,h,w           c in group      kh, kw, oc in group
//   weight gradient   kh, kw, c in group          oc in group     output pixel, cut into slices
//
// Layout NHWC; w is (OC, KH, KW, C/G); with DIMS = 3 volumes, NDHWC, and (OC, KD, KH, KW, C/G). The
// data gradient takes the filter with its channels exchanged, (C, KH, KW, OC/G), so that its k too is
// contiguous; it goes phase by phase of the stride (conv2d_phases.cuh). Blocks are numbered with the
// columns fastest: those that read the same pixels run at the same time, and find them in the L2
// cache. The slices of the weight gradient are added in order by sum_slices in reduce.cu.

#include "common.cuh"
#include "conv2d_phases.cuh"
#include "gemm_pipeline.cuh"

// WIDTH neighbours in memory, of which `count` exist from the first one on.
template <int WIDTH>
__device__ __forceinline__ void store_run(float* to, int count, const float (&v)[WIDTH]) {
    const unsigned misaligned = (unsigned)reinterpret_cast<unsigned long long>(to) % (4 * WIDTH);
    if (WIDTH == 2 && count >= 2 && !misaligned) {
        *reinterpret_cast<float2*>(to) = make_float2(v[0], v[WIDTH > 1]);
        return;
    }
    if (WIDTH == 4 && count >= 4 && !misaligned) {
        *reinterpret_cast<float4*>(to) =
            make_float4(v[0], v[WIDTH > 1], v[WIDTH > 2 ? 2 : 0], v[WIDTH - 1]);
        return;
    }
#pragma unroll
    for (int i = 0; i < WIDTH; ++i)
        if (i < count) to[i] = v[i];
}

// The same with a bias, which may be null, added to each.
template <int WIDTH>
__device__ __forceinline__ void store_run(
    float* to, int count, const float (&v)[WIDTH], const float* bias) {
    float sum[WIDTH];
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) sum[i] = bias && i < count ? v[i] + bias[i] : v[i];
    store_run(to, count, sum);
}

#define CONV2D_SIZES                                                                             \
    int N, int D, int H, int W, int C, int OC, int KD, int KH, int KW, int OD, int OH, int OW,   \
        int SD, int SH, int SW, int PF, int PT, int PL, int DD, int DH, int DW, int G

// grid (pixel tiles * channel tiles, G)
template <class Multiplier>
__device__ __forceinline__ void forward_pass(
    float* __restrict__ y,        // (N, OD, OH, OW, OC)
    const float* __restrict__ x,  // (N, D, H, W, C)
    const float* __restrict__ w,  // (OC, KD, KH, KW, CG)
    const float* __restrict__ b,  // (OC) or null
    CONV2D_SIZES) {
    IMAGES_HAVE_NO_DEPTH;
    const int P = N * OD * OH * OW, CG = C / G, OCG = OC / G, K = KD * KH * KW * CG;
    const int oc0 = blockIdx.y * OCG, tiles_n = (OCG + TILE_GN - 1) / TILE_GN;
    const Lattice lattice = convolution_lattice(
        x + blockIdx.y * CG, D, H, W, C, CG, KD, KH, KW, OD, OH, OW, SD, SH, SW, PF, PT, PL, DD, DH, DW);
    const Filter filter{w + (long long)oc0 * K, OCG, K, KH * KW * CG, KW * CG, CG};
    pipeline_rows<Multiplier>(
        blockIdx.x / tiles_n, blockIdx.x % tiles_n, P, lattice, filter,
        [&](int p, int oc, const auto& v) {
            if (p < P && oc < OCG)
                store_run(y + (p * OC + oc0 + oc), OCG - oc, v, b ? b + oc0 + oc : nullptr);
        });
}

// grid (phases * tiles of the largest phase's pixels * channel tiles, G)
template <class Multiplier>
__device__ __forceinline__ void data_gradient_pass(
    float* __restrict__ dx,        // (N, D, H, W, C)
    const float* __restrict__ dy,  // (N, OD, OH, OW, OC)
    const float* __restrict__ wt,  // (C, KD, KH, KW, OCG): w with the channels of a group exchanged
    const float* __restrict__ b,   // (C) or null
    CONV2D_SIZES) {
    IMAGES_HAVE_NO_DEPTH;
    const int CG = C / G, OCG = OC / G, c0 = blockIdx.y * CG;
    const int tiles_n = (CG + TILE_GN - 1) / TILE_GN;
    const PhasedPixels pixels(blockIdx.x / tiles_n, gridDim.x / tiles_n, N, D, H, W, KD, KH, KW,
                              SD, SH, SW, PF, PT, PL, DD, DH, DW);
    const Lattice lattice = pixels.lattice(dy + blockIdx.y * OCG, OD, OH, OW, OC, OCG);
    const Phase &pd = pixels.d, &ph = pixels.h, &pw = pixels.w;
    const int tap_w = OCG, tap_h = KW * tap_w, tap_d = KH * tap_h;
    const Filter filter{wt + (long long)c0 * KD * tap_d + pd.first * tap_d + ph.first * tap_h +
                            pw.first * tap_w,
                        CG, KD * tap_d, pd.step * tap_d, ph.step * tap_h, pw.step * tap_w};
    pipeline_rows<Multiplier>(
        pixels.tile, blockIdx.x % tiles_n, pixels.count, lattice, filter,
        [&](int p, int c, const auto& v) {
            if (p < pixels.count && c < CG)
                store_run(dx + (pixels.offset(p, D, H, W, C) + c0 + c), CG - c, v,
                          b ? b + c0 + c : nullptr);
        });
}

// grid (filter tiles * channel tiles, G * slices)
template <class Multiplier>
__device__ __forceinline__ void weight_gradient_pass(
    float* __restrict__ partial,   // (slices, OC, KD, KH, KW, CG)
    const float* __restrict__ dy,  // (N, OD, OH, OW, OC)
    const float* __restrict__ x,   // (N, D, H, W, C)
    CONV2D_SIZES, int slice_pixels) {
    IMAGES_HAVE_NO_DEPTH;
    const int CG = C / G, OCG = OC / G, K = KD * KH * KW * CG;
    const int g = blockIdx.y % G, slice = blockIdx.y / G, oc0 = g * OCG;
    const int tiles_n = (OCG + TILE_GN - 1) / TILE_GN;
    const int first = slice * slice_pixels;
    const int end = first + min(slice_pixels, N * OD * OH * OW - first);
    const Lattice lattice = convolution_lattice(
        x + g * CG, D, H, W, C, CG, KD, KH, KW, OD, OH, OW, SD, SH, SW, PF, PT, PL, DD, DH, DW);
    float* out = partial + (long long)slice * OC * K + (long long)oc0 * K;
    pipeline_columns<Multiplier>(
        blockIdx.x / tiles_n, blockIdx.x % tiles_n, OCG, first, end, lattice, dy + oc0, OC,
        [&](int m, int oc, const auto& v) {
            if (m < K && oc < OCG) store_run(out + (oc * K + m), K - m, v);
        });
}
