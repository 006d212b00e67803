// Inverted dropout of elements, and of whole channels; forward and backward are the same kernel.
//
//   dropout     y[i] = x[i] * m(i)                          m(j) = 0 where u(j) < p, else scale
//   dropout2d   y[n][h][w][c] = x[n][h][w][c] * m(n*C + c)  u(j): element start + j of the stream
//
// u has 24 bits: u < p is (word >> 8) < threshold = ceil(p * 2^24), exact in integers. The mask is
// never stored: the backward pass computes it again from place = (seed, stream, start), about 20
// integer instructions per element, hidden behind the 8 bytes of traffic: memory-bound. place lies in
// device memory, so that each replay of a graph draws from where its own step stands.
//
// A thread owns four consecutive elements, which are the four words of one Philox block: start is a
// multiple of 4. In dropout2d it owns four channels of a pixel, or one where C is no multiple of 4,
// and then uses one word of its block. 16-byte accesses; any sizes.

#include "common.cuh"
#include "channels.cuh"
#include "philox.cuh"

__device__ __forceinline__ float factor(unsigned word, int threshold, float scale) {
    return (int)(word >> 8) < threshold ? 0.0f : scale;
}

extern "C" __global__ void __launch_bounds__(256) dropout(
    stored* __restrict__ y,                        // (n)
    const stored* __restrict__ x,                  // (n)
    const unsigned long long* __restrict__ place,  // (3)
    int n, int threshold, float scale) {
    const unsigned i = first_of_four();
    if (i >= n) return;
    const uint4 word = philox(place[2] / 4 + i / 4, place[1], place[0]);
    const float4 v = load_four(x, i, n);
    store_four(y, i, n, make_float4(v.x * factor(word.x, threshold, scale),
                                    v.y * factor(word.y, threshold, scale),
                                    v.z * factor(word.z, threshold, scale),
                                    v.w * factor(word.w, threshold, scale)));
}

template <int V>
__device__ __forceinline__ void channel_dropout(
    stored* y, const stored* x, const unsigned long long* place, int N, int pixels, int C,
    int threshold, float scale) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned CV = C / V, n = i / CV / pixels;
    if (n >= N) return;
    const unsigned decision = n * C + i % CV * V;
    const uint4 block = philox(place[2] / 4 + decision / 4, place[1], place[0]);
    const unsigned words[4] = {block.x, block.y, block.z, block.w};
    Channels<float, V> v = load_channels<V>(x + (long long)i * V);
#pragma unroll
    for (int w = 0; w < 4; ++w)
        if (V == 4 || w == decision % 4) v.at[w % V] *= factor(words[w], threshold, scale);
    store_channels(y + (long long)i * V, v);
}

extern "C" __global__ void __launch_bounds__(256) dropout2d(
    stored* __restrict__ y,                        // (N, pixels, C)
    const stored* __restrict__ x,                  // (N, pixels, C)
    const unsigned long long* __restrict__ place,  // (3)
    int N, int pixels, int C, int threshold, float scale) {
    if (C % 4 == 0)
        channel_dropout<4>(y, x, place, N, pixels, C, threshold, scale);
    else
        channel_dropout<1>(y, x, place, N, pixels, C, threshold, scale);
}
