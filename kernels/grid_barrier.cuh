// A barrier of all threads of all blocks. A kernel whose file includes this is launched as a
// cooperative one, for which all blocks of the grid are resident at once, or it is refused.
//
//   grid_barrier(word);   every thread of every block calls it; what any of them wrote to global memory
//                         before, all may read behind it (not by __ldg, nor through a pointer that
//                         promises that nobody else writes there)
//
// word: one for all barriers of all launches of a stream, 0 before the first. Its low bits count the
// blocks that have come; the last one to come carries over into the highest bit, which all wait to see
// turn. So it needs no reset, and grids of any size may take turns with it. Waiting costs one block's
// first thread a load that misses L1; the way there and back through L2 is what a barrier costs.

__device__ __forceinline__ void grid_barrier(unsigned* word) {
    constexpr unsigned HIGHEST = 0x80000000u;
    __syncthreads();  // the block has written all that it will have written
    if (threadIdx.x == 0) {
        __threadfence();
        // The first block counts for what is missing to carry over, once all others have come.
        const unsigned share = blockIdx.x == 0 ? HIGHEST - (gridDim.x - 1) : 1u;
        const unsigned old = atomicSub(word, 0u - share);
#ifdef GPUCNN_EMULATED
        gpucnn_wait_for_change(word, HIGHEST, old);
#else
        unsigned now;
        do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(word) : "memory");
        } while (((now ^ old) & HIGHEST) == 0);
#endif
        __threadfence();
    }
    __syncthreads();
}
