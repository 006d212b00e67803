// Batch normalisation over the rows of a matrix (rows = all axes but the last, C channels).
//
//   y = gamma * (x - mean) * invstd + beta,  invstd = 1 / sqrt(var + eps)
//   training: mean and (biased) var are those of the column;  inference: they are given
//
//   dbeta = sum of dy,  dgamma = sum of dy * xhat,  xhat = (x - mean) * invstd
//   dx = gamma * invstd * (dy - dbeta / rows - xhat * dgamma / rows),  with given statistics
//   dx = gamma * invstd * dy
//
// In training a mean is kept as its distance delta from a value of its column, the first one: where
// the mean is 1e4 and the deviation 1, a float holds the mean to 5e-4 only. Values are measured from
// center, the float next to the mean, and what is missing, the rest, is added to a constant of the
// channel. Squares are summed about a value of the thread's own rows and joined by the formula of
// Chan, Golub and LeVeque. So nothing cancels, wherever the mean lies.
//
//   training   statistics -> normalise
//   backward   sums -> data_gradient
//
// The first of three cuts the rows into chunks: a block of TX x TY threads takes TX columns of one
// chunk, a thread every TY-th row of one column; TX covers C up to 32, so that a warp reads whole
// rows back to back also when there are few channels. In the last one a thread keeps four channels
// (one where C is no multiple of 4) and their factors in registers, and walks down the rows with
// 16-byte accesses, four under way at once. Traffic: 12 bytes per element forward, 20 backward, all
// of it coalesced: memory-bound. The least would be 8 and 12: x is read once for its statistics and
// once more to be normalised, x and dy likewise. The blocks of the first pass that come last join what
// all have left behind (last_block.cuh), so that no launch waits for another to do that. The kernel of
// a convolution does the same (epilogue.cuh); then no pass reads x. All sums are in a fixed order.
// Any number of rows and channels.

#include "common.cuh"
#include "channels.cuh"
#include "batch_norm.cuh"
#include "column_sum.cuh"
#include "last_block.cuh"

// The moments of a chunk have the first value of its channel as their pivot.
extern "C" __global__ void __launch_bounds__(256) batch_norm_statistics(
    float* __restrict__ delta,         // (C): mean - x[0]
    float* __restrict__ invstd,        // (C)
    float* __restrict__ running_mean,  // (C) or null
    float* __restrict__ running_var,   // (C) or null
    float* __restrict__ moments,       // (4, C, chunks), see moments.cuh
    unsigned* __restrict__ arrived,    // (groups of columns, 1 + groups of chunks), zeros
    const stored* __restrict__ x,      // (rows, C)
    int rows, int C, int chunk_rows, float momentum, float eps) {
    __shared__ float counts[256], means[256], sums[256];
    const int TX = blockDim.x, TY = blockDim.y, at = threadIdx.y * TX + threadIdx.x;
    const int c = blockIdx.y * TX + threadIdx.x;
    const long long begin = (long long)blockIdx.x * chunk_rows;
    const long long end = min(begin + chunk_rows, (long long)rows);

    Moments own = {0.0f, 0.0f, 0.0f};
    if (c < C && begin + threadIdx.y < end) {
        const float pivot = to_float(x[(begin + threadIdx.y) * C + c]);
        float sum = 0.0f, square = 0.0f;
#pragma unroll 8
        for (long long r = begin + threadIdx.y; r < end; r += TY) {
            const float d = to_float(x[r * C + c]) - pivot;
            sum += d;
            square = fmaf(d, d, square);
        }
        const float n = (end - begin - threadIdx.y + TY - 1) / TY;
        own = {n, (pivot - to_float(x[begin * C + c])) + sum / n, square - sum * sum / n};
    }
    counts[at] = own.count, means[at] = own.mean, sums[at] = own.squares;
    for (int half = TY / 2; half > 0; half /= 2) {
        __syncthreads();  // the upper half's moments are written by other warps
        if (threadIdx.y < half) {
            const int other = at + half * TX;
            own = join(own, {counts[other], means[other], sums[other]});
            counts[at] = own.count, means[at] = own.mean, sums[at] = own.squares;
        }
    }
    if (threadIdx.y == 0 && c < C) {
        const long long plane = (long long)C * gridDim.x;
        float* to = moments + (long long)c * gridDim.x + blockIdx.x;
        to[0] = own.count, to[plane] = to_float(x[begin * C + c]);
        to[2 * plane] = own.mean, to[3 * plane] = own.squares;
    }
    const MomentParts parts = {moments, delta, invstd, running_mean, running_var, C, (int)gridDim.x,
                               momentum, eps};
    const int first_c = blockIdx.y * TX;
    join_chunks(arrived, blockIdx.y, blockIdx.x, gridDim.x,
                [&](int first, int step, int count, bool last) {
                    join_parts<2>(parts, first_c, min(first_c + TX, C), first, step, count, last);
                });
}

