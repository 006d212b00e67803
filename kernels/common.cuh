// What every kernel file shares. Dimension letters are those of the Python side:
// N H W C, OC KH KW, OH OW, SH SW (stride), PT PL (top and left padding), DH DW (dilation), G (groups).

#define GPUCNN_INFINITY __int_as_float(0x7f800000)

__device__ __forceinline__ bool aligned16(const void* pointer) {
    return (reinterpret_cast<unsigned long long>(pointer) & 15) == 0;
}

// The first of the four consecutive elements that this thread of a 1-D grid owns. Unsigned, because
// the last block may reach past 2^31.
__device__ __forceinline__ unsigned first_of_four() {
    return (blockIdx.x * blockDim.x + threadIdx.x) * 4u;
}

// y[i] = f(a[i]) for this thread's four elements of n: one 16-byte load and store where the arrays
// are aligned, single elements at the tail. y may be a.
template <class F>
__device__ __forceinline__ void map_four(float* y, const float* a, unsigned n, F f) {
    unsigned i = first_of_four();
    if (i + 4 <= n && aligned16(y) && aligned16(a)) {
        float4 v = *reinterpret_cast<const float4*>(a + i);
        *reinterpret_cast<float4*>(y + i) = make_float4(f(v.x), f(v.y), f(v.z), f(v.w));
    } else {
        for (unsigned end = min(i + 4, n); i < end; ++i) y[i] = f(a[i]);
    }
}

// y[i] = f(a[i], b[i]), as above.
template <class F>
__device__ __forceinline__ void map_four(float* y, const float* a, const float* b, unsigned n, F f) {
    unsigned i = first_of_four();
    if (i + 4 <= n && aligned16(y) && aligned16(a) && aligned16(b)) {
        float4 u = *reinterpret_cast<const float4*>(a + i);
        float4 v = *reinterpret_cast<const float4*>(b + i);
        *reinterpret_cast<float4*>(y + i) =
            make_float4(f(u.x, v.x), f(u.y, v.y), f(u.z, v.z), f(u.w, v.w));
    } else {
        for (unsigned end = min(i + 4, n); i < end; ++i) y[i] = f(a[i], b[i]);
    }
}
