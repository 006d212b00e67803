// Windows that slide over images, as matrix operands of tile_matmul. The matrices are never built:
// an operand computes where its element lies in the image, and is zero outside.
//
// Along one axis, tap t of window i is the cell  start + i * window_step + t * tap_step:
//
//   convolution reads x       start = -PT, window_step = SH, tap_step = DH
//   its adjoint reads dy      see Phase: window_step = 1, tap_step <= 0
//
// Images are (N, D, H, W, C) with D = 1 where DIMS is 2.

#include "depth.cuh"
#include "storage.cuh"

struct Axis {
    int cells, windows, taps, start, window_step, tap_step;
};

__device__ __forceinline__ Axis flat_axis() { return {1, 1, 1, 0, 1, 1}; }

// One window's first cell, and where its image begins (no array has 2^31 elements); image is -1 past
// the last window.
struct Window {
    int image, d, h, w;
};

// One element of the filter: its offset from the window's first cell; c is -1 past the last.
struct Tap {
    int d, h, w, c;
};

struct Lattice {
    Axis d, h, w;
    int C, CG;       // channels of a pixel, and those of the group
    const stored* x;  // the first image, at the first channel of the group

    __device__ __forceinline__ int windows() const { return d.windows * h.windows * w.windows; }
    __device__ __forceinline__ int taps() const { return d.taps * h.taps * w.taps; }

    // Windows count through the images, w fastest; P is their number in all images.
    __device__ __forceinline__ Window window_at(int p, int P) const {
        const int iw = p % w.windows, ih = p / w.windows % h.windows;
        const int id = p / w.windows / h.windows % d.windows, n = p / w.windows / h.windows / d.windows;
        return {p < P ? n * d.cells * h.cells * w.cells * C : -1, d.start + id * d.window_step, h.start + ih * h.window_step,
                w.start + iw * w.window_step};
    }

    // k = ((kd * KH + kh) * KW + kw) * CG + c
    __device__ __forceinline__ Tap tap_at(int k, int k_end) const {
        const int row = k / CG / w.taps;
        return {DIMS == 3 ? row / h.taps * d.tap_step : 0,
                (DIMS == 3 ? row % h.taps : row) * h.tap_step, k / CG % w.taps * w.tap_step,
                k < k_end ? k % CG : -1};
    }

    __device__ __forceinline__ float read(const Window& at, const Tap& tap) const {
        const int id = at.d + tap.d, ih = at.h + tap.h, iw = at.w + tap.w;
        const bool inside = at.image >= 0 && tap.c >= 0 && ih >= 0 && ih < h.cells && iw >= 0 &&
                            iw < w.cells && (DIMS == 2 || (id >= 0 && id < d.cells));
        return inside ? to_float(x[at.image + ((id * h.cells + ih) * w.cells + iw) * C + tap.c]) : 0.0f;
    }
};

// The windows that a convolution reads of x, which points to the first channel of a group of CG.
__device__ __forceinline__ Lattice convolution_lattice(
    const stored* x, int D, int H, int W, int C, int CG, int KD, int KH, int KW, int OD, int OH, int OW,
    int SD, int SH, int SW, int PF, int PT, int PL, int DD, int DH, int DW) {
    return {DIMS == 3 ? Axis{D, OD, KD, -PF, SD, DD} : flat_axis(), Axis{H, OH, KH, -PT, SH, DH},
            Axis{W, OW, KW, -PL, SW, DW}, C, CG, x};
}

// The matrix (window, filter element).
struct Windows {
    static constexpr bool K_FAST = true;
    typedef Window Outer;
    typedef Tap Inner;
    Lattice lattice;
    int P;
    __device__ __forceinline__ Outer outer(int p) const { return lattice.window_at(p, P); }
    __device__ __forceinline__ Inner inner(int k, int k_end) const {
        return lattice.tap_at(k, k_end);
    }
    __device__ __forceinline__ float load(const Outer& at, const Inner& tap) const {
        return lattice.read(at, tap);
    }
};

// The matrix (filter element, window).
struct WindowsTransposed {
    static constexpr bool K_FAST = false;
    typedef Tap Outer;
    typedef Window Inner;
    Lattice lattice;
    __device__ __forceinline__ Outer outer(int m) const {
        return lattice.tap_at(m, lattice.taps() * lattice.CG);
    }
    __device__ __forceinline__ Inner inner(int p, int p_end) const {
        return lattice.window_at(p, p_end);
    }
    __device__ __forceinline__ float load(const Outer& tap, const Inner& at) const {
        return lattice.read(at, tap);
    }
};

// Along one axis, the cells  begin, begin + stride, begin + 2 * stride, ...  of a convolution's input:
// they are read through the same taps  first, first + step, ...  Cell number i is read through the
// j-th of them by the window  origin + i - j * hop.
//
//   stride 2, 3 taps, padding 1:   cells 0, 2, 4, ... of windows 0, 1, 2, ... through tap 1;
//                                  cells 1, 3, 5, ... of windows 1, 2, ... through tap 0
//                                                     and windows 0, 1, ... through tap 2
struct Phase {
    int begin, cells, first, step, taps, origin, hop;
};

__device__ __forceinline__ Phase phase_of(
    int begin, int size, int taps, int stride, int pad, int dilation) {
    int first = 0, step = 1;
    while (first < taps && (begin + pad - first * dilation) % stride) ++first;
    while (step < taps && step * dilation % stride) ++step;
    return {begin,
            (size - begin + stride - 1) / stride,
            first,
            step,
            (taps - first + step - 1) / step,
            (begin + pad - first * dilation) / stride,
            step * dilation / stride};
}
