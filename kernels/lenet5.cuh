// LeNet-5 as lenet5_step.cu has it: where parameters, what images leave behind, and what a block works
// on lie. Letters: Q are the 2 x 2 squares of pixels that a pooling averages.

#define THREADS 512
#define WARPS (THREADS / 32)

// A parameter begins at a multiple of 64 elements of the flat buffers.
__device__ constexpr int padded(int n) { return (n + 63) / 64 * 64; }

constexpr int SIDE = 28, SIDE1 = 14, SIDE2 = 5;     // of images, and behind the first and second pooling
constexpr int C1 = 6, C2 = 16, O1 = 120, O2 = 84;   // channels, and outputs of linear layers
constexpr int MOST_CLASSES = 16;
constexpr int K = 5, TAPS = K * K;                  // both windows
constexpr int PIXELS2 = 100;                        // of the second convolution: 10 x 10
constexpr int Q1 = SIDE1 * SIDE1, Q2 = SIDE2 * SIDE2;
constexpr int FEATURES = Q2 * C2;                   // 400, (h, w, c)
constexpr int W1 = TAPS * C1, W2 = TAPS * C1 * C2;  // weights of the convolutions

// Where parameters begin: weight and bias of each layer in turn.
constexpr int AT_W1 = 0, AT_B1 = AT_W1 + padded(W1);
constexpr int AT_W2 = AT_B1 + padded(C1), AT_B2 = AT_W2 + padded(W2);
constexpr int AT_F1 = AT_B2 + padded(C2), AT_G1 = AT_F1 + padded(O1 * FEATURES);
constexpr int AT_F2 = AT_G1 + padded(O1), AT_G2 = AT_F2 + padded(O2 * O1);
constexpr int AT_F3 = AT_G2 + padded(O2);
__device__ constexpr int at_g3(int classes) { return AT_F3 + padded(classes * O2); }

// What an image leaves behind in global memory: the inputs x of the linear layers and the gradients d of
// their outputs, rows of d filled up with zeros, its loss, and its share of the gradient of each weight
// and bias of the convolutions.
constexpr int X1 = 0, X2 = X1 + FEATURES, X3 = X2 + O1, LOSS = X3 + O2;
constexpr int D1 = 608, D2 = D1 + 128, D3 = D2 + 96, CONVOLUTIONS = D3 + MOST_CLASSES;
constexpr int SHARES = W1 + C1 + W2 + C2;
constexpr int RECORD = CONVOLUTIONS + 2576;
static_assert(LOSS < D1 && SHARES <= 2576 && RECORD == 3424, "no two in one place; the launcher knows");

constexpr int PITCH = 36;                            // of the image with its border of zeros
constexpr int D_PITCH = SIDE * 4 + 4, D_HALF = SIDE * D_PITCH;  // of the first convolution's gradient
constexpr int SLICES = 4;                            // of the sums of the gradient of the features

// What a block has in shared memory besides the room behind it. The six channels of the first
// convolution are two halves of three, with a fourth of zeros.
struct Block {
    float image[(SIDE + 4) * PITCH];
    float w1[TAPS][2][4], b1[2][4];
    float w2[TAPS * C1][C2], b2[C2];  // (kh, kw, c), oc
    float g1[O1], g2[96], w3[MOST_CLASSES * O2], g3[MOST_CLASSES];
    float pooled[Q1 * C1], features[FEATURES];
    float h1[O1], h2[96], scores[MOST_CLASSES];
    float d3[MOST_CLASSES], d2[96], d1[128];
    float parts[WARPS * O1];
    float sums[WARPS][C2], image_sums[WARPS][8];
};
constexpr int BLOCK_FLOATS = sizeof(Block) / 4;
static_assert(sizeof(Block) == 38816 && SLICES * FEATURES <= WARPS * O1, "the launcher knows; enough parts");

// The room behind it: first rows of the first linear layer's weights, then, when those are used up,
// gradients of maps, and last the sums of a block over its images' slices.
constexpr int ROOM_D2 = 0, ROOM_P1 = ROOM_D2 + PIXELS2 * C2;  // of the second map, of the pooled first
constexpr int ROOM_W2 = ROOM_P1 + Q1 * C1;                    // weights: the second half of the rows
constexpr int ROOM_D1 = ROOM_W2 + W2;
constexpr int ROOM = ROOM_D1 + 2 * D_HALF;                    // floats: the least there must be
constexpr int ROOM_W1 = 0;                                    // 28 rows of sums, where D2 and P1 were
static_assert(SIDE * W1 <= ROOM_D1 && WARPS * THREADS <= ROOM && 4 * ROOM == 46688, "they fit");

// threadIdx.x, read anew by each phase: places that the compiler could work out once for all images and
// phases would take the registers of the sums.
__device__ __forceinline__ int this_thread() {
#ifdef GPUCNN_EMULATED
    return threadIdx.x;
#else
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
#endif
}
