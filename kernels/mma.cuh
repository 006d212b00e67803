// Tensor-core instructions. A warp multiplies a 16 x K tile of a by a K x 8 tile of b and adds the
// product to the 16 x 8 tile d. With g = lane / 4 and t = lane % 4, a lane holds
//
//   d[0..3]   (g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1)
//   TF32, K = 8:         a[0..3]  (g, t) (g+8, t) (g, t+4) (g+8, t+4)          b[0..1]  (t, g) (t+4, g)
//   16 bits, K = 16:     two consecutive k to a register, 2t and 2t+1 (+8) in place of t (+4)
//
// (PTX ISA, "Matrix fragments".) TF32 has float's range and 10 bits of mantissa, bfloat16 the same
// range and 7 bits, float16 10 bits up to 65504. sm_80 and newer; float16 also sm_75.
//
// Products are exact, but a sum loses what lies 24 bits (from sm_90 on 25) below the largest of the four
// to sixteen numbers that are added at once, d among them, and is cut off to float. Each time d turns
// a little toward zero, so that the errors of a long sum add up instead of cancelling: sums that are to
// be as good as float's must be kept outside. NVIDIA documents none of this; the emulator does what
// was found out (gpucnn/emulator/csrc/matrix.cpp).

// Nearest TF32 number: without this the tensor core would cut off the bits. Halves go away from zero,
// from sm_90 on, where it takes one instruction in place of two, to even.
__device__ __forceinline__ unsigned to_tf32(float x) {
#if defined(GPUCNN_EMULATED)
    const unsigned bits = __float_as_uint(x);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return nan ? 0x7fffffffu : (bits + 0x1000u) & 0xffffe000u;
#elif __CUDA_ARCH__ >= 800
    unsigned bits;
#if __CUDA_ARCH__ >= 900
    asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
#else
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
#endif
    return bits;
#else
    return __float_as_uint(x);
#endif
}

// x as a sum of two TF32 numbers, but for its last bit: `large` is the nearest one, `small` the rest,
// of which the tensor core reads all bits that it has room for. An infinite `large` would meet a
// `small` of zero: it stays finite, `small` is infinite in its place, and three of the products of two
// such sums add up to the infinity or NaN that x times y is.
__device__ __forceinline__ void split_tf32(float x, unsigned& large, unsigned& small) {
#if !defined(GPUCNN_EMULATED) && __CUDA_ARCH__ >= 1000
    asm("cvt.rn.satfinite.tf32.f32 %0, %1;" : "=r"(large) : "f"(x));
#else
#if !defined(GPUCNN_EMULATED) && __CUDA_ARCH__ >= 900
    large = to_tf32(x);
#else
    large = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;  // of NaN anything; `small` is NaN too
#endif
    const float largest = __uint_as_float(0x7f7fe000u);  // of TF32
    large = __float_as_uint(fminf(fmaxf(__uint_as_float(large), -largest), largest));
#endif
    small = __float_as_uint(x - __uint_as_float(large));
}

// d += a b, TF32
__device__ __forceinline__ void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if defined(GPUCNN_EMULATED)
    gpucnn_matrix_multiply(gpucnn_tf32_16x8x8, d, a, b);
#elif __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __trap();
#endif
}

// Two numbers rounded to 16 bits, to nearest: bfloat16 (HALF = 1) or float16, `low` in the lower half.
template <int HALF_KIND>
__device__ __forceinline__ unsigned pack_halves(float low, float high) {
#if defined(GPUCNN_EMULATED)
    return HALF_KIND == 1 ? gpucnn_float_to_bfloat16_bits(low) |
                                (unsigned)gpucnn_float_to_bfloat16_bits(high) << 16
                          : gpucnn_float_to_half_bits(low) |
                                (unsigned)gpucnn_float_to_half_bits(high) << 16;
#elif __CUDA_ARCH__ >= 800
    unsigned word;
    if (HALF_KIND == 1)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    unsigned short halves[2];
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(halves[0]) : "f"(low));
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(halves[1]) : "f"(high));
    return halves[0] | (unsigned)halves[1] << 16;
#endif
}

// d += a b, 16-bit operands. float16 also on sm_75, in two steps of 8 k.
template <int HALF_KIND>
__device__ __forceinline__ void mma_half(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if defined(GPUCNN_EMULATED)
    gpucnn_matrix_multiply(HALF_KIND == 1 ? gpucnn_bf16_16x8x16 : gpucnn_f16_16x8x16, d, a, b);
#elif __CUDA_ARCH__ >= 800
    if (HALF_KIND == 1)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
            "{%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
            "{%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    if (HALF_KIND == 1) __trap();
    for (int half = 0; half < 2; ++half)
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
            "{%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
#endif
}

// Four 8 x 8 matrices of 16-bit elements, or 8 x 4 of 32-bit ones, from shared memory: lane 8 j + i
// points to row i of matrix j, and receives of each matrix the 32 bits number lane % 4 of row
// lane / 4.
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], const void* row) {
#if defined(GPUCNN_EMULATED)
    gpucnn_matrix_load(r, row, false);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row)) : "memory");
#endif
}

// The same of 16-bit elements, transposed: it receives of each matrix the elements 2t and 2t + 1 of
// column g, with g = lane / 4 and t = lane % 4.
__device__ __forceinline__ void load_transposed(unsigned (&r)[4], const void* row) {
#if defined(GPUCNN_EMULATED)
    gpucnn_matrix_load(r, row, true);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row)) : "memory");
#endif
}
