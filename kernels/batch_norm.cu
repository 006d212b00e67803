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
//   training   statistics (blocks) -> join_moments (a block per channel) -> normalise
//   backward   sums (blocks) -> join_sums (a block per channel) -> data_gradient
//
// The first of three cuts the rows into chunks: a block of TX x TY threads takes TX columns of one
// chunk, a thread every TY-th row of one column; TX covers C up to 32, so that a warp reads whole
// rows back to back also when there are few channels. In the last one a thread keeps four channels
// (one where C is no multiple of 4) and their factors in registers, and walks down the rows with
// 16-byte accesses, four under way at once. Traffic: 12 bytes per element forward, 20 backward, all
// of it coalesced: memory-bound. The least would be 8 and 12: x is read once for its statistics and
// once more to be normalised, x and dy likewise. Moments, and sums, may also be those that the kernel
// of a convolution left behind (epilogue.cuh); then no pass reads x for them. The threads of a join take
// the chunks j, j + blockDim.x, ..., of which a warp reads a contiguous run at once, and join each
// other pairwise. All sums are in a fixed order, without atomics. Any number of rows and channels.

#include "common.cuh"
#include "channels.cuh"
#include "batch_norm.cuh"
#include "column_sum.cuh"
#include "moments.cuh"
#include "warp.cuh"

// Per chunk and channel: the number of rows, the first value as a pivot, the mean as distance from it,
// and the sum of squared deviations from the mean.
extern "C" __global__ void __launch_bounds__(256) batch_norm_statistics(
    float* __restrict__ moments,   // (4, C, chunks)
    const stored* __restrict__ x,  // (rows, C)
    int rows, int C, int chunk_rows) {
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
}

// Joins the chunks of a channel; updates the running statistics where there are any. The first pivot is x[0].
extern "C" __global__ void __launch_bounds__(256) batch_norm_join_moments(
    float* __restrict__ delta,         // (C): mean - x[0]
    float* __restrict__ invstd,        // (C)
    float* __restrict__ running_mean,  // (C) or null
    float* __restrict__ running_var,   // (C) or null
    const float* __restrict__ moments,  // (4, C, chunks): count, pivot, mean - pivot, squares
    int C, int chunks, float momentum, float eps) {
    __shared__ float counts[256], means[256], squares[256];
    const int c = blockIdx.x, t = threadIdx.x;
    const long long plane = (long long)C * chunks;
    const float* of_channel = moments + (long long)c * chunks;
    const float first = of_channel[plane];  // of the first chunk: x[0]

    Moments own = {0.0f, 0.0f, 0.0f};
    for (int j = t; j < chunks; j += blockDim.x) {
        const float* at = of_channel + j;
        own = join(own, {at[0], (at[plane] - first) + at[2 * plane], at[3 * plane]});
    }
    counts[t] = own.count, means[t] = own.mean, squares[t] = own.squares;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();  // the upper half's moments are written
        if (t < half) {
            own = join(own, {counts[t + half], means[t + half], squares[t + half]});
            counts[t] = own.count, means[t] = own.mean, squares[t] = own.squares;
        }
    }
    if (t != 0) return;
    delta[c] = own.mean;
    invstd[c] = 1.0f / sqrtf(own.squares / own.count + eps);
    if (running_mean) {
        running_mean[c] = (1.0f - momentum) * running_mean[c] + momentum * (first + own.mean);
        running_var[c] =
            (1.0f - momentum) * running_var[c] + momentum * (own.squares / (own.count - 1.0f));
    }
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
    float* __restrict__ sums,         // (2, C, chunks)
    const stored* __restrict__ dy,    // (rows, C)
    const stored* __restrict__ x,     // (rows, C)
    const float* __restrict__ mean,   // (C) or null
    const float* __restrict__ delta,  // (C), null where the mean is given
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
}

// Adds the chunks of a channel.
extern "C" __global__ void __launch_bounds__(256) batch_norm_join_sums(
    float* __restrict__ dgamma,        // (C)
    float* __restrict__ dbeta,         // (C)
    const float* __restrict__ sums,    // (2, C, chunks): of dy * (x - center), of dy
    const stored* __restrict__ x,      // (rows, C)
    const float* __restrict__ delta,   // (C), null where the mean is given
    const float* __restrict__ spread,  // (C): 1 / deviation where eps is 0, else the variance
    int C, int chunks, float eps) {
    __shared__ float shared_products[256], shared_totals[256];
    const int c = blockIdx.x, t = threadIdx.x;
    const float* products = sums + (long long)c * chunks;
    const float* totals = products + (long long)C * chunks;

    float product = 0.0f, total = 0.0f;
#pragma unroll 4
    for (int j = t; j < chunks; j += blockDim.x) product += products[j], total += totals[j];
    shared_products[t] = product, shared_totals[t] = total;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();  // the upper half's sums are written
        if (t < half) {
            product += shared_products[t + half], total += shared_totals[t + half];
            shared_products[t] = product, shared_totals[t] = total;
        }
    }
    if (t != 0) return;
    if (delta) product = fmaf(-Center(to_float(x[c]), delta[c]).rest, total, product);
    dgamma[c] = product * inverse_deviation(spread[c], eps);
    dbeta[c] = total;
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
