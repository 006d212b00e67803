// Warp-level operations, each one rendezvous of the lanes in a mask.
#pragma once

extern "C" {
unsigned long gpucnn_warp(unsigned mask, unsigned operation, unsigned long value,
                          unsigned argument);
unsigned gpucnn_active_mask();
}

extern const uint3 threadIdx;
extern const gpucnn_size blockDim;

// The values of `Operation` in csrc/warp.cpp.
enum : unsigned {
    gpucnn_sync,
    gpucnn_shuffle,
    gpucnn_ballot,
    gpucnn_match_any,
    gpucnn_match_all,
    gpucnn_reduce_add,
    gpucnn_reduce_min_signed,
    gpucnn_reduce_max_signed,
    gpucnn_reduce_min_unsigned,
    gpucnn_reduce_max_unsigned,
    gpucnn_reduce_and,
    gpucnn_reduce_or,
    gpucnn_reduce_xor,
    gpucnn_multiply,
    gpucnn_load,
};

GPUCNN_INLINE int gpucnn_lane() {
    return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) & 31;
}

template <class T>
GPUCNN_INLINE unsigned long gpucnn_to_bits(T value) {
    static_assert(sizeof(T) <= 8, "warp operations take up to 64 bits");
    unsigned long bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(T));
    return bits;
}
template <class T>
GPUCNN_INLINE T gpucnn_from_bits(unsigned long bits) {
    T value;
    __builtin_memcpy((void*)&value, &bits, sizeof(T));
    return value;
}

GPUCNN_INLINE void __syncwarp(unsigned mask = 0xffffffffu) { gpucnn_warp(mask, gpucnn_sync, 0, 0); }
GPUCNN_INLINE unsigned __activemask() { return gpucnn_active_mask(); }
GPUCNN_INLINE unsigned __ballot_sync(unsigned mask, int p) {
    return (unsigned)gpucnn_warp(mask, gpucnn_ballot, p != 0, 0);
}
GPUCNN_INLINE int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
GPUCNN_INLINE int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, !p) == 0; }

template <class T>
GPUCNN_INLINE T gpucnn_shuffle_from(unsigned mask, T value, int lane) {
    return gpucnn_from_bits<T>(
        gpucnn_warp(mask, gpucnn_shuffle, gpucnn_to_bits(value), (unsigned)lane));
}
template <class T>
GPUCNN_INLINE T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const int own = gpucnn_lane();
    return gpucnn_shuffle_from(mask, value, (own & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
GPUCNN_INLINE T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int own = gpucnn_lane();
    const bool inside = (unsigned)(own & (width - 1)) >= delta;
    return gpucnn_shuffle_from(mask, value, inside ? own - (int)delta : own);
}
template <class T>
GPUCNN_INLINE T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int own = gpucnn_lane();
    const bool inside = (unsigned)(own & (width - 1)) + delta < (unsigned)width;
    return gpucnn_shuffle_from(mask, value, inside ? own + (int)delta : own);
}
template <class T>
GPUCNN_INLINE T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    const int own = gpucnn_lane();
    const int source = own ^ lanes;
    return gpucnn_shuffle_from(mask, value, source < (own & ~(width - 1)) + width ? source : own);
}

template <class T>
GPUCNN_INLINE unsigned __match_any_sync(unsigned mask, T value) {
    return (unsigned)gpucnn_warp(mask, gpucnn_match_any, gpucnn_to_bits(value), 0);
}
template <class T>
GPUCNN_INLINE unsigned __match_all_sync(unsigned mask, T value, int* all) {
    const unsigned same = (unsigned)gpucnn_warp(mask, gpucnn_match_all, gpucnn_to_bits(value), 0);
    *all = same != 0;
    return same;
}

#define GPUCNN_REDUCE(T, name, operation)                                           \
    GPUCNN_INLINE T __reduce_##name##_sync(unsigned mask, T value) {                \
        return (T)gpucnn_warp(mask, gpucnn_reduce_##operation, (unsigned)value, 0); \
    }
GPUCNN_REDUCE(int, add, add)
GPUCNN_REDUCE(unsigned, add, add)
GPUCNN_REDUCE(int, min, min_signed)
GPUCNN_REDUCE(unsigned, min, min_unsigned)
GPUCNN_REDUCE(int, max, max_signed)
GPUCNN_REDUCE(unsigned, max, max_unsigned)
GPUCNN_REDUCE(unsigned, and, and)
GPUCNN_REDUCE(unsigned, or, or)
GPUCNN_REDUCE(unsigned, xor, xor)
#undef GPUCNN_REDUCE
