// Depthwise convolution, and convolution in groups of two or four channels.
//
//   y[n][oh][ow][oc]  = b[oc] + sum over kh, kw, c of x[n][ih][iw][g*CG + c] * w[oc][kh][kw][c]
//   dx[n][h][w][c]    = b[c] + sum over the oc of its group, kh, kw of dy[n][oh][ow][oc] * w[oc][kh][kw][c % CG]
//   dw[oc][kh][kw][c] = sum over n, oh, ow of dy[n][oh][ow][oc] * x[n][ih][iw][g*CG + c]
//   ih = oh*SH - PT + kh*DH,  iw = ow*SW - PL + kw*DW;  x is zero outside the image
//
// Layout NHWC; w is (OC, KH, KW, CG). So few channels mix that this is no matrix product: a pixel takes
// part in KH * KW * CG multiply-adds per output, and memory bounds it if every value is loaded about once.
//
//   thread = run * lanes_c + lane           lanes along the channels
//   a run:  RUN = 4 neighbouring pixels of a row;  forward and dx: BAND = 4 such rows, one by one
//   a lane: VECTOR = 4 output channels, whole groups of OUT_GROUP of them, and their 4 * IN_GROUP /
//           OUT_GROUP input channels, in accesses of 16 (8, 4) bytes;
//           VECTOR = 1: one output channel, IN_GROUP = 1, any number OC / C of them from an input
//
// FILTER_W and STEP_W fix KW and SW (DW is 1, KH at most KW): a window of the row slides through
// registers, so that a run loads (RUN - 1) * SW + KW values for RUN outputs and filter row. FILTER_W = 0
// takes any filter, stride and dilation and loads each tap. A block stages its filters, channels fastest,
// in shared memory; in 3x3 filters of groups of one, a thread then keeps them in registers for its rows.
//
// x is not staged: lanes along the channels read whole sectors as it is, and L1 holds what neighbours
// share. Bands of a strip, `strip` runs wide, follow one another downwards, so that a block owns about a
// square of pixels, and reads little beyond it.
//
// Counted for 64 channels, 3x3, 32x32, 512 images on a GPU of 67 TFLOP/s and 4.3 TB/s: 0.6 GFLOP (9 us),
// 134 MB read and 134 MB written (62 us). L1 serves 18 reads of 16 bytes per 4 outputs, 88 wavefronts
// with the write: 24 us; a tile in shared memory would take as many, and one more for each copy. The
// filters would be 18 more, were they not in registers. Squares of 16 x 16 pixels read 1.27 times their
// own from L2. In the weight gradient a thread keeps the sums of one filter row, and each run costs 4
// reads of dy and 6 of x: 33 us, for the same 62 us of memory.
//
// Groups of four, 128 channels, 3x3, 56x56, 32 images: 0.92 GMAC (28 us), 51 MB each way (24 us). Per
// filter row: 192 multiply-adds (48 cycles) for 6 reads of x and 12 of filters (72 wavefronts): 41 us.
// A tensor core would be half empty, and the tiles of 8 columns of the other rungs are.
//
// The data gradient gathers; the lanes of VECTOR = 1 still run along dy, and those that belong to one
// input channel are added through shared memory. The weight gradient is cut into slices of runs, one per
// block; in a block lanes that share channels and filter row are added pairwise (block_sums.cuh), slices
// by a second launch. No atomics. Any sizes; the launcher refuses filters of more than 48 KiB a block, and
// passes arrays at multiples of four numbers where VECTOR is 4. With BFLOAT16 x, y, dy, dx and w are
// bfloat16, an access half as wide; shared memory, sums and the slices of dw are float.

#include "common.cuh"
#include "block_sums.cuh"
#include "channels.cuh"

#ifndef FILTER_W
#define FILTER_W 0
#define STEP_W 0
#define VECTOR 1
#define IN_GROUP 1
#define OUT_GROUP 1
#endif
#if FILTER_W
#define WIDTHS [[maybe_unused]] const int KW = FILTER_W, SW = STEP_W, DW = 1
#else
#define WIDTHS [[maybe_unused]] const int KW = KW_, SW = SW_, DW = DW_
#endif

