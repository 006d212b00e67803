// What activations and their gradients lie in memory as: `stored` is float, or with BFLOAT16 = 1
// bfloat16, the upper half of a float, rounded to nearest even. Arithmetic is float's in both cases, as
// are parameters, statistics and sums in memory.
//
// A kernel file that includes this is compiled once with each (KernelFile(..., storage=True)).

#ifndef BFLOAT16
#define BFLOAT16 0
#endif

struct bfloat16 {
    unsigned short bits;
};

#if BFLOAT16
typedef bfloat16 stored;
#else
typedef float stored;
#endif

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bfloat16 x) {
    return __uint_as_float((unsigned)x.bits << 16);
}

// Two numbers rounded to bfloat16, `low` in the lower half of the word. NaN becomes 0x7fff.
__device__ __forceinline__ unsigned bfloat16_pair(float low, float high) {
#if defined(GPUCNN_EMULATED)
    return gpucnn_float_to_bfloat16_bits(low) | (unsigned)gpucnn_float_to_bfloat16_bits(high) << 16;
#elif __CUDA_ARCH__ >= 800
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    unsigned halves[2] = {__float_as_uint(low), __float_as_uint(high)};
    for (unsigned& bits : halves)
        bits = (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return halves[0] | halves[1] << 16;
#endif
}

__device__ __forceinline__ void set(float& place, float x) { place = x; }
__device__ __forceinline__ void set(bfloat16& place, float x) {
    place.bits = (unsigned short)bfloat16_pair(x, 0.0f);
}

// x as it is read again after it was stored.
__device__ __forceinline__ float as_stored(float x) {
    stored place;
    set(place, x);
    return to_float(place);
}

// Four neighbours at once: 16 or 8 bytes, to which `a` is aligned (see aligned4).
__device__ __forceinline__ float4 read_four(const float* a) {
    return *reinterpret_cast<const float4*>(a);
}
__device__ __forceinline__ float4 read_four(const bfloat16* a) {
    const uint2 words = *reinterpret_cast<const uint2*>(a);
    return make_float4(__uint_as_float(words.x << 16), __uint_as_float(words.x & 0xffff0000u),
                       __uint_as_float(words.y << 16), __uint_as_float(words.y & 0xffff0000u));
}
__device__ __forceinline__ void write_four(float* y, float4 v) { *reinterpret_cast<float4*>(y) = v; }
__device__ __forceinline__ void write_four(bfloat16* y, float4 v) {
    *reinterpret_cast<uint2*>(y) = make_uint2(bfloat16_pair(v.x, v.y), bfloat16_pair(v.z, v.w));
}

// Eight neighbours in one access of 16 bytes, to which `a` is aligned.
struct Eight {
    float at[8];
};

__device__ __forceinline__ Eight read_eight(const bfloat16* a) {
    const uint4 words = *reinterpret_cast<const uint4*>(a);
    const unsigned word[4] = {words.x, words.y, words.z, words.w};
    Eight v;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        v.at[2 * i] = __uint_as_float(word[i] << 16);
        v.at[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
    }
    return v;
}

__device__ __forceinline__ void write_eight(bfloat16* y, const Eight& v) {
    *reinterpret_cast<uint4*>(y) =
        make_uint4(bfloat16_pair(v.at[0], v.at[1]), bfloat16_pair(v.at[2], v.at[3]),
                   bfloat16_pair(v.at[4], v.at[5]), bfloat16_pair(v.at[6], v.at[7]));
}

// Whether four elements can be read at once from here.
template <class T>
__device__ __forceinline__ bool aligned4(const T* pointer) {
    return (reinterpret_cast<unsigned long long>(pointer) & (4 * sizeof(T) - 1)) == 0;
}
