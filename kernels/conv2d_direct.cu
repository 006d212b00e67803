// Convolution of images with one to four channels: the first layer of a network.
//
//   y[n][oh][ow][oc]  = f(b[oc] + sum over kh, kw, c of x[n][ih][iw][c] * w[oc][kh][kw][c]),
//                       f an activation of activation.cuh
//   dw[oc][kh][kw][c] = sum over n, oh, ow of dy[n][oh][ow][oc] * x[n][ih][iw][c]
//   ih = oh*SH - PT + kh*DH,  iw = ow*SW - PL + kw*DW;  x is zero outside the image
//
// Layout NHWC; w is (OC, KH, KW, C). So few channels leave a tensor core idle, and y is far larger
// than x: what counts is to write y (read dy) once, at the speed of memory.
//
// A block stages a tile of x with its halo in shared memory, and in the forward pass its filters,
// transposed. A thread owns four channels of RUN = 8 pixels of one row; lanes run along the channels
// first, so that a warp's 16-byte accesses to y or dy fill whole sectors:
//
//   thread = ((i * rows + r) * runs + s) * quads + q       image, row and run of the tile, channels 4q..
//
//   x tile:   one row of the image, channels within pixels:  |halo|run 0|run 1|...|halo|
//
// FILTER_W, CHANNELS and STEP_W fix the filter's width, C and SW (DW is 1): the taps of a filter row
// slide over a window in registers, (RUN - 1) * SW + KW values for RUN * KW products each of four
// channels. Runs lie one float further apart than they are long, and the launcher picks the pitch of
// rows, so that the runs of a warp read different banks. FILTER_W = 0 takes any filter, stride and
// dilation: a thread owns every runs-th pixel, and reads each tap by itself.
//
// Counted for 3 -> 64 channels, 3x3, 32x32, 512 images on a GPU of 67 TFLOP/s and 4.3 TB/s: 1.81 GFLOP
// (27 us), 6 MB read and 134 MB written (33 us). Per filter row and thread: 288 multiply-adds, 30 reads
// of 4 bytes and 9 of 16 (so compiled for sm_90, and 16 other instructions): arithmetic takes 84 % of the
// issue slots (32 us), no more than the writes. A weight is read once for 8 pixels: kept in registers from
// tile to tile, the 27 times 4 of them would save 3 % of the instructions and cost 8 of 24 warps. 80
// registers, so that 24 warps share a multiprocessor. A block stages its filters once for several tiles.
// With FILTER_W = 0 it is 12 wavefronts of shared memory for 8 cycles of arithmetic: 40 us.
// Weight gradient: 8 reads of 16 bytes of dy (from L1 for all rows of the filter but one) and 30 of x
// for 288 multiply-adds.
//
// With BFLOAT16 x, y, dy and w are bfloat16: half the bytes, so that arithmetic is the bound in both
// passes; shared memory, sums and the slices of dw are float.
//
// Where four does not divide OC, outputs (dy) pass through lines in shared memory instead, one for each
// row of the tile's outputs, so that a warp still moves neighbours.
//
// Where a batch normalisation follows, a block also adds up each channel's values, as distances from the
// first of them, and their squares: over a thread's pixels, the lanes and the warps. The last blocks
// join those of all (last_block.cuh). y is not read again for its statistics: 4 bytes an output less.
//
// The weight gradient is cut into slices of tiles, one per block: a thread owns four channels and a
// chunk of taps, KW * C_EACH of one filter row (FILTER_W = 0: any 8), and keeps their sums in registers
// from its first tile to its last. Lanes that share a chunk are added pairwise (block_sums.cuh), slices
// by a second launch. No atomics. Refuses groups; the launcher refuses what needs more than 48 KiB.
//
// With a stride of 1 these kernels also make both gradients of a convolution *to* few channels, the roles
// exchanged: its dx is the convolution of dy with turned filters, and its dw that of the pair (x, dy). The
// launcher passes dy as x, dx as y, and the sizes of that convolution; `exchanged` tells how w lies.
// The data gradient of a convolution from few channels is conv2d_direct_to_few.cu.

