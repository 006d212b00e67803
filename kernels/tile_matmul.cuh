// The shared-memory tile loop: out(m, n) = sum over k of a(m, k) * b(n, k).
//
// A block of 256 threads computes TILE_GM x TILE_GN outputs. It walks over k in slabs of TILE_GK:
// all threads load a slab of a and of b into shared memory, then each thread multiplies out its own
// outputs, four consecutive m of one n:
//
//            n: TILE_GN lanes                         per k a thread reads 4 values of a (one 16-byte
//          +------------------+                       broadcast) and 1 of b for 4 multiply-adds;
//   m:  4  | thread 0 1 2 ... |                       a value of a is used TILE_GN times from shared
//       4  | thread TILE_GN ..|                       memory, a value of b TILE_GM times
//          +------------------+
//
// An operand says where its elements come from:
//
//   static constexpr bool K_FAST;           consecutive k are consecutive in memory, else m (or n)
//   struct Outer, struct Inner;             what is worth knowing about a row m (or n), about a k
//   Outer outer(int m);  Inner inner(int k, int k_end);
//   float load(const Outer&, const Inner&); 0 outside
//
// Lanes run along the fast direction, so that loads coalesce. A thread keeps the same rows (K_FAST)
// or the same single row for every slab: index arithmetic per row happens once, not once a slab.

#ifndef TILE_GN
#error "TILE_GN is 8, 16 or 32"
#endif
constexpr int TILE_THREADS = 256;
constexpr int TILE_GM = 4 * TILE_THREADS / TILE_GN;
constexpr int TILE_GK = 16;

// A dense matrix whose element (row, k) is at base[row * row_stride + k * k_stride].
template <bool K_IS_FAST>
struct Dense {
    static constexpr bool K_FAST = K_IS_FAST;
    typedef const float* Outer;
    typedef long long Inner;
    const float* base;
    int rows;
    long long row_stride, k_stride;
    __device__ __forceinline__ Outer outer(int row) const {
        return row < rows ? base + row * row_stride : nullptr;
    }
    __device__ __forceinline__ Inner inner(int k, int k_end) const {
        return k < k_end ? k * k_stride : -1;
    }
    __device__ __forceinline__ float load(const Outer& row, const Inner& at) const {
        return row && at >= 0 ? row[at] : 0.0f;
    }
};

// One slab of one operand: which elements a thread loads, and the rows it keeps.
template <class Operand, int ROWS, int STRIDE>
struct Slab {
    static constexpr int LOADS = (ROWS * TILE_GK + TILE_THREADS - 1) / TILE_THREADS;
    static constexpr int OUTERS = Operand::K_FAST ? LOADS : 1;
    static constexpr int INNERS = Operand::K_FAST ? 1 : LOADS;
    // Rows (or slabs' k) between two loads of a thread.
    static constexpr int STEP = TILE_THREADS / (Operand::K_FAST ? TILE_GK : ROWS);

    typename Operand::Outer outers[OUTERS];

    __device__ __forceinline__ int row(int load) const {
        return Operand::K_FAST ? (int)threadIdx.x / TILE_GK + load * STEP : (int)threadIdx.x % ROWS;
    }
    __device__ __forceinline__ int k(int load) const {
        return Operand::K_FAST ? (int)threadIdx.x % TILE_GK : (int)threadIdx.x / ROWS + load * STEP;
    }
    // A tile of 8 rows has fewer elements than the block has threads.
    __device__ __forceinline__ bool inside(int load) const {
        return row(load) < ROWS && k(load) < TILE_GK;
    }

    __device__ __forceinline__ void begin(const Operand& operand, int first_row) {
#pragma unroll
        for (int i = 0; i < OUTERS; ++i) outers[i] = operand.outer(first_row + row(i));
    }

    __device__ __forceinline__ void fill(
        float (&tile)[TILE_GK][STRIDE], const Operand& operand, int k0, int k_end) const {
        typename Operand::Inner inners[INNERS];
#pragma unroll
        for (int i = 0; i < INNERS; ++i) inners[i] = operand.inner(k0 + k(i), k_end);
#pragma unroll
        for (int i = 0; i < LOADS; ++i)
            if (inside(i))
                tile[k(i)][row(i)] =
                    operand.load(outers[Operand::K_FAST ? i : 0], inners[Operand::K_FAST ? 0 : i]);
    }
};

// store(m, n, sum) is called for each output of the tile with m < GM and n < GN. Tile tile_m of the
// rows, tile blockIdx.y of the columns.
template <class A, class B, class Store>
__device__ __forceinline__ void tile_matmul(
    int tile_m, int GM, int GN, int k_begin, int k_end, const A& a, const B& b, Store store) {
    // a: +4 keeps 16-byte alignment of the four m that a thread reads at once. b: +2 lets sixteen k
    // of two rows fall into 32 different banks when the slab is written.
    constexpr int STRIDE_A = TILE_GM + 4, STRIDE_B = TILE_GN + 2;
    __shared__ __align__(16) float tile_a[TILE_GK][STRIDE_A];
    __shared__ __align__(16) float tile_b[TILE_GK][STRIDE_B];

    const int first_m = tile_m * TILE_GM, first_n = blockIdx.y * TILE_GN;
    const int m = (int)threadIdx.x / TILE_GN * 4, n = (int)threadIdx.x % TILE_GN;

    Slab<A, TILE_GM, STRIDE_A> slab_a;
    Slab<B, TILE_GN, STRIDE_B> slab_b;
    slab_a.begin(a, first_m);
    slab_b.begin(b, first_n);

    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int k0 = k_begin; k0 < k_end; k0 += TILE_GK) {
        slab_a.fill(tile_a, a, k0, k_end);
        slab_b.fill(tile_b, b, k0, k_end);
        __syncthreads();  // the slab is complete
#pragma unroll
        for (int k = 0; k < TILE_GK; ++k) {
            const float4 u = *reinterpret_cast<const float4*>(&tile_a[k][m]);
            const float v = tile_b[k][n];
            sum[0] = fmaf(u.x, v, sum[0]);
            sum[1] = fmaf(u.y, v, sum[1]);
            sum[2] = fmaf(u.z, v, sum[2]);
            sum[3] = fmaf(u.w, v, sum[3]);
        }
        __syncthreads();  // everyone has read it before the next one overwrites it
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (first_m + m + i < GM && first_n + n < GN) store(first_m + m + i, first_n + n, sum[i]);
}

// The same for a grid whose x counts the tiles of rows.
template <class A, class B, class Store>
__device__ __forceinline__ void tile_matmul(
    int GM, int GN, int k_begin, int k_end, const A& a, const B& b, Store store) {
    tile_matmul((int)blockIdx.x, GM, GN, k_begin, k_end, a, b, store);
}
