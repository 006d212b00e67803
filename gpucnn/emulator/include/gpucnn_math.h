// Device math. Fast-math intrinsics compute the exactly rounded or library result: the emulator
// does not model their error.
#pragma once

#include <math.h>

#define CUDART_INF_F __builtin_inff()
#define CUDART_NAN_F __builtin_nanf("")
#define CUDART_MAX_NORMAL_F 3.402823466e+38f
#define CUDART_MIN_DENORM_F 1.401298464e-45f
#define CUDART_NEG_ZERO_F -0.0f
#define CUDART_PI_F 3.141592654f
#define CUDART_PIO2_F 1.570796327f
#define CUDART_SQRT_TWO_F 1.414213562f
#define CUDART_SQRT_HALF_F 0.707106781f
#define CUDART_L2E_F 1.442695041f
#define CUDART_LN2_F 0.693147181f
#define CUDART_INF __builtin_inf()
#define CUDART_NAN __builtin_nan("")
#define CUDART_PI 3.1415926535897931e+0

template <class To, class From>
GPUCNN_INLINE To gpucnn_bit_cast(From value) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    To result;
    __builtin_memcpy((void*)&result, &value, sizeof(To));
    return result;
}
GPUCNN_INLINE int __float_as_int(float x) { return gpucnn_bit_cast<int>(x); }
GPUCNN_INLINE unsigned __float_as_uint(float x) { return gpucnn_bit_cast<unsigned>(x); }
GPUCNN_INLINE float __int_as_float(int x) { return gpucnn_bit_cast<float>(x); }
GPUCNN_INLINE float __uint_as_float(unsigned x) { return gpucnn_bit_cast<float>(x); }
GPUCNN_INLINE long long __double_as_longlong(double x) { return gpucnn_bit_cast<long long>(x); }
GPUCNN_INLINE double __longlong_as_double(long long x) { return gpucnn_bit_cast<double>(x); }

// min and max: of two floats the one that is a number, as fminf and fmaxf.
#define GPUCNN_MIN_MAX(R, A, B)                                                   \
    GPUCNN_INLINE constexpr R min(A a, B b) { return (R)a < (R)b ? (R)a : (R)b; } \
    GPUCNN_INLINE constexpr R max(A a, B b) { return (R)a > (R)b ? (R)a : (R)b; }
GPUCNN_MIN_MAX(int, int, int)
GPUCNN_MIN_MAX(unsigned, unsigned, unsigned)
GPUCNN_MIN_MAX(unsigned, int, unsigned)
GPUCNN_MIN_MAX(unsigned, unsigned, int)
GPUCNN_MIN_MAX(long, long, long)
GPUCNN_MIN_MAX(unsigned long, unsigned long, unsigned long)
GPUCNN_MIN_MAX(unsigned long, long, unsigned long)
GPUCNN_MIN_MAX(unsigned long, unsigned long, long)
GPUCNN_MIN_MAX(long long, long long, long long)
GPUCNN_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
GPUCNN_MIN_MAX(unsigned long long, long long, unsigned long long)
GPUCNN_MIN_MAX(unsigned long long, unsigned long long, long long)
#undef GPUCNN_MIN_MAX
GPUCNN_INLINE float min(float a, float b) { return __builtin_fminf(a, b); }
GPUCNN_INLINE float max(float a, float b) { return __builtin_fmaxf(a, b); }
GPUCNN_INLINE double min(double a, double b) { return __builtin_fmin(a, b); }
GPUCNN_INLINE double max(double a, double b) { return __builtin_fmax(a, b); }
GPUCNN_INLINE double min(float a, double b) { return __builtin_fmin(a, b); }
GPUCNN_INLINE double max(float a, double b) { return __builtin_fmax(a, b); }
GPUCNN_INLINE double min(double a, float b) { return __builtin_fmin(a, b); }
GPUCNN_INLINE double max(double a, float b) { return __builtin_fmax(a, b); }
GPUCNN_INLINE unsigned umin(unsigned a, unsigned b) { return a < b ? a : b; }
GPUCNN_INLINE unsigned umax(unsigned a, unsigned b) { return a > b ? a : b; }

GPUCNN_OPERATION float rsqrtf(float x) { return (float)(1.0 / __builtin_sqrt((double)x)); }
GPUCNN_OPERATION double rsqrt(double x) { return 1.0 / __builtin_sqrt(x); }
GPUCNN_INLINE float rsqrt(float x) { return rsqrtf(x); }
GPUCNN_OPERATION float rcbrtf(float x) { return 1.0f / __builtin_cbrtf(x); }
GPUCNN_OPERATION float sinpif(float x) {
    return __builtin_sinf(CUDART_PI_F * __builtin_fmodf(x, 2.0f));
}
GPUCNN_OPERATION float cospif(float x) {
    return __builtin_cosf(CUDART_PI_F * __builtin_fmodf(x, 2.0f));
}
GPUCNN_OPERATION float normcdff(float x) { return 0.5f * __builtin_erfcf(-x * CUDART_SQRT_HALF_F); }
GPUCNN_INLINE void gpucnn_sincosf(float x, float* s, float* c) {
    *s = __builtin_sinf(x), *c = __builtin_cosf(x);
}
GPUCNN_INLINE void sincospif(float x, float* s, float* c) { *s = sinpif(x), *c = cospif(x); }

