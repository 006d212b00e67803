// What kernels share whose warps take one row each of a (rows, C) matrix.

#define NOT_A_NUMBER __int_as_float(0x7fffffff)

// This warp's row; may be past the last one. A whole warp returns then, so shuffles have all lanes.
__device__ __forceinline__ long long row_of_warp() {
    return (long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
}

// The maximum of a row and the sum of exp(x - maximum), the same bits in all lanes. Lanes walk over
// the row 32 elements at a time, coalesced. With a NaN or +inf in the row the sum is NaN.
__device__ __forceinline__ void log_sum_exp(const float* x, int C, float& largest, float& sum) {
    const int lane = threadIdx.x % 32;
    largest = -GPUCNN_INFINITY;
#pragma unroll 4
    for (int c = lane; c < C; c += 32) largest = fmaxf(largest, x[c]);
    largest = warp_max(largest);
    sum = 0.0f;
#pragma unroll 4
    for (int c = lane; c < C; c += 32) sum += expf(x[c] - largest);
    sum = warp_sum(sum);
}
