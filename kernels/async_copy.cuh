// Copies from global into shared memory that bypass the registers and run while the block computes.
//
//   copy_async<16>(to, from, inside);   16 bytes, or zeros and nothing is read if not inside; 4 likewise
//   commit_copies();                    closes a group of them
//   wait_for_copies<N>();               until at most N groups of this thread are under way
//
// Each thread waits for its own copies; a barrier then makes everyone's visible. Both addresses are
// multiples of the size, also where nothing is read: there `from` may lie outside its array. Before
// sm_80 the copy is done at once.

template <int BYTES, class T>
__device__ __forceinline__ void copy_async(T* to, const T* from, bool inside) {
    static_assert(BYTES == 4 || BYTES == 16, "a word or four");
#ifdef GPUCNN_EMULATED
    gpucnn_copy_async<BYTES>(to, from, inside ? BYTES : 0);
#elif __CUDA_ARCH__ >= 800
    const unsigned shared = (unsigned)__cvta_generic_to_shared(to);
    const int bytes = inside ? BYTES : 0;
    if (BYTES == 16)  // past L1, of which shared memory leaves little; other taps find the line in L2
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from),
                     "r"(bytes) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(from),
                     "r"(bytes) : "memory");
#else
    if (BYTES == 16)
        *reinterpret_cast<float4*>(to) = inside ? *reinterpret_cast<const float4*>(from)
                                                : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    else
        *reinterpret_cast<float*>(to) = inside ? *reinterpret_cast<const float*>(from) : 0.0f;
#endif
}

__device__ __forceinline__ void commit_copies() {
#ifdef GPUCNN_EMULATED
    gpucnn_copy_commit();
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int PENDING>
__device__ __forceinline__ void wait_for_copies() {
#ifdef GPUCNN_EMULATED
    gpucnn_copy_wait(PENDING);
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}
