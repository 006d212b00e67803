// CUDA's built-in vector types, with their alignment, and the make_ functions.
#pragma once

#define GPUCNN_VECTOR_TYPES(name, T, align2, align4)                          \
    struct name##1 { T x; };                                                  \
    struct __attribute__((aligned(align2))) name##2 { T x, y; };              \
    struct name##3 { T x, y, z; };                                            \
    struct __attribute__((aligned(align4))) name##4 { T x, y, z, w; };        \
    GPUCNN_INLINE name##1 make_##name##1(T x) { return {x}; }                 \
    GPUCNN_INLINE name##2 make_##name##2(T x, T y) { return {x, y}; }         \
    GPUCNN_INLINE name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
    GPUCNN_INLINE name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

GPUCNN_VECTOR_TYPES(char, signed char, 2, 4)
GPUCNN_VECTOR_TYPES(uchar, unsigned char, 2, 4)
GPUCNN_VECTOR_TYPES(short, short, 4, 8)
GPUCNN_VECTOR_TYPES(ushort, unsigned short, 4, 8)
GPUCNN_VECTOR_TYPES(int, int, 8, 16)
GPUCNN_VECTOR_TYPES(uint, unsigned int, 8, 16)
GPUCNN_VECTOR_TYPES(long, long, 16, 16)
GPUCNN_VECTOR_TYPES(ulong, unsigned long, 16, 16)
GPUCNN_VECTOR_TYPES(longlong, long long, 16, 16)
GPUCNN_VECTOR_TYPES(ulonglong, unsigned long long, 16, 16)
GPUCNN_VECTOR_TYPES(float, float, 8, 16)
GPUCNN_VECTOR_TYPES(double, double, 16, 16)
#undef GPUCNN_VECTOR_TYPES

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const { return {x, y, z}; }
};

// The type of blockDim and gridDim: without dim3's constructors, which would make the compiler
// reload a const object of that type at every use.
struct gpucnn_size {
    unsigned x, y, z;
    constexpr operator dim3() const { return {x, y, z}; }
    constexpr operator uint3() const { return {x, y, z}; }
};