#include "common.cuh"
#include "activation.cuh"
#include "block_sums.cuh"
#include "channels.cuh"
#include "last_block.cuh"
#include "moments.cuh"

#ifndef FILTER_W
#define FILTER_W 0
#endif
#if FILTER_W
constexpr int KW_FIXED = FILTER_W, C_FIXED = CHANNELS, SW_FIXED = STEP_W;
#define WIDTHS [[maybe_unused]] const int KW = KW_FIXED, C = C_FIXED, SW = SW_FIXED, DW = 1
#else
#define WIDTHS [[maybe_unused]] const int KW = KW_, C = C_, SW = SW_, DW = DW_
#endif

constexpr int RUN = 8, THREADS = 256;
constexpr int SECTOR = 32 / sizeof(stored);  // numbers of it
// The window of a wide filter takes its registers; from sm_100 on three blocks would spill a few.
#if !defined(GPUCNN_EMULATED) && __CUDA_ARCH__ >= 1000
constexpr int RESIDENT_BLOCKS = 2;
#else
constexpr int RESIDENT_BLOCKS = FILTER_W > 5 ? 2 : 3;
#endif

#include "conv2d_direct_sums.cuh"

// What a block takes of the output: images x rows x (runs of RUN pixels), and quads of four channels;
// pitch: floats from one staged row to the next.
struct Tile {
    int images, rows, runs, quads, pitch;
    int n0, oh0, ow0;  // its first output pixel
    __device__ __forceinline__ int all_runs() const { return images * rows * runs; }
};

// The t-th tile of the batch, across, then down, then image by image.
__device__ __forceinline__ Tile tile_at(int t, int OH, int OW, int images, int rows, int runs, int quads,
                                        int pitch) {
    const int across = (OW + runs * RUN - 1) / (runs * RUN), down = (OH + rows - 1) / rows;
    return {images, rows, runs, quads, pitch,
            t / across / down * images, t / across % down * rows, t % across * runs * RUN};
}

// Where float e of a staged row lies in it: a gap behind each run's length.
__device__ __forceinline__ int placed(int e) {
#if FILTER_W
    return e + e / (RUN * SW_FIXED * C_FIXED);
#else
    return e;
#endif
}

// Stages what the tile reads of x: a warp takes a row. Its lanes start where a sector does.
__device__ __forceinline__ void stage_tile(float* staged, const stored* x, const Tile& tile, int N, int H,
                                           int W, int C, int KH, int KW, int SH, int SW, int PT, int PL,
                                           int DH, int DW) {
    const int lane = threadIdx.x % 32;
    const int rows = (tile.rows - 1) * SH + (KH - 1) * DH + 1;
    const int floats = ((tile.runs * RUN - 1) * SW + (KW - 1) * DW + 1) * C;
    const long long left = ((long long)tile.ow0 * SW - PL) * C;
    for (int row = threadIdx.x / 32; row < tile.images * rows; row += THREADS / 32) {
        const int n = tile.n0 + row / rows, ih = tile.oh0 * SH - PT + row % rows;
        const bool inside = n < N && ih >= 0 && ih < H;
        const long long first = ((long long)n * H + ih) * W * C + left;
        for (int e = lane - (int)(first & (SECTOR - 1)); e < floats; e += 32)
            if (e >= 0)
                staged[row * tile.pitch + placed(e)] =
                    inside && left + e >= 0 && left + e < (long long)W * C ? to_float(x[first + e]) : 0.0f;
    }
}

// A thread's pixels: row r of image i of the tile, the first of its columns, and their distance.
struct Pixels {
    int i, r, column, step;
    int at;  // in the staged tile, of the first pixel's first tap
};

__device__ __forceinline__ Pixels pixels_of(int run, const Tile& tile, int staged_rows, int C, int SH, int SW) {
    const int s = run % tile.runs, r = run / tile.runs % tile.rows, i = run / tile.runs / tile.rows;
    const int row = (i * staged_rows + r * SH) * tile.pitch;
    if (FILTER_W) return {i, r, s * RUN, 1, row + placed(s * RUN * SW * C)};
    return {i, r, s, tile.runs, row + s * SW * C};
}

