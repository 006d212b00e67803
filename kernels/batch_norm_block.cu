// Batch normalisation, a residual, an activation and max pooling in one pass.
//
//   z = gamma * (x - mean) * invstd + beta (+ residual),   a = z <= 0 ? slope * z : z
//   y = a, or the maximum of a over each window            slope 0: ReLU, 1: no activation
//
//   g = dy at the cell that won its window, times slope where z <= 0;  0 elsewhere
//   dbeta = sum of g,  dgamma = sum of g * xhat,  dresidual = g
//   dx = gamma * invstd * (g - dbeta / count - xhat * dgamma / count),   gamma * invstd * g where the
//   mean is given                                          (x - mean) as in batch_norm.cu
//
// What the backward pass must know of the forward one, beside x, is the route:
//
//   no pool, no residual   nothing: z is computed again from x, which is read anyway, to the same bits
//   no pool, residual      1 bit per element, z <= 0: bit c % 8 of byte (row, c / 8). Two neighbouring
//                          lanes put their four bits together
//   pool                   1 byte per output: the cell kh*KW + kw that won, + 128 if its z <= 0;
//                          255 if no gradient passes, as behind a ReLU that blocks
//
// The order of winners is that of pool2d.cu: the first maximum of a, and a NaN before numbers.
//
//   forward    apply, apply_bits or pool, after batch_norm_statistics
//   backward   sums, or pool_sums -> gradient, or pool_gradient; sums are joined as in batch_norm.cu
//
// Layout NHWC. A thread keeps four channels (one where C is no multiple of 4, or an array is not
// aligned) and their factors in registers and walks down the pixels, of x or, to pool, of y: 16-byte
// accesses, several under way at once, lanes along the channels. Windows of 2x2 every 2 cells have a
// path of their own, in which a thread reads its four cells at once and writes back their gradients;
// other windows meet in the caches, and their gradient is gathered, a thread per cell of x.
//
// Bytes per element of x in training, where batch_norm.cu, activation.cu and pool2d.cu one after the
// other move 52, and 64 with a 2x2 pool:
//
//                       statistics  forward        sums           gradient       together
//   BN + ReLU           4           4 + 4          4 + 4          4 + 4 + 4      32
//   BN + add + ReLU     4           4 + 4 + 4      4 + 4          4 + 4 + 8      40, and 3/8 of bits
//   BN + ReLU + pool    4           4 + 1.25       4 + 1.25       4 + 1.25 + 4   23.75
//
// and 4 less where the statistics come from partial ones. These are also the least: the mean is
// needed before the first element is written, both sums before the first gradient. Memory-bound.
//
// Refuses (in Python) windows of more than 127 cells, dilation and edges that count as zero.

#include "common.cuh"
#include "channels.cuh"
#include "batch_norm.cuh"
#include "column_sum.cuh"
#include "last_block.cuh"
#include "batch_norm_block.cuh"

template <int V>
struct Pair {
    Channels<float, V> a, b;
};

extern "C" __global__ void __launch_bounds__(256, 2) batch_norm_block_apply(
    stored* __restrict__ y,               // (rows, C)
    const stored* __restrict__ x,         // (rows, C)
    const stored* __restrict__ residual,  // (rows, C) or null
    const float* __restrict__ gamma,      // (C) or null
    const float* __restrict__ beta,       // (C) or null
    const float* __restrict__ mean,       // (C), null where there is a delta
    const float* __restrict__ delta,      // (C) or null
    const float* __restrict__ spread,     // (C)
    int rows, int C, int chunk_rows, float eps, float slope) {
    own_channels(C, aligned4(y) && aligned4(x) && aligned4(residual), [&](auto width, int c) {
        constexpr int V = decltype(width)::value;
        const Normaliser<V> normal(x, mean, delta, spread, gamma, beta, C, c, eps);
        walk(RowWalk(rows, C, c, chunk_rows),
             [&](long long r) {
                 return Pair<V>{load_vector<V>(x + r * C + c),
                                residual ? load_vector<V>(residual + r * C + c)
                                         : all_channels<float, V>(0.0f)};
             },
             [&](long long r, Pair<V> at) {
#pragma unroll
                 for (int v = 0; v < V; ++v) {
                     float z = normal(at.a.at[v], v);
                     if (residual) z += at.b.at[v];
                     at.a.at[v] = bent(z, z <= 0.0f, slope);
                 }
                 store_vector(y + r * C + c, at.a);
             });
    });
}

