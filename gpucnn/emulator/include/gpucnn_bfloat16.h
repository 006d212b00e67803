// __nv_bfloat16: the upper half of a float, rounded to nearest even.
#pragma once

GPUCNN_INLINE unsigned short gpucnn_float_to_bfloat16_bits(float f) {
    const unsigned x = __float_as_uint(f);
    if ((x & 0x7fffffffu) > 0x7f800000u) return (unsigned short)0x7fff;
    return (unsigned short)((x + 0x7fffu + (x >> 16 & 1u)) >> 16);
}

struct __attribute__((aligned(2))) __nv_bfloat16 {
    unsigned short bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float f) : bits(gpucnn_float_to_bfloat16_bits(f)) {}
    __nv_bfloat16(double d) : bits(gpucnn_float_to_bfloat16_bits((float)d)) {}
    __nv_bfloat16(int i) : bits(gpucnn_float_to_bfloat16_bits((float)i)) {}
    __nv_bfloat16(unsigned i) : bits(gpucnn_float_to_bfloat16_bits((float)i)) {}
    operator float() const { return __uint_as_float((unsigned)bits << 16); }
};
struct __attribute__((aligned(4))) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;

GPUCNN_INLINE __nv_bfloat16 __float2bfloat16(float f) { return __nv_bfloat16(f); }
GPUCNN_INLINE __nv_bfloat16 __float2bfloat16_rn(float f) { return __nv_bfloat16(f); }
GPUCNN_INLINE float __bfloat162float(__nv_bfloat16 b) { return (float)b; }
GPUCNN_INLINE __nv_bfloat16 __ushort_as_bfloat16(unsigned short b) {
    return gpucnn_bit_cast<__nv_bfloat16>(b);
}
GPUCNN_INLINE unsigned short __bfloat16_as_ushort(__nv_bfloat16 b) { return b.bits; }
GPUCNN_INLINE __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
GPUCNN_INLINE __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
GPUCNN_INLINE __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }
GPUCNN_INLINE __nv_bfloat162 __float2bfloat162_rn(float f) { return {f, f}; }
GPUCNN_INLINE __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
GPUCNN_INLINE __nv_bfloat162 __float22bfloat162_rn(float2 f) { return {f.x, f.y}; }
GPUCNN_INLINE float2 __bfloat1622float2(__nv_bfloat162 b) { return {(float)b.x, (float)b.y}; }
GPUCNN_INLINE float __low2float(__nv_bfloat162 b) { return (float)b.x; }
GPUCNN_INLINE float __high2float(__nv_bfloat162 b) { return (float)b.y; }

GPUCNN_NARROW_ARITHMETIC(__nv_bfloat16, __nv_bfloat162)
#undef GPUCNN_NARROW_ARITHMETIC
