// Activations, element by element; any layout.
//
//   relu_forward    y = x <= 0 ? 0 : x        a NaN passes: the comparison is false
//   relu_backward   dx = y <= 0 ? 0 : dy      from the output: x need not be kept
//
// A thread owns four consecutive elements: one 16-byte access per array, so a warp moves 512
// contiguous bytes per request. 8 bytes of traffic per element forward, 12 backward: memory-bound.

#include "common.cuh"

extern "C" __global__ void relu_forward(
    float* __restrict__ y,        // (n)
    const float* __restrict__ x,  // (n)
    int n) {
    map_four(y, x, n, [](float v) { return v <= 0.0f ? 0.0f : v; });
}

extern "C" __global__ void relu_backward(
    float* __restrict__ dx,        // (n)
    const float* __restrict__ dy,  // (n)
    const float* __restrict__ y,   // (n)
    int n) {
    map_four(dx, dy, y, n, [](float g, float v) { return v <= 0.0f ? 0.0f : g; });
}