// A line of shared memory holds the `channels` channels of the tile's pixels in one row, as y does, and
// a gap of one float behind each run.
__device__ __forceinline__ int in_line(int pixel, int channels) { return pixel * channels + pixel / RUN; }

__device__ __forceinline__ int line_length(const Tile& tile, int channels) {
    return in_line(tile.runs * RUN, channels);
}

// copy(at, e) for every number of y in the tile and the place `at` of its copy: a warp takes a line, its
// lanes start where a sector does.
template <class F>
__device__ __forceinline__ void for_each_output(const Tile& tile, int N, int OH, int OW, int OC, int oc0,
                                                int channels, F copy) {
    const int pixels = min(tile.runs * RUN, OW - tile.ow0);
    for (int line = threadIdx.x / 32; line < tile.images * tile.rows; line += THREADS / 32) {
        const int n = tile.n0 + line / tile.rows, oh = tile.oh0 + line % tile.rows;
        if (n >= N || oh >= OH) continue;
        const long long first = (((long long)n * OH + oh) * OW + tile.ow0) * OC + oc0;
        for (int e = (int)(threadIdx.x % 32) - (int)(first & (SECTOR - 1)); e < pixels * channels; e += 32)
            if (e >= 0)
                copy(line * line_length(tile, channels) + in_line(e / channels, channels) + e % channels,
                     first + (long long)(e / channels) * OC + e % channels);
    }
}

// Exchanged, w is (C, KH, KW, OC), and its filters lie turned by 180 degrees: the place, in steps of OC,
// of element k = (kh * KW + kw) * C + c of K.
__device__ __forceinline__ int turned(int k, int K, int C) {
    const int taps = K / C;
    return k % C * taps + taps - 1 - k / C;
}

extern __shared__ __align__(16) float shared_floats[];

