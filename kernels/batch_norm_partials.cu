// Batch normalisation from what the kernels of a convolution left behind (epilogue.cuh): the moments of
// parts of its input, and the sums that its gradients need.
//
//   delta = mean - x[0], invstd = 1 / sqrt(var + eps), dgamma, dbeta: as in batch_norm.cu
//
// A block per channel: its threads join the parts j, j + blockDim.x, ..., a contiguous run of which
// a warp reads at once, then each other pairwise, in an order that depends on the sizes alone. 16 (8)
// bytes per part and channel, where a pass of its own would read 4 (8) per element.

#include "common.cuh"
#include "moments.cuh"

extern "C" __global__ void __launch_bounds__(256) batch_norm_join_moments(
    float* __restrict__ delta,         // (C)
    float* __restrict__ invstd,        // (C)
    float* __restrict__ running_mean,  // (C) or null
    float* __restrict__ running_var,   // (C) or null
    const float* __restrict__ moments, // (4, C, chunks): count, pivot, mean - pivot, squares
    int C, int chunks, float momentum, float eps) {
    __shared__ float counts[256], means[256], squares[256];
    const int c = blockIdx.x, t = threadIdx.x;
    const long long plane = (long long)C * chunks;
    const float* of_channel = moments + (long long)c * chunks;
    const float first = of_channel[plane];  // of the first chunk: x[0]

    Moments own = {0.0f, 0.0f, 0.0f};
    for (int j = t; j < chunks; j += blockDim.x) {
        const float* at = of_channel + j;
        own = join(own, {at[0], (at[plane] - first) + at[2 * plane], at[3 * plane]});
    }
    counts[t] = own.count, means[t] = own.mean, squares[t] = own.squares;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();  // the upper half's moments are written
        if (t < half) {
            own = join(own, {counts[t + half], means[t + half], squares[t + half]});
            counts[t] = own.count, means[t] = own.mean, squares[t] = own.squares;
        }
    }
    if (t != 0) return;
    delta[c] = own.mean;
    invstd[c] = 1.0f / sqrtf(own.squares / own.count + eps);
    if (running_mean) {
        running_mean[c] = (1.0f - momentum) * running_mean[c] + momentum * (first + own.mean);
        running_var[c] =
            (1.0f - momentum) * running_var[c] + momentum * (own.squares / (own.count - 1.0f));
    }
}

extern "C" __global__ void __launch_bounds__(256) batch_norm_join_sums(
    float* __restrict__ dgamma,        // (C)
    float* __restrict__ dbeta,         // (C)
    const float* __restrict__ sums,    // (2, C, chunks): of dy * (x - center), of dy
    const float* __restrict__ x,       // (rows, C)
    const float* __restrict__ delta,   // (C)
    const float* __restrict__ invstd,  // (C)
    int C, int chunks) {
    __shared__ float shared_products[256], shared_totals[256];
    const int c = blockIdx.x, t = threadIdx.x;
    const float* products = sums + (long long)c * chunks;
    const float* totals = products + (long long)C * chunks;

    float product = 0.0f, total = 0.0f;
#pragma unroll 4
    for (int j = t; j < chunks; j += blockDim.x) product += products[j], total += totals[j];
    shared_products[t] = product, shared_totals[t] = total;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();  // the upper half's sums are written
        if (t < half) {
            product += shared_products[t + half], total += shared_totals[t + half];
            shared_products[t] = product, shared_totals[t] = total;
        }
    }
    if (t != 0) return;
    const float first = x[c], center = first + delta[c];  // the float next to the mean
    product = fmaf(-(delta[c] - (center - first)), total, product);
    dgamma[c] = product * invstd[c];
    dbeta[c] = total;
}
