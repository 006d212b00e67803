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
// cache.
//
// Where the outputs make too few blocks for a GPU, also the sums over k of the first two passes are
// cut into slices, of slice_k each, a multiple of 32, which are stored in float (Epilogue::slices).
// sum_slices in reduce.cu adds them in order, and the bias then; the rest of the epilogue
// (epilogue.cuh) needs the whole sum.

#include "common.cuh"
#include "conv2d_phases.cuh"
#include "epilogue.cuh"

#define CONV2D_SIZES                                                                             \
    int N, int D, int H, int W, int C, int OC, int KD, int KH, int KW, int OD, int OH, int OW,   \
        int SD, int SH, int SW, int PF, int PT, int PL, int DD, int DH, int DW, int G

// grid (pixel tiles * channel tiles, G * slices)
template <class Multiplier>
__device__ __forceinline__ void forward_pass(
    stored* __restrict__ y,        // (N, OD, OH, OW, OC)
    const stored* __restrict__ x,  // (N, D, H, W, C)
    const stored* __restrict__ w,  // (OC, KD, KH, KW, CG)
    const Epilogue& epilogue, CONV2D_SIZES, int slice_k) {
    IMAGES_HAVE_NO_DEPTH;
    const int P = N * OD * OH * OW, CG = C / G, OCG = OC / G, K = KD * KH * KW * CG;
    const int g = blockIdx.y % G, slice = blockIdx.y / G;
    const int oc0 = g * OCG, tiles_n = (OCG + TILE_GN - 1) / TILE_GN;
    const int tile_m = blockIdx.x / tiles_n, tile_n = blockIdx.x % tiles_n;
    const Lattice lattice = convolution_lattice(
        x + g * CG, D, H, W, C, CG, KD, KH, KW, OD, OH, OW, SD, SH, SW, PF, PT, PL, DD, DH, DW);
    const Filter filter{w + (long long)oc0 * K, OCG, K, KH * KW * CG, KW * CG, CG};
    pipeline_rows<Multiplier>(
        tile_m, tile_n, P, slice * slice_k, slice_k, lattice, filter, [&](const Multiplier& sums) {
            store_tile<false>(epilogue, sums, y, (long long)slice * P * OC, tile_n, oc0, OCG, OC, tile_m, gridDim.x / tiles_n,
                       [&](int m) {
                           const int p = tile_m * TILE_GM + m;
                           return p < P ? p * OC : -1;
                       });
        });
}

// grid (phases * tiles of the largest phase's pixels * channel tiles, G * slices)
template <class Multiplier>
__device__ __forceinline__ void data_gradient_pass(
    stored* __restrict__ dx,        // (N, D, H, W, C)
    const stored* __restrict__ dy,  // (N, OD, OH, OW, OC)
    const stored* __restrict__ wt,  // (C, KD, KH, KW, OCG): w with the channels of a group exchanged
    const Epilogue& epilogue, CONV2D_SIZES, int slice_k) {
    IMAGES_HAVE_NO_DEPTH;
    const int CG = C / G, OCG = OC / G;
    const int g = blockIdx.y % G, slice = blockIdx.y / G, c0 = g * CG;
    const int tiles_n = (CG + TILE_GN - 1) / TILE_GN, tile_n = blockIdx.x % tiles_n;
    const int chunks = gridDim.x / tiles_n;
    const PhasedPixels pixels(blockIdx.x / tiles_n, chunks, N, D, H, W, KD, KH, KW, SD, SH, SW, PF, PT, PL, DD, DH, DW);
    const Lattice lattice = pixels.lattice(dy + g * OCG, OD, OH, OW, OC, OCG);
    const Phase &pd = pixels.d, &ph = pixels.h, &pw = pixels.w;
    const int tap_w = OCG, tap_h = KW * tap_w, tap_d = KH * tap_h;
    const Filter filter{wt + (long long)c0 * KD * tap_d + pd.first * tap_d + ph.first * tap_h +
                            pw.first * tap_w,
                        CG, KD * tap_d, pd.step * tap_d, ph.step * tap_h, pw.step * tap_w};
    pipeline_rows<Multiplier>(
        pixels.tile, tile_n, pixels.count, slice * slice_k, slice_k, lattice, filter,
        [&](const Multiplier& sums) {
            // Once more where the block is: kept through the loop, that would cost it registers.
            const int x = forgotten(blockIdx.x), y = forgotten(blockIdx.y), chunk = x / tiles_n;
            const PhasedPixels own(chunk, chunks, N, D, H, W, KD, KH, KW, SD, SH, SW, PF, PT, PL,
                                   DD, DH, DW);
            store_tile<true>(epilogue, sums, dx, (long long)(y / G) * N * D * H * W * C, x % tiles_n, y % G * CG, CG, C, chunk, chunks, [&](int m) {
                const int p = own.tile * TILE_GM + m;
                return p < own.count ? own.offset(p, D, H, W, C) : -1;
            });
        });
}

// grid (filter tiles * channel tiles, G * slices)
template <class Multiplier>
__device__ __forceinline__ void weight_gradient_pass(
    float* __restrict__ partial,    // (slices, OC, KD, KH, KW, CG)
    const stored* __restrict__ dy,  // (N, OD, OH, OW, OC)
    const stored* __restrict__ x,   // (N, D, H, W, C)
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
