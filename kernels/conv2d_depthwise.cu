// Depthwise convolution: each input channel c has M filters of its own, and makes M output channels.
//
//   y[n][oh][ow][oc] = b[oc] + sum over kh, kw of x[n][ih][iw][oc / M] * w[oc][kh][kw]
//   dx[n][h][w][c]   = sum over m, kh, kw of dy[n][oh][ow][c*M + m] * w[c*M + m][kh][kw]
//   dw[oc][kh][kw]   = sum over n, oh, ow of dy[n][oh][ow][oc] * x[n][ih][iw][oc / M]
//   ih = oh*SH - PT + kh*DH,  iw = ow*SW - PL + kw*DW;  x is zero outside the image
//
// Layout NHWC; w is (OC, KH, KW, 1). Channels never mix, so this is no matrix product: a pixel takes
// part in KH * KW multiply-adds per output, and memory bounds it if every value is loaded about once.
//
//   thread = run * lanes_c + lane           lanes along the channels, VECTOR each
//   a run:  RUN = 4 neighbouring pixels of a row;  forward and dx: BAND = 4 such rows, one by one
//
// FILTER_W and STEP_W fix KW and SW (DW is 1): a window of the row slides through registers, so that a
// run loads (RUN - 1) * SW + KW values for RUN outputs and filter row, and rows of the band find the
// rows that they share in L1. FILTER_W = 0 takes any filter, stride and dilation and loads each tap.
// VECTOR = 4, 16-byte accesses, needs M = 1 and C a multiple of 4. A block stages its filters, channels
// fastest, in shared memory.
//
// Counted for 64 channels, 3x3, 32x32, 512 images on a GPU of 67 TFLOP/s and 4.3 TB/s: 0.6 GFLOP (9 us),
// 134 MB read and 134 MB written (62 us). L1 serves 18 reads of 16 bytes per 4 outputs, 88 wavefronts
// with the write: 24 us. In the weight gradient a thread keeps the sums of one filter row, and each run
// costs 4 reads of dy and 6 of x: 33 us, for the same 62 us of memory.
//
// The data gradient gathers. The weight gradient is cut into slices of runs, one per block; in a block
// lanes that share channels and filter row are added pairwise (block_sums.cuh), slices by a second
// launch. No atomics. Any sizes; the launcher refuses filters of more than 48 KiB a block.

#include "common.cuh"
#include "block_sums.cuh"
#include "channels.cuh"

#ifndef FILTER_W
#define FILTER_W 0
#define STEP_W 0
#define VECTOR 1
#endif
#if FILTER_W
#define WIDTHS [[maybe_unused]] const int KW = FILTER_W, SW = STEP_W, DW = 1
#else
#define WIDTHS [[maybe_unused]] const int KW = KW_, SW = SW_, DW = DW_
#endif

constexpr int RUN = 4, BAND = 4, THREADS = 256;
#if FILTER_W
constexpr int WINDOW = (RUN - 1) * STEP_W + FILTER_W;
#endif

typedef Channels<float, VECTOR> Value;

__device__ __forceinline__ void add_product(Value& sum, const Value& a, const Value& b) {
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) sum.at[i] = fmaf(a.at[i], b.at[i], sum.at[i]);
}

// The pixel at column `column` of a row of `columns` pixels of C channels; zero outside.
__device__ __forceinline__ Value pixel_at(const float* row, int column, int columns, int C) {
    if (column < 0 || column >= columns) return all_channels<float, VECTOR>(0.0f);
    return load_channels<VECTOR>(row + (long long)column * C);
}

// The distance of two taps in shared memory, of a block with `count` output channels: what keeps the
// lanes that stage a filter's taps out of one bank.
__device__ __forceinline__ int pitch_of(int count) { return count + VECTOR; }

// filters[k * pitch + i] = w[(first + i) * K + k] for the block's `count` output channels below OC
__device__ __forceinline__ void stage_filters(float* filters, const float* w, int first, int count, int OC,
                                              int K) {
    for (int i = threadIdx.x; i < count * K; i += THREADS) {
        const int channel = i / K, k = i % K;
        filters[k * pitch_of(count) + channel] = first + channel < OC ? w[(long long)first * K + i] : 0.0f;
    }
}

// The run-th band of runs: columns fastest, then bands of rows, then images.
struct Band {
    int n, row, column;
};
__device__ __forceinline__ Band band_at(int run, int rows, int columns) {
    const int across = (columns + RUN - 1) / RUN, down = (rows + BAND - 1) / BAND;
    return {run / across / down, run / across % down * BAND, run % across * RUN};
}

extern __shared__ __align__(16) float shared_floats[];

