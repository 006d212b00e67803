// The last step of a sum over the rows of a matrix, in a block of TX x TY threads of TX columns.

// The sum of `own` over the TY threads of a column, added pairwise: the order depends on TY, a power
// of two, alone. Right in the threads with threadIdx.y == 0. All threads of the block take part;
// sums holds one float for each of them.
__device__ __forceinline__ float sum_of_column(float* sums, float own) {
    const int TX = blockDim.x, at = threadIdx.y * TX + threadIdx.x;
    sums[at] = own;
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();  // the upper half's sums are written by other warps
        if (threadIdx.y < half) sums[at] += sums[at + half * TX];
    }
    return sums[at];
}
