// The Multiplier of gemm_pipeline.cuh on tensor cores: rounded operands, float sums.
//
// A warp's sums are 16 x 8 tiles. Of each slab it reads its rows of a and its columns of b once: with
// 64 x 64 outputs per warp, 8 reads of 16 bytes a lane feed 32 multiplications of 16 x 8 x 8.
//
// HALF = 0, TF32: TERMS = 1 rounds both operands to nearest; TERMS = 3 splits each into a large and a
// small TF32 number and adds the three larger products. Since tensor cores cut their sums off, always
// toward zero (mma.cuh), those of 8 k are added up from nothing and joined to the warp's sums by float
// additions, which round to nearest: four FADD for three HMMA, in another unit, for errors below those
// of float's multiply-adds one by one (emulated: half of them from 288 k on, at most 2.6 times as large
// for 8 k). Kept in the tensor core, the sum of 4608 k erred 35 times as much, of equal signs 80 times.
// HALF = 1, bfloat16, or 2, float16: half the multiplications, 16 x 8 x 16. In float16 slabs hold floats,
// of which two are rounded by one instruction (TF32: two for one). bfloat16 is also what is stored
// (BFLOAT16 = 1): a slab of the same bytes holds twice the k, and its pieces are the operands as they
// are, so that a slab takes the loads and multiplications of one of TF32, for 64 k in place of 32, and
// nothing else. Where k is the slow direction ldmatrix transposes them: four loads in place of 24.

#include "gemm_pipeline.cuh"
#include "mma.cuh"

constexpr int MS = WARP_GM / 16, NS = WARP_GN / 8;
static_assert(WARP_GM % 16 == 0 && WARP_GN % 16 == 0, "a warp loads 16 rows and 16 columns at once");
static_assert((HALF == 1) == BFLOAT16, "bfloat16 is multiplied where it is stored");

constexpr int STEP_K = HALF ? 16 : 8;  // k of one multiplication
constexpr int LOADS = STEP_K / (2 * PIECE);  // of 16 rows and STEP_K k
// Steps of a slab that the main loop holds. In three terms they depend on each other only at the end,
// by the additions; side by side in one loop the compiler would let them overlap until registers spill.
constexpr int STEPS_AT_ONCE = TERMS == 3 ? 1 : TILE_GK / STEP_K;

// One operand's registers for STEP_K k. Each comes from the floats of one k, or of two that the
// instruction takes for neighbours: the order of the k is free, as long as both operands agree.
template <int WORDS>
struct Fragment {
    unsigned large[WORDS], small[TERMS == 3 ? WORDS : 1];
    __device__ __forceinline__ void set(int i, float value) {
        if (TERMS == 3)
            split_tf32(value, large[i], small[i]);
        else
            large[i] = to_tf32(value);
    }
    __device__ __forceinline__ void set(int i, float first, float second) {
        large[i] = pack_halves<HALF>(first, second);
    }
    // A word of load_matrices.
    __device__ __forceinline__ void set_word(int i, unsigned word) {
#if BFLOAT16
        large[i] = word;
#else
        set(i, __uint_as_float(word));
#endif
    }
};

struct TensorMultiplier {
    static constexpr int PLACES_AT_ONCE = 8;
    float sums[MS][NS][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < MS; ++i)
#pragma unroll
            for (int j = 0; j < NS; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) sums[i][j][e] = 0.0f;
    }

    __device__ __forceinline__ void add(const Fragment<4> (&a)[MS], const Fragment<2> (&b)[NS]) {
#pragma unroll
        for (int i = 0; i < MS; ++i) {
#if TERMS == 3
            // The small products first: they are added to each other before the large ones absorb them.
            float part[NS][4] = {};
#pragma unroll
            for (int j = 0; j < NS; ++j) mma_tf32(part[j], a[i].small, b[j].large);
#pragma unroll
            for (int j = 0; j < NS; ++j) mma_tf32(part[j], a[i].large, b[j].small);
#pragma unroll
            for (int j = 0; j < NS; ++j) mma_tf32(part[j], a[i].large, b[j].large);
#pragma unroll
            for (int j = 0; j < NS; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) sums[i][j][e] += part[j][e];
#else
#pragma unroll
            for (int j = 0; j < NS; ++j) {
#if HALF
                mma_half<HALF>(sums[i][j], a[i].large, b[j].large);
#else
                mma_tf32(sums[i][j], a[i].large, b[j].large);
#endif
            }
#endif
        }
    }

    __device__ __forceinline__ void rows(const stored* tile_a, const stored* tile_b) {
        // load_matrices: four 8 x 4 pieces. For a: rows 0-7, 8-15 of k 0-3, the same of k 4-7. For b:
        // columns 0-7 of k 0-3, of k 4-7, and columns 8-15 of both.
        const int lane = threadIdx.x % 32;
        const int row_a = warp_m() + lane % 16, piece_a = lane / 16;
        const int row_b = warp_n() + lane % 8 + lane / 16 * 8, piece_b = lane / 8 % 2;
#pragma unroll STEPS_AT_ONCE
        for (int step = 0; step < TILE_GK / STEP_K; ++step) {
            Fragment<4> a[MS];
            Fragment<2> b[NS];
            unsigned words[LOADS][4];
            const int piece = step * 2 * LOADS;
#pragma unroll
            for (int i = 0; i < MS; ++i) {
#pragma unroll
                for (int h = 0; h < LOADS; ++h)
                    load_matrices(words[h],
                                  tile_a + swizzled(row_a + i * 16, piece + 2 * h + piece_a));
#pragma unroll
                for (int e = 0; e < 4; ++e) {
#if HALF == 2
                    const unsigned(&pair)[4] = words[e / 2];
                    a[i].set(e, __uint_as_float(pair[e % 2]), __uint_as_float(pair[e % 2 + 2]));
#else
                    a[i].set_word(e, words[0][e]);
#endif
                }
            }
#pragma unroll
            for (int j = 0; j < NS; j += 2) {
#pragma unroll
                for (int h = 0; h < LOADS; ++h)
                    load_matrices(words[h],
                                  tile_b + swizzled(row_b + j * 8, piece + 2 * h + piece_b));
#pragma unroll
                for (int e = 0; e < 4; ++e) {
#if HALF == 2
                    const unsigned(&pair)[4] = words[e % 2];
                    b[j + e / 2].set(e % 2, __uint_as_float(pair[e / 2 * 2]),
                                     __uint_as_float(pair[e / 2 * 2 + 1]));
#else
                    b[j + e / 2].set_word(e % 2, words[0][e]);
#endif
                }
            }
            add(a, b);
        }
    }