// As apply with a residual, one channel of a thread, whose bit joins those of the channels before it.
__device__ __forceinline__ void apply_channel(
    stored* y, unsigned char* bits, const stored* x, const stored* residual,
    const Normaliser<1>& normal, int rows, int C, int c, int chunk_rows, float slope) {
    const RowWalk own(rows, C, c, chunk_rows);
    for (long long r = own.begin; r < own.end; r += own.TY) {
        const float z = normal(to_float(x[r * C + c]), 0) + to_float(residual[r * C + c]);
        unsigned char& byte = bits[r * ((C + 7) / 8) + c / 8];
        set(y[r * C + c], bent(z, z <= 0.0f, slope));
        byte = (c % 8 ? byte : 0u) | (z <= 0.0f) << c % 8;
    }
}

// A block is an even number of threads wide: two neighbours have the eight channels of a byte.
extern "C" __global__ void __launch_bounds__(256, 2) batch_norm_block_apply_bits(
    stored* __restrict__ y,               // (rows, C)
    unsigned char* __restrict__ bits,     // (rows, ceil(C / 8))
    const stored* __restrict__ x,         // (rows, C)
    const stored* __restrict__ residual,  // (rows, C)
    const float* __restrict__ gamma,      // (C) or null
    const float* __restrict__ beta,       // (C) or null
    const float* __restrict__ mean,       // (C), null where there is a delta
    const float* __restrict__ delta,      // (C) or null
    const float* __restrict__ spread,     // (C)
    int rows, int C, int chunk_rows, float eps, float slope) {
    const int thread = blockIdx.y * blockDim.x + threadIdx.x;
    if (C % 8 == 0 && aligned4(y) && aligned4(x) && aligned4(residual)) {
        const int c = thread * 4, lane = (threadIdx.y * blockDim.x + threadIdx.x) % 32;
        const unsigned neighbours = 3u << (lane & 30);
        const Normaliser<4> normal(x, mean, delta, spread, gamma, beta, C, c, eps);
        walk(RowWalk(rows, C, c, chunk_rows),
             [&](long long r) {
                 return Pair<4>{
                     load_vector<4>(x + r * C + c), load_vector<4>(residual + r * C + c)};
             },
             [&](long long r, Pair<4> at) {
                 unsigned negatives = 0u;
#pragma unroll
                 for (int v = 0; v < 4; ++v) {
                     const float z = normal(at.a.at[v], v) + at.b.at[v];
                     at.a.at[v] = bent(z, z <= 0.0f, slope);
                     if (z <= 0.0f) negatives |= 1u << v;
                 }
                 store_vector(y + r * C + c, at.a);
                 // Both neighbours are here: they have the same rows.
                 negatives |= __shfl_xor_sync(neighbours, negatives, 1) << 4;
                 if (thread % 2 == 0) bits[r * (C / 8) + c / 8] = negatives;
             });
    } else if (thread % 2 == 0) {
        for (int c = thread * 4; c < thread * 4 + 8 && c < C; ++c) {
            const Normaliser<1> normal(x, mean, delta, spread, gamma, beta, C, c, eps);
            apply_channel(y, bits, x, residual, normal, rows, C, c, chunk_rows, slope);
        }
    }
}

// The bit of z <= 0 of V channels of a row, without a pool: read, or found from x again.
template <int V>
struct Side {
    const unsigned char* bits;
    const Normaliser<V>& normal;
    int C, c;
    float slope;
    __device__ __forceinline__ void bend(
        Channels<float, V>& g, const Channels<float, V>& x, long long r) const {
        if (slope == 1.0f) return;
        const unsigned byte = bits ? bits[r * ((C + 7) / 8) + c / 8] : 0u;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const bool negative = bits ? byte >> (c + v) % 8 & 1u : normal(x.at[v], v) <= 0.0f;
            g.at[v] = bent(g.at[v], negative, slope);
        }
    }
};

