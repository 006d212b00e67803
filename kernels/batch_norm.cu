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
//   training   statistics (blocks) -> finish_statistics (a warp per channel) -> normalise
//   backward   sums (blocks) -> finish_sums (a warp per channel) -> data_gradient
//
// The first of three cuts the rows into chunks: a block of TX x TY threads takes TX columns of one
// chunk, a thread every TY-th row of one column; TX covers C up to 32, so that a warp reads whole
// rows back to back also when there are few channels. In the last one a thread keeps four channels
// (one where C is no multiple of 4) and their factors in registers, and walks down the rows with
// 16-byte accesses. Traffic: 12 bytes per element forward, 20 backward, all of it coalesced:
// memory-bound. All sums are in a fixed order, without atomics. Any number of rows and channels.

#include "common.cuh"
#include "channels.cuh"
#include "column_sum.cuh"
#include "warp.cuh"

// count values with a mean and a sum of squared deviations from it.
struct Moments {
    float count, mean, squares;
};

// Of two sets; a is not the smaller one.
__device__ __forceinline__ Moments join(const Moments& a, const Moments& b) {
    if (b.count == 0.0f) return a;
    const float count = a.count + b.count, share = b.count / count, apart = b.mean - a.mean;
    return {count, fmaf(apart, share, a.mean),
            a.squares + b.squares + apart * apart * a.count * share};
}

// Per chunk and channel: the mean, as distance from the first value of the chunk, and the sum of
// squared deviations from it.
extern "C" __global__ void __launch_bounds__(256) batch_norm_statistics(
    float* __restrict__ mean,     // (C, chunks)
    float* __restrict__ squares,  // (C, chunks)
    const float* __restrict__ x,  // (rows, C)
    int rows, int C, int chunk_rows) {
    __shared__ float counts[256], means[256], sums[256];
    const int TX = blockDim.x, TY = blockDim.y, at = threadIdx.y * TX + threadIdx.x;
    const int c = blockIdx.y * TX + threadIdx.x;
    const long long begin = (long long)blockIdx.x * chunk_rows;
    const long long end = min(begin + chunk_rows, (long long)rows);

    Moments own = {0.0f, 0.0f, 0.0f};
    if (c < C && begin + threadIdx.y < end) {
        const float pivot = x[(begin + threadIdx.y) * C + c];
        float sum = 0.0f, square = 0.0f;
#pragma unroll 8
        for (long long r = begin + threadIdx.y; r < end; r += TY) {
            const float d = x[r * C + c] - pivot;
            sum += d;
            square = fmaf(d, d, square);
        }
        const float n = (end - begin - threadIdx.y + TY - 1) / TY;
        own = {n, (pivot - x[begin * C + c]) + sum / n, square - sum * sum / n};
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
        mean[(long long)c * gridDim.x + blockIdx.x] = own.mean;
        squares[(long long)c * gridDim.x + blockIdx.x] = own.squares;
    }
}

