// Transposed convolution: the adjoint of the convolution with the same weight, plus a bias.
//
//   y[n][h][w][o] = b[o] + sum over c, kh, kw of x[n][ih][iw][c] * w[c][kh][kw][o]
//   where  ih*SH - PT + kh*DH = h  and  iw*SW - PL + kw*DW = w
//
// Layout NHWC; w is (C, KH, KW, O/G): the tensor of the convolution from O to C channels. With
// DIMS = 3 images are volumes, NDHWC, and w is (C, KD, KH, KW, O/G). It is that
// convolution's data gradient, and the sizes are named after it: here x plays the gradient of its
// output, (N, OH, OW, OC), and y that of its input, (N, H, W, C). The gradients in x and w are its
// forward pass and its weight gradient (conv2d_tiled.cu).
//
// A block computes TILE_GM pixels of one phase of the stride x TILE_GN channels of one group, as a
// dense matrix product (conv2d_gather.cuh): each y is gathered by one thread, in a fixed order,
// without atomics, and no zeros are inserted between the pixels of x. A warp spends two
// shared-memory reads on 4 multiply-adds. Any stride, padding, dilation, groups and channels.

#include "common.cuh"
#include "conv2d_gather.cuh"

// grid (phases * pixel tiles, channel tiles, G)
extern "C" __global__ void __launch_bounds__(256, GATHER_BLOCKS) conv_transpose2d_forward(
    float* __restrict__ y,        // (N, D, H, W, C)
    const float* __restrict__ x,  // (N, OD, OH, OW, OC)
    const float* __restrict__ w,  // (OC, KD, KH, KW, CG)
    const float* __restrict__ b,  // (C) or null
    int N, int D, int H, int W, int C, int OC, int KD, int KH, int KW, int OD, int OH, int OW,
    int SD, int SH, int SW, int PF, int PT, int PL, int DD, int DH, int DW, int G) {
    IMAGES_HAVE_NO_DEPTH;
    conv2d_gather(y, x, w, b, N, D, H, W, C, OC, KD, KH, KW, OD, OH, OW,
                  SD, SH, SW, PF, PT, PL, DD, DH, DW, G);
}