constexpr int RUN = 4, BAND = 4, THREADS = 256;
constexpr int INPUTS = VECTOR * IN_GROUP / OUT_GROUP;  // channels of x of a lane
constexpr bool KEEP_FILTERS = FILTER_W == 3 && STEP_W == 1 && IN_GROUP == 1;
#if FILTER_W
constexpr int WINDOW = (RUN - 1) * STEP_W + FILTER_W;
#endif

typedef Channels<float, INPUTS> Inputs;
typedef Channels<float, VECTOR> Outputs;  // also what belongs to them of the filters, through one tap and input

// The input of output i through tap j of IN_GROUP.
__device__ __forceinline__ constexpr int input_of(int i, int j) { return i / OUT_GROUP * IN_GROUP + j; }

// The V channels at column `column` of a row of `columns` pixels of C channels; zero outside.
template <int V>
__device__ __forceinline__ Channels<float, V> pixel_at(const stored* row, int column, int columns, int C) {
    if (column < 0 || column >= columns) return all_channels<float, V>(0.0f);
    return load_vector<V>(row + (long long)column * C);
}

// The distance of two taps in shared memory, of a block with `count` output channels: what keeps the
// lanes that stage a filter's taps out of one bank.
__device__ __forceinline__ int pitch_of(int count) { return count + VECTOR; }

// filters[k * pitch + i] = w[(first + i) * K + k] for the block's `count` output channels below OC, and
// K = KH * KW * IN_GROUP
__device__ __forceinline__ void stage_filters(float* filters, const stored* w, int first, int count, int OC,
                                              int K) {
    for (int i = threadIdx.x; i < count * K; i += THREADS) {
        const int channel = i / K, k = i % K;
        filters[k * pitch_of(count) + channel] = first + channel < OC ? to_float(w[(long long)first * K + i]) : 0.0f;
    }
}

// A lane's filters: in registers, or read from shared memory tap by tap.
struct Filters {
    const float* staged;
    int pitch;
    Outputs kept[KEEP_FILTERS ? FILTER_W * FILTER_W : 1];

    __device__ __forceinline__ Filters(const float* staged, int pitch, int KH) : staged(staged), pitch(pitch) {
        if (KEEP_FILTERS)
#pragma unroll
            for (int k = 0; k < FILTER_W * FILTER_W; ++k)
                kept[k] = k < KH * FILTER_W ? load_vector<VECTOR>(staged + k * pitch) : all_channels<float, VECTOR>(0.0f);
    }
    __device__ __forceinline__ Outputs at(int kh, int kw, int KW, int j) const {
        if (KEEP_FILTERS) return kept[KEEP_FILTERS ? kh * FILTER_W + kw : 0];
        return load_vector<VECTOR>(staged + ((kh * KW + kw) * IN_GROUP + j) * pitch);
    }
};

// The run-th band of runs: runs of a strip fastest, then bands downwards, then strips, then images.
struct Band {
    int n, row, column;
};
__device__ __forceinline__ Band band_at(int run, int rows, int columns, int strip) {
    const int across = (columns + RUN - 1) / RUN, down = (rows + BAND - 1) / BAND;
    const int strips = (across + strip - 1) / strip, band = run / strip;
    return {band / down / strips, band % down * BAND, (band / down % strips * strip + run % strip) * RUN};
}

extern __shared__ __align__(16) float shared_floats[];

