// Convolution on tensor cores, the top rung: the same three matrix products as conv2d_tiled, which
// are never built either, but multiplied 16 x 8 x 8 at a time (tensor_tile.cuh).
//
//                     rows m                      columns n       sum over k
//   forward           output pixel n,oh,ow        oc in group     kh, kw, c in group
//   data gradient     input pixel n,h,w           c in group      kh, kw, oc in group
//   weight gradient   kh, kw, c in group          oc in group     output pixel, cut into slices
//
// Layout NHWC; w is (OC, KH, KW, C/G); with DIMS = 3 volumes, NDHWC, and (OC, KD, KH, KW, C/G). The
// data gradient takes the filter with its channels exchanged, (C, KH, KW, OC/G), so that its k too is
// contiguous; it goes phase by phase of the stride (conv2d_phases.cuh).
//
// What it gains: one instruction of a warp does 1024 multiply-adds, and a value that was copied to
// shared memory takes part in TILE_GN (or TILE_GM) of them. Operands pass through shared memory
// by asynchronous copies of 16 bytes; no register is spent on data under way. Blocks are numbered
// with the columns fastest: those that read the same pixels run at the same time, and find them in
// the L2 cache.
//
// Any stride, padding, dilation and groups. VECTOR = 4 needs channels per group that are multiples of
// four, and aligned arrays; VECTOR = 1 takes any. sm_80 and newer.

#include "common.cuh"
#include "conv2d_phases.cuh"
#include "tensor_tile.cuh"

// Two neighbours of a row of channels, of which `count` exist from the first one on.
__device__ __forceinline__ void store_two(float* to, int count, float v0, float v1) {
    if (count >= 2 && (reinterpret_cast<unsigned long long>(to) & 7) == 0) {
        *reinterpret_cast<float2*>(to) = make_float2(v0, v1);
        return;
    }
    if (count >= 1) to[0] = v0;
    if (count >= 2) to[1] = v1;
}

// grid (pixel tiles * channel tiles, G)
extern "C" __global__ void __launch_bounds__(TILE_THREADS, RESIDENT_BLOCKS) conv2d_implicit_gemm_forward(
    float* __restrict__ y,        // (N, OD, OH, OW, OC)
    const float* __restrict__ x,  // (N, D, H, W, C)
    const float* __restrict__ w,  // (OC, KD, KH, KW, CG)
    const float* __restrict__ b,  // (OC) or null
    int N, int D, int H, int W, int C, int OC, int KD, int KH, int KW, int OD, int OH, int OW,
    int SD, int SH, int SW, int PF, int PT, int PL, int DD, int DH, int DW, int G) {
    IMAGES_HAVE_NO_DEPTH;
    const int P = N * OD * OH * OW, CG = C / G, OCG = OC / G, K = KD * KH * KW * CG;
    const int oc0 = blockIdx.y * OCG, tiles_n = (OCG + TILE_GN - 1) / TILE_GN;
    const Lattice lattice = convolution_lattice(
        x + blockIdx.y * CG, D, H, W, C, CG, KD, KH, KW, OD, OH, OW, SD, SH, SW, PF, PT, PL, DD, DH, DW);
    const Filter filter{w + (long long)oc0 * K, OCG, K, KH * KW * CG, KW * CG, CG};
    tensor_tile_rows(
        blockIdx.x / tiles_n, blockIdx.x % tiles_n, P, lattice, filter,
        [&](int p, int oc, float v0, float v1) {
            if (p >= P || oc >= OCG) return;
            if (b) v0 += b[oc0 + oc], v1 += oc + 1 < OCG ? b[oc0 + oc + 1] : 0.0f;
            store_two(y + (long long)p * OC + oc0 + oc, OCG - oc, v0, v1);
        });
}

// grid (phases * tiles of the largest phase's pixels * channel tiles, G)
extern "C" __global__ void __launch_bounds__(TILE_THREADS, RESIDENT_BLOCKS) conv2d_implicit_gemm_data_gradient(
    float* __restrict__ dx,        // (N, D, H, W, C)
    const float* __restrict__ dy,  // (N, OD, OH, OW, OC)
    const float* __restrict__ wt,  // (C, KD, KH, KW, OCG): w with the channels of a group exchanged
    const float* __restrict__ b,   // (C) or null
    int N, int D, int H, int W, int C, int OC, int KD, int KH, int KW, int OD, int OH, int OW,
    int SD, int SH, int SW, int PF, int PT, int PL, int DD, int DH, int DW, int G) {
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
    tensor_tile_rows(
        pixels.tile, blockIdx.x % tiles_n, pixels.count, lattice, filter,
        [&](int p, int c, float v0, float v1) {
            if (p >= pixels.count || c >= CG) return;
            if (b) v0 += b[c0 + c], v1 += c + 1 < CG ? b[c0 + c + 1] : 0.0f;
            store_two(dx + pixels.offset(p, D, H, W, C) + c0 + c, CG - c, v0, v1);
        });
}

// grid (filter tiles * channel tiles, G * slices)
extern "C" __global__ void __launch_bounds__(TILE_THREADS, RESIDENT_BLOCKS) conv2d_implicit_gemm_weight_gradient(
    float* __restrict__ partial,   // (slices, OC, KD, KH, KW, CG)
    const float* __restrict__ dy,  // (N, OD, OH, OW, OC)
    const float* __restrict__ x,   // (N, D, H, W, C)
    int N, int D, int H, int W, int C, int OC, int KD, int KH, int KW, int OD, int OH, int OW,
    int SD, int SH, int SW, int PF, int PT, int PL, int DD, int DH, int DW, int G,
    int slice_pixels) {
    IMAGES_HAVE_NO_DEPTH;
    const int CG = C / G, OCG = OC / G, K = KD * KH * KW * CG;
    const int g = blockIdx.y % G, slice = blockIdx.y / G, oc0 = g * OCG;
    const int tiles_n = (OCG + TILE_GN - 1) / TILE_GN;
    const int first = slice * slice_pixels;
    const int end = first + min(slice_pixels, N * OD * OH * OW - first);
    const Lattice lattice = convolution_lattice(
        x + g * CG, D, H, W, C, CG, KD, KH, KW, OD, OH, OW, SD, SH, SW, PF, PT, PL, DD, DH, DW);
    float* out = partial + (long long)slice * OC * K + (long long)oc0 * K;
    tensor_tile_columns(
        blockIdx.x / tiles_n, blockIdx.x % tiles_n, OCG, first, end, lattice, dy + oc0, OC,
        [&](int m, int oc, float v0, float v1) {
            if (m >= K) return;
            if (oc < OCG) out[(long long)oc * K + m] = v0;
            if (oc + 1 < OCG) out[(long long)(oc + 1) * K + m] = v1;
        });
}
