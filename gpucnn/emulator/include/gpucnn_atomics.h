// Integer atomics. Floating-point ones are refused: their result depends on the order of arrival.
#pragma once

#define GPUCNN_ATOMIC(T, op, Op, name)               \
    extern "C" T gpucnn_atomic_##op##_##name(T*, T); \
    GPUCNN_INLINE T atomic##Op(T* p, T v) { return gpucnn_atomic_##op##_##name(p, v); }
#define GPUCNN_ATOMICS(T, name)                      \
    GPUCNN_ATOMIC(T, add, Add, name)                 \
    GPUCNN_ATOMIC(T, min, Min, name)                 \
    GPUCNN_ATOMIC(T, max, Max, name)                 \
    GPUCNN_ATOMIC(T, and, And, name)                 \
    GPUCNN_ATOMIC(T, or, Or, name)                   \
    GPUCNN_ATOMIC(T, xor, Xor, name)                 \
    GPUCNN_ATOMIC(T, exch, Exch, name)               \
    extern "C" T gpucnn_atomic_cas_##name(T*, T, T); \
    GPUCNN_INLINE T atomicCAS(T* p, T c, T v) { return gpucnn_atomic_cas_##name(p, c, v); }

GPUCNN_ATOMICS(int, i32)
GPUCNN_ATOMICS(unsigned, u32)
GPUCNN_ATOMICS(long long, i64)
GPUCNN_ATOMICS(unsigned long long, u64)
GPUCNN_ATOMIC(unsigned, inc, Inc, u32)
GPUCNN_ATOMIC(unsigned, dec, Dec, u32)
#undef GPUCNN_ATOMICS
#undef GPUCNN_ATOMIC

// What a loop that reads a word over and over would wait for, which no fiber could see the end of.
extern "C" unsigned gpucnn_wait_for_change(unsigned* word, unsigned bits, unsigned old);

GPUCNN_INLINE int atomicSub(int* p, int v) { return atomicAdd(p, (int)(0u - (unsigned)v)); }
GPUCNN_INLINE unsigned atomicSub(unsigned* p, unsigned v) { return atomicAdd(p, 0u - v); }

// Overloads for the operand types that CUDA would convert implicitly.
GPUCNN_INLINE unsigned atomicAdd(unsigned* p, int v) { return atomicAdd(p, (unsigned)v); }
GPUCNN_INLINE unsigned long long atomicAdd(unsigned long long* p, int v) {
    return atomicAdd(p, (unsigned long long)v);
}

template <class T, class V>
GPUCNN_INLINE T gpucnn_float_atomic() {
    static_assert(sizeof(T) == 0,
                  "floating-point atomics are refused: the order of the additions, and so "
                  "the result, would change from run to run; reduce in a fixed order");
    return T();
}
template <class V>
GPUCNN_INLINE float atomicAdd(float*, V) {
    return gpucnn_float_atomic<float, V>();
}
template <class V>
GPUCNN_INLINE double atomicAdd(double*, V) {
    return gpucnn_float_atomic<double, V>();
}
template <class V>
GPUCNN_INLINE float atomicExch(float*, V) {
    return gpucnn_float_atomic<float, V>();
}
