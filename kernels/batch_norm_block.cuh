// What batch_norm_block.cu and batch_norm_block_pool.cu share. Needs batch_norm.cuh, channels.cuh,
// column_sum.cuh and last_block.cuh.

#define NOWHERE 255u
#define NEGATIVE 128u

// Four bytes, or one.
template <int V>
__device__ __forceinline__ Channels<unsigned, V> load_bytes(const unsigned char* p) {
    Channels<unsigned, V> b;
    if (V == 4) {
        const uchar4 u = *reinterpret_cast<const uchar4*>(p);
        b.at[0] = u.x, b.at[1 % V] = u.y, b.at[2 % V] = u.z, b.at[3 % V] = u.w;
    } else {
        b.at[0] = *p;
    }
    return b;
}

template <int V>
__device__ __forceinline__ void store_bytes(unsigned char* p, const Channels<unsigned, V>& b) {
    if (V == 4)
        *reinterpret_cast<uchar4*>(p) = make_uchar4(b.at[0], b.at[1 % V], b.at[2 % V], b.at[3 % V]);
    else
        *p = b.at[0];
}

// What the activation makes of z, or of a gradient where z <= 0. A NaN passes.
__device__ __forceinline__ float bent(float v, bool negative, float slope) {
    return !negative ? v : slope == 0.0f ? 0.0f : slope * v;
}

__device__ __forceinline__ float of_code(float dy, unsigned code, float slope) {
    return code == NOWHERE ? 0.0f : bent(dy, code & NEGATIVE, slope);
}

// Of V channels: sum of g * (x - center) and sum of g.
template <int V>
struct Sums {
    float product[V], sum[V];
    __device__ __forceinline__ void add(float g, float apart, int v) {
        product[v] = fmaf(g, apart, product[v]);
        sum[v] += g;
    }
    // Adds what the threads of a column have, and writes it into (2, C, chunks).
    __device__ __forceinline__ void finish(float* sums, int C, int c) {
        float* products = sums;
        sums += (long long)C * gridDim.x;
        __shared__ float scratch[256];
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const float p = sum_of_column(scratch, product[v]);
            __syncthreads();  // the row of sums is read by its thread
            const float s = sum_of_column(scratch, sum[v]);
            __syncthreads();
            if (threadIdx.y == 0 && c < C) {
                products[(long long)(c + v) * gridDim.x + blockIdx.x] = p;
                sums[(long long)(c + v) * gridDim.x + blockIdx.x] = s;
            }
        }
    }
};

// Joins the chunks of the channels that own_channels gives this block.
__device__ __forceinline__ void join_own_channels(const SumParts& parts, unsigned* arrived) {
    const int width = blockDim.x * (parts.C % 4 == 0 ? 4 : 1), begin = blockIdx.y * width;
    join_chunks(arrived, blockIdx.y, blockIdx.x, gridDim.x,
                [&](int first, int step, int count, bool last) {
                    join_parts<4>(parts, begin, min(begin + width, parts.C), first, step, count, last);
                });
}
