// Cross-entropy of the rows of a matrix of scores against class labels, averaged or added up, and its
// gradient, in one pass; formulas, NaN and labels out of range as in loss.cu.
//
//   y = sum over rows of loss[r] / total,  total = sum of w[label[r]] over the rows that are not ignored
//   dx[r][c] = slope of loss[r] in x[r][c] / total                         total is 1 to add up
//
// The total must be known before the first gradient is written; it depends on the labels alone.
//
//   rows * C small   cross_entropy_reduced, one block: it reads the labels, then the rows. One launch
//                    for loss and gradient
//   else             cross_entropy_count (a partial total per block) -> cross_entropy_reduced (each
//                    block adds up the totals, the last one to finish the losses: last_block.cuh)
//
// LANES = the power of two next to C, 4 to 32, share a row, so that a warp has several rows of few
// classes; lanes walk along a row, coalesced, and meet in shuffles. A block takes every gridDim.x-th
// group of rows. A row is read again from the L1 cache, not from memory: 8 bytes per element, and 4
// per label twice: the least, but for the second look at the labels. dx is already scaled, so that the
// backward pass reads and writes nothing where the gradient of y is 1. Sums in an order that depends
// on the shape alone. Any rows and C. weight and dx may be null. Scores and dx may be in bfloat16.

#include "common.cuh"
#include "last_block.cuh"
#include "warp.cuh"

#define NOT_A_NUMBER __int_as_float(0x7fffffff)
#define WARPS 32  // of the largest block

// The sum of v over the threads of a block, the same bits in all of them.
__device__ __forceinline__ float sum_of_block(float* sums, float v) {
    v = warp_sum(v);
    __syncthreads();  // sums of a call before are read
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? sums[threadIdx.x % 32] : 0.0f);
}