// Joins the chunks of a channel, one warp each; updates the running statistics where there are any.
extern "C" __global__ void __launch_bounds__(256) batch_norm_finish_statistics(
    float* __restrict__ delta,          // (C): mean - x[0]
    float* __restrict__ invstd,         // (C)
    float* __restrict__ running_mean,   // (C) or null
    float* __restrict__ running_var,    // (C) or null
    const float* __restrict__ mean,     // (C, chunks)
    const float* __restrict__ squares,  // (C, chunks)
    const float* __restrict__ x,        // (rows, C)
    int rows, int C, int chunk_rows, int chunks, float momentum, float eps) {
    const int lane = threadIdx.x % 32;
    const long long c = (long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (c >= C) return;  // a whole warp, so that the shuffles below have all lanes
    const float first = x[c];
    mean += c * chunks;
    squares += c * chunks;

    float sum = 0.0f;
    for (int j = lane; j < chunks; j += 32) {
        const long long begin = (long long)j * chunk_rows;
        const float count = min((long long)chunk_rows, rows - begin);
        sum += count * ((x[begin * C + c] - first) + mean[j]);
    }
    const float middle = warp_sum(sum) / rows;
    float square = 0.0f;
    for (int j = lane; j < chunks; j += 32) {
        const long long begin = (long long)j * chunk_rows;
        const float count = min((long long)chunk_rows, rows - begin);
        const float apart = (x[begin * C + c] - first) + mean[j] - middle;
        square += squares[j] + count * apart * apart;
    }
    square = warp_sum(square);
    if (lane != 0) return;
    delta[c] = middle;
    invstd[c] = 1.0f / sqrtf(square / rows + eps);
    if (running_mean) {
        running_mean[c] = (1.0f - momentum) * running_mean[c] + momentum * (first + middle);
        running_var[c] = (1.0f - momentum) * running_var[c] + momentum * (square / (rows - 1));
    }
}

// first + delta as the nearest float and what that misses.
struct Center {
    float value, rest;
    __device__ __forceinline__ Center(float first, float delta)
        : value(first + delta), rest(delta - (value - first)) {}
};

// The channels and rows of a thread of an element-wise pass, and what it knows of its channels.
template <int V>
struct Span {
    int c, TY;
    long long begin, end;
    __device__ __forceinline__ Span(int rows, int C, int chunk_rows) {
        c = (blockIdx.y * blockDim.x + threadIdx.x) * V;
        TY = blockDim.y;
        begin = (long long)blockIdx.x * chunk_rows + threadIdx.y;
        end = c < C ? min((long long)(blockIdx.x + 1) * chunk_rows, (long long)rows) : 0;
    }
    __device__ __forceinline__ Channels<float, V> read(const float* p, float otherwise) const {
        return p && begin < end ? load_channels<V>(p + c) : all_channels<float, V>(otherwise);
    }
};

// y = (x - center) * scale + shift
template <int V>
__device__ __forceinline__ void normalise(
    const Span<V>& span, float* y, const float* x, const Channels<float, V>& center,
    const Channels<float, V>& scale, const Channels<float, V>& shift, int C) {
#pragma unroll 4
    for (long long r = span.begin; r < span.end; r += span.TY) {
        Channels<float, V> v = load_channels<V>(x + r * C + span.c);
#pragma unroll
        for (int i = 0; i < V; ++i)
            v.at[i] = fmaf(v.at[i] - center.at[i], scale.at[i], shift.at[i]);
        store_channels(y + r * C + span.c, v);
    }
}

template <int V>
__device__ __forceinline__ void normalise_training(
    float* y, const float* x, const float* gamma, const float* beta, const float* delta,
    const float* invstd, int rows, int C, int chunk_rows) {
    const Span<V> span(rows, C, chunk_rows);
    const auto d = span.read(delta, 0.0f), s = span.read(invstd, 0.0f);
    auto center = span.read(x, 0.0f), scale = span.read(gamma, 1.0f), shift = span.read(beta, 0.0f);
#pragma unroll
    for (int i = 0; i < V; ++i) {
        const Center mean(center.at[i], d.at[i]);
        center.at[i] = mean.value;
        scale.at[i] *= s.at[i];
        shift.at[i] = fmaf(-mean.rest, scale.at[i], shift.at[i]);
    }
    normalise(span, y, x, center, scale, shift, C);
}

extern "C" __global__ void __launch_bounds__(256) batch_norm_normalise(
    float* __restrict__ y,             // (rows, C)
    const float* __restrict__ x,       // (rows, C)
    const float* __restrict__ gamma,   // (C) or null
    const float* __restrict__ beta,    // (C) or null
    const float* __restrict__ delta,   // (C)
    const float* __restrict__ invstd,  // (C)
    int rows, int C, int chunk_rows) {
    if (C % 4 == 0)
        normalise_training<4>(y, x, gamma, beta, delta, invstd, rows, C, chunk_rows);
    else
        normalise_training<1>(y, x, gamma, beta, delta, invstd, rows, C, chunk_rows);
}

template <int V>
__device__ __forceinline__ void normalise_inference(
    float* y, float* invstd, const float* x, const float* gamma, const float* beta,
    const float* mean, const float* var, int rows, int C, int chunk_rows, float eps) {
    const Span<V> span(rows, C, chunk_rows);
    const auto center = span.read(mean, 0.0f), shift = span.read(beta, 0.0f);
    auto s = span.read(var, 1.0f), scale = span.read(gamma, 1.0f);
#pragma unroll
    for (int i = 0; i < V; ++i) {
        s.at[i] = 1.0f / sqrtf(s.at[i] + eps);
        scale.at[i] *= s.at[i];
    }
    if (blockIdx.x == 0 && threadIdx.y == 0 && span.c < C) store_channels(invstd + span.c, s);
    normalise(span, y, x, center, scale, shift, C);
}

extern "C" __global__ void __launch_bounds__(256) batch_norm_inference(
    float* __restrict__ y,            // (rows, C)
    float* __restrict__ invstd,       // (C)
    const float* __restrict__ x,      // (rows, C)
    const float* __restrict__ gamma,  // (C) or null
    const float* __restrict__ beta,   // (C) or null
    const float* __restrict__ mean,   // (C)
    const float* __restrict__ var,    // (C)
    int rows, int C, int chunk_rows, float eps) {
    if (C % 4 == 0)
        normalise_inference<4>(y, invstd, x, gamma, beta, mean, var, rows, C, chunk_rows, eps);
    else
        normalise_inference<1>(y, invstd, x, gamma, beta, mean, var, rows, C, chunk_rows, eps);
}

// Per chunk and channel: sum of dy * (x - center) and sum of dy. center is the given mean, or that of
// the batch's own, x[0] + delta.
extern "C" __global__ void __launch_bounds__(256) batch_norm_sums(
    float* __restrict__ products,      // (C, chunks)
    float* __restrict__ sums,          // (C, chunks)
    const float* __restrict__ dy,      // (rows, C)
    const float* __restrict__ x,       // (rows, C)
    const float* __restrict__ mean,    // (C) or null
    const float* __restrict__ delta,   // (C), null where the mean is given
    int rows, int C, int chunk_rows) {
    __shared__ float shared_products[256], shared_sums[256];
    const int TX = blockDim.x, TY = blockDim.y;
    const int c = blockIdx.y * TX + threadIdx.x;
    const long long begin = (long long)blockIdx.x * chunk_rows;
    const long long end = min(begin + chunk_rows, (long long)rows);

    float product = 0.0f, sum = 0.0f;
    if (c < C) {
        const float center = mean ? mean[c] : Center(x[c], delta[c]).value;
#pragma unroll 4
        for (long long r = begin + threadIdx.y; r < end; r += TY) {
            const float g = dy[r * C + c];
            product = fmaf(g, x[r * C + c] - center, product);
            sum += g;
        }
    }
    product = sum_of_column(shared_products, product);
    sum = sum_of_column(shared_sums, sum);
    if (threadIdx.y == 0 && c < C) {
        products[(long long)c * gridDim.x + blockIdx.x] = product;
        sums[(long long)c * gridDim.x + blockIdx.x] = sum;
    }
}

// Adds the chunks of a channel, one warp each.
extern "C" __global__ void __launch_bounds__(256) batch_norm_finish_sums(
    float* __restrict__ dgamma,          // (C)
    float* __restrict__ dbeta,           // (C)
    const float* __restrict__ products,  // (C, chunks)
    const float* __restrict__ sums,      // (C, chunks)
    const float* __restrict__ x,         // (rows, C)
    const float* __restrict__ delta,     // (C), null where the mean is given
    const float* __restrict__ invstd,    // (C)
    int C, int chunks) {
    const int lane = threadIdx.x % 32;
    const long long c = (long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (c >= C) return;  // a whole warp, so that the shuffles below have all lanes
    float product = 0.0f, sum = 0.0f;
    for (int j = lane; j < chunks; j += 32) {
        product += products[c * chunks + j];
        sum += sums[c * chunks + j];
    }
    product = warp_sum(product);
    sum = warp_sum(sum);
    if (lane != 0) return;
    if (delta) product = fmaf(-Center(x[c], delta[c]).rest, sum, product);
    dgamma[c] = product * invstd[c];
    dbeta[c] = sum;
}

// dx = scale * dy + slope * (x - center) + level
template <int V>
__device__ __forceinline__ void data_gradient(
    float* dx, const float* dy, const float* x, const float* gamma, const float* delta,
    const float* invstd, const float* dgamma, const float* dbeta, int rows, int C, int chunk_rows) {
    const Span<V> span(rows, C, chunk_rows);
    const auto d = span.read(delta, 0.0f), s = span.read(invstd, 0.0f);
    auto scale = span.read(gamma, 1.0f), slope = span.read(dgamma, 0.0f);
    auto level = span.read(dbeta, 0.0f), center = span.read(x, 0.0f);
#pragma unroll
    for (int i = 0; i < V; ++i) {
        const Center mean(center.at[i], d.at[i]);
        center.at[i] = mean.value;
        scale.at[i] *= s.at[i];
        slope.at[i] *= -scale.at[i] * s.at[i] / rows;
        level.at[i] = fmaf(-slope.at[i], mean.rest, -scale.at[i] * level.at[i] / rows);
    }
#pragma unroll 4
    for (long long r = span.begin; r < span.end; r += span.TY) {
        const Channels<float, V> g = load_channels<V>(dy + r * C + span.c);
        Channels<float, V> v = load_channels<V>(x + r * C + span.c);
#pragma unroll
        for (int i = 0; i < V; ++i)
            v.at[i] = fmaf(scale.at[i], g.at[i],
                           fmaf(slope.at[i], v.at[i] - center.at[i], level.at[i]));
        store_channels(dx + r * C + span.c, v);
    }
}

extern "C" __global__ void __launch_bounds__(256) batch_norm_data_gradient(
    float* __restrict__ dx,            // (rows, C)
    const float* __restrict__ dy,      // (rows, C)
    const float* __restrict__ x,       // (rows, C)
    const float* __restrict__ gamma,   // (C) or null
    const float* __restrict__ delta,   // (C)
    const float* __restrict__ invstd,  // (C)
    const float* __restrict__ dgamma,  // (C)
    const float* __restrict__ dbeta,   // (C)
    int rows, int C, int chunk_rows) {
    if (C % 4 == 0)
        data_gradient<4>(dx, dy, x, gamma, delta, invstd, dgamma, dbeta, rows, C, chunk_rows);
    else
        data_gradient<1>(dx, dy, x, gamma, delta, invstd, dgamma, dbeta, rows, C, chunk_rows);
}

template <int V>
__device__ __forceinline__ void fixed_gradient(
    float* dx, const float* dy, const float* gamma, const float* invstd, int rows, int C,
    int chunk_rows) {
    const Span<V> span(rows, C, chunk_rows);
    const auto s = span.read(invstd, 0.0f), zero = all_channels<float, V>(0.0f);
    auto scale = span.read(gamma, 1.0f);
#pragma unroll
    for (int i = 0; i < V; ++i) scale.at[i] *= s.at[i];
    normalise(span, dx, dy, zero, scale, zero, C);
}

extern "C" __global__ void __launch_bounds__(256) batch_norm_fixed_gradient(
    float* __restrict__ dx,            // (rows, C)
    const float* __restrict__ dy,      // (rows, C)
    const float* __restrict__ gamma,   // (C) or null
    const float* __restrict__ invstd,  // (C)
    int rows, int C, int chunk_rows) {
    if (C % 4 == 0)
        fixed_gradient<4>(dx, dy, gamma, invstd, rows, C, chunk_rows);
    else
        fixed_gradient<1>(dx, dy, gamma, invstd, rows, C, chunk_rows);
}
