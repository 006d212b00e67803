// Convolution that makes images of one to four channels: the last layer of a network, the data gradient
// of its first one, and the transposed convolution that ends in an image.
//
//   y[n][oh][ow][oc] = b[oc] + sum over kh, kw, c of x[n][ih][iw][c] * w[oc][kh][kw][c]
//   dx[n][h][w][c]   = b[c] + sum over oc, kh, kw of dy[n][oh][ow][oc] * w[oc][kh][kw][c]
//   where  oh*SH - PT + kh*DH = h  and  ow*SW - PL + kw*DW = w
//
// Layout NHWC; w is (OC, KH, KW, C). Both are one sum: F outputs of a pixel from windows of M inputs,
// where F <= 4 and M is large. What counts is to read the M channels once, at the speed of memory.
//
//   thread = ((i * rows + r) * runs + s) * lanes + lane      image, row and run of the tile, channels
//
// Lanes run along the channels, VECTOR each, so that a warp reads whole sectors; a thread keeps the
// sums of its channels for a run of RUN = 8 pixels of one row. Where windows lie side by side, three
// taps of a filter row slide over 10 values in registers; else each tap is read by itself. At the end
// the lanes of a run are added: each exchange also halves the pixels of a lane, so that 8 * F sums
// over 16 lanes take 8 * F shuffles, not 32 * F. The results go out through shared memory, as a line.
//
// The data gradient splits its pixels into phases of the stride (windows.cuh): within one, all windows
// have the same taps, and none is read in vain. A block takes a phase of the rows, and its threads one
// phase of the columns after the other, so that whole lines go out. Neighbouring blocks are the phases of
// one place, and find dy in L2.
//
// Counted for the data gradient of 3 -> 64 channels, 3x3, 32x32, 512 images on a GPU of 67 TFLOP/s and
// 4.3 TB/s: 1.81 GFLOP (27 us), 134 MB read and 6 MB written (33 us). Per filter row and thread: 288
// multiply-adds (72 cycles of a multiprocessor per warp) for 10 reads of 16 bytes of dy and 9 of the
// filters (58 wavefronts of L1 and shared memory). dy is not staged: all that is read of it fills whole
// sectors, and L1 holds a block's tile, which reads 1.4 times its own pixels from L2. The filters are:
// a block stages them once, transposed, and goes through several tiles. With the sums and the window a
// thread fills 128 registers; 16 warps share a multiprocessor.
//
// For 64 -> 2 channels, 1x1, the head of a segmentation: 8 reads of 16 bytes for 64 multiply-adds and 16
// shuffles; a warp reads 4 KB in some 140 instructions, which is 35 cycles of issue for 220 of memory.
// Where four does not divide M, a lane owns one channel and reads each tap by itself, and the pixels of a
// request lie apart: of LeNet's 6 channels it touches 5.5 sectors where 2.8 would hold the words.
//
// With BFLOAT16 x, w and y (dy, dx) are bfloat16, a lane's four channels 8 bytes; filters in shared memory
// and sums are float.
//
// Sums have a fixed order, which `lanes` alone decides. Refuses groups and F > 4; the launcher refuses
// what needs more than 48 KiB, and passes arrays at multiples of four numbers where VECTOR is 4.

#define DIMS 2
#include "common.cuh"
#include "channels.cuh"
#include "windows.cuh"

#ifndef VECTOR
#define VECTOR 1
#endif

constexpr int RUN = 8, FEW = 4, THREADS = 256;

typedef Channels<float, VECTOR> Value;

// One axis: the i-th output of a phase reads, through the taps  tap, tap + hop, ...  of the filter, the
// cells  start + i * step,  and from there on in steps of reach.
struct Side {
    int taps, tap, hop, start, step, reach;
};
constexpr int SIDE = sizeof(Side) / sizeof(float);

// Backward, the taps of the phase in reverse, so that cells ascend.
__device__ __forceinline__ Side side_of(bool backward, int phase, int size, int taps, int stride, int pad,
                                        int dilation) {
    if (!backward) return {taps, 0, 1, -pad, stride, dilation};
    const Phase p = phase_of(phase, size, taps, stride, pad, dilation);
    const int last = p.taps - 1;
    return {p.taps, p.first + last * p.step, -p.step, p.origin - last * p.hop, 1, p.hop};
}

