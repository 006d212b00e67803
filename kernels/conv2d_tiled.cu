// Convolution, the second rung: the same sums as conv2d_naive, as matrix products whose tiles are
// staged in shared memory. The matrices are never built: an operand computes where its element
// (m, k) lies in the image, and is zero outside (operands: windows.cuh; loop: tile_matmul.cuh).
//
//                     rows m                      columns n       sum over k
//   forward           output pixel n,oh,ow        oc in group     kh, kw, c in group
//   data gradient     input pixel n,h,w           c in group      kh, kw, oc in group
//   weight gradient   kh, kw, c in group          oc in group     output pixel, cut into slices
//
// Layout NHWC; w is (OC, KH, KW, C/G). With DIMS = 3 images are volumes, NDHWC, and w is
// (OC, KD, KH, KW, C/G). A block computes TILE_GM x TILE_GN outputs of one group; the launcher picks
// TILE_GN = 8, 16 or 32 by the channels of the group.
//
// What it gains over conv2d_naive: a pixel is read from global memory once per TILE_GN channels and a
// weight once per TILE_GM pixels, and lanes run along what is contiguous. What bounds it: per k a
// thread spends two shared-memory reads (a 16-byte broadcast and 4 bytes of a row) on four
// multiply-adds, half of what the arithmetic units could take; conv2d_register_tiled reads less often.
//
// The data gradient goes phase by phase of the stride, so that it visits only taps that meet an
// output (conv2d_gather.cuh). The weight gradient is cut into slices of pixels, or a small filter
// would occupy a few blocks only; sum_slices in reduce.cu adds the slices in order. Any stride,
// padding, dilation, groups and channels.

#include "common.cuh"
#include "conv2d_gather.cuh"

// The windows that group g of the convolution reads.
#define LATTICE(g)                                                                              \
    convolution_lattice(x + (g) * (C / G), D, H, W, C, C / G, KD, KH, KW, OD, OH, OW, SD, SH, SW, \
                        PF, PT, PL, DD, DH, DW)

// grid (pixel tiles, channel tiles, G)
extern "C" __global__ void __launch_bounds__(256) conv2d_tiled_forward(
    float* __restrict__ y,        // (N, OD, OH, OW, OC)
    const float* __restrict__ x,  // (N, D, H, W, C)
    const float* __restrict__ w,  // (OC, KD, KH, KW, CG)
    const float* __restrict__ b,  // (OC) or null
    int N, int D, int H, int W, int C, int OC, int KD, int KH, int KW, int OD, int OH, int OW,
    int SD, int SH, int SW, int PF, int PT, int PL, int DD, int DH, int DW, int G) {
    IMAGES_HAVE_NO_DEPTH;
    const Lattice lattice = LATTICE((int)blockIdx.z);
    const int P = N * OD * OH * OW, K = KD * KH * KW * (C / G), OCG = OC / G;
    const int oc0 = blockIdx.z * OCG;
    const Dense<true> weights{w + (long long)oc0 * K, OCG, K, 1};
    tile_matmul(P, OCG, 0, K, Windows{lattice, P}, weights, [&](int p, int oc, float sum) {
        y[(long long)p * OC + oc0 + oc] = b ? sum + b[oc0 + oc] : sum;
    });
}

// grid (phases * pixel tiles, channel tiles, G)
extern "C" __global__ void __launch_bounds__(256, GATHER_BLOCKS) conv2d_tiled_data_gradient(
    float* __restrict__ dx,        // (N, D, H, W, C)
    const float* __restrict__ dy,  // (N, OD, OH, OW, OC)
    const float* __restrict__ w,   // (OC, KD, KH, KW, CG)
    int N, int D, int H, int W, int C, int OC, int KD, int KH, int KW, int OD, int OH, int OW,
    int SD, int SH, int SW, int PF, int PT, int PL, int DD, int DH, int DW, int G) {
    IMAGES_HAVE_NO_DEPTH;
    conv2d_gather(dx, dy, w, nullptr, N, D, H, W, C, OC, KD, KH, KW, OD, OH, OW,
                  SD, SH, SW, PF, PT, PL, DD, DH, DW, G);
}

// grid (filter tiles, channel tiles, G * slices)
extern "C" __global__ void __launch_bounds__(256) conv2d_tiled_weight_gradient(
    float* __restrict__ partial,   // (slices, OC, KD, KH, KW, CG)
    const float* __restrict__ dy,  // (N, OD, OH, OW, OC)
    const float* __restrict__ x,   // (N, D, H, W, C)
    int N, int D, int H, int W, int C, int OC, int KD, int KH, int KW, int OD, int OH, int OW,
    int SD, int SH, int SW, int PF, int PT, int PL, int DD, int DH, int DW, int G,
    int slice_pixels) {
    IMAGES_HAVE_NO_DEPTH;
    const int g = blockIdx.z % G, slice = blockIdx.z / G;
    const Lattice lattice = LATTICE(g);
    const int K = KD * KH * KW * (C / G), OCG = OC / G, oc0 = g * OCG;
    const int begin = slice * slice_pixels;
    const int end = begin + min(slice_pixels, N * OD * OH * OW - begin);
    const Dense<false> gradients{dy + oc0, OCG, 1, OC};
    float* out = partial + (long long)slice * OC * K;
    tile_matmul(K, OCG, begin, end, WindowsTransposed{lattice}, gradients,
                [&](int m, int oc, float sum) { out[(long long)(oc0 + oc) * K + m] = sum; });
}