// Macros, because the C library has functions of these names.
#define sincosf gpucnn_sincosf
#define __sincosf gpucnn_sincosf
#define __expf expf
#define __exp10f exp10f
#define __logf logf
#define __log2f log2f
#define __log10f log10f
#define __sinf sinf
#define __cosf cosf
#define __tanf tanf
#define __powf powf
GPUCNN_INLINE float __fdividef(float x, float y) { return x / y; }
GPUCNN_INLINE float fdividef(float x, float y) { return x / y; }
GPUCNN_INLINE float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
GPUCNN_INLINE float __fadd_rn(float x, float y) { return x + y; }
GPUCNN_INLINE float __fsub_rn(float x, float y) { return x - y; }
GPUCNN_INLINE float __fmul_rn(float x, float y) { return x * y; }
GPUCNN_INLINE float __fdiv_rn(float x, float y) { return x / y; }
GPUCNN_INLINE float __fmaf_rn(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
GPUCNN_INLINE float __frcp_rn(float x) { return 1.0f / x; }
GPUCNN_INLINE float __fsqrt_rn(float x) { return __builtin_sqrtf(x); }
GPUCNN_INLINE float __frsqrt_rn(float x) { return rsqrtf(x); }
GPUCNN_INLINE double __dadd_rn(double x, double y) { return x + y; }
GPUCNN_INLINE double __dmul_rn(double x, double y) { return x * y; }
GPUCNN_INLINE double __fma_rn(double x, double y, double z) { return __builtin_fma(x, y, z); }

GPUCNN_INLINE int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
GPUCNN_INLINE int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
GPUCNN_INLINE int __popc(unsigned x) { return __builtin_popcount(x); }
GPUCNN_INLINE int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
GPUCNN_INLINE int __ffs(int x) { return __builtin_ffs(x); }
GPUCNN_INLINE int __ffsll(long long x) { return __builtin_ffsll(x); }
GPUCNN_INLINE int __mulhi(int x, int y) { return (int)((long long)x * y >> 32); }
GPUCNN_INLINE unsigned __umulhi(unsigned x, unsigned y) {
    return (unsigned)((unsigned long long)x * y >> 32);
}
GPUCNN_INLINE unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned long long)((unsigned __int128)x * y >> 64);
}
GPUCNN_INLINE int __mul24(int x, int y) {
    return (int)((long long)((int)((unsigned)x << 8) >> 8) * ((int)((unsigned)y << 8) >> 8));
}
GPUCNN_INLINE unsigned __umul24(unsigned x, unsigned y) { return (x & 0xffffff) * (y & 0xffffff); }
GPUCNN_INLINE unsigned __brev(unsigned x) {
    unsigned r = 0;
    for (int i = 0; i < 32; ++i) r |= (x >> i & 1) << (31 - i);
    return r;
}
GPUCNN_INLINE unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const unsigned long long bytes = (unsigned long long)y << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; ++i)
        r |= (unsigned)(bytes >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
    return r;
}
GPUCNN_INLINE unsigned __funnelshift_l(unsigned low, unsigned high, unsigned n) {
    return (unsigned)(((unsigned long long)high << 32 | low) << (n & 31) >> 32);
}
GPUCNN_INLINE unsigned __funnelshift_r(unsigned low, unsigned high, unsigned n) {
    return (unsigned)(((unsigned long long)high << 32 | low) >> (n & 31));
}

GPUCNN_OPERATION int gpucnn_to_int(double x) {
    return x != x               ? 0
           : x >= 2147483647.0  ? 2147483647
           : x <= -2147483648.0 ? (-2147483647 - 1)
                                : (int)x;
}
GPUCNN_OPERATION unsigned gpucnn_to_uint(double x) {
    return !(x > 0) ? 0u : x >= 4294967295.0 ? 4294967295u : (unsigned)x;
}
GPUCNN_INLINE int __float2int_rn(float x) { return gpucnn_to_int(__builtin_rint(x)); }
GPUCNN_INLINE int __float2int_rz(float x) { return gpucnn_to_int(__builtin_trunc(x)); }
GPUCNN_INLINE int __float2int_rd(float x) { return gpucnn_to_int(__builtin_floor(x)); }
GPUCNN_INLINE int __float2int_ru(float x) { return gpucnn_to_int(__builtin_ceil(x)); }
GPUCNN_INLINE unsigned __float2uint_rn(float x) { return gpucnn_to_uint(__builtin_rint(x)); }
GPUCNN_INLINE unsigned __float2uint_rz(float x) { return gpucnn_to_uint(__builtin_trunc(x)); }
GPUCNN_INLINE float __int2float_rn(int x) { return (float)x; }
GPUCNN_INLINE float __uint2float_rn(unsigned x) { return (float)x; }
GPUCNN_INLINE float __double2float_rn(double x) { return (float)x; }
