// The pipelined tile loop: out(m, n) = sum over k of a(m, k) * b(k, n), where a is windows on images.
//
// A block of WARPS_M x WARPS_N warps computes TILE_GM x TILE_GN outputs. It walks over k in slabs of
// 32, or of 64 where operands are stored in bfloat16: rows of 128 bytes, through a ring of STAGES slabs in shared memory: while the warps multiply one, the copies of
// the next ones are under way, so that one barrier a slab is enough.
//
//        TILE_GN                  a warp owns a (TILE_GM / WARPS_M) x (TILE_GN / WARPS_N) part and
//      +-----+-----+              keeps its sums in registers; how it multiplies a slab is left to a
//      | w 0 | w 1 |  TILE_GM     Multiplier (register_multiply.cuh, tensor_multiply.cuh):
//      +-----+-----+
//      | w 2 | w 3 |                void clear();
//      +-----+-----+                void rows(const stored* a, const stored* b);    adds one slab
//                                   void columns(const stored* a, const stored* b);
//                                   void store_rows(int first_m, int first_n, store);
//                                   void store_columns(int first_m, int first_n, store);
//                                   PLACES_AT_ONCE                               see copy_windows
//
// store(m, n, v) takes an array v of neighbours, of which the first is output (m, n), and checks the
// range itself. Neighbours lie in n, of store_columns in m: along what is contiguous in memory.
//
// VECTOR numbers are copied at a time: 16 bytes, where every channel count and every address is a
// multiple of them, or 4 bytes: one float, which takes any, or two of bfloat16, which take even channel
// counts. A tap that leaves the image is copied as zeros.

#include "async_copy.cuh"
#include "windows.cuh"

#if !defined(TILE_GM) || !defined(TILE_GN) || !defined(WARPS_M) || !defined(WARPS_N)
#error "TILE_GM, TILE_GN, WARPS_M and WARPS_N say how a block's outputs are shared out"
#endif
constexpr int PIECE = 16 / sizeof(stored), TILE_GK = 8 * PIECE;  // numbers in 16 bytes; k of a slab
constexpr int TILE_THREADS = 32 * WARPS_M * WARPS_N;
constexpr int WARP_GM = TILE_GM / WARPS_M, WARP_GN = TILE_GN / WARPS_N;

// The ring, later the tile on its way through the epilogue.
extern __shared__ __align__(16) float slab_ring[];
__device__ __forceinline__ stored* slab_of_ring(int slab, int stage) {
    return reinterpret_cast<stored*>(slab_ring) + slab % STAGES * stage;
}

// Where the calling warp's part of the tile begins.
__device__ __forceinline__ int warp_m() { return (int)threadIdx.x / 32 / WARPS_N * WARP_GM; }
__device__ __forceinline__ int warp_n() { return (int)threadIdx.x / 32 % WARPS_N * WARP_GN; }

// A window on the images, ready to be read through any tap: where its first cell lies in memory, and
// at which row and column (depth) of its image, to see whether the tap stays inside. Past the last
// window no tap does.
struct Place {
    int offset, h, w, d;
};

__device__ __forceinline__ Place place_of(const Lattice& lattice, int p, int P) {
    const Window at = lattice.window_at(p, P);
    const int cell = ((DIMS == 3 ? at.d * lattice.h.cells : 0) + at.h) * lattice.w.cells + at.w;
    const bool exists = at.image >= 0;  // if not, still an aligned address
    return {exists ? at.image + cell * lattice.C : 0, exists ? at.h : -(1 << 30), at.w, at.d};
}

__device__ __forceinline__ Place read_place(const Place* shared) {
    const int4 words = *reinterpret_cast<const int4*>(shared);
    return {words.x, words.y, words.z, words.w};
}

// One tap and channel, as seen from any window.
struct Reach {
    int offset, h, w, d;
    bool exists;
    __device__ __forceinline__ Reach(const Lattice& lattice, int d, int h, int w, int c, bool exists)
        : offset((((DIMS == 3 ? d * lattice.h.cells : 0) + h) * lattice.w.cells + w) * lattice.C + c),
          h(h), w(w), d(d), exists(exists) {}
    // Without && there is no branch.
    __device__ __forceinline__ bool inside(const Lattice& lattice, const Place& at) const {
        return exists & ((unsigned)(at.h + h) < (unsigned)lattice.h.cells) &
               ((unsigned)(at.w + w) < (unsigned)lattice.w.cells) &
               (DIMS == 2 || (unsigned)(at.d + d) < (unsigned)lattice.d.cells);
    }
};

// Copies what COUNT windows see at one reach. Their places are read AT_ONCE at a time: between copies
// each read costs a pause, ahead of them each takes four registers.
template <class Multiplier, int COUNT, class From, class To>
__device__ __forceinline__ void copy_windows(
    From place, To to, const Lattice& lattice, const Reach& reach) {
    constexpr int AT_ONCE = Multiplier::PLACES_AT_ONCE < COUNT ? Multiplier::PLACES_AT_ONCE : COUNT;
    static_assert(COUNT % AT_ONCE == 0, "whole portions");
#pragma unroll
    for (int first = 0; first < COUNT; first += AT_ONCE) {
        Place at[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) at[i] = read_place(place(first + i));
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i)
            copy_async<VECTOR * sizeof(stored)>(to(first + i),
                                                lattice.x + (at[i].offset + reach.offset),
                                                reach.inside(lattice, at[i]));
    }
}

