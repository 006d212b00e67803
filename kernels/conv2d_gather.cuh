// The adjoint of convolution as a matrix product: conv2d_tiled's data gradient and the forward pass
// of conv_transpose2d. Its names are those of the convolution: the result is shaped like x.
//
//   dx[n][h][w][c] = b[c] + sum over oc, kh, kw of dy[n][oh][ow][oc] * w[oc][kh][kw][c]
//   where  oh*SH - PT + kh*DH = h  and  ow*SW - PL + kw*DW = w
//
// With a stride, most taps of the filter meet no output at a given pixel. So the pixels of dx are
// split into phases, h mod SH and w mod SW: within one, all pixels are read through the same taps
// (Phase in windows.cuh), and their product is dense:
//
//   stride 2:   0 1 0 1 0      rows m: the pixels of one phase in all images
//               2 3 2 3 2      columns n: the channels c of one group
//               0 1 0 1 0      sum over k: the taps of the phase, oc in group
//               2 3 2 3 2
//
// No zeros are inserted and no tap is visited in vain.

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
    const int phases_h = min(SH, H), phases_w = min(SW, W);
    const int phases = min(SD, D) * phases_h * phases_w;
    const int tiles = gridDim.x / phases, phase = blockIdx.x / tiles, tile = blockIdx.x % tiles;

    const Phase pw = phase_of(phase % phases_w, W, KW, SW, PL, DW);
    const Phase ph = phase_of(phase / phases_w % phases_h, H, KH, SH, PT, DH);
    const Phase pd = DIMS == 3 ? phase_of(phase / phases_w / phases_h, D, KD, SD, PF, DD)
                               : Phase{0, 1, 0, 1, 1, 0, 0};
    const int P = N * pd.cells * ph.cells * pw.cells;
    const int CG = C / G, OCG = OC / G, g = blockIdx.z;
    const Lattice lattice{
        DIMS == 3 ? Axis{OD, pd.cells, pd.taps, pd.origin, 1, -pd.hop} : flat_axis(),
        Axis{OH, ph.cells, ph.taps, ph.origin, 1, -ph.hop},
        Axis{OW, pw.cells, pw.taps, pw.origin, 1, -pw.hop}, OC, OCG, dy + g * OCG};
    const PhaseTaps taps{pd, ph, pw, KD, KH, KW, CG, OCG,
                         w + (long long)g * OCG * KD * KH * KW * CG};
    const int K = lattice.taps() * OCG;
    tile_matmul(tile, P, CG, 0, K, Windows{lattice, P}, taps, [&](int p, int c, float sum) {
        const int iw = pw.begin + p % pw.cells * SW, ih = ph.begin + p / pw.cells % ph.cells * SH;
        const int row = p / pw.cells / ph.cells;
        const int id = DIMS == 3 ? pd.begin + row % pd.cells * SD : 0, n = row / pd.cells;
        const int channel = g * CG + c;
        dx[((((long long)n * D + id) * H + ih) * W + iw) * C + channel] = b ? sum + b[channel] : sum;
    });
}
