// What stands in for mma.sync, ldmatrix and cp.async, which kernels reach through small functions of
// their own. Every lane of a warp takes part in the first two.
#pragma once

extern "C" {
void gpucnn_copy_begin(unsigned long to, const void* value, unsigned size);
void gpucnn_copy_commit();
void gpucnn_copy_wait(unsigned pending);
}

// The values of `Shape` in csrc/matrix.cpp.
enum : unsigned { gpucnn_tf32_16x8x8, gpucnn_bf16_16x8x16, gpucnn_f16_16x8x16, gpucnn_f16_16x8x8 };

// d += a b
GPUCNN_INLINE void gpucnn_matrix_multiply(unsigned shape, float* d, const unsigned* a,
                                          const unsigned* b) {
    struct {
        float* d;
        const unsigned *a, *b;
    } own{d, a, b};
    gpucnn_warp(0xffffffffu, gpucnn_multiply, (unsigned long)&own, shape);
}

// Reads this lane's 16-byte row and receives its part of four 8x8 matrices of 16-bit elements.
GPUCNN_INLINE void gpucnn_matrix_load(unsigned (&to)[4], const void* row, bool transposed) {
    const uint4 value = *static_cast<const uint4*>(row);
    struct {
        const uint4* row;
        unsigned* to;
    } own{&value, to};
    gpucnn_warp(0xffffffffu, gpucnn_load, (unsigned long)&own, transposed);
}

// Copies `bytes` (a multiple of 4) of the SIZE bytes and zeros the rest, at the wait. To name the source
// makes the compiler check its alignment, which cp.async asks for also where it reads nothing.
template <int SIZE>
GPUCNN_INLINE void gpucnn_copy_async(void* to, const void* from, int bytes) {
    static_assert(SIZE == 4 || SIZE == 16, "cp.async with a source size takes 4 or 16 bytes here");
    unsigned value[SIZE / 4] = {};
    if constexpr (SIZE == 16) {
        const uint4& source = *static_cast<const uint4*>(from);
        if (bytes == 16) {
            const uint4 read = source;
            value[0] = read.x, value[1] = read.y, value[2] = read.z, value[3] = read.w;
        } else {
            for (int i = 0; i * 4 < bytes; ++i) value[i] = static_cast<const unsigned*>(from)[i];
        }
        *static_cast<uint4*>(to) = make_uint4(0x7fffdeadu, 0x7fffdeadu, 0x7fffdeadu, 0x7fffdeadu);
    } else {
        const unsigned& source = *static_cast<const unsigned*>(from);
        if (bytes) value[0] = source;
        *static_cast<unsigned*>(to) = 0x7fffdeadu;
    }
    gpucnn_copy_begin((unsigned long)to, value, SIZE);
}
