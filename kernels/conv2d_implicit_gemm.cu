// Convolution, the top rung: the matrix products of conv2d_register_tiled on tensor cores.
//
// What it gains: one instruction of a warp does 1024 multiply-adds, so that the reads of shared
// memory and the arithmetic on addresses, no longer the multiply-adds, are what is to be kept small.
// A warp owns up to 64 x 64 outputs for that reason. Operands are rounded to nearest on their way into
// registers: to TF32 (10 bits of mantissa), in three terms nearly to float (TERMS = 3), to bfloat16 or
// float16 (HALF = 1, 2). Sums are float.
//
// Any stride, padding, dilation and groups. VECTOR = 4 needs channels per group that are multiples of
// four, and aligned arrays; VECTOR = 1 takes any. sm_80 and newer, float16 sm_75. Passes, grids and layouts:
// conv2d_passes.cuh; the loop: gemm_pipeline.cuh; the multiplication: tensor_multiply.cuh.

#include "conv2d_passes.cuh"
#include "tensor_multiply.cuh"

// grid (pixel tiles * channel tiles, G * slices)
extern "C" __global__ void __launch_bounds__(TILE_THREADS, RESIDENT_BLOCKS) conv2d_implicit_gemm_forward(
    float* __restrict__ y,        // (slices, N, OD, OH, OW, OC)
    const float* __restrict__ x,  // (N, D, H, W, C)
    const float* __restrict__ w,  // (OC, KD, KH, KW, CG)
    const float* __restrict__ b, const float* __restrict__ residual,
    const float* __restrict__ activated, const float* __restrict__ normalised,
    const float* __restrict__ delta, float* __restrict__ partials,  // null or as in epilogue.cuh
    int N, int D, int H, int W, int C, int OC, int KD, int KH, int KW, int OD, int OH, int OW,
    int SD, int SH, int SW, int PF, int PT, int PL, int DD, int DH, int DW, int G,
    int slice_k, int activation, float negative_slope) {
    const Epilogue epilogue{b,     residual, activated,  normalised,
                            delta, partials, activation, negative_slope};
    forward_pass<TensorMultiplier>(
        y, x, w, epilogue, N, D, H, W, C, OC, KD, KH, KW, OD, OH, OW, SD, SH, SW, PF, PT,
        PL, DD, DH, DW, G, slice_k);
}

// grid (phases * tiles of the largest phase's pixels * channel tiles, G * slices)
extern "C" __global__ void __launch_bounds__(TILE_THREADS, RESIDENT_BLOCKS) conv2d_implicit_gemm_data_gradient(
    float* __restrict__ dx,        // (slices, N, D, H, W, C)
    const float* __restrict__ dy,  // (N, OD, OH, OW, OC)
    const float* __restrict__ wt,  // (C, KD, KH, KW, OCG): w with the channels of a group exchanged
    const float* __restrict__ b, const float* __restrict__ residual,
    const float* __restrict__ activated, const float* __restrict__ normalised,
    const float* __restrict__ delta, float* __restrict__ partials,  // null or as in epilogue.cuh
    int N, int D, int H, int W, int C, int OC, int KD, int KH, int KW, int OD, int OH, int OW,
    int SD, int SH, int SW, int PF, int PT, int PL, int DD, int DH, int DW, int G,
    int slice_k, int activation, float negative_slope) {
    const Epilogue epilogue{b,     residual, activated,  normalised,
                            delta, partials, activation, negative_slope};
    data_gradient_pass<TensorMultiplier>(
        dx, dy, wt, epilogue, N, D, H, W, C, OC, KD, KH, KW, OD, OH, OW, SD, SH, SW, PF, PT,
        PL, DD, DH, DW, G, slice_k);
}

// grid (filter tiles * channel tiles, G * slices)
extern "C" __global__ void __launch_bounds__(TILE_THREADS, RESIDENT_BLOCKS) conv2d_implicit_gemm_weight_gradient(
    float* __restrict__ partial,   // (slices, OC, KD, KH, KW, CG)
    const float* __restrict__ dy,  // (N, OD, OH, OW, OC)
    const float* __restrict__ x,   // (N, D, H, W, C)
    int N, int D, int H, int W, int C, int OC, int KD, int KH, int KW, int OD, int OH, int OW,
    int SD, int SH, int SW, int PF, int PT, int PL, int DD, int DH, int DW, int G,
    int slice_pixels) {
    weight_gradient_pass<TensorMultiplier>(
        partial, dy, x, N, D, H, W, C, OC, KD, KH, KW, OD, OH, OW, SD, SH, SW, PF, PT,
        PL, DD, DH, DW, G,
        slice_pixels);
}