// Joins the chunks of a channel, which a convolution has left behind, in the order of join_chunks; a block
// per channel.
extern "C" __global__ void __launch_bounds__(256) batch_norm_join_moments(
    float* __restrict__ delta,         // (C): mean - x[0]
    float* __restrict__ invstd,        // (C)
    float* __restrict__ running_mean,  // (C) or null
    float* __restrict__ running_var,   // (C) or null
    const float* __restrict__ moments,  // (4, C, chunks)
    int C, int chunks, float momentum, float eps) {
    __shared__ float counts[JOINED_AT_ONCE], means[JOINED_AT_ONCE], squares[JOINED_AT_ONCE];
    const int c = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int groups = (chunks + JOINED_AT_ONCE - 1) / JOINED_AT_ONCE;
    // Nothing is written through it here.
    const MomentParts parts = {const_cast<float*>(moments), delta, invstd, running_mean, running_var, C,
                               chunks, momentum, eps};
    const float pivot = moments[parts.place(c, 0) + parts.plane()];

    Moments own = MomentParts::none();
    for (int base = 0; base < groups; base += JOINED_AT_ONCE) {
        for (int g = warp; g < min(groups - base, JOINED_AT_ONCE); g += blockDim.x / 32) {
            const int first = (base + g) * JOINED_AT_ONCE;
            const Moments group = join_lanes(first + lane < chunks ? parts.load(c, first, first + lane)
                                                                   : MomentParts::none());
            if (lane == 0) {
                const float apart = moments[parts.place(c, first) + parts.plane()] - pivot;
                counts[g] = group.count, means[g] = apart + group.mean, squares[g] = group.squares;
            }
        }
        __syncthreads();  // the groups are joined
        if (warp == 0 && base + lane < groups)
            own = join(own, {counts[lane], means[lane], squares[lane]});
        __syncthreads();  // and read
    }
    if (warp != 0) return;
    own = join_lanes(own);
    if (lane == 0) parts.finish(c, own);
}

template <int V>
__device__ __forceinline__ void normalise(
    stored* y, const stored* x, const Normaliser<V>& normal, int rows, int C, int c, int chunk_rows) {
    walk(RowWalk(rows, C, c, chunk_rows),
         [&](long long r) { return load_vector<V>(x + r * C + c); },
         [&](long long r, Channels<float, V> value) {
#pragma unroll
             for (int v = 0; v < V; ++v) value.at[v] = normal(value.at[v], v);
             store_vector(y + r * C + c, value);
         });
}

extern "C" __global__ void __launch_bounds__(256) batch_norm_normalise(
    stored* __restrict__ y,            // (rows, C)
    const stored* __restrict__ x,      // (rows, C)
    const float* __restrict__ gamma,   // (C) or null
    const float* __restrict__ beta,    // (C) or null
    const float* __restrict__ delta,   // (C)
    const float* __restrict__ invstd,  // (C)
    int rows, int C, int chunk_rows) {
    own_channels(C, aligned4(y) && aligned4(x), [&](auto width, int c) {
        constexpr int V = decltype(width)::value;
        const Normaliser<V> normal(x, nullptr, delta, invstd, gamma, beta, C, c, 0.0f);
        normalise(y, x, normal, rows, C, c, chunk_rows);
    });
}

extern "C" __global__ void __launch_bounds__(256) batch_norm_inference(
    stored* __restrict__ y,           // (rows, C)
    float* __restrict__ invstd,       // (C)
    const stored* __restrict__ x,     // (rows, C)
    const float* __restrict__ gamma,  // (C) or null
    const float* __restrict__ beta,   // (C) or null
    const float* __restrict__ mean,   // (C)
    const float* __restrict__ var,    // (C)
    int rows, int C, int chunk_rows, float eps) {
    own_channels(C, aligned4(y) && aligned4(x), [&](auto width, int c) {
        constexpr int V = decltype(width)::value;
        const Normaliser<V> normal(x, mean, nullptr, var, gamma, beta, C, c, eps);
        if (blockIdx.x == 0 && threadIdx.y == 0 && c < C) {
            auto s = of_channels<V>(var, C, c, 1.0f);
#pragma unroll
            for (int v = 0; v < V; ++v) s.at[v] = inverse_deviation(s.at[v], eps);
            store_channels(invstd + c, s);
        }
        normalise(y, x, normal, rows, C, c, chunk_rows);
    });
}