extern "C" __global__ void __launch_bounds__(256, 2) batch_norm_block_sums(
    float* __restrict__ dgamma,               // (C)
    float* __restrict__ dbeta,                // (C)
    float* __restrict__ sums,                 // (2, C, chunks)
    unsigned* __restrict__ arrived,           // (groups of columns, 1 + groups of chunks), zeros
    const stored* __restrict__ dy,            // (rows, C)
    const stored* __restrict__ x,             // (rows, C)
    const unsigned char* __restrict__ bits,   // (rows, ceil(C / 8)) or null
    const float* __restrict__ gamma,          // (C) or null
    const float* __restrict__ beta,           // (C) or null
    const float* __restrict__ mean,           // (C), null where there is a delta
    const float* __restrict__ delta,          // (C) or null
    const float* __restrict__ spread,         // (C)
    int rows, int C, int chunk_rows, float eps, float slope) {
    own_channels(C, aligned4(dy) && aligned4(x), [&](auto width, int c) {
        constexpr int V = decltype(width)::value;
        const Normaliser<V> normal(x, mean, delta, spread, gamma, beta, C, c, eps);
        const Side<V> side = {bits, normal, C, c, slope};
        Sums<V> own = {};
        walk(RowWalk(rows, C, c, chunk_rows),
             [&](long long r) {
                 return Pair<V>{load_vector<V>(dy + r * C + c), load_vector<V>(x + r * C + c)};
             },
             [&](long long r, Pair<V> at) {
                 side.bend(at.a, at.b, r);
#pragma unroll
                 for (int v = 0; v < V; ++v)
                     own.add(at.a.at[v], at.b.at[v] - normal.center.at[v], v);
             });
        own.finish(sums, C, c);
    });
    join_own_channels({sums, dgamma, dbeta, x, delta, spread, C, (int)gridDim.x, eps}, arrived);
}

extern "C" __global__ void __launch_bounds__(256, 2) batch_norm_block_gradient(
    stored* __restrict__ dx,                 // (rows, C)
    stored* __restrict__ dresidual,          // (rows, C) or null
    const stored* __restrict__ dy,           // (rows, C)
    const stored* __restrict__ x,            // (rows, C)
    const unsigned char* __restrict__ bits,  // (rows, ceil(C / 8)) or null
    const float* __restrict__ gamma,         // (C) or null
    const float* __restrict__ beta,          // (C) or null
    const float* __restrict__ mean,          // (C), null where there is a delta
    const float* __restrict__ delta,         // (C) or null
    const float* __restrict__ spread,        // (C)
    const float* __restrict__ dgamma,        // (C), null where the mean is given
    const float* __restrict__ dbeta,         // (C), null where the mean is given
    int rows, int C, int chunk_rows, float eps, float slope) {
    const bool aligned = aligned4(dx) && aligned4(dresidual) && aligned4(dy) && aligned4(x);
    own_channels(C, aligned, [&](auto width, int c) {
        constexpr int V = decltype(width)::value;
        const Normaliser<V> normal(x, mean, delta, spread, gamma, beta, C, c, eps);
        const Side<V> side = {bits, normal, C, c, slope};
        const DataGradient<V> gradient(x, delta, spread, gamma, dgamma, dbeta, C, c, rows, eps);
        walk(RowWalk(rows, C, c, chunk_rows),
             [&](long long r) {
                 return Pair<V>{load_vector<V>(dy + r * C + c), load_vector<V>(x + r * C + c)};
             },
             [&](long long r, Pair<V> at) {
                 side.bend(at.a, at.b, r);
                 if (dresidual) store_vector(dresidual + r * C + c, at.a);
#pragma unroll
                 for (int v = 0; v < V; ++v) at.b.at[v] = gradient(at.a.at[v], at.b.at[v], v);
                 store_vector(dx + r * C + c, at.b);
             });
    });
}
