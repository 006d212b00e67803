// Between float and bfloat16, the upper half of a float.
//
//   widen   y[i] = x[i]                   exact
//   narrow  y[i] = x[i] to nearest, halves to even; NaN becomes 0x7fff
//
// A thread owns four consecutive elements: 6 bytes an element, nothing else. Any n.

#include "common.cuh"

extern "C" __global__ void widen(
    float* __restrict__ y,           // (n)
    const bfloat16* __restrict__ x,  // (n)
    int n) {
    map_four(y, x, n, [](float v) { return v; });
}

extern "C" __global__ void narrow(
    bfloat16* __restrict__ y,     // (n)
    const float* __restrict__ x,  // (n)
    int n) {
    map_four(y, x, n, [](float v) { return v; });
}