// grid (blocks of runs, blocks of lanes_c * VECTOR output channels)
extern "C" __global__ void __launch_bounds__(256, 2) conv2d_depthwise_forward(
    stored* __restrict__ y,        // (N, OH, OW, OC)
    const stored* __restrict__ x,  // (N, H, W, C)
    const stored* __restrict__ w,  // (OC, KH, KW, CG)
    const float* __restrict__ b,   // (OC) or null
    int N, int H, int W, int C, int OC, int KH, int KW_, int OH, int OW,
    int SH, int SW_, int PT, int PL, int DH, int DW_, int lanes_c, int strip) {
    WIDTHS;
    const int channels = lanes_c * VECTOR, first = blockIdx.y * channels, pitch = pitch_of(channels);
    stage_filters(shared_floats, w, first, channels, OC, KH * KW * IN_GROUP);
    __syncthreads();  // the filters are complete

    const int lane = threadIdx.x % lanes_c, oc = first + lane * VECTOR;
    const Band band = band_at(blockIdx.x * (THREADS / lanes_c) + threadIdx.x / lanes_c, OH, OW, strip);
    if (band.n >= N || band.column >= OW || oc >= OC) return;
    const Filters filters(shared_floats + lane * VECTOR, pitch, KH);
    const int c = VECTOR == 4 ? oc / VECTOR * INPUTS : oc / (OC / C);
    const stored* image = x + (long long)band.n * H * W * C + c;
    const Outputs bias = b ? load_vector<VECTOR>(b + oc) : all_channels<float, VECTOR>(0.0f);
    const int left = band.column * SW - PL;

    for (int oh = band.row; oh < min(band.row + BAND, OH); ++oh) {
        Outputs sums[RUN];
#pragma unroll
        for (int p = 0; p < RUN; ++p) sums[p] = bias;
#pragma unroll KEEP_FILTERS ? FILTER_W : 1
        for (int kh = 0; kh < (KEEP_FILTERS ? FILTER_W : KH); ++kh) {
            const int ih = oh * SH - PT + kh * DH;
            if (kh >= KH || ih < 0 || ih >= H) continue;
            const stored* row = image + (long long)ih * W * C;
#if FILTER_W
            Inputs window[WINDOW];
#pragma unroll
            for (int j = 0; j < WINDOW; ++j) window[j] = pixel_at<INPUTS>(row, left + j, W, C);
#endif
#pragma unroll FILTER_W ? FILTER_W : 1
            for (int kw = 0; kw < KW; ++kw) {
#if !FILTER_W
                Inputs window[RUN];
#pragma unroll
                for (int p = 0; p < RUN; ++p) window[p] = pixel_at<INPUTS>(row, left + p * SW + kw * DW, W, C);
#endif
#pragma unroll
                for (int j = 0; j < IN_GROUP; ++j) {
                    const Outputs tap = filters.at(kh, kw, KW, j);
#pragma unroll
                    for (int p = 0; p < RUN; ++p)
#pragma unroll
                        for (int i = 0; i < VECTOR; ++i)
                            sums[p].at[i] = fmaf(window[FILTER_W ? p * SW + kw : p].at[input_of(i, j)],
                                                 tap.at[i], sums[p].at[i]);
                }
            }
        }
        stored* to = y + (((long long)band.n * OH + oh) * OW + band.column) * OC + oc;
#pragma unroll
        for (int p = 0; p < RUN; ++p)
            if (band.column + p < OW) store_vector(to + (long long)p * OC, sums[p]);
    }
}

// sums[p] += what the outputs of one row pass to the input pixels column + p through filter row kh.
// PHASE: of `column + PL - (KW - 1)` by the stride, where that is fixed; of KW taps those are read that
// meet an output.
template <int PHASE>
__device__ __forceinline__ void add_row(Inputs (&sums)[RUN], const Filters& filters, const stored* row, int kh,
                                        int column, int OW, int OC, int KW_, int SW_, int PL, int DW_) {
    WIDTHS;
#if FILTER_W
    constexpr int READ = (RUN + FILTER_W - 2 + PHASE) / STEP_W + 1;
    const int first = (column + PL - (KW - 1) - PHASE) / SW;  // an exact quotient
    Outputs window[READ];
#pragma unroll
    for (int j = 0; j < READ; ++j) window[j] = pixel_at<VECTOR>(row, first + j, OW, OC);
#endif
#pragma unroll FILTER_W ? FILTER_W : 1
    for (int kw = 0; kw < KW; ++kw)
#pragma unroll
        for (int j = 0; j < IN_GROUP; ++j) {
            const Outputs tap = filters.at(kh, kw, KW, j);
#pragma unroll
            for (int p = 0; p < RUN; ++p) {
#if FILTER_W
                const int q = p + KW - 1 - kw + PHASE;
                if (q % SW) continue;
                const Outputs& gradient = window[q / SW];
#else
                const int v = column + p + PL - kw * DW;
                if (v < 0 || v % SW) continue;
                const Outputs gradient = pixel_at<VECTOR>(row, v / SW, OW, OC);
#endif
#pragma unroll
                for (int i = 0; i < VECTOR; ++i)
                    sums[p].at[input_of(i, j)] = fmaf(gradient.at[i], tap.at[i], sums[p].at[input_of(i, j)]);
            }
        }
}

