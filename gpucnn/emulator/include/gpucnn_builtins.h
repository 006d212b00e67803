// Thread indices, barriers, fences, cache-hinted loads and stores, assert, printf, memcpy.
#pragma once

extern const uint3 threadIdx, blockIdx;
extern const gpucnn_size blockDim, gridDim;
static constexpr int warpSize = 32;

extern "C" {
unsigned gpucnn_barrier(unsigned kind, unsigned predicate);
void gpucnn_fence();
void gpucnn_check_range(const void* address, unsigned long bytes, unsigned is_write);
__attribute__((noreturn)) void gpucnn_assert_failed(const char* expression, const char* file,
                                                    int line);
int printf(const char* format, ...) noexcept(false);
}

GPUCNN_INLINE void __syncthreads() { gpucnn_barrier(0, 0); }
GPUCNN_INLINE int __syncthreads_count(int predicate) { return gpucnn_barrier(1, predicate != 0); }
GPUCNN_INLINE int __syncthreads_and(int predicate) { return gpucnn_barrier(2, predicate != 0); }
GPUCNN_INLINE int __syncthreads_or(int predicate) { return gpucnn_barrier(3, predicate != 0); }
GPUCNN_INLINE void __threadfence() { gpucnn_fence(); }
GPUCNN_INLINE void __threadfence_system() { gpucnn_fence(); }
GPUCNN_INLINE void __threadfence_block() {}
GPUCNN_INLINE void __nanosleep(unsigned) {}
GPUCNN_INLINE long long clock64() { return 0; }
GPUCNN_INLINE int clock() { return 0; }
GPUCNN_INLINE void __trap() { gpucnn_assert_failed("__trap()", "", 0); }

#define GPUCNN_LOAD(name)              \
    template <class T>                 \
    GPUCNN_INLINE T name(const T* p) { \
        return *p;                     \
    }
#define GPUCNN_STORE(name)                   \
    template <class T>                       \
    GPUCNN_INLINE void name(T* p, T value) { \
        *p = value;                          \
    }
GPUCNN_LOAD(__ldg)
GPUCNN_LOAD(__ldca)
GPUCNN_LOAD(__ldcg)
GPUCNN_LOAD(__ldcs)
GPUCNN_LOAD(__ldlu)
GPUCNN_LOAD(__ldcv)
GPUCNN_STORE(__stwb)
GPUCNN_STORE(__stcg)
GPUCNN_STORE(__stcs)
GPUCNN_STORE(__stwt)
#undef GPUCNN_LOAD
#undef GPUCNN_STORE

// Calls of memcpy and memset in a kernel are renamed to these. Builds that count accesses keep the
// compiler from turning them into accesses, which would count a second time.
#ifdef GPUCNN_COUNTED
#define GPUCNN_WHOLE static __attribute__((noipa, no_sanitize_thread))
#else
#define GPUCNN_WHOLE GPUCNN_INLINE
#endif
GPUCNN_WHOLE void* gpucnn_move(void* to, const void* from, unsigned long bytes) {
    return __builtin_memcpy(to, from, bytes);
}
GPUCNN_WHOLE void* gpucnn_fill(void* to, int value, unsigned long bytes) {
    return __builtin_memset(to, value, bytes);
}
#undef GPUCNN_WHOLE
GPUCNN_INLINE void* gpucnn_memcpy(void* to, const void* from, unsigned long bytes) {
    gpucnn_check_range(from, bytes, 0);
    gpucnn_check_range(to, bytes, 1);
    return gpucnn_move(to, from, bytes);
}
GPUCNN_INLINE void* gpucnn_memset(void* to, int value, unsigned long bytes) {
    gpucnn_check_range(to, bytes, 1);
    return gpucnn_fill(to, value, bytes);
}

GPUCNN_INLINE unsigned long __cvta_generic_to_shared(const void* p) { return (unsigned long)p; }
template <class T>
GPUCNN_INLINE T __builtin_assume_aligned_t(T p) {
    return p;
}
#define __builtin_assume(condition) ((void)0)

#include "assert.h"
