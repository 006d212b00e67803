// Group normalisation of (N, P, C), P pixels of C channels in G groups. Layer normalisation is the
// case P = 1, G = 1: a row of C.
//
//   y = (x - mean) * invstd * weight[c] + bias[c],  invstd = 1 / sqrt(var + eps)
//   mean and (biased) var over the P * C/G values of a sample and group
//   dx = invstd * (g - mean of g - xhat * mean of g * xhat),  g = dy * weight[c]
//   dweight[c] = sum of dy * xhat,  dbias[c] = sum of dy,  xhat = (x - mean) * invstd
//
// A group of up to 1024 values belongs to a warp, a longer one to a block of 256 threads: lanes walk
// over it back to back, four channels at a time (one where C/G is no multiple of 4), and meet in
// shuffles. It is read three times, from memory once: a warp's group stays in the L1 cache, a block's
// in L2. Traffic: 8 bytes per element forward, 12 for dx and 8 for the sums backward: memory-bound
// where there are enough groups to fill the GPU.
//
// The mean is kept as center, a float near it, and rest, what that misses: where the mean is 1e4 and
// the deviation 1, one float holds it to 5e-4 only. center is x0 + mean of (x - x0), x0 the group's
// first value; deviations are measured from it, so nothing cancels. Sums are in a fixed order,
// without atomics. Any sizes; offsets are 32-bit, an array has fewer than 2^31 elements.

#include "common.cuh"
#include "channels.cuh"
#include "column_sum.cuh"
#include "warp.cuh"

struct Statistics {
    float center, rest, invstd;
    __device__ __forceinline__ explicit Statistics(const float* p)
        : center(p[0]), rest(p[1]), invstd(p[2]) {}
};

// The values of a sample's group, shared out to lanes = 32 or 256 threads.
struct Group {
    unsigned number, lane, lanes, first, length, row, pitch;
    __device__ __forceinline__ Group(int P, int C, int G, int lanes_)
        : number(blockIdx.x * (blockDim.x / lanes_) + threadIdx.x / lanes_),
          lane(threadIdx.x % lanes_), lanes(lanes_), row(C / G), pitch(C) {
        first = number / G * P * C + number % G * row;
        length = P * row;
    }
    __device__ __forceinline__ unsigned channel(unsigned e) const {
        return number % (pitch / row) * row + e % row;
    }
    __device__ __forceinline__ unsigned offset(unsigned e) const {
        return first + (length == row ? e : e / row * pitch + e % row);
    }
};

// The sum over the threads of a group; all of them get it.
__device__ __forceinline__ float group_sum(float v, int lanes, float* shared) {
    v = warp_sum(v);
    if (lanes == 32) return v;
    __syncthreads();  // the sums of the last call have been read
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
    __syncthreads();
    v = shared[0];
#pragma unroll
    for (int warp = 1; warp < 8; ++warp) v += shared[warp];
    return v;
}

template <int V>
__device__ __forceinline__ void normalise(
    float* y, float* statistics, const float* x, const float* weight, const float* bias,
    const Group& group, float eps, float* shared) {
    const float first = x[group.first], share = 1.0f / group.length;
    float sum = 0.0f;
#pragma unroll 4
    for (unsigned e = group.lane * V; e < group.length; e += group.lanes * V) {
        const Channels<float, V> v = load_channels<V>(x + group.offset(e));
#pragma unroll
        for (int i = 0; i < V; ++i) sum += v.at[i] - first;
    }
    const float center = first + group_sum(sum, group.lanes, shared) * share;
    float deviation = 0.0f, square = 0.0f;
#pragma unroll 4
    for (unsigned e = group.lane * V; e < group.length; e += group.lanes * V) {
        const Channels<float, V> v = load_channels<V>(x + group.offset(e));
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const float d = v.at[i] - center;
            deviation += d;
            square = fmaf(d, d, square);
        }
    }
    const float rest = group_sum(deviation, group.lanes, shared) * share;
    const float var = group_sum(square, group.lanes, shared) * share - rest * rest;
    const float invstd = 1.0f / sqrtf(var + eps);
    if (group.lane == 0) {
        float* own = statistics + 3u * group.number;
        own[0] = center, own[1] = rest, own[2] = invstd;
    }
#pragma unroll 2
    for (unsigned e = group.lane * V; e < group.length; e += group.lanes * V) {
        const unsigned c = group.channel(e), o = group.offset(e);
        const auto scale = weight ? load_channels<V>(weight + c) : all_channels<float, V>(1.0f);
        const auto shift = bias ? load_channels<V>(bias + c) : all_channels<float, V>(0.0f);
        Channels<float, V> v = load_channels<V>(x + o);
#pragma unroll
        for (int i = 0; i < V; ++i)
            v.at[i] = fmaf((v.at[i] - center - rest) * invstd, scale.at[i], shift.at[i]);
        store_channels(y + o, v);
    }
}