// grid (blocks of runs, blocks of channels): lanes_c * VECTOR output channels; with VECTOR = 1 those of
// `inputs` input channels, no more than lanes_c, or else of one, whose outputs then take turns
extern "C" __global__ void __launch_bounds__(256, 2) conv2d_depthwise_data_gradient(
    stored* __restrict__ dx,        // (N, H, W, C)
    const stored* __restrict__ dy,  // (N, OH, OW, OC)
    const stored* __restrict__ w,   // (OC, KH, KW, CG)
    const float* __restrict__ b,    // (C) or null
    int N, int H, int W, int C, int OC, int KH, int KW_, int OH, int OW,
    int SH, int SW_, int PT, int PL, int DH, int DW_, int lanes_c, int strip, int inputs) {
    WIDTHS;
    const int M = VECTOR == 4 ? 1 : OC / C;  // outputs to be added to one input
    const int channels = VECTOR == 4 ? lanes_c * VECTOR : inputs * M, first = blockIdx.y * channels;
    const int pitch = pitch_of(channels);
    stage_filters(shared_floats, w, first, channels, OC, KH * KW * IN_GROUP);
    __syncthreads();  // the filters are complete

    const int lane = threadIdx.x % lanes_c, own = threadIdx.x / lanes_c;
    const Band band = band_at(blockIdx.x * (THREADS / lanes_c) + own, H, W, strip);
    const bool owner = band.n < N && band.column < W;
    const int c = VECTOR == 4 ? (first + lane * VECTOR) / VECTOR * INPUTS : 0;
    const int phase = FILTER_W ? (band.column + PL - (KW - 1)) & (SW - 1) : 0;  // a fixed stride is 1 or 2
    Filters filters(shared_floats + lane * VECTOR, pitch, KH);

    for (int row = 0; row < BAND; ++row) {
        const int ih = band.row + row;
        Inputs sums[RUN];
#pragma unroll
        for (int p = 0; p < RUN; ++p) sums[p] = all_channels<float, INPUTS>(0.0f);
        for (int o = lane * VECTOR; o < channels; o += lanes_c * VECTOR) {
            if (!owner || ih >= H || first + o >= OC) break;
            filters.staged = shared_floats + o;  // VECTOR = 4 has but one turn
#pragma unroll KEEP_FILTERS ? FILTER_W : 1
            for (int kh = 0; kh < (KEEP_FILTERS ? FILTER_W : KH); ++kh) {
                const int h = ih + PT - kh * DH;
                if (kh >= KH || h < 0 || h % SH || h / SH >= OH) continue;  // no output row reads ih through kh
                const stored* from = dy + ((long long)band.n * OH + h / SH) * OW * OC + first + o;
                if (phase)
                    add_row<STEP_W == 2>(sums, filters, from, kh, band.column, OW, OC, KW, SW, PL, DW);
                else
                    add_row<0>(sums, filters, from, kh, band.column, OW, OC, KW, SW, PL, DW);
            }
        }
        stored* to = dx + (((long long)band.n * H + ih) * W + band.column) * C;
        if (M > 1) {  // only with VECTOR = 1
            // parts[m][p][i], apart so that neither side meets in a bank
            const int each = min(M, lanes_c), apart = (RUN + 1) * inputs;
            float* parts = shared_floats + (KH * KW * pitch + own * (RUN + 1) * lanes_c);
            if (lane < inputs * each)
#pragma unroll
                for (int p = 0; p < RUN; ++p) parts[lane % each * apart + p * inputs + lane / each] = sums[p].at[0];
            __syncwarp();  // the run's parts are complete
            for (int e = lane; e < RUN * inputs; e += lanes_c) {
                const int p = e / inputs, channel = blockIdx.y * inputs + e % inputs;
                float sum = b && channel < C ? b[channel] : 0.0f;
                for (int m = 0; m < each; ++m) sum += parts[m * apart + e];
                if (owner && ih < H && band.column + p < W && channel < C)
                    set(to[(long long)p * C + channel], sum);
            }
            __syncwarp();  // the parts were read
            continue;
        }
        const int channel = VECTOR == 4 ? c : first + lane;
        if (!owner || ih >= H || channel >= C) continue;
        const Inputs bias = b ? load_vector<INPUTS>(b + channel) : all_channels<float, INPUTS>(0.0f);
#pragma unroll
        for (int p = 0; p < RUN; ++p) {
#pragma unroll
            for (int i = 0; i < INPUTS; ++i) sums[p].at[i] += bias.at[i];
            if (band.column + p < W) store_vector(to + (long long)p * C + channel, sums[p]);
        }
    }
}