// filters[((th * KW + kw) * F + f) * pitch + m], of the rows th of h and of `width` channels from m0 on.
// many_last: w is (F, KH, KW, M), else (M, KH, KW, F).
__device__ __forceinline__ void stage_filters(float* filters, const stored* w, int m0, int M, int F, int KH,
                                              int KW, const Side& h, int width, bool many_last) {
    const int row = KW * F, rows = h.taps * row;
    for (int i = threadIdx.x; i < width * rows; i += THREADS) {
        const int m = many_last ? i % width : i / rows, rest = many_last ? i / width : i % rows;
        const int f = many_last ? rest / (h.taps * KW) : rest % F;
        const int th = many_last ? rest / KW % h.taps : h.taps - 1 - rest / row;  // in the order of w
        const int kw = many_last ? rest % KW : rest / F % KW, kh = h.tap + th * h.hop;
        const int from = many_last ? ((f * KH + kh) * KW + kw) * M + m0 + m
                                   : (((m0 + m) * KH + kh) * KW + kw) * F + f;
        filters[((th * KW + kw) * F + f) * (width + VECTOR) + m] = m0 + m < M ? to_float(w[from]) : 0.0f;
    }
}

// The number itself, of which the compiler knows nothing: it would keep each multiple in a register.
__device__ __forceinline__ int opaque(int x) {
#ifndef GPUCNN_EMULATED
    asm volatile("" : "+r"(x));
#endif
    return x;
}

// Adds TAPS taps of one filter row, `hop` apart in shared memory, that read neighbouring columns: output p
// those from left + p * step on.
template <int TAPS>
__device__ __forceinline__ void add_taps(float (&sums)[RUN][FEW], const stored* row, int left, int step,
                                         int columns, int M, const float* filters, int hop, int pitch,
                                         int F) {
    step = opaque(step), M = opaque(M);
    Value window[RUN + TAPS - 1];
#pragma unroll
    for (int j = 0; j < RUN + TAPS - 1; ++j) {
        window[j] = all_channels<float, VECTOR>(0.0f);
        if (left >= 0 && left < columns) window[j] = load_vector<VECTOR>(row + left * M);
        left += step;  // 1 where TAPS > 1
    }
#pragma unroll
    for (int t = 0; t < TAPS; ++t)
#pragma unroll
        for (int f = 0; f < FEW; ++f) {
            if (f >= F) break;
            const Value tap = load_vector<VECTOR>(filters + t * hop + f * pitch);
#pragma unroll
            for (int p = 0; p < RUN; ++p)
#pragma unroll
                for (int i = 0; i < VECTOR; ++i)
                    sums[p][f] = fmaf(window[p + t].at[i], tap.at[i], sums[p][f]);
        }
}

// Adds the lanes whose number differs in the bit `offset`; of the 2 * HALF pixels of both, the one
// without the bit keeps the first half and the other the second, in the place of the first.
template <int HALF>
__device__ __forceinline__ void halve(float (&sums)[RUN][FEW], int offset, int F) {
    const bool upper = threadIdx.x & offset;
#pragma unroll
    for (int p = 0; p < HALF; ++p)
#pragma unroll
        for (int f = 0; f < FEW; ++f) {
            if (f >= F) break;
            const float given = __shfl_xor_sync(~0u, upper ? sums[p][f] : sums[p + HALF][f], offset);
            sums[p][f] = (upper ? sums[p + HALF][f] : sums[p][f]) + given;
        }
}

extern __shared__ __align__(16) float shared_floats[];