// ---- k is the fast direction of both operands: forward pass and data gradient --------------------

// Position k of the sum as a tap and a channel of it; moves on by whole slabs.
struct TapCursor {
    int k, c, d, h, w;
    __device__ __forceinline__ void begin(const Lattice& lattice, int first) {
        k = first, c = first % lattice.CG;
        // A phase of a data gradient may have no tap.
        const int tap = first / lattice.CG, row = tap / max(lattice.w.taps, 1);
        w = tap - row * lattice.w.taps;
        d = DIMS == 3 ? row / max(lattice.h.taps, 1) : 0;
        h = row - d * lattice.h.taps;
    }
    __device__ __forceinline__ void next(const Lattice& lattice) {
        k += TILE_GK, c += TILE_GK;
        while (c >= lattice.CG) {
            c -= lattice.CG;
            if (++w < lattice.w.taps) continue;
            w = 0, ++h;
            if (DIMS == 3 && h == lattice.h.taps) h = 0, ++d;
        }
    }
};

// The filter as a matrix: column n, tap and channel at
// base[n * column + d * tap_d + h * tap_h + w * tap_w + c].
struct Filter {
    const stored* base;
    int columns, column, tap_d, tap_h, tap_w;
};

// Shared layout of a slab: rows of 128 bytes. The 16-byte piece q of row r lies at place q ^ (r & 7):
// eight consecutive rows have a given piece in eight different sets of four banks.
__device__ __forceinline__ int swizzled(int row, int piece) {
    return row * TILE_GK + (piece ^ (row & 7)) * PIECE;
}

constexpr int ROW_STAGE = (TILE_GM + TILE_GN) * TILE_GK;

// Rows are the windows of a lattice (P in all images), columns those of the filter; the sum goes over
// first_k .. first_k + count_k - 1, as far as there are. At its end finish(multiplier) has the sums.
template <class Multiplier, class Finish>
__device__ __forceinline__ void pipeline_rows(
    int tile_m, int tile_n, int P, int first_k, int count_k, const Lattice& lattice,
    const Filter& filter, Finish finish) {
    __shared__ __align__(16) Place places[TILE_GM];
    const int thread = threadIdx.x;
    const int first_m = tile_m * TILE_GM, first_n = tile_n * TILE_GN;
    const int K = min(lattice.taps() * lattice.CG, first_k + count_k);
    const int slabs = (K - first_k + TILE_GK - 1) / TILE_GK;

    for (int i = thread; i < TILE_GM; i += TILE_THREADS)
        places[i] = place_of(lattice, first_m + i, P);
    __syncthreads();  // the places are known

    // This thread copies k = k0 .. k0 + VECTOR - 1 of rows row0, row0 + STEP, ... of each slab.
    constexpr int LANES_K = TILE_GK / VECTOR, STEP = TILE_THREADS / LANES_K;
    static_assert(TILE_GM % STEP == 0 && TILE_GN % STEP == 0, "every thread copies the same number");
    const int k0 = thread % LANES_K * VECTOR, row0 = thread / LANES_K;
    TapCursor cursor;
    cursor.begin(lattice, first_k + k0);

    auto copy_slab = [&](int slab) {
        stored* tile_a = slab_of_ring(slab, ROW_STAGE);
        stored* tile_b = tile_a + TILE_GM * TILE_GK;
        const bool inside_k = cursor.k < K;
        const Reach reach(lattice, cursor.d * lattice.d.tap_step, cursor.h * lattice.h.tap_step,
                          cursor.w * lattice.w.tap_step, cursor.c, inside_k);
        const auto to_a = [&](int i) {
            return tile_a + swizzled(row0 + i * STEP, k0 / PIECE) + k0 % PIECE;
        };
        copy_windows<Multiplier, TILE_GM / STEP>(
            [&](int i) { return places + row0 + i * STEP; },
            to_a, lattice, reach);
        const int tap = cursor.d * filter.tap_d + cursor.h * filter.tap_h +
                        cursor.w * filter.tap_w + cursor.c;
#pragma unroll
        for (int i = 0; i < TILE_GN / STEP; ++i) {
            const int row = row0 + i * STEP, n = first_n + row;
            copy_async<VECTOR * sizeof(stored)>(
                tile_b + swizzled(row, k0 / PIECE) + k0 % PIECE,
                filter.base + (n * filter.column + tap), inside_k && n < filter.columns);
        }
        cursor.next(lattice);
    };

    for (int slab = 0; slab < STAGES - 1; ++slab) {
        if (slab < slabs) copy_slab(slab);
        commit_copies();
    }

    Multiplier multiplier;
    multiplier.clear();
    for (int slab = 0; slab < slabs; ++slab) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();  // everyone's part of this slab is here, and everyone left the one before
        if (slab + STAGES - 1 < slabs) copy_slab(slab + STAGES - 1);
        commit_copies();
        const stored* tile_a = slab_of_ring(slab, ROW_STAGE);
        multiplier.rows(tile_a, tile_a + TILE_GM * TILE_GK);
    }
    finish(multiplier);
}