// Per chunk and channel: sum of dy * (x - center) and sum of dy. center is the given mean, or that of
// the batch's own, x[0] + delta.
extern "C" __global__ void __launch_bounds__(256) batch_norm_sums(
    float* __restrict__ dgamma,        // (C)
    float* __restrict__ dbeta,         // (C)
    float* __restrict__ sums,          // (2, C, chunks)
    unsigned* __restrict__ arrived,    // (groups of columns, 1 + groups of chunks), zeros
    const stored* __restrict__ dy,     // (rows, C)
    const stored* __restrict__ x,      // (rows, C)
    const float* __restrict__ mean,    // (C) or null
    const float* __restrict__ delta,   // (C), null where the mean is given
    const float* __restrict__ invstd,  // (C)
    int rows, int C, int chunk_rows) {
    __shared__ float shared_products[256], shared_sums[256];
    const int TX = blockDim.x, TY = blockDim.y;
    const int c = blockIdx.y * TX + threadIdx.x;
    const long long begin = (long long)blockIdx.x * chunk_rows;
    const long long end = min(begin + chunk_rows, (long long)rows);

    float product = 0.0f, sum = 0.0f;
    if (c < C) {
        const float center = mean ? mean[c] : Center(to_float(x[c]), delta[c]).value;
#pragma unroll 4
        for (long long r = begin + threadIdx.y; r < end; r += TY) {
            const float g = to_float(dy[r * C + c]);
            product = fmaf(g, to_float(x[r * C + c]) - center, product);
            sum += g;
        }
    }
    product = sum_of_column(shared_products, product);
    sum = sum_of_column(shared_sums, sum);
    if (threadIdx.y == 0 && c < C) {
        float* to = sums + (long long)c * gridDim.x + blockIdx.x;
        to[0] = product, to[(long long)C * gridDim.x] = sum;
    }
    const SumParts parts = {sums, dgamma, dbeta, x, delta, invstd, C, (int)gridDim.x, 0.0f};
    const int first_c = blockIdx.y * TX;
    join_chunks(arrived, blockIdx.y, blockIdx.x, gridDim.x,
                [&](int first, int step, int count, bool last) {
                    join_parts<2>(parts, first_c, min(first_c + TX, C), first, step, count, last);
                });
}

template <int V>
struct GradientAndValue {
    Channels<float, V> g, x;
};

extern "C" __global__ void __launch_bounds__(256) batch_norm_data_gradient(
    stored* __restrict__ dx,           // (rows, C)
    const stored* __restrict__ dy,     // (rows, C)
    const stored* __restrict__ x,      // (rows, C)
    const float* __restrict__ gamma,   // (C) or null
    const float* __restrict__ delta,   // (C)
    const float* __restrict__ invstd,  // (C)
    const float* __restrict__ dgamma,  // (C)
    const float* __restrict__ dbeta,   // (C)
    int rows, int C, int chunk_rows) {
    own_channels(C, aligned4(dx) && aligned4(dy) && aligned4(x), [&](auto width, int c) {
        constexpr int V = decltype(width)::value;
        const DataGradient<V> gradient(
            x, delta, invstd, gamma, dgamma, dbeta, C, c, rows, 0.0f);
        walk(RowWalk(rows, C, c, chunk_rows),
             [&](long long r) {
                 return GradientAndValue<V>{
                     load_vector<V>(dy + r * C + c), load_vector<V>(x + r * C + c)};
             },
             [&](long long r, GradientAndValue<V> at) {
#pragma unroll
                 for (int v = 0; v < V; ++v) at.x.at[v] = gradient(at.g.at[v], at.x.at[v], v);
                 store_vector(dx + r * C + c, at.x);
             });
    });
}

extern "C" __global__ void __launch_bounds__(256) batch_norm_fixed_gradient(
    stored* __restrict__ dx,           // (rows, C)
    const stored* __restrict__ dy,     // (rows, C)
    const float* __restrict__ gamma,   // (C) or null
    const float* __restrict__ invstd,  // (C)
    int rows, int C, int chunk_rows) {
    own_channels(C, aligned4(dx) && aligned4(dy), [&](auto width, int c) {
        constexpr int V = decltype(width)::value;
        const Normaliser<V> normal(nullptr, nullptr, nullptr, invstd, gamma, nullptr, C, c, 0.0f);
        normalise(dx, dy, normal, rows, C, c, chunk_rows);
    });
}
