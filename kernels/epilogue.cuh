// What a tile of a matrix product goes through on its way from the sums to memory.
//
//   v = sum + bias[c] + residual              what is null is left out
//   v = activation(v)                         forward
//   v = v * slope of the activation there     backward: activated is the activation's output
//   out = v
//   partials                                  of the v of each tile and channel: moments forward,
//                                             backward sums
//
// So the passes over memory that a network would make after a convolution fall away: 8 bytes an element
// for each activation and bias, 12 for a residual, 4 for the statistics of a batch normalisation, 8
// for the two sums of its gradient; and where the last blocks join the partials (last_block.cuh), the
// launch that did that.
//
// The sums lie across the warp as the multiplication left them. They are laid down in the ring of
// slabs, which is free by then, and taken up again by rows: a thread keeps four channels and walks
// down the rows of the tile, so that every array is read and written 16 bytes at a time (8 in bfloat16) and a channel's
// partials grow in registers. Pieces of four channels are swizzled, so that neither the laying down,
// 4 rows x 8 channels by a warp (or half a warp, two channels a lane), nor the taking up meets a bank
// twice. A tile of floats with a bias only is stored straight from the registers; in bfloat16 a warp would
// write half sectors from there.

#include "activation.cuh"
#include "gemm_pipeline.cuh"
#include "last_block.cuh"
#include "moments.cuh"

struct Epilogue {
    float* slices;             // (slices, output) or null: the sums as they are, and nothing of this
    const float* bias;         // (channels) or null
    const stored* residual;    // as the output, or null
    const stored* activated;   // as the output, or null; backward
    const stored* normalised;  // as the output, or null: input of a batch normalisation; backward
    const float* delta;        // (channels): the mean of normalised is normalised[c] + delta[c]
    const float* invstd;       // (channels): 1 / its deviation
    // Per channel and tile, or null: moments (4, channels, chunks), or sums (2, channels, chunks) of
    // v * (normalised - mean) and of v, as in moments.cuh.
    float* partials;
    // Zeros, 1 + groups of chunks for each channel, or null: partials are not joined.
    unsigned* arrived;
    float *joined, *joined_too;           // (channels): dgamma and dbeta, or delta and 1 / deviation
    float *running_mean, *running_var;    // (channels) or null
    int activation;
    float negative_slope, momentum, eps;

    __device__ __forceinline__ bool only_bias() const {
        return !residual && !activated && !partials && activation == IDENTITY;
    }
};

// WIDTH neighbours in memory, of which `count` exist from the first one on.
template <int WIDTH>
__device__ __forceinline__ void store_run(float* to, int count, const float (&v)[WIDTH]) {
    const unsigned misaligned = (unsigned)reinterpret_cast<unsigned long long>(to) % (4 * WIDTH);
    if (WIDTH == 2 && count >= 2 && !misaligned) {
        *reinterpret_cast<float2*>(to) = make_float2(v[0], v[WIDTH > 1]);
        return;
    }
    if (WIDTH == 4 && count >= 4 && !misaligned) {
        *reinterpret_cast<float4*>(to) =
            make_float4(v[0], v[WIDTH > 1], v[WIDTH > 2 ? 2 : 0], v[WIDTH - 1]);
        return;
    }
#pragma unroll
    for (int i = 0; i < WIDTH; ++i)
        if (i < count) to[i] = v[i];
}

// The same with a bias, which may be null, added to each.
template <int WIDTH>
__device__ __forceinline__ void store_run(
    float* to, int count, const float (&v)[WIDTH], const float* bias) {
    float sum[WIDTH];
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) sum[i] = bias && i < count ? v[i] + bias[i] : v[i];
    store_run(to, count, sum);
}

