// Convolution without weight sharing: every output position has filters of its own.
//
//   y[n][oh][ow][oc] = b[oh][ow][oc]
//                    + sum over kh, kw, c of x[n][ih][iw][g*CG + c] * w[oh][ow][oc][kh][kw][c]
//   ih = oh*SH - PT + kh*DH,  iw = ow*SW - PL + kw*DW,  g the group of oc;  x is zero outside
//
// Layout NHWC; w is (OH, OW, OC, KH, KW, CG), CG = C/G: the filters of one position and group are the
// contiguous matrix (OC/G, KH*KW*CG) of a convolution's weight. So each position and group is a
// matrix product of its own, batch by filters, and a block computes TILE_GM x TILE_GN of one (loop:
// tile_matmul.cuh; operands: windows.cuh, with one window per image):
//
//                     rows m        columns n        sum over k            of each group and
//   forward           image         oc in group      kh, kw, c in group    output position
//   data gradient     image         c in group       kh, kw, oc in group   input position
//   weight gradient   oc in group   kh, kw, c        image                 output position
//
// The weights outnumber everything else. Each product reads them once per TILE_GM images, along their
// fast dimension (kh, kw, c forward, c in the data gradient), and the weight gradient writes them
// once, its lanes along kh, kw, c. That traffic bounds all three until the batch fills a tile. No
// atomics: each output has one writer. Any sizes, stride, padding, dilation and groups.

#include "common.cuh"
#include "tile_matmul.cuh"
#include "windows.cuh"

// What group g of output position (oh, ow) sees in every image.
#define LATTICE(oh, ow, g)                                                                           \
    Lattice{flat_axis(), Axis{H, 1, KH, (oh) * SH - PT, 1, DH}, Axis{W, 1, KW, (ow) * SW - PL, 1, DW}, \
            C, C / G, x + (g) * (C / G)}

// grid (positions * image tiles, channel tiles, G)
extern "C" __global__ void __launch_bounds__(256) locally_connected2d_forward(
    float* __restrict__ y,        // (N, OH, OW, OC)
    const float* __restrict__ x,  // (N, H, W, C)
    const float* __restrict__ w,  // (OH, OW, OC, KH, KW, CG)
    const float* __restrict__ b,  // (OH, OW, OC) or null
    int N, int H, int W, int C, int OC, int KH, int KW, int OH, int OW,
    int SH, int SW, int PT, int PL, int DH, int DW, int G) {
    const int tiles = gridDim.x / (OH * OW), tile = blockIdx.x % tiles;
    const int position = blockIdx.x / tiles, g = blockIdx.z, OCG = OC / G, K = KH * KW * (C / G);
    const Lattice lattice = LATTICE(position / OW, position % OW, g);
    const int first = position * OC + g * OCG;
    const Dense<true> weights{w + (long long)first * K, OCG, K, 1};
    tile_matmul(tile, N, OCG, 0, K, Windows{lattice, N}, weights, [&](int n, int oc, float sum) {
        const int at = first + oc;
        y[(long long)n * OH * OW * OC + at] = b ? sum + b[at] : sum;
    });
}

// w as a matrix (input channel, tap and output channel) for one input position and group: tap j of an
// axis is the filter's  first + j * step  at the output  start - j * hop.
struct PositionTaps {
    static constexpr bool K_FAST = false;
    typedef int Outer;
    typedef int Inner;
    Phase h, w;
    int start_h, start_w, OH, OW, OC, OCG, KH, KW, CG;
    const float* weight;  // of the group's first output channel at the first position
    __device__ __forceinline__ Outer outer(int c) const { return c < CG ? c : -1; }
    __device__ __forceinline__ Inner inner(int k, int k_end) const {
        const int oc = k % OCG, jw = k / OCG % w.taps, jh = k / OCG / w.taps;
        const int oh = start_h - jh * h.hop, ow = start_w - jw * w.hop;
        const int kh = h.first + jh * h.step, kw = w.first + jw * w.step;
        const bool inside = k < k_end && oh >= 0 && oh < OH && ow >= 0 && ow < OW;
        return inside ? ((((oh * OW + ow) * OC + oc) * KH + kh) * KW + kw) * CG : -1;
    }
    __device__ __forceinline__ float load(Outer channel, Inner at) const {
        return channel >= 0 && at >= 0 ? weight[at + channel] : 0.0f;
    }
};

// grid (pixels * image tiles, channel tiles, G)
extern "C" __global__ void __launch_bounds__(256) locally_connected2d_data_gradient(
    float* __restrict__ dx,        // (N, H, W, C)
    const float* __restrict__ dy,  // (N, OH, OW, OC)
    const float* __restrict__ w,   // (OH, OW, OC, KH, KW, CG)
    int N, int H, int W, int C, int OC, int KH, int KW, int OH, int OW,
    int SH, int SW, int PT, int PL, int DH, int DW, int G) {
    const int tiles = gridDim.x / (H * W), tile = blockIdx.x % tiles;
    const int pixel = blockIdx.x / tiles, ih = pixel / W, iw = pixel % W;
    const Phase ph = phase_of(ih % SH, H, KH, SH, PT, DH), pw = phase_of(iw % SW, W, KW, SW, PL, DW);
    const int CG = C / G, OCG = OC / G, g = blockIdx.z;
    const int start_h = ph.origin + ih / SH, start_w = pw.origin + iw / SW;
    const Lattice lattice{flat_axis(), Axis{OH, 1, ph.taps, start_h, 1, -ph.hop},
                          Axis{OW, 1, pw.taps, start_w, 1, -pw.hop}, OC, OCG, dy + g * OCG};
    const PositionTaps taps{ph, pw, start_h, start_w, OH, OW, OC, OCG, KH, KW, CG,
                            w + (long long)g * OCG * KH * KW * CG};
    const int K = lattice.taps() * OCG;
    tile_matmul(tile, N, CG, 0, K, Windows{lattice, N}, taps, [&](int n, int c, float sum) {
        dx[((long long)n * H * W + pixel) * C + g * CG + c] = sum;
    });
}

// grid (positions * output channel tiles, filter tiles, G)
extern "C" __global__ void __launch_bounds__(256) locally_connected2d_weight_gradient(
    float* __restrict__ dw,        // (OH, OW, OC, KH, KW, CG)
    const float* __restrict__ dy,  // (N, OH, OW, OC)
    const float* __restrict__ x,   // (N, H, W, C)
    int N, int H, int W, int C, int OC, int KH, int KW, int OH, int OW,
    int SH, int SW, int PT, int PL, int DH, int DW, int G) {
    const int tiles = gridDim.x / (OH * OW), tile = blockIdx.x % tiles;
    const int position = blockIdx.x / tiles, g = blockIdx.z, OCG = OC / G, K = KH * KW * (C / G);
    const Lattice lattice = LATTICE(position / OW, position % OW, g);
    const int first = position * OC + g * OCG;
    const Dense<false> gradients{dy + first, OCG, 1, (long long)OH * OW * OC};
    float* out = dw + (long long)first * K;
    tile_matmul(tile, OCG, K, 0, N, gradients, WindowsTransposed{lattice},
                [&](int oc, int m, float sum) { out[(long long)oc * K + m] = sum; });
}