// grid (blocks, tiles of 4 * quads channels); block k takes the tiles k * each and following, one where
// four does not divide OC
extern "C" __global__ void __launch_bounds__(256, RESIDENT_BLOCKS) conv2d_direct_forward(
    stored* __restrict__ y,            // (N, OH, OW, OC)
    float* __restrict__ delta,         // (OC): mean of y - its first pixel; null without moments
    float* __restrict__ invstd,        // (OC), null without moments
    float* __restrict__ running_mean,  // (OC) or null
    float* __restrict__ running_var,   // (OC) or null
    float* __restrict__ moments,       // (4, OC, blocks), see moments.cuh; null if not wanted
    unsigned* __restrict__ arrived,    // (groups of channels, 1 + groups of blocks), zeros
    const stored* __restrict__ x,      // (N, H, W, C)
    const stored* __restrict__ w,      // (OC, KH, KW, C)
    const float* __restrict__ b,       // (OC) or null
    int N, int H, int W, int C_, int OC, int KH, int KW_, int OH, int OW,
    int SH, int SW_, int PT, int PL, int DH, int DW_, int images, int rows, int runs, int quads, int pitch,
    int tiles, int each, int exchanged, int activation, float negative_slope, float momentum, float eps) {
    __shared__ __align__(16) BlockSums of_block;
    WIDTHS;
    const bool turn = exchanged && SW == 1;
    const int K = KH * KW * C, oc0 = blockIdx.y * 4 * quads, width = 4 * quads + 4;
    float* filters = shared_floats;  // (K + 1, width): the bias is the last row
    float* staged = filters + (K + 1) * width;

    for (int i = threadIdx.x; i < 4 * quads * K; i += THREADS) {
        const int o = turn ? i % (4 * quads) : i / K, k = turn ? i / (4 * quads) : i % K;
        const int at = turn ? turned(k, K, C) * OC + oc0 + o : oc0 * K + i;
        filters[k * width + o] = oc0 + o < OC ? to_float(w[at]) : 0.0f;
    }
    for (int o = threadIdx.x; o < 4 * quads; o += THREADS)
        filters[K * width + o] = b && oc0 + o < OC ? b[oc0 + o] : 0.0f;
    const int begin = blockIdx.x * each, end = min(begin + each, tiles);
    for (int t = begin; t < end; ++t) {
        const Tile tile = tile_at(t, OH, OW, images, rows, runs, quads, pitch);
        if (t > begin) __syncthreads();  // the tile before was read
        stage_tile(staged, x, tile, N, H, W, C, KH, KW, SH, SW, PT, PL, DH, DW);
        __syncthreads();  // tile and filters are complete

        const int q = threadIdx.x % quads, run = threadIdx.x / quads;
        const bool owner = run < tile.all_runs();
        const int staged_rows = (rows - 1) * SH + (KH - 1) * DH + 1;
        const Pixels own = pixels_of(owner ? run : 0, tile, staged_rows, C, SH, SW);
        const float4 bias = *reinterpret_cast<const float4*>(filters + K * width + 4 * q);
        float sums[RUN][4];
#pragma unroll
        for (int p = 0; p < RUN; ++p) sums[p][0] = bias.x, sums[p][1] = bias.y, sums[p][2] = bias.z, sums[p][3] = bias.w;
        for (int kh = 0; owner && kh < KH; ++kh) {
            const float* from = staged + own.at + kh * DH * pitch;
            const float* taps = filters + kh * KW * C * width + 4 * q;
#if FILTER_W
#pragma unroll
            for (int c = 0; c < C; ++c) {
                float window[(RUN - 1) * SW_FIXED + KW_FIXED];
#pragma unroll
                for (int j = 0; j < (RUN - 1) * SW + KW; ++j) window[j] = from[placed(j * C + c)];
#pragma unroll
                for (int kw = 0; kw < KW; ++kw) {
                    const float4 tap = *reinterpret_cast<const float4*>(taps + (kw * C + c) * width);
#pragma unroll
                    for (int p = 0; p < RUN; ++p) {
                        sums[p][0] = fmaf(window[p * SW + kw], tap.x, sums[p][0]);
                        sums[p][1] = fmaf(window[p * SW + kw], tap.y, sums[p][1]);
                        sums[p][2] = fmaf(window[p * SW + kw], tap.z, sums[p][2]);
                        sums[p][3] = fmaf(window[p * SW + kw], tap.w, sums[p][3]);
                    }
                }
            }
#else
            for (int k = 0; k < KW * C; ++k) {
                const float* cell = from + k / C * DW * C + k % C;
                const float4 tap = *reinterpret_cast<const float4*>(taps + k * width);
#pragma unroll
                for (int p = 0; p < RUN; ++p) {
                    const float v = cell[p * runs * SW * C];
                    sums[p][0] = fmaf(v, tap.x, sums[p][0]);
                    sums[p][1] = fmaf(v, tap.y, sums[p][1]);
                    sums[p][2] = fmaf(v, tap.z, sums[p][2]);
                    sums[p][3] = fmaf(v, tap.w, sums[p][3]);
                }
            }
#endif
        }

        if (activation != IDENTITY)
#pragma unroll
            for (int p = 0; p < RUN; ++p)
#pragma unroll
                for (int j = 0; j < 4; ++j) sums[p][j] = activate(sums[p][j], activation, negative_slope);
#if BFLOAT16
        if (moments)  // they are those of what is stored
#pragma unroll
            for (int p = 0; p < RUN; ++p)
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    stored rounded;
                    set(rounded, sums[p][j]);
                    sums[p][j] = to_float(rounded);
                }
#endif
        const int n = tile.n0 + own.i, oh = tile.oh0 + own.r, oc = oc0 + 4 * q;
        if (OC % 4) {
            const int channels = min(4 * quads, OC - oc0);
            __syncthreads();  // tile and filters were read; lines go in their place
            float* line = shared_floats + (own.i * rows + own.r) * line_length(tile, channels) + 4 * q;
#pragma unroll
            for (int p = 0; p < RUN; ++p)
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    if (owner && oc + j < OC) line[in_line(own.column + p * own.step, channels) + j] = sums[p][j];
            __syncthreads();  // the lines are complete
            for_each_output(tile, N, OH, OW, OC, oc0, channels,
                            [&](int at, long long e) { set(y[e], shared_floats[at]); });
        } else if (owner && n < N && oh < OH && oc < OC) {
#pragma unroll
            for (int p = 0; p < RUN; ++p) {
                const int ow = tile.ow0 + own.column + p * own.step;
                if (ow >= OW) break;
                Channels<float, 4> v;
#pragma unroll
                for (int j = 0; j < 4; ++j) v.at[j] = sums[p][j];
                store_channels(y + (((long long)n * OH + oh) * OW + ow) * OC + oc, v);
            }
        }
        if (moments) {
            // Once more where the thread is: kept through the sums, that would cost them registers.
            const Tile same = tile_at(forgotten(t), OH, OW, images, rows, runs, quads, pitch);
            const int own_run = forgotten(threadIdx.x) / quads;
            const Pixels at = pixels_of(own_run, same, 0, C, SH, SW);
            const int left = OW - same.ow0 - at.column;
            const bool exist = own_run < same.all_runs() && same.n0 + at.i < N &&
                               same.oh0 + at.r < OH && left > 0;
            const int count = min(images, N - same.n0) * min(rows, OH - same.oh0) *
                              min(runs * RUN, OW - same.ow0);
            add_pixels(of_block, sums, quads, exist ? (left + at.step - 1) / at.step : 0, count,
                       t == begin);
        }
    }
    if (!moments) return;
    __syncthreads();  // the sums are written
    const int channels = min(4 * quads, OC - oc0), i = threadIdx.x;
    const MomentParts parts{moments, delta, invstd, running_mean, running_var, OC, (int)gridDim.x,
                            momentum, eps};
    if (i < channels) {
        const float count = of_block.count, sum = of_block.sum[i];
        moments[parts.place(oc0 + i, blockIdx.x) + parts.plane()] = of_block.pivot[i];
        parts.store(oc0 + i, blockIdx.x,
                    {count, sum / count, of_block.square[i] - sum * sum / count});
    }
    join_chunks(arrived, blockIdx.y, blockIdx.x, gridDim.x,
                [&](int first, int step, int count, bool last) {
                    join_parts<2>(parts, oc0, oc0 + channels, first, step, count, last);
                });
}

