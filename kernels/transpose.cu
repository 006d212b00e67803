// Exchange of two neighbouring groups of axes: y[b][c][r][s] = x[b][r][c][s].
//
// Every permutation of axes is a sequence of such exchanges; NHWC to NCHW and a matrix transpose are
// one each, with S = 1.
//
// transpose_tiles (S = 1): a block of 32 x 8 threads moves a tile of 32 x 32 elements through shared
// memory, so that both sides read and write 128 contiguous bytes per warp:
//
//      x: rows r, lanes run along c            y: rows c, lanes run along r
//        r0  ####                                c0  #...
//        r1  ....        tile[r][c] ->           c1  #...       lane reads tile[lane][c]
//        r2  ....                                c2  #...
//
// A row of the tile has 33 elements: the 32 elements of a column then lie in 32 different banks.
// transpose_runs (S > 1): one thread per element of y; runs of S elements stay together.
// 8 bytes of traffic per element: memory-bound. Any sizes.

#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) transpose_tiles(
    float* __restrict__ y,        // (B, C, R)
    const float* __restrict__ x,  // (B, R, C)
    int R, int C, int tiles_r, int tiles_c) {
    __shared__ float tile[32][33];
    const int tile_c = blockIdx.x % tiles_c, tile_r = blockIdx.x / tiles_c % tiles_r;
    const long long plane = (long long)(blockIdx.x / tiles_c / tiles_r) * R * C;
    const int lane = threadIdx.x;
    x += plane;
    y += plane;

#pragma unroll
    for (int i = threadIdx.y; i < 32; i += 8) {
        const int r = tile_r * 32 + i, c = tile_c * 32 + lane;
        if (r < R && c < C) tile[i][lane] = x[(long long)r * C + c];
    }
    __syncthreads();  // the tile is complete; each warp reads what all of them wrote
#pragma unroll
    for (int i = threadIdx.y; i < 32; i += 8) {
        const int r = tile_r * 32 + lane, c = tile_c * 32 + i;
        if (r < R && c < C) y[(long long)c * R + r] = tile[lane][i];
    }
}

extern "C" __global__ void transpose_runs(
    float* __restrict__ y,        // (B, C, R, S)
    const float* __restrict__ x,  // (B, R, C, S)
    int n, int R, int C, int S) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const unsigned s = i % S, run = i / S;
    const unsigned r = run % R, c = run / R % C, b = run / R / C;
    y[i] = x[((b * (unsigned)R + r) * C + c) * S + s];
}