constexpr int TAPS = FILTER_W ? FILTER_W : 4;  // of one filter row, of which a thread keeps the sums
constexpr int SUMS = TAPS * IN_GROUP * VECTOR;

// grid (slices, blocks of lanes_c * VECTOR output channels); slice s takes the runs of RUN pixels
// s * slice_runs and following
extern "C" __global__ void __launch_bounds__(256, 2) conv2d_depthwise_weight_gradient(
    float* __restrict__ partial,    // (slices, OC, KH, KW, CG)
    const stored* __restrict__ dy,  // (N, OH, OW, OC)
    const stored* __restrict__ x,   // (N, H, W, C)
    int N, int H, int W, int C, int OC, int KH, int KW_, int OH, int OW,
    int SH, int SW_, int PT, int PL, int DH, int DW_, int lanes_c, int slice_runs) {
    WIDTHS;
    const int in_row = (KW + TAPS - 1) / TAPS, chunks = KH * in_row, K = KH * KW * IN_GROUP;
    const int owners = lanes_c * chunks, lanes = THREADS / owners, lane = threadIdx.x / owners;
    const int channels = lanes_c * VECTOR, first = blockIdx.y * channels;
    const int oc = first + threadIdx.x % lanes_c * VECTOR, chunk = threadIdx.x / lanes_c % chunks;
    const int c = VECTOR == 4 ? oc / VECTOR * INPUTS : oc / (OC / C);
    const int kh = chunk / in_row, kw0 = chunk % in_row * TAPS;
    const int across = (OW + RUN - 1) / RUN, runs = N * OH * across;

    float sums[SUMS] = {};
    const int begin = blockIdx.x * slice_runs, end = begin + min(slice_runs, runs - begin);
    for (int run = begin + lane; run < end && lane < lanes && oc < OC; run += lanes) {
        const int ow = run % across * RUN, oh = run / across % OH, n = run / across / OH;
        const int ih = oh * SH - PT + kh * DH, left = ow * SW - PL + kw0 * DW;
        if (ih < 0 || ih >= H) continue;
        const stored* row = x + ((long long)n * H + ih) * W * C + c;
        const stored* from = dy + (((long long)n * OH + oh) * OW) * OC + oc;
        Outputs gradient[RUN];
#pragma unroll
        for (int p = 0; p < RUN; ++p) gradient[p] = pixel_at<VECTOR>(from, ow + p, OW, OC);
#if FILTER_W
        Inputs window[WINDOW];
#pragma unroll
        for (int j = 0; j < WINDOW; ++j) window[j] = pixel_at<INPUTS>(row, left + j, W, C);
#endif
#pragma unroll
        for (int p = 0; p < RUN; ++p) {
            if (ow + p >= OW) break;  // what lies there in x may be no number
#pragma unroll
            for (int t = 0; t < TAPS; ++t) {
#if FILTER_W
                const Inputs& v = window[p * SW + t];
#else
                if (kw0 + t >= KW) break;
                const Inputs v = pixel_at<INPUTS>(row, left + p * SW + t * DW, W, C);
#endif
#pragma unroll
                for (int j = 0; j < IN_GROUP; ++j)
#pragma unroll
                    for (int i = 0; i < VECTOR; ++i) {
                        float& sum = sums[(t * IN_GROUP + j) * VECTOR + i];
                        sum = fmaf(gradient[p].at[i], v.at[input_of(i, j)], sum);
                    }
            }
        }
    }

    add_lanes(shared_floats, sums, lanes, owners);
    __syncthreads();  // scratch was read; the filters of this block go in its place
    if (lane == 0)
#pragma unroll
        for (int t = 0; t < TAPS; ++t)
            if (kw0 + t < KW)
#pragma unroll
                for (int j = 0; j < IN_GROUP; ++j)
#pragma unroll
                    for (int i = 0; i < VECTOR; ++i)
                        shared_floats[(oc - first + i) * K + (kh * KW + kw0 + t) * IN_GROUP + j] =
                            sums[(t * IN_GROUP + j) * VECTOR + i];
    __syncthreads();  // the filters are complete
    const int filters = min(channels, OC - first);
    float* out = partial + ((long long)blockIdx.x * OC + first) * K;
    for (int i = threadIdx.x; i < filters * K; i += THREADS) out[i] = shared_floats[i];
}
