// Convolution, the third rung: implicit matrix products like conv2d_tiled, with sums in registers.
//
// What it gains over conv2d_tiled: a thread keeps up to 8 x 8 outputs instead of 4, so that a value
// read from shared memory feeds eight multiply-adds, not one or four; slabs are 32 k deep and come by
// asynchronous copies of 16 bytes while the one before is multiplied, so that a block waits at one
// barrier for every 32 k instead of two for 16.
//
// Floats throughout, on any GPU; before sm_80 copies are not asynchronous. Any stride, padding,
// dilation and groups. VECTOR = 4 needs channels per group that are multiples of four, and aligned
// arrays; VECTOR = 1 takes any. Passes, grids and layouts: conv2d_passes.cuh; the loop:
// gemm_pipeline.cuh; the multiplication: register_multiply.cuh.

#include "conv2d_passes.cuh"
#include "register_multiply.cuh"

// Of the data gradient; on sm_100 more would spill a register or two.
#if !defined(GPUCNN_EMULATED) && __CUDA_ARCH__ == 1000
constexpr int GATHERING_BLOCKS = TILE_GN == 64 ? 2 : RESIDENT_BLOCKS;
#else
constexpr int GATHERING_BLOCKS = RESIDENT_BLOCKS;
#endif

// grid (pixel tiles * channel tiles, G * slices)
extern "C" __global__ void __launch_bounds__(TILE_THREADS, RESIDENT_BLOCKS) conv2d_register_tiled_forward(
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
    forward_pass<RegisterMultiplier>(
        y, x, w, epilogue, N, D, H, W, C, OC, KD, KH, KW, OD, OH, OW, SD, SH, SW, PF, PT,
        PL, DD, DH, DW, G, slice_k);
}

// grid (phases * tiles of the largest phase's pixels * channel tiles, G * slices)
extern "C" __global__ void __launch_bounds__(TILE_THREADS, GATHERING_BLOCKS) conv2d_register_tiled_data_gradient(
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
    data_gradient_pass<RegisterMultiplier>(
        dx, dy, wt, epilogue, N, D, H, W, C, OC, KD, KH, KW, OD, OH, OW, SD, SH, SW, PF, PT,
        PL, DD, DH, DW, G, slice_k);
}

// grid (filter tiles * channel tiles, G * slices)
extern "C" __global__ void __launch_bounds__(TILE_THREADS, RESIDENT_BLOCKS) conv2d_register_tiled_weight_gradient(
    float* __restrict__ partial,    // (slices, OC, KD, KH, KW, CG)
    const stored* __restrict__ dy,  // (N, OD, OH, OW, OC)
    const stored* __restrict__ x,   // (N, D, H, W, C)
    int N, int D, int H, int W, int C, int OC, int KD, int KH, int KW, int OD, int OH, int OW,
    int SD, int SH, int SW, int PF, int PT, int PL, int DD, int DH, int DW, int G,
    int slice_pixels) {
    weight_gradient_pass<RegisterMultiplier>(
        partial, dy, x, N, D, H, W, C, OC, KD, KH, KW, OD, OH, OW, SD, SH, SW, PF, PT,
        PL, DD, DH, DW, G,
        slice_pixels);
}