// grid (blocks of runs, blocks of lanes_c * VECTOR output channels)
extern "C" __global__ void __launch_bounds__(256, 2) conv2d_depthwise_forward(
    float* __restrict__ y,        // (N, OH, OW, OC)
    const float* __restrict__ x,  // (N, H, W, C)
    const float* __restrict__ w,  // (OC, KH, KW, 1)
    const float* __restrict__ b,  // (OC) or null
    int N, int H, int W, int C, int OC, int KH, int KW_, int OH, int OW,
    int SH, int SW_, int PT, int PL, int DH, int DW_, int lanes_c) {
    WIDTHS;
    const int channels = lanes_c * VECTOR, first = blockIdx.y * channels, pitch = pitch_of(channels);
    stage_filters(shared_floats, w, first, channels, OC, KH * KW);
    __syncthreads();  // the filters are complete

    const int lane = threadIdx.x % lanes_c, oc = first + lane * VECTOR;
    const Band band = band_at(blockIdx.x * (THREADS / lanes_c) + threadIdx.x / lanes_c, OH, OW);
    if (threadIdx.x >= THREADS / lanes_c * lanes_c || band.n >= N || oc >= OC) return;
    const float* image = x + (long long)band.n * H * W * C + oc / (OC / C);
    const Value bias = b ? load_channels<VECTOR>(b + oc) : all_channels<float, VECTOR>(0.0f);
    const int left = band.column * SW - PL;

    for (int oh = band.row; oh < min(band.row + BAND, OH); ++oh) {
        Value sums[RUN];
#pragma unroll
        for (int p = 0; p < RUN; ++p) sums[p] = bias;
        for (int kh = 0; kh < KH; ++kh) {
            const int ih = oh * SH - PT + kh * DH;
            if (ih < 0 || ih >= H) continue;
            const float* row = image + (long long)ih * W * C;
            const float* taps = shared_floats + kh * KW * pitch + lane * VECTOR;
#if FILTER_W
            Value window[WINDOW];
#pragma unroll
            for (int j = 0; j < WINDOW; ++j) window[j] = pixel_at(row, left + j, W, C);
#pragma unroll
            for (int kw = 0; kw < KW; ++kw) {
                const Value tap = load_channels<VECTOR>(taps + kw * pitch);
#pragma unroll
                for (int p = 0; p < RUN; ++p) add_product(sums[p], window[p * SW + kw], tap);
            }
#else
            for (int kw = 0; kw < KW; ++kw) {
                const Value tap = load_channels<VECTOR>(taps + kw * pitch);
#pragma unroll
                for (int p = 0; p < RUN; ++p)
                    add_product(sums[p], pixel_at(row, left + p * SW + kw * DW, W, C), tap);
            }
#endif
        }
        float* to = y + (((long long)band.n * OH + oh) * OW + band.column) * OC + oc;
#pragma unroll
        for (int p = 0; p < RUN; ++p)
            if (band.column + p < OW) store_channels(to + (long long)p * OC, sums[p]);
    }
}

// grid (blocks of runs, blocks of lanes_c * VECTOR input channels)
extern "C" __global__ void __launch_bounds__(256, 2) conv2d_depthwise_data_gradient(
    float* __restrict__ dx,        // (N, H, W, C)
    const float* __restrict__ dy,  // (N, OH, OW, OC)
    const float* __restrict__ w,   // (OC, KH, KW, 1)
    int N, int H, int W, int C, int OC, int KH, int KW_, int OH, int OW,
    int SH, int SW_, int PT, int PL, int DH, int DW_, int lanes_c) {
    WIDTHS;
    const int M = VECTOR == 4 ? 1 : OC / C;
    const int channels = lanes_c * VECTOR, filters = channels * M, first = blockIdx.y * channels;
    const int pitch = pitch_of(filters);
    stage_filters(shared_floats, w, first * M, filters, OC, KH * KW);
    __syncthreads();  // the filters are complete

    const int lane = threadIdx.x % lanes_c, c = first + lane * VECTOR;
    const Band band = band_at(blockIdx.x * (THREADS / lanes_c) + threadIdx.x / lanes_c, H, W);
    if (threadIdx.x >= THREADS / lanes_c * lanes_c || band.n >= N || c >= C) return;

    for (int ih = band.row; ih < min(band.row + BAND, H); ++ih) {
        Value sums[RUN];
#pragma unroll
        for (int p = 0; p < RUN; ++p) sums[p] = all_channels<float, VECTOR>(0.0f);
        for (int kh = 0; kh < KH; ++kh) {
            const int h = ih + PT - kh * DH;
            if (h < 0 || h % SH || h / SH >= OH) continue;  // no output row reads ih through kh
            for (int m = 0; m < M; ++m) {
                const float* row = dy + ((long long)band.n * OH + h / SH) * OW * OC + c * M + m;
                const float* taps = shared_floats + kh * KW * pitch + lane * VECTOR * M + m;
#if FILTER_W && STEP_W == 1
                Value window[WINDOW];
#pragma unroll
                for (int j = 0; j < WINDOW; ++j)
                    window[j] = pixel_at(row, band.column + PL - (KW - 1) + j, OW, OC);
#endif
#pragma unroll FILTER_W ? FILTER_W : 1
                for (int kw = 0; kw < KW; ++kw) {
                    const Value tap = load_channels<VECTOR>(taps + kw * pitch);
#pragma unroll
                    for (int p = 0; p < RUN; ++p) {
#if FILTER_W && STEP_W == 1
                        add_product(sums[p], window[p + KW - 1 - kw], tap);
#else
                        const int v = band.column + p + PL - kw * DW;
                        if (v >= 0 && v % SW == 0 && v / SW < OW)
                            add_product(sums[p], pixel_at(row, v / SW, OW, OC), tap);
#endif
                    }
                }
            }
        }
        float* to = dx + (((long long)band.n * H + ih) * W + band.column) * C + c;
#pragma unroll
        for (int p = 0; p < RUN; ++p)
            if (band.column + p < W) store_channels(to + (long long)p * C, sums[p]);
    }
}

