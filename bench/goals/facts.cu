// What a launch, a number handed over and a barrier of the whole grid cost: kernels that do nothing
// else.

#include "grid_barrier.cuh"

extern "C" __global__ void facts_1(float* y) { y[0] = 0.0f; }

extern "C" __global__ void facts_8(float* y, int a, int b, int c, int d, int e, int f, float g) {
    y[0] = g + (float)(a + b + c + d + e + f);
}

extern "C" __global__ void facts_16(float* y, int a, int b, int c, int d, int e, int f, int g, int h,
                                    int i, int j, int k, int l, int m, int n, float o) {
    y[0] = o + (float)(a + b + c + d + e + f + g + h + i + j + k + l + m + n);
}

struct Sixteen {
    float* y;
    int a[14];
    float o;
};

// The same in one argument, which the host has packed once.
extern "C" __global__ void facts_packed(Sixteen all) {
    int sum = 0;
    for (int i = 0; i < 14; i++) sum += all.a[i];
    all.y[0] = all.o + (float)sum;
}

// Rounds of a barrier of all blocks, and nothing in between. word: as grid_barrier takes it.
extern "C" __global__ void facts_barriers(unsigned* word, int rounds) {
    for (int i = 0; i < rounds; i++) grid_barrier(word);
}
