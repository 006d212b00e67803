// Fully connected layer and its two gradients, as tiled matrix products (loop: tile_matmul.cuh).
//
//                     rows        columns     sum over
//   forward           m (batch)   o (out)     i (in)      y = x w^T + b
//   data gradient     m           i           o           dx = dy w
//   weight gradient   o           i           m           dw = dy^T x
//
// x is (M, I), w is (O, I), y is (M, O), row-major. A block computes TILE_GM x TILE_GN outputs.
// Layers are small and sums long (a batch of 128 into 64 outputs is 8 tiles), so every product may
// be cut along its sum: slice s writes partial[s], and sum_slices in reduce.cu adds the slices in
// order, with the bias. With one slice the output is written directly.
// Any M, I, O.

#include "common.cuh"
#include "tile_matmul.cuh"

// grid (tiles of M, tiles of O, slices)
extern "C" __global__ void __launch_bounds__(256, 4) linear_forward(
    float* __restrict__ partial,  // (slices, M, O)
    const float* __restrict__ x,  // (M, I)
    const float* __restrict__ w,  // (O, I)
    const float* __restrict__ b,  // (O), or null with more than one slice or without a bias
    int M, int I, int O, int slice) {
    const int begin = blockIdx.z * slice, end = begin + min(slice, I - begin);
    const Dense<true> rows{x, M, I, 1}, columns{w, O, I, 1};
    float* y = partial + (long long)blockIdx.z * M * O;
    tile_matmul(M, O, begin, end, rows, columns, [&](int m, int o, float sum) {
        y[(long long)m * O + o] = b ? sum + b[o] : sum;
    });
}

// grid (tiles of M, tiles of I, slices)
extern "C" __global__ void __launch_bounds__(256, 4) linear_data_gradient(
    float* __restrict__ partial,   // (slices, M, I)
    const float* __restrict__ dy,  // (M, O)
    const float* __restrict__ w,   // (O, I)
    int M, int I, int O, int slice) {
    const int begin = blockIdx.z * slice, end = begin + min(slice, O - begin);
    const Dense<true> rows{dy, M, O, 1};
    const Dense<false> columns{w, I, 1, I};
    float* dx = partial + (long long)blockIdx.z * M * I;
    tile_matmul(M, I, begin, end, rows, columns, [&](int m, int i, float sum) {
        dx[(long long)m * I + i] = sum;
    });
}

// grid (tiles of O, tiles of I, slices)
extern "C" __global__ void __launch_bounds__(256, 4) linear_weight_gradient(
    float* __restrict__ partial,   // (slices, O, I)
    const float* __restrict__ dy,  // (M, O)
    const float* __restrict__ x,   // (M, I)
    int M, int I, int O, int slice) {
    const int begin = blockIdx.z * slice, end = begin + min(slice, M - begin);
    const Dense<false> rows{dy, O, 1, O}, columns{x, I, 1, I};
    float* dw = partial + (long long)blockIdx.z * O * I;
    tile_matmul(O, I, begin, end, rows, columns, [&](int o, int i, float sum) {
        dw[(long long)o * I + i] = sum;
    });
}
