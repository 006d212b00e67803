// y = a + b and dx = s * dx, element by element; any layout.
//
// A thread owns four consecutive elements: one 16-byte access per array, so a warp moves 512
// contiguous bytes per request. 12 bytes of traffic per element of add, 8 of scale: memory-bound.
// add sums the gradients of a tensor that was used twice; scale applies the gradient of a loss.

#include "common.cuh"

extern "C" __global__ void add(
    float* __restrict__ y,        // (n)
    const float* __restrict__ a,  // (n)
    const float* __restrict__ b,  // (n)
    int n) {
    map_four(y, a, b, n, [](float u, float v) { return u + v; });
}

// s is read from memory, so that the host never waits for a gradient.
extern "C" __global__ void scale(
    float* __restrict__ y,        // (n)
    const float* __restrict__ x,  // (n)
    const float* __restrict__ s,  // (1)
    int n) {
    float factor = *s;
    map_four(y, x, n, [factor](float v) { return factor * v; });
}
