// Philox 4x32-10: four random words from a counter and a key, the same ones as gpucnn/random.py.
// Element i of a stream is word i % 4 of block i / 4; no state, so any thread computes any element.
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11.

__device__ __forceinline__ uint4 philox(
    unsigned long long block, unsigned long long stream, unsigned long long seed) {
    unsigned c0 = (unsigned)block, c1 = (unsigned)(block >> 32);
    unsigned c2 = (unsigned)stream, c3 = (unsigned)(stream >> 32);
    unsigned k0 = (unsigned)seed, k1 = (unsigned)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const unsigned high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0, c1 = low1;
        c2 = high0 ^ c3 ^ k1, c3 = low0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
}