#if BFLOAT16
    __device__ __forceinline__ void columns(const stored* tile_a, const stored* tile_b) {
        // load_transposed: four 8 x 8 pieces. For a: k 0-7 of rows 0-7, of rows 8-15, k 8-15 of both. For
        // b: columns 0-7 of k 0-7, of k 8-15, columns 8-15 of both.
        const int lane = threadIdx.x % 32;
        const stored* slab_a =
            tile_a + (lane / 16 * 8 + lane % 8) * STRIDE_M + warp_m() + lane / 8 % 2 * 8;
        const stored* slab_b = tile_b + lane % 16 * STRIDE_N + warp_n() + lane / 16 * 8;
#pragma unroll STEPS_AT_ONCE
        for (int step = 0; step < TILE_GK / STEP_K; ++step) {
            Fragment<4> a[MS];
            Fragment<2> b[NS];
            unsigned words[4];
#pragma unroll
            for (int i = 0; i < MS; ++i)
                load_transposed(a[i].large, slab_a + step * STEP_K * STRIDE_M + i * 16);
#pragma unroll
            for (int j = 0; j < NS; j += 2) {
                load_transposed(words, slab_b + step * STEP_K * STRIDE_N + j * 8);
#pragma unroll
                for (int e = 0; e < 4; ++e) b[j + e / 2].set_word(e % 2, words[e]);
            }
            add(a, b);
        }
    }
#else
    __device__ __forceinline__ void columns(const stored* tile_a, const stored* tile_b) {
        const int lane = threadIdx.x % 32, m = warp_m() + lane / 4, n = warp_n() + lane / 4;
#pragma unroll STEPS_AT_ONCE
        for (int step = 0; step < TILE_GK / STEP_K; ++step) {
            Fragment<4> a[MS];
            Fragment<2> b[NS];
            const float* slab_a = tile_a + (step * STEP_K + lane % 4) * STRIDE_M + m;
            const float* slab_b = tile_b + (step * STEP_K + lane % 4) * STRIDE_N + n;
#pragma unroll
            for (int i = 0; i < MS; ++i)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const float* at = slab_a + e / 2 * (STEP_K / 2) * STRIDE_M + i * 16 + e % 2 * 8;
#if HALF
                    a[i].set(e, at[0], at[4 * STRIDE_M]);
#else
                    a[i].set(e, at[0]);
#endif
                }
#pragma unroll
            for (int j = 0; j < NS; ++j)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const float* at = slab_b + e * (STEP_K / 2) * STRIDE_N + j * 8;
#if HALF
                    b[j].set(e, at[0], at[4 * STRIDE_N]);
#else
                    b[j].set(e, at[0]);
#endif
                }
            add(a, b);
        }
    }
#endif

    template <class Store>
    __device__ __forceinline__ void store_rows(int first_m, int first_n, Store store) const {
        const int lane = threadIdx.x % 32;
        const int m = first_m + warp_m() + lane / 4, n = first_n + warp_n() + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < MS; ++i)
#pragma unroll
            for (int j = 0; j < NS; ++j)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const float v[2] = {sums[i][j][2 * half], sums[i][j][2 * half + 1]};
                    store(m + i * 16 + half * 8, n + j * 8, v);
                }
    }

    template <class Store>
    __device__ __forceinline__ void store_columns(int first_m, int first_n, Store store) const {
        const int lane = threadIdx.x % 32;
        const int m = first_m + warp_m() + lane / 4, n = first_n + warp_n() + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < MS; ++i)
#pragma unroll
            for (int j = 0; j < NS; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const float v[1] = {sums[i][j][e]};
                    store(m + i * 16 + e / 2 * 8, n + j * 8 + e % 2, v);
                }
    }
};
