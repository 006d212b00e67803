// PReLU: a leaky ReLU with a learned slope, one for all or one per channel.
//
//   forward    y[r][c] = x[r][c] > 0 ? x[r][c] : w[c]*x[r][c]
//   backward   dx[r][c] = x[r][c] > 0 ? dy[r][c] : w[c]*dy[r][c]
//              partial[j][c] = sum of x[r][c]*dy[r][c] over the rows r of chunk j with x[r][c] <= 0
//
// An activation of any layout with the channels last is a matrix of rows r and channels c. shared
// says that w holds one slope for all channels. In both kernels a block of TX x TY threads takes a
// chunk of rows, and a thread every TY-th row of its columns: a warp reads whole rows back to back,
// also when there are few channels. A thread has four columns (one where C is no multiple of 4) and
// moves them as 16 bytes, several accesses under way at once. The backward pass reads x and dy once
// for dx and the sum, which are added pairwise through shared memory; the caller adds the chunks in
// ascending order. No atomics: the order depends on the shape alone. 8 bytes of traffic per element
// forward, 12 backward, the least: memory-bound. Any rows and C.

#include "common.cuh"
#include "channels.cuh"
#include "batch_norm.cuh"
#include "column_sum.cuh"

template <int V>
__device__ __forceinline__ Channels<float, V> slopes_of(
    const float* weight, int C, int c, bool shared) {
    return shared ? all_channels<float, V>(weight[0]) : of_channels<V>(weight, C, c, 0.0f);
}

extern "C" __global__ void __launch_bounds__(256) prelu_forward(
    stored* __restrict__ y,            // (rows, C)
    const stored* __restrict__ x,      // (rows, C)
    const float* __restrict__ weight,  // (C), or (1) if shared
    int rows, int C, int chunk_rows, bool shared) {
    own_channels(C, aligned4(y) && aligned4(x), [&](auto width, int c) {
        constexpr int V = decltype(width)::value;
        const Channels<float, V> slope = slopes_of<V>(weight, C, c, shared);
        walk(RowWalk(rows, C, c, chunk_rows),
             [&](long long r) { return load_vector<V>(x + r * C + c); },
             [&](long long r, Channels<float, V> value) {
#pragma unroll
                 for (int v = 0; v < V; ++v)
                     value.at[v] = value.at[v] > 0.0f ? value.at[v] : slope.at[v] * value.at[v];
                 store_vector(y + r * C + c, value);
             });
    });
}

template <int V>
struct GradientAndValue {
    Channels<float, V> g, x;
};

extern "C" __global__ void __launch_bounds__(256) prelu_backward(
    stored* __restrict__ dx,           // (rows, C)
    float* __restrict__ partial,       // (chunks, C)
    const stored* __restrict__ dy,     // (rows, C)
    const stored* __restrict__ x,      // (rows, C)
    const float* __restrict__ weight,  // (C), or (1) if shared
    int rows, int C, int chunk_rows, bool shared) {
    __shared__ float sums[256];
    own_channels(C, aligned4(dx) && aligned4(dy) && aligned4(x), [&](auto width, int c) {
        constexpr int V = decltype(width)::value;
        const Channels<float, V> slope = slopes_of<V>(weight, C, c, shared);
        Channels<float, V> sum = all_channels<float, V>(0.0f);
        walk(RowWalk(rows, C, c, chunk_rows),
             [&](long long r) {
                 return GradientAndValue<V>{
                     load_vector<V>(dy + r * C + c), load_vector<V>(x + r * C + c)};
             },
             [&](long long r, GradientAndValue<V> at) {
#pragma unroll
                 for (int v = 0; v < V; ++v) {
                     const bool positive = at.x.at[v] > 0.0f;
                     sum.at[v] += (positive ? 0.0f : at.x.at[v]) * at.g.at[v];
                     at.g.at[v] = positive ? at.g.at[v] : slope.at[v] * at.g.at[v];
                 }
                 store_vector(dx + r * C + c, at.g);
             });
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const float total = sum_of_column(sums, sum.at[v]);
            if (threadIdx.y == 0 && c < C) partial[(long long)blockIdx.x * C + c + v] = total;
            __syncthreads();  // the sums are read
        }
    });
}
