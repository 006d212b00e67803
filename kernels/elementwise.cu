// Sums, differences, products and multiples, element by element; any layout.
//
//   add  a + b      subtract  a - b      multiply  a * b      affine  s * x + t
//   scale  s[0] * x
//   add_vector  a[i] + s * b[i % C]      multiply_vector  a[i] * b[i % C]
//
// A thread owns four consecutive elements (eight in bfloat16, but four beside a vector): one 16-byte
// access per array, so a warp moves 512 contiguous bytes per request. 12 bytes of traffic per element
// with two arrays, 8 with one or with a vector, which stays in cache (half of that in bfloat16), the
// least: memory-bound. add sums the gradients of a tensor that was used twice; scale applies the
// gradient of a loss. Any n, any C.

#include "common.cuh"

extern "C" __global__ void add(
    stored* __restrict__ y,        // (n)
    const stored* __restrict__ a,  // (n)
    const stored* __restrict__ b,  // (n)
    int n) {
    map_stored(y, a, b, n, [](float u, float v) { return u + v; });
}

extern "C" __global__ void subtract(
    stored* __restrict__ y,        // (n)
    const stored* __restrict__ a,  // (n)
    const stored* __restrict__ b,  // (n)
    int n) {
    map_stored(y, a, b, n, [](float u, float v) { return u - v; });
}

extern "C" __global__ void multiply(
    stored* __restrict__ y,        // (n)
    const stored* __restrict__ a,  // (n)
    const stored* __restrict__ b,  // (n)
    int n) {
    map_stored(y, a, b, n, [](float u, float v) { return u * v; });
}

extern "C" __global__ void affine(
    stored* __restrict__ y,        // (n)
    const stored* __restrict__ x,  // (n)
    int n, float s, float t) {
    map_stored(y, x, n, [s, t](float v) { return s * v + t; });
}

// y[i] = f(a[i], b[i % C]) for this thread's four elements of n.
template <class F>
__device__ __forceinline__ void map_vector(
    stored* y, const stored* a, const float* b, unsigned n, unsigned C, F f) {
    const unsigned i = first_of_four();
    if (i >= n) return;
    const float4 u = load_four(a, i, n);
    store_four(y, i, n, make_float4(f(u.x, b[i % C]), f(u.y, b[(i + 1) % C]),
                                    f(u.z, b[(i + 2) % C]), f(u.w, b[(i + 3) % C])));
}

extern "C" __global__ void add_vector(
    stored* __restrict__ y,        // (n)
    const stored* __restrict__ a,  // (n)
    const float* __restrict__ b,   // (C)
    int n, int C, float s) {
    map_vector(y, a, b, n, C, [s](float u, float v) { return u + s * v; });
}

extern "C" __global__ void multiply_vector(
    stored* __restrict__ y,        // (n)
    const stored* __restrict__ a,  // (n)
    const float* __restrict__ b,   // (C)
    int n, int C) {
    map_vector(y, a, b, n, C, [](float u, float v) { return u * v; });
}

// s is read from memory, so that the host never waits for a gradient.
extern "C" __global__ void scale(
    stored* __restrict__ y,        // (n)
    const stored* __restrict__ x,  // (n)
    const float* __restrict__ s,   // (1)
    int n) {
    float factor = *s;
    map_stored(y, x, n, [factor](float v) { return factor * v; });
}