constexpr int TAPS = FILTER_W ? FILTER_W : 4;  // of one filter row, the sums of a thread

// grid (slices, blocks of lanes_c * VECTOR output channels); slice s takes the runs of RUN pixels
// s * slice_runs and following
extern "C" __global__ void __launch_bounds__(256, 2) conv2d_depthwise_weight_gradient(
    float* __restrict__ partial,   // (slices, OC, KH, KW, 1)
    const float* __restrict__ dy,  // (N, OH, OW, OC)
    const float* __restrict__ x,   // (N, H, W, C)
    int N, int H, int W, int C, int OC, int KH, int KW_, int OH, int OW,
    int SH, int SW_, int PT, int PL, int DH, int DW_, int lanes_c, int slice_runs) {
    WIDTHS;
    const int in_row = (KW + TAPS - 1) / TAPS, chunks = KH * in_row, K = KH * KW;
    const int owners = lanes_c * chunks, lanes = THREADS / owners, lane = threadIdx.x / owners;
    const int channels = lanes_c * VECTOR, first = blockIdx.y * channels;
    const int oc = first + threadIdx.x % lanes_c * VECTOR, chunk = threadIdx.x / lanes_c % chunks;
    const int kh = chunk / in_row, kw0 = chunk % in_row * TAPS;
    const int across = (OW + RUN - 1) / RUN, runs = N * OH * across;

    float sums[TAPS * VECTOR] = {};
    const int begin = blockIdx.x * slice_runs, end = begin + min(slice_runs, runs - begin);
    for (int run = begin + lane; run < end && lane < lanes && oc < OC; run += lanes) {
        const int ow = run % across * RUN, oh = run / across % OH, n = run / across / OH;
        const int ih = oh * SH - PT + kh * DH, left = ow * SW - PL + kw0 * DW;
        if (ih < 0 || ih >= H) continue;
        const float* row = x + ((long long)n * H + ih) * W * C + oc / (OC / C);
        const float* from = dy + (((long long)n * OH + oh) * OW) * OC + oc;
        Value gradient[RUN];
#pragma unroll
        for (int p = 0; p < RUN; ++p) gradient[p] = pixel_at(from, ow + p, OW, OC);
#if FILTER_W
        Value window[WINDOW];
#pragma unroll
        for (int j = 0; j < WINDOW; ++j) window[j] = pixel_at(row, left + j, W, C);
#endif
#pragma unroll
        for (int p = 0; p < RUN; ++p) {
            if (ow + p >= OW) break;  // what lies there in x may be no number
#pragma unroll
            for (int j = 0; j < TAPS; ++j) {
#if FILTER_W
                const Value v = window[p * SW + j];
#else
                if (kw0 + j >= KW) break;
                const Value v = pixel_at(row, left + p * SW + j * DW, W, C);
#endif
#pragma unroll
                for (int i = 0; i < VECTOR; ++i)
                    sums[j * VECTOR + i] = fmaf(gradient[p].at[i], v.at[i], sums[j * VECTOR + i]);
            }
        }
    }

    add_lanes(shared_floats, sums, lanes, owners);
    __syncthreads();  // scratch was read; the filters of this block go in its place
    if (lane == 0)
#pragma unroll
        for (int j = 0; j < TAPS; ++j)
            if (kw0 + j < KW)
#pragma unroll
                for (int i = 0; i < VECTOR; ++i)
                    shared_floats[(oc - first + i) * K + kh * KW + kw0 + j] = sums[j * VECTOR + i];
    __syncthreads();  // the filters are complete
    const int filters = min(channels, OC - first);
    float* out = partial + ((long long)blockIdx.x * OC + first) * K;
    for (int i = threadIdx.x; i < filters * K; i += THREADS) out[i] = shared_floats[i];
}
