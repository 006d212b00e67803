// The Multiplier of gemm_pipeline.cuh in float: a thread keeps TM x TN sums in registers.
//
// A value that a thread read from shared memory takes part in TN (or TM) multiply-adds. With 8 x 8
// sums, 16 reads of 8 bytes feed 128 of them: the arithmetic units are the bound, no longer the reads
// (conv2d_tiled: 2 reads for 4). A warp is 4 x 8 threads:
//
//   rows     sums of rows tm, tm + 4, tm + 8, ... and columns tn, tn + 8, ...: a thread reads two k of
//            a row at once. Eight lanes read the same row of a, which costs one row, and eight
//            neighbouring ones of b, whose swizzled pieces lie in different banks.
//   columns  sums of runs of four neighbouring rows and of RUN neighbouring columns, read at once.

#include "gemm_pipeline.cuh"

constexpr int TM = WARP_GM / 4, TN = WARP_GN / 8;
constexpr int RUN = TN < 4 ? TN : 4;
static_assert(TM % 4 == 0 && TN % RUN == 0 && TN >= 2, "threads own whole runs of rows and columns");

template <int COUNT>
__device__ __forceinline__ void read_run(float* to, const float* shared) {
    if (COUNT == 4) {
        const float4 v = *reinterpret_cast<const float4*>(shared);
        to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    } else {
        const float2 v = *reinterpret_cast<const float2*>(shared);
        to[0] = v.x, to[1] = v.y;
    }
}

struct RegisterMultiplier {
    static constexpr int PLACES_AT_ONCE = 1;
    float sums[TM][TN];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < TM; ++i)
#pragma unroll
            for (int j = 0; j < TN; ++j) sums[i][j] = 0.0f;
    }

    __device__ __forceinline__ void rows(const stored* tile_a, const stored* tile_b) {
        const int tm = warp_m() + threadIdx.x % 32 / 8, tn = warp_n() + threadIdx.x % 8;
#pragma unroll (TM * TN > 16 ? 1 : 2)  // more, and the next k crowd the sums out of the registers
        for (int k0 = 0; k0 < TILE_GK; k0 += 2) {
            float a[TM][2];
#pragma unroll
            for (int i = 0; i < TM; ++i)
                read_run<2>(a[i], tile_a + swizzled(tm + i * 4, k0 / 4) + k0 % 4);
#pragma unroll
            for (int j = 0; j < TN; ++j) {
                float b[2];
                read_run<2>(b, tile_b + swizzled(tn + j * 8, k0 / 4) + k0 % 4);
#pragma unroll
                for (int k = 0; k < 2; ++k)
#pragma unroll
                    for (int i = 0; i < TM; ++i) sums[i][j] = fmaf(a[i][k], b[k], sums[i][j]);
            }
        }
    }

    __device__ __forceinline__ void columns(const stored* tile_a, const stored* tile_b) {
        const int m = warp_m() + threadIdx.x % 32 / 8 * 4, n = warp_n() + threadIdx.x % 8 * RUN;
#pragma unroll 2
        for (int k = 0; k < TILE_GK; ++k) {
            float a[TM], b[TN];
#pragma unroll
            for (int i = 0; i < TM; i += 4) read_run<4>(a + i, tile_a + k * STRIDE_M + m + i * 4);
#pragma unroll
            for (int j = 0; j < TN; j += RUN)
                read_run<RUN>(b + j, tile_b + k * STRIDE_N + n + j * 8);
#pragma unroll
            for (int i = 0; i < TM; ++i)
#pragma unroll
                for (int j = 0; j < TN; ++j) sums[i][j] = fmaf(a[i], b[j], sums[i][j]);
        }
    }

    template <class Store>
    __device__ __forceinline__ void store_rows(int first_m, int first_n, Store store) const {
        const int m = first_m + warp_m() + threadIdx.x % 32 / 8, n = first_n + warp_n() + threadIdx.x % 8;
#pragma unroll
        for (int i = 0; i < TM; ++i)
#pragma unroll
            for (int j = 0; j < TN; ++j) {
                const float v[1] = {sums[i][j]};
                store(m + i * 4, n + j * 8, v);
            }
    }

    template <class Store>
    __device__ __forceinline__ void store_columns(int first_m, int first_n, Store store) const {
        const int m = first_m + warp_m() + threadIdx.x % 32 / 8 * 4;
        const int n = first_n + warp_n() + threadIdx.x % 8 * RUN;
#pragma unroll
        for (int i = 0; i < TM; i += 4)
#pragma unroll
            for (int j = 0; j < TN; ++j) {
                const float v[4] = {sums[i][j], sums[i + 1][j], sums[i + 2][j], sums[i + 3][j]};
                store(m + i * 4, n + j / RUN * RUN * 8 + j % RUN, v);
            }
    }
};