__device__ __forceinline__ void store_run(bfloat16* to, int count, const float (&v)[4]) {
    if (count >= 4 && aligned4(to)) {
        write_four(to, make_float4(v[0], v[1], v[2], v[3]));
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (i < count) set(to[i], v[i]);
}

// Four neighbours, of which `count` exist; 0 for the others.
template <class T>
__device__ __forceinline__ void load_run(float (&v)[4], const T* from, int count) {
    if (count >= 4 && aligned4(from)) {
        const float4 u = read_four(from);
        v[0] = u.x, v[1] = u.y, v[2] = u.z, v[3] = u.w;
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = i < count ? to_float(from[i]) : 0.0f;
}

// Where row m, column n of the tile is laid down.
__device__ __forceinline__ int laid_down(int m, int n) {
    const int turn = TILE_GN == 16 ? m >> 1 & 1 : m & 3;
    return m * TILE_GN + ((n >> 2 ^ turn << 1) << 2) + n % 4;
}

// How the threads of a block take the tile up: PIECES of four channels, WALKERS rows at a time.
constexpr int PIECES = TILE_GN / 4, WALKERS = TILE_THREADS / PIECES;
static_assert(TILE_GM % WALKERS == 0 && (WALKERS & (WALKERS - 1)) == 0, "whole, halvable portions");
static_assert(STAGES * (TILE_GM + TILE_GN) * 32 >= TILE_GM * TILE_GN &&
              STAGES * (TILE_GM + TILE_GN) * 32 >= 12 * TILE_THREADS + TILE_GN,
              "the ring holds the tile, and later the partials of all threads");

// One of the partials' planes.
struct Plane {
    float* at;
    int columns, chunks;  // a column is a channel of the tile
    __device__ __forceinline__ void set(int n, float v) const {
        if (n < columns) at[(long long)n * chunks] = v;
    }
};

// Joins what the walkers of a piece hold, VALUES numbers each, pairwise: the order is fixed. Right in
// walker 0. join(mine, other): `mine` becomes both.
template <int VALUES, class Join>
__device__ __forceinline__ void join_walkers(float (&mine)[VALUES], Join join) {
    const int walker = threadIdx.x / PIECES;
    for (int half = WALKERS / 2; half > 0; half /= 2) {
        float* slot = slab_ring + threadIdx.x;
        __syncthreads();  // the tile, or the last round's slots, were read by all
        if (walker >= half && walker < 2 * half)
#pragma unroll
            for (int i = 0; i < VALUES; ++i) slot[i * TILE_THREADS] = mine[i];
        __syncthreads();  // the upper half has written
        if (walker >= half) continue;
        float other[VALUES];
#pragma unroll
        for (int i = 0; i < VALUES; ++i) other[i] = slot[i * TILE_THREADS + PIECES * half];
        join(mine, other);
    }
}

// Joins the partials of all tiles of these channels, where that is wanted.
template <class Parts>
__device__ __forceinline__ void join_tiles(
    const Epilogue& e, const Parts& parts, int channel, int columns, int chunk, int chunks) {
    if (!e.arrived) return;
    const int end = channel + min(columns, TILE_GN);
    join_chunks(e.arrived, channel, chunk, chunks, [&](int first, int step, int count, bool last) {
        join_parts<4>(parts, channel, end, first, step, count, last);
    });
}

// Sends the tile whose sums the multiplier holds through the epilogue. Its first column is channel
// `channel` of `channels`, of which `columns` belong to the group from there on; place(m) says how
// many numbers before its first channel row m of the tile begins in out, or -1 past the last row. The
// tile is number `chunk` of `chunks`.
template <bool BACKWARD, class Multiplier, class Place>
__device__ __forceinline__ void store_through(
    const Epilogue& e, const Multiplier& multiplier, stored* out, int channel, int columns, int channels,
    int chunk, int chunks, Place place) {
    __syncthreads();  // everyone has left the last slab
    multiplier.store_rows(0, 0, [&](int m, int n, const auto& v) {
        store_run(slab_ring + laid_down(m, n), 4, v);
    });
    __syncthreads();  // the tile is laid down

    const int walker = threadIdx.x / PIECES, n = threadIdx.x % PIECES * 4, count = columns - n;
    const bool moments = !BACKWARD && e.partials, sums = BACKWARD && e.partials;
    float bias[4] = {0, 0, 0, 0}, mean[4] = {0, 0, 0, 0}, pivot[4] = {0, 0, 0, 0};
    if (e.bias) load_run(bias, e.bias + channel + n, count);
    if (sums) {
        load_run(mean, e.delta + channel + n, count);
        load_run(pivot, e.normalised + channel + n, count);
#pragma unroll
        for (int i = 0; i < 4; ++i) mean[i] += pivot[i];
    }
    float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};  // of products or distances, and of the v or squares
    float rows = 0.0f;
#pragma unroll 1  // short code: where few channels make the main loop short, it is still the longer one
    for (int m = walker; m < TILE_GM; m += WALKERS) {
        const int offset = place(m);
        if (offset < 0 || count <= 0) continue;
        float v[4], other[4];
        load_run(v, slab_ring + laid_down(m, n), 4);
        const int at = offset + channel + n;
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] += bias[i];
        if (e.residual) {
            load_run(other, e.residual + at, count);
#pragma unroll
            for (int i = 0; i < 4; ++i) v[i] += other[i];
        }
        if (!BACKWARD) {
#pragma unroll
            for (int i = 0; i < 4; ++i) v[i] = activate(v[i], e.activation, e.negative_slope);
        } else if (e.activated) {
            load_run(other, e.activated + at, count);
#pragma unroll
            for (int i = 0; i < 4; ++i)
                v[i] = activation_gradient(v[i], other[i], e.activation, e.negative_slope);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = as_stored(v[i]);  // what a later pass will read
        store_run(out + at, count, v);
        if (moments) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (rows == 0.0f) pivot[i] = v[i];
                const float d = v[i] - pivot[i];
                sum[i] += d;
                sum[4 + i] = fmaf(d, d, sum[4 + i]);
            }
            rows += 1.0f;
        }
        if (sums) {
            load_run(other, e.normalised + at, count);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sum[i] = fmaf(v[i], other[i] - mean[i], sum[i]);
                sum[4 + i] += v[i];
            }
        }
    }

    const long long plane = (long long)channels * chunks;
    float* to = e.partials + (long long)channel * chunks + chunk;
    if (sums) {
        join_walkers(sum, [](float (&mine)[8], const float (&other)[8]) {
#pragma unroll
            for (int i = 0; i < 8; ++i) mine[i] += other[i];
        });
        if (walker == 0)
#pragma unroll
            for (int i = 0; i < 8; ++i)
                Plane{to + i / 4 * plane, columns, chunks}.set(n + i % 4, sum[i]);
        const SumParts parts{e.partials, e.joined, e.joined_too, e.normalised, e.delta,
                             e.invstd,   channels, chunks,       0.0f};
        join_tiles(e, parts, channel, columns, chunk, chunks);
    }
    if (moments) {
        float* pivots = slab_ring + 12 * TILE_THREADS;
        __syncthreads();  // the tile was read by all
        if (walker == 0) store_run(pivots + n, 4, pivot);
        __syncthreads();  // the tile's pivots, values of its first row, are known
        float of_tile[4], own[12];  // own: of each channel count, mean, squares
        load_run(of_tile, pivots + n, 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            own[3 * i] = rows;
            own[3 * i + 1] = rows == 0.0f ? 0.0f : (pivot[i] - of_tile[i]) + sum[i] / rows;
            own[3 * i + 2] = rows == 0.0f ? 0.0f : sum[4 + i] - sum[i] * sum[i] / rows;
        }
        join_walkers(own, [](float (&mine)[12], const float (&other)[12]) {
#pragma unroll
            for (int i = 0; i < 12; i += 3) {
                const Moments both = join({mine[i], mine[i + 1], mine[i + 2]},
                                          {other[i], other[i + 1], other[i + 2]});
                mine[i] = both.count, mine[i + 1] = both.mean, mine[i + 2] = both.squares;
            }
        });
        if (walker == 0)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                Plane{to, columns, chunks}.set(n + i, own[3 * i]);
                Plane{to + plane, columns, chunks}.set(n + i, pivot[i]);
                Plane{to + 2 * plane, columns, chunks}.set(n + i, own[3 * i + 1]);
                Plane{to + 3 * plane, columns, chunks}.set(n + i, own[3 * i + 2]);
            }
        const MomentParts parts{e.partials,    e.joined, e.joined_too, e.running_mean,
                                e.running_var, channels, chunks,       e.momentum,
                                e.eps};
        join_tiles(e, parts, channel, columns, chunk, chunks);
    }
}

// Stores tile number tile_n of the columns: `columns` of a group, which begins at channel `channel` of
// `channels`. Straight from the registers where nothing but a bias is added to floats; slice_begin: where
// those of this slice begin.
template <bool BACKWARD, class Multiplier, class Place>
__device__ __forceinline__ void store_tile(
    const Epilogue& e, const Multiplier& multiplier, stored* out, long long slice_begin, int tile_n,
    int channel, int columns, int channels, int chunk, int chunks, Place place) {
    const int first = tile_n * TILE_GN, count = columns - first;
    if (!e.slices && (BFLOAT16 || !e.only_bias())) {
        store_through<BACKWARD>(e, multiplier, out, channel + first, count, channels, chunk, chunks, place);
        return;
    }
#if BFLOAT16
    float* to = e.slices + slice_begin;
#else
    float* to = e.slices ? e.slices + slice_begin : out;
#endif
    multiplier.store_rows(0, 0, [&](int m, int n, const auto& v) {
        const int offset = place(m), c = channel + first + n;
        if (offset >= 0 && n < count)
            store_run(to + (offset + c), count - n, v, e.bias ? e.bias + c : nullptr);
    });
}
