// What the machine can do at most: the two roofs that every row is measured against, and the price
// of a launch. Written by hand like the kernels under test, so that the roofs need no library.

// y = x, 16 bytes a thread and access, four accesses in flight: the rate at which memory is read
// and written. n float4; a grid of any size covers it.
extern "C" __global__ void machine_copy(float4* y, const float4* x, int n) {
    int step = gridDim.x * blockDim.x;
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    for (; i < n - 3 * step; i += 4 * step) {
        float4 a = x[i], b = x[i + step], c = x[i + 2 * step], d = x[i + 3 * step];
        y[i] = a;
        y[i + step] = b;
        y[i + 2 * step] = c;
        y[i + 3 * step] = d;
    }
    for (; i < n; i += step) y[i] = x[i];
}

// CHAINS independent chains of fused multiply-adds in registers: 2·CHAINS·rounds floating-point
// operations a thread. The chains hide the latency of each other; the sum keeps them from being
// removed. y: one number a thread.
#define CHAINS 16

extern "C" __global__ void machine_multiply_add(float* y, float factor, float term, int rounds) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float chain[CHAINS];
#pragma unroll
    for (int k = 0; k < CHAINS; k++) chain[k] = (float)k;
    for (int r = 0; r < rounds; r++) {
#pragma unroll
        for (int k = 0; k < CHAINS; k++) chain[k] = fmaf(chain[k], factor, term);
    }
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < CHAINS; k++) sum += chain[k];
    y[i] = sum;
}

#include "mma.cuh"

// TILES independent chains of matrix instructions in the registers of each warp, 16 x 8 x 8
// multiply-adds each: 2048·TILES·rounds floating-point operations a warp. y: one number a thread.
#define TILES 8

extern "C" __global__ void machine_tf32(float* y, float factor, int rounds) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float sums[TILES][4];
    const unsigned bits = to_tf32(factor);
    const unsigned a[4] = {bits, bits, bits, bits}, b[2] = {bits, bits};
#pragma unroll
    for (int k = 0; k < TILES; k++) sums[k][0] = sums[k][1] = sums[k][2] = sums[k][3] = (float)k;
    for (int r = 0; r < rounds; r++) {
#pragma unroll
        for (int k = 0; k < TILES; k++) mma_tf32(sums[k], a, b);
    }
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < TILES; k++) sum += sums[k][0] + sums[k][1] + sums[k][2] + sums[k][3];
    y[i] = sum;
}

// The same with 16-bit operands, 16 x 8 x 16 multiply-adds each: 4096·TILES·rounds operations a warp.
template <int HALF_KIND>
__device__ __forceinline__ void multiply_halves(float* y, float factor, int rounds) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float sums[TILES][4];
    const unsigned bits = pack_halves<HALF_KIND>(factor, factor);
    const unsigned a[4] = {bits, bits, bits, bits}, b[2] = {bits, bits};
#pragma unroll
    for (int k = 0; k < TILES; k++) sums[k][0] = sums[k][1] = sums[k][2] = sums[k][3] = (float)k;
    for (int r = 0; r < rounds; r++) {
#pragma unroll
        for (int k = 0; k < TILES; k++) mma_half<HALF_KIND>(sums[k], a, b);
    }
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < TILES; k++) sum += sums[k][0] + sums[k][1] + sums[k][2] + sums[k][3];
    y[i] = sum;
}

extern "C" __global__ void machine_bf16(float* y, float factor, int rounds) {
    multiply_halves<1>(y, factor, rounds);
}

extern "C" __global__ void machine_fp16(float* y, float factor, int rounds) {
    multiply_halves<2>(y, factor, rounds);
}

// One thread, one store: as little as a launch can do.
extern "C" __global__ void machine_nothing(float* y) { y[0] = 0.0f; }
