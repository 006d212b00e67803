// What every kernel file shares. Dimension letters are those of the Python side:
// N H W C, OC KH KW, OH OW, SH SW (stride), PT PL (top and left padding), DH DW (dilation), G (groups).

#include "storage.cuh"

#define GPUCNN_INFINITY __int_as_float(0x7f800000)

__device__ __forceinline__ bool aligned16(const void* pointer) {
    return (reinterpret_cast<unsigned long long>(pointer) & 15) == 0;
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
