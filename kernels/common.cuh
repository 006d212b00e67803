// What every kernel file shares. Dimension letters are those of the Python side:
// N H W C, OC KH KW, OH OW, SH SW (stride), PT PL (top and left padding), DH DW (dilation), G (groups).

#include "storage.cuh"

#define GPUCNN_INFINITY __int_as_float(0x7f800000)

__device__ __forceinline__ bool aligned16(const void* pointer) {
    return (reinterpret_cast<unsigned long long>(pointer) & 15) == 0;
}

// i, of which the compiler no longer knows that it has computed with it before.
__device__ __forceinline__ int forgotten(int i) {
#ifndef GPUCNN_EMULATED
    asm volatile("" : "+r"(i));
#endif
    return i;
}

// The first of the four consecutive elements that this thread of a 1-D grid owns. Unsigned, because
// the last block may reach past 2^31.
__device__ __forceinline__ unsigned first_of_four() {
    return (blockIdx.x * blockDim.x + threadIdx.x) * 4u;
}

// Elements i .. i+3 of an array of n: one access where the array is aligned, single elements at the
// tail; what lies past n reads as 0 and is not written.
template <class T>
__device__ __forceinline__ float4 load_four(const T* a, unsigned i, unsigned n) {
    if (i + 4 <= n && aligned4(a)) return read_four(a + i);
    return make_float4(i < n ? to_float(a[i]) : 0.0f, i + 1 < n ? to_float(a[i + 1]) : 0.0f,
                       i + 2 < n ? to_float(a[i + 2]) : 0.0f, i + 3 < n ? to_float(a[i + 3]) : 0.0f);
}

template <class T>
__device__ __forceinline__ void store_four(T* y, unsigned i, unsigned n, float4 v) {
    if (i + 4 <= n && aligned4(y)) {
        write_four(y + i, v);
        return;
    }
    if (i < n) set(y[i], v.x);
    if (i + 1 < n) set(y[i + 1], v.y);
    if (i + 2 < n) set(y[i + 2], v.z);
    if (i + 3 < n) set(y[i + 3], v.w);
}

// y[i] = f(a[i]) for this thread's four elements of n. y may be a.
template <class Y, class A, class F>
__device__ __forceinline__ void map_four(Y* y, const A* a, unsigned n, F f) {
    const unsigned i = first_of_four();
    if (i >= n) return;
    const float4 u = load_four(a, i, n);
    store_four(y, i, n, make_float4(f(u.x), f(u.y), f(u.z), f(u.w)));
}

// y[i] = f(a[i], b[i]), as above.
template <class Y, class A, class B, class F>
__device__ __forceinline__ void map_four(Y* y, const A* a, const B* b, unsigned n, F f) {
    const unsigned i = first_of_four();
    if (i >= n) return;
    const float4 u = load_four(a, i, n), v = load_four(b, i, n);
    store_four(y, i, n, make_float4(f(u.x, v.x), f(u.y, v.y), f(u.z, v.z), f(u.w, v.w)));
}

// Elements i .. i+7 as load_four and store_four do it, 16 bytes where the array is aligned to that.
__device__ __forceinline__ Eight load_eight(const bfloat16* a, unsigned i, unsigned n) {
    if (i + 8 <= n && aligned16(a)) return read_eight(a + i);
    Eight v;
#pragma unroll
    for (int k = 0; k < 8; ++k) v.at[k] = i + k < n ? to_float(a[i + k]) : 0.0f;
    return v;
}

__device__ __forceinline__ void store_eight(bfloat16* y, unsigned i, unsigned n, const Eight& v) {
    if (i + 8 <= n && aligned16(y)) {
        write_eight(y + i, v);
        return;
    }
#pragma unroll
    for (int k = 0; k < 8; ++k)
        if (i + k < n) set(y[i + k], v.at[k]);
}

// map_four of arrays of activations: a thread owns 16 bytes of each, four elements or eight.
#if BFLOAT16
__device__ __forceinline__ unsigned first_stored() {
    return (blockIdx.x * blockDim.x + threadIdx.x) * 8u;
}

template <class F>
__device__ __forceinline__ void map_stored(stored* y, const stored* a, unsigned n, F f) {
    const unsigned i = first_stored();
    if (i >= n) return;
    Eight u = load_eight(a, i, n);
#pragma unroll
    for (int k = 0; k < 8; ++k) u.at[k] = f(u.at[k]);
    store_eight(y, i, n, u);
}

template <class F>
__device__ __forceinline__ void map_stored(
    stored* y, const stored* a, const stored* b, unsigned n, F f) {
    const unsigned i = first_stored();
    if (i >= n) return;
    Eight u = load_eight(a, i, n);
    const Eight v = load_eight(b, i, n);
#pragma unroll
    for (int k = 0; k < 8; ++k) u.at[k] = f(u.at[k], v.at[k]);
    store_eight(y, i, n, u);
}
#else
template <class F>
__device__ __forceinline__ void map_stored(stored* y, const stored* a, unsigned n, F f) {
    map_four(y, a, n, f);
}

template <class F>
__device__ __forceinline__ void map_stored(
    stored* y, const stored* a, const stored* b, unsigned n, F f) {
    map_four(y, a, b, n, f);
}
#endif
