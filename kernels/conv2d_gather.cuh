// The adjoint of convolution as a matrix product: conv2d_tiled's data gradient and the forward pass
// of conv_transpose2d. Its names are those of the convolution: the result is shaped like x.
//
//   dx[n][h][w][c] = b[c] + sum over oc, kh, kw of dy[n][oh][ow][oc] * w[oc][kh][kw][c]
//   where  oh*SH - PT + kh*DH = h  and  ow*SW - PL + kw*DW = w
//
// A block owns pixels of one phase of the stride (conv2d_phases.cuh): rows m are the pixels of the
// phase in all images, columns n the channels c of one group, and the sum runs over the taps of the
// phase and the oc of the group.

#include "conv2d_phases.cuh"
#include "tile_matmul.cuh"
#include "windows.cuh"

// w as a matrix (input channel, tap of the phase and output channel).
struct PhaseTaps {
    static constexpr bool K_FAST = false;
    typedef int Outer;
    typedef int Inner;
    Phase d, h, w;
    int KD, KH, KW, CG, OCG;
    const float* weight;  // of the group's first output channel
    __device__ __forceinline__ Outer outer(int c) const { return c < CG ? c : -1; }
    __device__ __forceinline__ Inner inner(int k, int k_end) const {
        const int oc = k % OCG, row = k / OCG / w.taps;
        const int kw = w.first + k / OCG % w.taps * w.step;
        const int kh = h.first + (DIMS == 3 ? row % h.taps : row) * h.step;
        const int kd = DIMS == 3 ? d.first + row / h.taps * d.step : 0;
        return k < k_end ? (((oc * KD + kd) * KH + kh) * KW + kw) * CG : -1;
    }
    __device__ __forceinline__ float load(Outer channel, Inner at) const {
        return channel >= 0 && at >= 0 ? weight[at + channel] : 0.0f;
    }
};

// Blocks that share a multiprocessor, for __launch_bounds__: with three axes to keep, four of them
// would spill registers.
#if DIMS == 2 && TILE_GN > 8
#define GATHER_BLOCKS 4
#elif DIMS == 2
#define GATHER_BLOCKS 3
#else
#define GATHER_BLOCKS 2
#endif

// grid (phases * tiles of the first phase's pixels, channel tiles, G)
__device__ __forceinline__ void conv2d_gather(
    float* __restrict__ dx,        // (N, D, H, W, C)
    const float* __restrict__ dy,  // (N, OD, OH, OW, OC)
    const float* __restrict__ w,   // (OC, KD, KH, KW, CG)
    const float* __restrict__ b,   // (C) or null
    int N, int D, int H, int W, int C, int OC, int KD, int KH, int KW, int OD, int OH, int OW,
    int SD, int SH, int SW, int PF, int PT, int PL, int DD, int DH, int DW, int G) {
    const PhasedPixels pixels(blockIdx.x, gridDim.x, N, D, H, W, KD, KH, KW, SD, SH, SW, PF, PT, PL,
                              DD, DH, DW);
    const int CG = C / G, OCG = OC / G, g = blockIdx.z;
    const Lattice lattice = pixels.lattice(dy + g * OCG, OD, OH, OW, OC, OCG);
    const PhaseTaps taps{pixels.d, pixels.h, pixels.w, KD, KH, KW, CG, OCG,
                         w + (long long)g * OCG * KD * KH * KW * CG};
    const int K = lattice.taps() * OCG;
    tile_matmul(pixels.tile, pixels.count, CG, 0, K, Windows{lattice, pixels.count}, taps,
                [&](int p, int c, float sum) {
                    const int channel = g * CG + c;
                    dx[pixels.offset(p, D, H, W, C) + channel] = b ? sum + b[channel] : sum;
                });
}