// grid (blocks * phases of the rows): a phase of the tiles k * each and following, of N / images * across *
// down; they go down first, then across, then from image to image. Forward is one phase.
extern "C" __global__ void __launch_bounds__(256, 2) conv2d_direct_to_few(
    stored* __restrict__ out,       // (N, H, W, F): y, or backward dx
    const stored* __restrict__ in,  // (N, IH, IW, M): x, or backward dy
    const stored* __restrict__ w,   // (F, KH, KW, M), or backward (M, KH, KW, F)
    const float* __restrict__ b,    // (F) or null
    int N, int H, int W, int F, int IH, int IW, int M, int KH, int KW, int SH, int SW, int PT, int PL, int DH,
    int DW, int images, int rows, int runs, int lanes, int down, int across, int each, int tap_rows,
    int backward) {
    // The rows of the block's phase are h0, h0 + step_h, ...; columns 0, step_w, ... are the first phase.
    const int step_h = backward ? SH : 1, step_w = backward ? SW : 1, phases = min(step_h, H);
    const int h0 = blockIdx.x % phases, begin = blockIdx.x / phases * each;
    const int width = lanes * VECTOR, pitch = width + VECTOR, each_run = RUN * step_w * F;
    const int lane = threadIdx.x % lanes, run = threadIdx.x / lanes;
    Side* sides = reinterpret_cast<Side*>(shared_floats);  // of the phases of columns, then that of rows
    float* filters = shared_floats + (SIDE * (step_w + 1) + 3) / 4 * 4;
    float* lines = filters + tap_rows * KW * F * pitch;  // of outputs: RUN * step_w * F floats per run
    for (int k = threadIdx.x; k <= step_w; k += THREADS)
        sides[k] = k < step_w ? side_of(backward, k, W, KW, SW, PL, DW) : side_of(backward, h0, H, KH, SH, PT, DH);
    __syncthreads();  // sides are complete
    const Side& h = sides[step_w];
    const bool once = M <= width;
    if (once) stage_filters(filters, w, 0, M, F, KH, KW, h, width, !backward);
    __syncthreads();  // filters are complete

    for (int t = begin; t < begin + each; ++t) {
        const int n = t / down / across * images + run / runs / rows;
        const int ih = t % down * rows + run / runs % rows, oh = h0 + ih * step_h;
        const int column = (t / down % across * runs + run % runs) * RUN;  // of each phase
        const bool holds = run < images * rows * runs;
        const bool owner = holds && n < N && oh < H && column * step_w < W;
        for (int w0 = 0; w0 < step_w; ++w0) {
            const Side& v = sides[w0];
            float sums[RUN][FEW] = {};
            for (int m0 = 0; m0 < M; m0 += width) {
                if (!once) {
                    __syncthreads();  // the channels before were multiplied
                    stage_filters(filters, w, m0, M, F, KH, KW, h, width, !backward);
                    __syncthreads();  // the filters are complete
                }
                const int m = lane * VECTOR, hop = v.hop * F * pitch, first = v.start + column * v.step;
                if (!owner || m0 + m >= M) continue;
#pragma unroll 1
                for (int th = 0; th < h.taps; ++th) {
                    const int from = h.start + ih * h.step + th * h.reach;
                    if (from < 0 || from >= IH) continue;
                    const stored* row = in + ((long long)n * IH + from) * IW * M + m0 + m;
                    const float* taps = filters + (th * KW + v.tap) * F * pitch + m;
                    int left = first, tw = 0;
                    if (VECTOR == 4 && v.step == 1 && v.reach == 1) {
#pragma unroll 1
                        for (; tw + 3 <= v.taps; tw += 3, left += 3, taps += 3 * hop)
                            add_taps<3>(sums, row, left, 1, IW, M, taps, hop, pitch, F);
                        if (tw + 2 == v.taps) {
                            add_taps<2>(sums, row, left, 1, IW, M, taps, hop, pitch, F);
                            tw += 2;
                        }
                    }
#pragma unroll 1
                    for (; tw < v.taps; ++tw, left += v.reach, taps += hop)
                        add_taps<1>(sums, row, left, v.step, IW, M, taps, hop, pitch, F);
                }
            }

            // The lanes of a run are added, and then hold its pixels; of more than 8, several the same one.
            int offset = lanes / 2, held = RUN;
            if (offset) halve<4>(sums, offset, F), offset /= 2, held = 4;
            if (offset) halve<2>(sums, offset, F), offset /= 2, held = 2;
            if (offset) halve<1>(sums, offset, F), offset /= 2, held = 1;
            for (; offset; offset /= 2)
#pragma unroll
                for (int f = 0; f < FEW; ++f)
                    if (f < F) sums[0][f] += __shfl_xor_sync(~0u, sums[0][f], offset);
            float* line = lines + run * each_run + (lane * RUN / lanes * step_w + w0) * F;
#pragma unroll
            for (int p = 0; p < RUN; ++p)
#pragma unroll
                for (int f = 0; f < FEW; ++f)
                    if (holds && p < held && f < F && lane * RUN % lanes == 0)
                        line[p * step_w * F + f] = b ? sums[p][f] + b[f] : sums[p][f];
        }
        __syncwarp();  // the warp's lines are complete

        // The warp writes its runs, each from `to` on; no array has 2^31 elements.
        const int to = owner ? ((n * H + oh) * W + column * step_w) * F : 0;
        const int floats = owner ? min(each_run, (W - column * step_w) * F) : 0;
        const int all = 32 / lanes * each_run;
        const float* own = lines + threadIdx.x / 32 * all;
        for (int e0 = 0; e0 < all; e0 += 32) {
            const int e = e0 + threadIdx.x % 32, leader = min(e / each_run, 32 / lanes - 1) * lanes;
            const int base = __shfl_sync(~0u, to, leader), most = __shfl_sync(~0u, floats, leader);
            if (e < all && e % each_run < most) set(out[base + e % each_run], own[e]);
        }
        __syncwarp();  // the lines were read
    }
}
