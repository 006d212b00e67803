// Convolution, the top rung: the matrix products of conv2d_register_tiled on tensor cores.
//
// What it gains: one instruction of a warp does 1024 multiply-adds, so that the reads of shared
// memory and the arithmetic on addresses, no longer the multiply-adds, are what is to be kept small.
// A warp owns up to 64 x 64 outputs for that reason. Operands are rounded to nearest on their way into
// registers: to TF32 (10 bits of mantissa), in three terms nearly to float (TERMS = 3), to float16
// (HALF = 2); or they are stored in bfloat16 (BFLOAT16 = 1) and taken as they are, which halves all traffic
// but that of the sums. Sums are float.
//
// Any stride, padding, dilation and groups. Copies of 16 bytes need channels per group that are multiples
// of VECTOR, 4 or in bfloat16 8, and aligned arrays; VECTOR = 1 takes any, in bfloat16 VECTOR = 2 even
// channels; odd ones it refuses. sm_80 and newer, float16 sm_75. Passes, grids and layouts:
// conv2d_passes.cuh; the loop: gemm_pipeline.cuh; the multiplication: tensor_multiply.cuh.

#include "conv2d_passes.cuh"
#include "tensor_multiply.cuh"

// grid (pixel tiles * channel tiles, G * slices)
extern "C" __global__ void __launch_bounds__(TILE_THREADS, RESIDENT_BLOCKS) conv2d_implicit_gemm_forward(
    stored* __restrict__ y,        // (N, OD, OH, OW, OC), or null beside
    float* __restrict__ slices,    // (slices, N, OD, OH, OW, OC), or null
    const stored* __restrict__ x,  // (N, D, H, W, C)
    const stored* __restrict__ w,  // (OC, KD, KH, KW, CG)
    const float* __restrict__ b, const stored* __restrict__ residual,
    const stored* __restrict__ activated, const stored* __restrict__ normalised,
    const float* __restrict__ delta, const float* __restrict__ invstd, float* __restrict__ partials,
    unsigned* __restrict__ arrived, float* __restrict__ joined, float* __restrict__ joined_too,
    float* __restrict__ running_mean, float* __restrict__ running_var,  // null or as in epilogue.cuh
    int N, int D, int H, int W, int C, int OC, int KD, int KH, int KW, int OD, int OH, int OW,
    int SD, int SH, int SW, int PF, int PT, int PL, int DD, int DH, int DW, int G,
    int slice_k, int activation, float negative_slope, float momentum, float eps) {
    const Epilogue epilogue{slices,     b,              residual, activated,  normalised,   delta,
                            invstd,     partials,       arrived,  joined,     joined_too,   running_mean,
                            running_var, activation, negative_slope, momentum, eps};
    forward_pass<TensorMultiplier>(
        y, x, w, epilogue, N, D, H, W, C, OC, KD, KH, KW, OD, OH, OW, SD, SH, SW, PF, PT,
        PL, DD, DH, DW, G, slice_k);
}

// grid (phases * tiles of the largest phase's pixels * channel tiles, G * slices)
extern "C" __global__ void __launch_bounds__(TILE_THREADS, RESIDENT_BLOCKS) conv2d_implicit_gemm_data_gradient(
    stored* __restrict__ dx,        // (N, D, H, W, C), or null beside
    float* __restrict__ slices,     // (slices, N, D, H, W, C), or null
    const stored* __restrict__ dy,  // (N, OD, OH, OW, OC)
    const stored* __restrict__ wt,  // (C, KD, KH, KW, OCG): w with the channels of a group exchanged
    const float* __restrict__ b, const stored* __restrict__ residual,
    const stored* __restrict__ activated, const stored* __restrict__ normalised,
    const float* __restrict__ delta, const float* __restrict__ invstd, float* __restrict__ partials,
    unsigned* __restrict__ arrived, float* __restrict__ joined, float* __restrict__ joined_too,
    float* __restrict__ running_mean, float* __restrict__ running_var,  // null or as in epilogue.cuh
    int N, int D, int H, int W, int C, int OC, int KD, int KH, int KW, int OD, int OH, int OW,
    int SD, int SH, int SW, int PF, int PT, int PL, int DD, int DH, int DW, int G,
    int slice_k, int activation, float negative_slope, float momentum, float eps) {
    const Epilogue epilogue{slices,     b,              residual, activated,  normalised,   delta,
                            invstd,     partials,       arrived,  joined,     joined_too,   running_mean,
                            running_var, activation, negative_slope, momentum, eps};
    data_gradient_pass<TensorMultiplier>(
        dx, dy, wt, epilogue, N, D, H, W, C, OC, KD, KH, KW, OD, OH, OW, SD, SH, SW, PF, PT,
        PL, DD, DH, DW, G, slice_k);
}

// grid (filter tiles * channel tiles, G * slices)
extern "C" __global__ void __launch_bounds__(TILE_THREADS, RESIDENT_BLOCKS) conv2d_implicit_gemm_weight_gradient(
    float* __restrict__ partial,    // (slices, OC, KD, KH, KW, CG)
    const stored* __restrict__ dy,  // (N, OD, OH, OW, OC)
    const stored* __restrict__ x,   // (N, D, H, W, C)
    int N, int D, int H, int W, int C, int OC, int KD, int KH, int KW, int OD, int OH, int OW,
    int SD, int SH, int SW, int PF, int PT, int PL, int DD, int DH, int DW, int G,
    int slice_pixels) {
    weight_gradient_pass<TensorMultiplier>(
        partial, dy, x, N, D, H, W, C, OC, KD, KH, KW, OD, OH, OW, SD, SH, SW, PF, PT,
        PL, DD, DH, DW, G,
        slice_pixels);
}