// Reductions over the LANES neighbouring lanes of a row. All lanes of the warp take part.
__device__ __forceinline__ float row_sum(float v, int LANES) {
    for (int step = LANES / 2; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}

__device__ __forceinline__ float row_max(float v, int LANES) {
    for (int step = LANES / 2; step > 0; step /= 2)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
    return v;
}

// What a row counts in the mean.
__device__ __forceinline__ float weight_of(int label, const float* weight, int C, int ignore_index) {
    if (label == ignore_index || label < 0 || label >= C) return 0.0f;
    return weight ? weight[label] : 1.0f;
}

extern "C" __global__ void __launch_bounds__(256) cross_entropy_count(
    float* __restrict__ counts,        // (blocks)
    const int* __restrict__ target,    // (rows)
    const float* __restrict__ weight,  // (C) or null
    int rows, int C, int ignore_index, int each) {
    __shared__ float sums[WARPS];
    const long long begin = (long long)blockIdx.x * each;
    const long long end = min(begin + each, (long long)rows);
    float count = 0.0f;
#pragma unroll 4
    for (long long r = begin + threadIdx.x; r < end; r += blockDim.x)
        count += weight_of(target[r], weight, C, ignore_index);
    count = sum_of_block(sums, count);
    if (threadIdx.x == 0) counts[blockIdx.x] = count;
}

extern "C" __global__ void __launch_bounds__(1024, 1) cross_entropy_reduced(
    float* __restrict__ y,             // (1)
    stored* __restrict__ dx,           // (rows, C) or null
    float* __restrict__ losses,        // (blocks, 2): loss and count; null for one block
    unsigned* __restrict__ arrived,    // (1), zero; null for one block
    const stored* __restrict__ x,      // (rows, C)
    const int* __restrict__ target,    // (rows)
    const float* __restrict__ weight,  // (C) or null
    const float* __restrict__ counts,  // (count_blocks) or null
    int rows, int C, int LANES, int count_blocks, int mean, int ignore_index, float smoothing) {
    __shared__ float sums[WARPS];
    const bool alone = gridDim.x == 1;
    float total = 1.0f;
    if (mean && (dx || alone)) {
        float part = 0.0f;
        if (counts)
            for (int i = threadIdx.x; i < count_blocks; i += blockDim.x) part += counts[i];
        else
            for (int r = threadIdx.x; r < rows; r += blockDim.x)
                part += weight_of(target[r], weight, C, ignore_index);
        total = sum_of_block(sums, part);
    }
    const float factor = total == 0.0f ? 0.0f : 1.0f / total;  // nothing counts: no score matters

    const int own = threadIdx.x % LANES, group = blockDim.x / LANES;
    const float share = smoothing / C;
    float loss = 0.0f, count = 0.0f;  // of the rows of this thread, in its first lane
    // A warp's lanes make the same number of turns, so that the shuffles have all of them.
    for (long long base = (long long)blockIdx.x * group; base < rows;
         base += (long long)gridDim.x * group) {
        const long long row = base + threadIdx.x / LANES;
        const int label = row < rows ? target[row] : ignore_index;
        const bool ignored = row >= rows || label == ignore_index;
        const bool known = label >= 0 && label < C;
        const float w = !known ? NOT_A_NUMBER : weight ? weight[label] : 1.0f;
        const stored* scores = x + row * C;
        const int end = ignored ? 0 : C;

        float largest = -GPUCNN_INFINITY, sum = 0.0f, distances = 0.0f, weights = C;
        for (int c = own; c < end; c += LANES) largest = fmaxf(largest, to_float(scores[c]));
        largest = row_max(largest, LANES);
        for (int c = own; c < end; c += LANES) sum += expf(to_float(scores[c]) - largest);
        sum = row_sum(sum, LANES);
        if (smoothing > 0.0f) {  // else the distances are not used: one of them may be infinite
            weights = 0.0f;
#pragma unroll 4
            for (int c = own; c < end; c += LANES) {
                const float v = weight ? weight[c] : 1.0f;
                distances += v * (largest - to_float(scores[c]));
                weights += v;
            }
            distances = row_sum(distances, LANES);
            weights = row_sum(weights, LANES);
        }
        if (own == 0 && !ignored) {
            const float log_sum = logf(sum);
            float v = known ? w * ((largest - to_float(scores[label])) + log_sum) : w;
            if (smoothing > 0.0f)
                v = (1.0f - smoothing) * v + share * (distances + weights * log_sum);
            loss += v;
            count += known ? w : 0.0f;
        }
        if (!dx || row >= rows) continue;
        const float pull = (1.0f - smoothing) * w, push = (pull + share * weights) / sum;
#pragma unroll 4
        for (int c = own; c < C; c += LANES) {
            const float wanted = share * (weight ? weight[c] : 1.0f) + (c == label ? pull : 0.0f);
            const float slope = push * expf(to_float(scores[c]) - largest) - wanted;
            set(dx[row * C + c], ignored ? 0.0f : factor * slope);
        }
    }
    loss = sum_of_block(sums, loss);
    count = sum_of_block(sums, count);
    if (!alone) {
        if (threadIdx.x == 0) losses[2 * blockIdx.x] = loss, losses[2 * blockIdx.x + 1] = count;
        if (!last_to_arrive(arrived, gridDim.x)) return;
        loss = 0.0f, count = 0.0f;
        for (int i = threadIdx.x; i < gridDim.x; i += blockDim.x) {
            loss += losses[2 * i];
            count += losses[2 * i + 1];
        }
        loss = sum_of_block(sums, loss);
        count = sum_of_block(sums, count);
        total = mean ? count : 1.0f;
    }
    if (threadIdx.x == 0) *y = loss / total;
}

// x *= factor; where that is 1, as where the loss is what backward() began with, nothing is touched.
extern "C" __global__ void cross_entropy_backward(
    stored* x,                         // (n)
    const float* __restrict__ factor,  // (1)
    int n) {
    const float s = *factor;
    if (s != 1.0f) map_four(x, x, n, [s](float v) { return s * v; });
}