extern "C" __global__ void __launch_bounds__(256) group_norm_forward(
    float* __restrict__ y,             // (N, P, C)
    float* __restrict__ statistics,    // (N, G, 3): center, rest, invstd
    const float* __restrict__ x,       // (N, P, C)
    const float* __restrict__ weight,  // (C) or null
    const float* __restrict__ bias,    // (C) or null
    int N, int P, int C, int G, int lanes, float eps) {
    __shared__ float shared[8];
    const Group group(P, C, G, lanes);
    if (group.number >= (unsigned)N * G) return;  // a whole warp, and no barrier below waits for it
    if (group.row % 4 == 0)
        normalise<4>(y, statistics, x, weight, bias, group, eps, shared);
    else
        normalise<1>(y, statistics, x, weight, bias, group, eps, shared);
}

template <int V>
__device__ __forceinline__ void data_gradient(
    float* dx, const float* dy, const float* x, const float* weight, const float* statistics,
    const Group& group, float* shared) {
    const Statistics s(statistics + 3u * group.number);
    float sum = 0.0f, product = 0.0f;
#pragma unroll 2
    for (unsigned e = group.lane * V; e < group.length; e += group.lanes * V) {
        const unsigned o = group.offset(e);
        const auto scale = weight ? load_channels<V>(weight + group.channel(e))
                                  : all_channels<float, V>(1.0f);
        const Channels<float, V> g = load_channels<V>(dy + o), v = load_channels<V>(x + o);
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const float d = g.at[i] * scale.at[i];
            sum += d;
            product = fmaf(d, (v.at[i] - s.center - s.rest) * s.invstd, product);
        }
    }
    const float count = group.length;
    const float level = group_sum(sum, group.lanes, shared) / count;
    const float slope = group_sum(product, group.lanes, shared) / count;
#pragma unroll 2
    for (unsigned e = group.lane * V; e < group.length; e += group.lanes * V) {
        const unsigned o = group.offset(e);
        const auto scale = weight ? load_channels<V>(weight + group.channel(e))
                                  : all_channels<float, V>(1.0f);
        Channels<float, V> g = load_channels<V>(dy + o);
        const Channels<float, V> v = load_channels<V>(x + o);
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const float xhat = (v.at[i] - s.center - s.rest) * s.invstd;
            g.at[i] = s.invstd * (g.at[i] * scale.at[i] - level - xhat * slope);
        }
        store_channels(dx + o, g);
    }
}

extern "C" __global__ void __launch_bounds__(256) group_norm_data_gradient(
    float* __restrict__ dx,                // (N, P, C)
    const float* __restrict__ dy,          // (N, P, C)
    const float* __restrict__ x,           // (N, P, C)
    const float* __restrict__ weight,      // (C) or null
    const float* __restrict__ statistics,  // (N, G, 3)
    int N, int P, int C, int G, int lanes) {
    __shared__ float shared[8];
    const Group group(P, C, G, lanes);
    if (group.number >= (unsigned)N * G) return;  // a whole warp, and no barrier below waits for it
    if (group.row % 4 == 0)
        data_gradient<4>(dx, dy, x, weight, statistics, group, shared);
    else
        data_gradient<1>(dx, dy, x, weight, statistics, group, shared);
}

// Per chunk of rows and channel: sum of dy * xhat and sum of dy. A block of TX x TY threads takes TX
// columns of one chunk, a thread every TY-th row of one column.
extern "C" __global__ void __launch_bounds__(256) group_norm_sums(
    float* __restrict__ products,          // (chunks, C)
    float* __restrict__ sums,              // (chunks, C)
    const float* __restrict__ dy,          // (rows, C), rows = N * P
    const float* __restrict__ x,           // (rows, C)
    const float* __restrict__ statistics,  // (N, G, 3)
    int rows, int P, int C, int G, int chunk_rows) {
    __shared__ float shared_products[256], shared_sums[256];
    const int TX = blockDim.x, TY = blockDim.y;
    const int c = blockIdx.y * TX + threadIdx.x;
    const unsigned begin = blockIdx.x * chunk_rows, end = min(begin + chunk_rows, (unsigned)rows);

    float product = 0.0f, sum = 0.0f;
    if (c < C) {
        const unsigned group = c / (C / G);
        for (unsigned r = begin + threadIdx.y; r < end; r += TY) {
            const Statistics s(statistics + 3u * (r / P * G + group));
            const float g = dy[r * C + c];
            product = fmaf(g, (x[r * C + c] - s.center - s.rest) * s.invstd, product);
            sum += g;
        }
    }
    product = sum_of_column(shared_products, product);
    sum = sum_of_column(shared_sums, sum);
    if (threadIdx.y == 0 && c < C) {
        products[blockIdx.x * C + c] = product;
        sums[blockIdx.x * C + c] = sum;
    }
}
