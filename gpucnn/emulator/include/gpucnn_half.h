// __half: IEEE binary16 storage. Arithmetic rounds after each operation, as the GPU's does: the
// float result of +, -, *, / on halves is exact enough that rounding it again gives the same half.
#pragma once

GPUCNN_OPERATION unsigned short gpucnn_float_to_half_bits(float f) {
    const unsigned x = __float_as_uint(f);
    const unsigned sign = x >> 16 & 0x8000u, magnitude = x & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (unsigned short)0x7fff;
    if (magnitude >= 0x477ff000u) return (unsigned short)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 rounds at 2^-24, to nearest even
        const float shifted = __uint_as_float(magnitude) + 0.5f;
        return (unsigned short)(sign | (__float_as_uint(shifted) - 0x3f000000u));
    }
    const unsigned rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    return (unsigned short)(sign | (rounded - 0x38000000u) >> 13);
}
GPUCNN_OPERATION float gpucnn_half_bits_to_float(unsigned short h) {
    const unsigned sign = (unsigned)(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
    if (magnitude >= 0x7c00u)
        return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    if (magnitude >= 0x400u) return __uint_as_float(sign | ((magnitude << 13) + 0x38000000u));
    const float tiny = (float)magnitude * 5.9604644775390625e-8f;
    return sign ? -tiny : tiny;
}

struct __attribute__((aligned(2))) __half {
    unsigned short bits;
    __half() = default;
    __half(float f) : bits(gpucnn_float_to_half_bits(f)) {}
    __half(double d) : bits(gpucnn_float_to_half_bits((float)d)) {}
    __half(int i) : bits(gpucnn_float_to_half_bits((float)i)) {}
    __half(unsigned i) : bits(gpucnn_float_to_half_bits((float)i)) {}
    operator float() const { return gpucnn_half_bits_to_float(bits); }
};
struct __attribute__((aligned(4))) __half2 {
    __half x, y;
};
typedef __half half;
typedef __half2 half2;

GPUCNN_INLINE __half __float2half(float f) { return __half(f); }
GPUCNN_INLINE __half __float2half_rn(float f) { return __half(f); }
GPUCNN_INLINE float __half2float(__half h) { return (float)h; }
GPUCNN_INLINE __half __ushort_as_half(unsigned short b) { return gpucnn_bit_cast<__half>(b); }
GPUCNN_INLINE unsigned short __half_as_ushort(__half h) { return h.bits; }
GPUCNN_INLINE __half2 make_half2(__half x, __half y) { return {x, y}; }
GPUCNN_INLINE __half2 __halves2half2(__half x, __half y) { return {x, y}; }
GPUCNN_INLINE __half2 __half2half2(__half x) { return {x, x}; }
GPUCNN_INLINE __half2 __float2half2_rn(float f) { return {__half(f), __half(f)}; }
GPUCNN_INLINE __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
GPUCNN_INLINE __half2 __float22half2_rn(float2 f) { return {__half(f.x), __half(f.y)}; }
GPUCNN_INLINE float2 __half22float2(__half2 h) { return {(float)h.x, (float)h.y}; }
GPUCNN_INLINE float __low2float(__half2 h) { return (float)h.x; }
GPUCNN_INLINE float __high2float(__half2 h) { return (float)h.y; }
GPUCNN_INLINE __half __low2half(__half2 h) { return h.x; }
GPUCNN_INLINE __half __high2half(__half2 h) { return h.y; }

#define GPUCNN_NARROW_ARITHMETIC(T, T2)                                                 \
    GPUCNN_INLINE T operator+(T a, T b) { return T((float)a + (float)b); }              \
    GPUCNN_INLINE T operator-(T a, T b) { return T((float)a - (float)b); }              \
    GPUCNN_INLINE T operator*(T a, T b) { return T((float)a * (float)b); }              \
    GPUCNN_INLINE T operator/(T a, T b) { return T((float)a / (float)b); }              \
    GPUCNN_INLINE T operator-(T a) { return T(-(float)a); }                             \
    GPUCNN_INLINE T& operator+=(T& a, T b) { return a = a + b; }                        \
    GPUCNN_INLINE T& operator-=(T& a, T b) { return a = a - b; }                        \
    GPUCNN_INLINE T& operator*=(T& a, T b) { return a = a * b; }                        \
    GPUCNN_INLINE bool operator<(T a, T b) { return (float)a < (float)b; }              \
    GPUCNN_INLINE bool operator>(T a, T b) { return (float)a > (float)b; }              \
    GPUCNN_INLINE bool operator<=(T a, T b) { return (float)a <= (float)b; }            \
    GPUCNN_INLINE bool operator>=(T a, T b) { return (float)a >= (float)b; }            \
    GPUCNN_INLINE bool operator==(T a, T b) { return (float)a == (float)b; }            \
    GPUCNN_INLINE bool operator!=(T a, T b) { return (float)a != (float)b; }            \
    GPUCNN_INLINE T __hadd(T a, T b) { return a + b; }                                  \
    GPUCNN_INLINE T __hsub(T a, T b) { return a - b; }                                  \
    GPUCNN_INLINE T __hmul(T a, T b) { return a * b; }                                  \
    GPUCNN_INLINE T __hdiv(T a, T b) { return a / b; }                                  \
    GPUCNN_INLINE T __hneg(T a) { return -a; }                                          \
    GPUCNN_INLINE T __hmax(T a, T b) { return T(__builtin_fmaxf((float)a, (float)b)); } \
    GPUCNN_INLINE T __hmin(T a, T b) { return T(__builtin_fminf((float)a, (float)b)); } \
    GPUCNN_INLINE bool __hlt(T a, T b) { return a < b; }                                \
    GPUCNN_INLINE bool __hgt(T a, T b) { return a > b; }                                \
    GPUCNN_INLINE bool __hisnan(T a) { return (float)a != (float)a; }                   \
    GPUCNN_INLINE T2 __hadd2(T2 a, T2 b) { return {a.x + b.x, a.y + b.y}; }             \
    GPUCNN_INLINE T2 __hsub2(T2 a, T2 b) { return {a.x - b.x, a.y - b.y}; }             \
    GPUCNN_INLINE T2 __hmul2(T2 a, T2 b) { return {a.x * b.x, a.y * b.y}; }

GPUCNN_NARROW_ARITHMETIC(__half, __half2)