// ---- m and n are the fast directions: weight gradient -----------------------------------------------

// Rows of a slab are its k. Eight more numbers a row put the 4 k x 8 m floats, or the eight k of eight
// m in bfloat16, that a warp reads at once into 32 different banks.
constexpr int STRIDE_M = TILE_GM + 8, STRIDE_N = TILE_GN + 8;
constexpr int COLUMN_STAGE = TILE_GK * (STRIDE_M + STRIDE_N);

// Eight lanes copy 16 bytes at once. Where they cover two or four rows, `row` of these is the k with
// which they do not share banks: in floats of 16 columns k and k + 2, in bfloat16 of 32 columns k and
// k + 4, of 16 every other k.
template <int LANES>
__device__ __forceinline__ int row_apart(int row) {
    if (LANES == 4 && PIECE == 4) return (row & ~3) | (row & 1) << 1 | (row >> 1 & 1);
    if (LANES == 4) return (row & ~7) | (row & 1) << 2 | (row >> 1 & 3);
    if (LANES == 2) return (row & ~7) | (row & 3) << 1 | (row >> 2 & 1);
    return row;
}

// Rows m are the elements of a filter, k the windows first .. end - 1 it is laid on, columns those of
// the matrix b (window, n), whose rows are b_stride numbers apart.
template <class Multiplier, class Store>
__device__ __forceinline__ void pipeline_columns(
    int tile_m, int tile_n, int columns, int first, int end, const Lattice& lattice,
    const stored* b_base, int b_stride, Store store) {
    __shared__ __align__(16) Place places[2][TILE_GK];  // of the slabs that are copied next
    const int thread = threadIdx.x;
    const int first_m = tile_m * TILE_GM, first_n = tile_n * TILE_GN;
    const int slabs = (end - first + TILE_GK - 1) / TILE_GK;

    // This thread copies VECTOR rows (columns) from m0 (n0) on, of every STEP-th k.
    constexpr int LANES_M = TILE_GM / VECTOR, STEP_M = TILE_THREADS / LANES_M;
    constexpr int LANES_N = TILE_GN / VECTOR, STEP_N = TILE_THREADS / LANES_N;
    static_assert(STEP_M >= 1 && STEP_N >= 1 && TILE_GK % STEP_M == 0, "every thread copies the same");
    const int m0 = thread % LANES_M * VECTOR, n0 = thread % LANES_N * VECTOR;
    const int k_n = row_apart<LANES_N>(thread / LANES_N);
    const Tap tap = lattice.tap_at(first_m + m0, lattice.taps() * lattice.CG);
    const Reach reach(lattice, tap.d, tap.h, tap.w, max(tap.c, 0), tap.c >= 0);

    auto find_places = [&](int slab) {
        if (thread < TILE_GK)
            places[slab & 1][thread] = place_of(lattice, first + slab * TILE_GK + thread, end);
    };
    auto copy_slab = [&](int slab) {
        stored* tile_a = slab_of_ring(slab, COLUMN_STAGE);
        stored* tile_b = tile_a + TILE_GK * STRIDE_M;
        copy_windows<Multiplier, TILE_GK / STEP_M>(
            [&](int i) { return places[slab & 1] + thread / LANES_M + i * STEP_M; },
            [&](int i) { return tile_a + (thread / LANES_M + i * STEP_M) * STRIDE_M + m0; }, lattice,
            reach);
        const int p = first + slab * TILE_GK;
#pragma unroll
        for (int i = 0; i < TILE_GK / STEP_N; ++i) {
            const int k = k_n + i * STEP_N;
            copy_async<VECTOR * sizeof(stored)>(tile_b + k * STRIDE_N + n0,
                                                b_base + ((p + k) * b_stride + first_n + n0),
                                                p + k < end && first_n + n0 < columns);
        }
    };

    for (int slab = 0; slab < STAGES - 1; ++slab) {
        find_places(slab);
        __syncthreads();  // the slab's places are known
        if (slab < slabs) copy_slab(slab);
        commit_copies();
    }
    find_places(STAGES - 1);

    Multiplier multiplier;
    multiplier.clear();
    for (int slab = 0; slab < slabs; ++slab) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();  // the slab and the places of the next copy are here; the last one is free
        if (slab + STAGES - 1 < slabs) copy_slab(slab + STAGES - 1);
        commit_copies();
        find_places(slab + STAGES);
        const stored* tile_a = slab_of_ring(slab, COLUMN_STAGE);
        multiplier.columns(tile_a, tile_a + TILE_GK * STRIDE_M);
    }
    multiplier.store_columns(first_m, first_n, store);
}
