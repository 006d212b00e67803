// Exchange of two groups of axes.
//
//   transpose_tiles   y[b][c][m][r] = x[b][r][m][c]   NHWC to NCHW and a matrix transpose, with M = 1;
//                                                     the channels of a filter, with M taps
//   transpose_runs    y[b][c][r][s] = x[b][r][c][s]   neighbours; every permutation of axes is a
//                                                     sequence of such exchanges
//
// transpose_tiles: a block of 32 x 8 threads moves a tile of 32 x 32 elements of one m through shared
// memory, so that both sides read and write 128 contiguous bytes per warp:
//
//      x: rows r, lanes run along c            y: rows c, lanes run along r
//        r0  ####                                c0  #...
//        r1  ....        tile[r][c] ->           c1  #...       lane reads tile[lane][c]
//        r2  ....                                c2  #...
//
// A row of the tile has 33 elements: the 32 elements of a column then lie in 32 different banks.
// transpose_runs: one thread per element of y; runs of S elements stay together.
// 8 bytes of traffic per element: memory-bound. Any sizes.

#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) transpose_tiles(
    stored* __restrict__ y,        // (B, C, M, R)
    const stored* __restrict__ x,  // (B, R, M, C)
    int R, int M, int C, int tiles_r, int tiles_c) {
    __shared__ stored tile[32][33];
    const int tile_c = blockIdx.x % tiles_c, tile_r = blockIdx.x / tiles_c % tiles_r;
    const int plane = blockIdx.x / tiles_c / tiles_r, m = plane % M, lane = threadIdx.x;
    const long long row_x = (long long)M * C, row_y = (long long)M * R;
    x += plane / M * R * row_x + m * C;
    y += plane / M * C * row_y + m * R;

#pragma unroll
    for (int i = threadIdx.y; i < 32; i += 8) {
        const int r = tile_r * 32 + i, c = tile_c * 32 + lane;
        if (r < R && c < C) tile[i][lane] = x[r * row_x + c];
    }
    __syncthreads();  // the tile is complete; each warp reads what all of them wrote
#pragma unroll
    for (int i = threadIdx.y; i < 32; i += 8) {
        const int r = tile_r * 32 + lane, c = tile_c * 32 + i;
        if (r < R && c < C) y[c * row_y + r] = tile[lane][i];
    }
}

extern "C" __global__ void transpose_runs(
    stored* __restrict__ y,        // (B, C, R, S)
    const stored* __restrict__ x,  // (B, R, C, S)
    int n, int R, int C, int S) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const unsigned s = i % S, run = i / S;
    const unsigned r = run % R, c = run / R % C, b = run / R / C;
    y[i] = x[((b * (unsigned)R + r) * C + c) * S + s];
}
