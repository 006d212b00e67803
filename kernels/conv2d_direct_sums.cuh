// What conv2d_direct.cu adds up of its outputs for a batch normalisation. Needs RUN and THREADS.

constexpr int MOST_QUADS = 16, WARPS = THREADS / 32;

// Sums over a block's outputs, per channel; channel i of the block is thread i's.
struct BlockSums {
    float pivot[4 * MOST_QUADS], sum[4 * MOST_QUADS], square[4 * MOST_QUADS];
    float parts[WARPS][2][4 * MOST_QUADS];  // of a tile: sums, squares
    int count;
};

// Adds the tile, of which each thread has `own_count` pixels. All threads take part.
__device__ __forceinline__ void add_pixels(
    BlockSums& of_block, const float (&pixels)[RUN][4], int quads, int own_count, int count,
    bool first_tile) {
    const int thread = threadIdx.x, q = thread % quads;
    if (first_tile) {
        if (thread < quads)  // the tile's first pixel exists
#pragma unroll
            for (int j = 0; j < 4; ++j) of_block.pivot[4 * q + j] = pixels[0][j];
        if (thread < 4 * quads) of_block.sum[thread] = of_block.square[thread] = 0.0f;
        if (thread == 0) of_block.count = 0;
        __syncthreads();  // the pivots are known
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const float pivot = of_block.pivot[4 * q + j];
        float sum = 0.0f, square = 0.0f;
#pragma unroll
        for (int p = 0; p < RUN; ++p) {
            const float d = p < own_count ? pixels[p][j] - pivot : 0.0f;
            sum += d;
            square = fmaf(d, d, square);
        }
        for (int step = 16; step >= quads; step /= 2) {
            sum += __shfl_down_sync(0xffffffffu, sum, step);
            square += __shfl_down_sync(0xffffffffu, square, step);
        }
        if (thread % 32 < quads) {
            of_block.parts[thread / 32][0][4 * q + j] = sum;
            of_block.parts[thread / 32][1][4 * q + j] = square;
        }
    }
    __syncthreads();  // the warps have written; before they do so again, the next tile is waited for
    if (thread < 4 * quads) {
        float sum = of_block.sum[thread], square = of_block.square[thread];
        for (int w = 0; w < WARPS; ++w) {
            sum += of_block.parts[w][0][thread];
            square += of_block.parts[w][1][thread];
        }
        of_block.sum[thread] = sum, of_block.square[thread] = square;
    }
    if (thread == 0) of_block.count += count;
}
