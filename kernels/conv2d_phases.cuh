// The pixels that the adjoint of a convolution writes, dealt out to blocks by phases of the stride.
//
// With a stride, most taps of the filter meet no output at a given pixel. So the pixels of dx are
// split into phases, h mod SH and w mod SW: within one, all pixels are read through the same taps
// (Phase in windows.cuh), and their matrix product is dense:
//
//   stride 2:   0 1 0 1 0
//               2 3 2 3 2
//               0 1 0 1 0
//               2 3 2 3 2
//
// No zeros are inserted and no tap is visited in vain.

#include "windows.cuh"

struct PhasedPixels {
    Phase d, h, w;
    int SD, SH, SW;
    int tile;   // of this block, within its phase
    int count;  // pixels of the phase in all images

    // block, of `blocks`: the phases' tiles one after another, as many for each as the largest has.
    __device__ __forceinline__ PhasedPixels(
        int block, int blocks, int N, int D, int H, int W, int KD, int KH, int KW, int SD, int SH,
        int SW, int PF, int PT, int PL, int DD, int DH, int DW)
        : SD(SD), SH(SH), SW(SW) {
        const int phases_h = min(SH, H), phases_w = min(SW, W);
        const int tiles = blocks / (min(SD, D) * phases_h * phases_w), phase = block / tiles;
        tile = block % tiles;
        w = phase_of(phase % phases_w, W, KW, SW, PL, DW);
        h = phase_of(phase / phases_w % phases_h, H, KH, SH, PT, DH);
        d = DIMS == 3 ? phase_of(phase / phases_w / phases_h, D, KD, SD, PF, DD)
                      : Phase{0, 1, 0, 1, 1, 0, 0};
        count = N * d.cells * h.cells * w.cells;
    }

    // The windows on dy that the phase's pixels gather from; dy points to the group's channels.
    __device__ __forceinline__ Lattice lattice(
        const stored* dy, int OD, int OH, int OW, int OC, int OCG) const {
        return {DIMS == 3 ? Axis{OD, d.cells, d.taps, d.origin, 1, -d.hop} : flat_axis(),
                Axis{OH, h.cells, h.taps, h.origin, 1, -h.hop},
                Axis{OW, w.cells, w.taps, w.origin, 1, -w.hop}, OC, OCG, dy};
    }

    // Where pixel p of the phase begins in dx, which has fewer than 2^31 elements.
    __device__ __forceinline__ int offset(int p, int D, int H, int W, int C) const {
        const int iw = w.begin + p % w.cells * SW, ih = h.begin + p / w.cells % h.cells * SH;
        const int row = p / w.cells / h.cells;
        const int id = DIMS == 3 ? d.begin + row % d.cells * SD : 0, n = row / d.cells;
        return (((n * D + id) * H + ih) * W + iw) * C;
    }
};