#if FILTER_W
constexpr int C_EACH = FILTER_W * CHANNELS <= 9 ? CHANNELS : 1;
constexpr int TAPS = FILTER_W * C_EACH;
#else
constexpr int TAPS = 8;
#endif

// grid (slices, tiles of 4 * quads channels); slice s takes the tiles s * slice_tiles and following
extern "C" __global__ void __launch_bounds__(256, 2) conv2d_direct_weight_gradient(
    float* __restrict__ partial,    // (slices, OC, KH, KW, C)
    const stored* __restrict__ dy,  // (N, OH, OW, OC)
    const stored* __restrict__ x,   // (N, H, W, C)
    int N, int H, int W, int C_, int OC, int KH, int KW_, int OH, int OW,
    int SH, int SW_, int PT, int PL, int DH, int DW_, int images, int rows, int runs, int quads, int pitch,
    int tiles, int slice_tiles, int exchanged) {
    WIDTHS;
    const int K = KH * KW * C, oc0 = blockIdx.y * 4 * quads;
    const int staged_rows = (rows - 1) * SH + (KH - 1) * DH + 1;
#if FILTER_W
    const int chunks = KH * (C / C_EACH);
#else
    const int chunks = (K + TAPS - 1) / TAPS;
#endif
    const int owners = quads * chunks, lanes = THREADS / owners, lane = threadIdx.x / owners;
    const int q = threadIdx.x % quads, chunk = threadIdx.x / quads % chunks, oc = oc0 + 4 * q;

    int place[TAPS];  // of each tap, in the staged tile from the pixel's first tap; not past the last
#pragma unroll
    for (int j = 0; j < TAPS; ++j) {
#if FILTER_W
        place[j] = chunk / (C / C_EACH) * DH * pitch + chunk % (C / C_EACH) * C_EACH;
#else
        const int k = chunk * TAPS + j;
        place[j] = k < K ? k / C / KW * DH * pitch + k / C % KW * DW * C + k % C : 0;
#endif
    }

    const int channels = min(4 * quads, OC - oc0);
    float* lines = shared_floats + images * staged_rows * pitch;  // of dy, where four does not divide OC
    float sums[TAPS * 4] = {};
    const int begin = blockIdx.x * slice_tiles, end = min(begin + slice_tiles, tiles);
    for (int t = begin; t < end; ++t) {
        const Tile tile = tile_at(t, OH, OW, images, rows, runs, quads, pitch);
        __syncthreads();  // the tile before was read
        stage_tile(shared_floats, x, tile, N, H, W, C, KH, KW, SH, SW, PT, PL, DH, DW);
        if (OC % 4)
            for_each_output(tile, N, OH, OW, OC, oc0, channels,
                            [&](int at, long long e) { lines[at] = to_float(dy[e]); });
        __syncthreads();  // the tile is complete
        if (lane >= lanes || oc >= OC) continue;
        for (int run = lane; run < tile.all_runs(); run += lanes) {
            const Pixels own = pixels_of(run, tile, staged_rows, C, SH, SW);
            const int n = tile.n0 + own.i, oh = tile.oh0 + own.r, ow = tile.ow0 + own.column;
            if (n >= N || oh >= OH) continue;
            const stored* from = dy + (((long long)n * OH + oh) * OW + ow) * OC + oc;
            const float* line = lines + (own.i * rows + own.r) * line_length(tile, channels) + 4 * q;
            Channels<float, 4> gradient[RUN];
#pragma unroll
            for (int p = 0; p < RUN; ++p) {
                gradient[p] = all_channels<float, 4>(0.0f);
                if (ow + p * own.step >= OW) continue;
                if (OC % 4 == 0) {
                    gradient[p] = load_channels<4>(from + (long long)p * own.step * OC);
                } else {
#pragma unroll
                    for (int j = 0; j < 4; ++j)
                        if (oc + j < OC)
                            gradient[p].at[j] = line[in_line(own.column + p * own.step, channels) + j];
                }
            }
            const float* cells = shared_floats + own.at;
#pragma unroll
            for (int p = 0; p < RUN; ++p) {
                if (ow + p * own.step >= OW) break;  // what lies there in x may be no number
#pragma unroll
                for (int j = 0; j < TAPS; ++j) {
#if FILTER_W
                    // chunk * C_EACH < C stays within the gap-free part of a run's pixel
                    const int e = p * SW * C + j / C_EACH * C;
                    const float v = cells[place[j] + e + e / (RUN * SW * C) + j % C_EACH];
#else
                    const float v = cells[place[j] + p * runs * SW * C];
#endif
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        sums[4 * j + i] = fmaf(gradient[p].at[i], v, sums[4 * j + i]);
                }
            }
        }
    }

    add_lanes(shared_floats, sums, lanes, owners);
    __syncthreads();  // scratch was read; the filters of this block go in its place
    if (lane == 0) {
#pragma unroll
        for (int j = 0; j < TAPS; ++j) {
#if FILTER_W
            const int k = (chunk / (C / C_EACH) * KW + j / C_EACH) * C + chunk % (C / C_EACH) * C_EACH +
                          j % C_EACH;
#else
            const int k = chunk * TAPS + j;
#endif
            if (k < K)
#pragma unroll
                for (int i = 0; i < 4; ++i) shared_floats[(4 * q + i) * K + k] = sums[4 * j + i];
        }
    }
    __syncthreads();  // the filters are complete
    const int filters = min(4 * quads, OC - oc0);
    float* out = partial + (long long)blockIdx.x * OC * K;
    for (int i = threadIdx.x; i < filters * K; i += THREADS) {
        if (exchanged && SW == 1)
            out[turned(i / filters, K, C) * OC + oc0 + i % filters] = shared_floats[i % filters * K + i / filters];
        else
            out[oc0 * K + i] = shared_floats[i];
    }
}
