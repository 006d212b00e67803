// Tensor-core instructions. A warp multiplies a 16 x K tile of a by a K x 8 tile of b and adds the
// product to the 16 x 8 tile d. With g = lane / 4 and t = lane % 4, a lane holds
//
//   d[0..3]   (g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1)
//   TF32, K = 8:         a[0..3]  (g, t) (g+8, t) (g, t+4) (g+8, t+4)          b[0..1]  (t, g) (t+4, g)
//   16 bits, K = 16:     two consecutive k to a register, 2t and 2t+1 (+8) in place of t (+4)
//
// (PTX ISA, "Matrix fragments".) TF32 has float's range and 10 bits of mantissa. sm_80 and newer.

// Nearest TF32 number, halves away from zero; without this the tensor core would cut off the bits.
__device__ __forceinline__ unsigned to_tf32(float x) {
#if defined(GPUCNN_EMULATED)
    const unsigned bits = __float_as_uint(x);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return nan ? 0x7fffffffu : (bits + 0x1000u) & 0xffffe000u;
#elif __CUDA_ARCH__ >= 800
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
#else
    return __float_as_uint(x);
#endif
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

// Four 8 x 8 matrices of 16-bit elements, or 8 x 4 of 32-bit ones, from shared memory: lane 8 j + i
// points to row i of matrix j, and receives of each matrix the 32 bits number lane % 4 of row
// lane / 4.
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], const float* row) {
#if defined(GPUCNN_EMULATED)
    gpucnn_matrix_load(r, row, false);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row)) : "memory");
#endif
}
