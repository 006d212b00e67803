// What follows the barrier of the grid: gradients of all weights, summed over the images, and the step
// that Adam takes with them.

#define TILE_O 16  // weights of a task: outputs by inputs
#define TILE_I 32

__device__ constexpr int tiles(int n, int tile) { return (n + tile - 1) / tile; }

// An input more than there are, of ones, for the bias.
constexpr int ACROSS1 = tiles(FEATURES + 1, TILE_I), TILES1 = tiles(O1, TILE_O) * ACROSS1;
constexpr int ACROSS2 = tiles(O1 + 1, TILE_I), TILES2 = tiles(O2, TILE_O) * ACROSS2;
constexpr int TILES3 = tiles(O2 + 1, TILE_I);
constexpr int LINEAR_TASKS = TILES1 + TILES2 + TILES3, CONVOLUTION_TASKS = tiles(SHARES, 32);
constexpr int TASKS = LINEAR_TASKS + CONVOLUTION_TASKS + 1;
static_assert(TILE_O * TILE_I == THREADS && MOST_CLASSES <= TILE_O, "a thread to a weight");

struct Update {
    Adam adam;
    float *p, *m, *v;  // flat buffers

    // Element i, whose gradient is g.
    __device__ __forceinline__ void operator()(int i, float g) const {
        const float old = p[i];
        float mean = m[i], square = v[i];
        adam.average(old, mean, square, g);
        m[i] = mean;
        v[i] = square;
        p[i] = adam.moved(old, mean, square);
    }
};

// A tile of dw[o][i] = sum over images of d[n][o] * x[n][i]. A lane has an input, and all 16 outputs of
// it; a warp every 16th image.
__device__ __forceinline__ void update_linear(
    const Update& update, float* room, const float* records, int N, int classes, int task) {
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const bool first = task < TILES1, second = !first && task < TILES1 + TILES2;
    task -= first ? 0 : second ? TILES1 : TILES1 + TILES2;
    const int across = first ? ACROSS1 : second ? ACROSS2 : TILES3;
    const int O = first ? O1 : second ? O2 : classes, I = first ? FEATURES : second ? O1 : O2;
    const int at_w = first ? AT_F1 : second ? AT_F2 : AT_F3;
    const int at_b = first ? AT_G1 : second ? AT_G2 : at_g3(classes);
    const int o = task / across * TILE_O, i = task % across * TILE_I;
    const float* d = records + (first ? D1 : second ? D2 : D3) + o;
    const float* x = records + (first ? X1 : second ? X2 : X3) + i + lane;

    float sums[TILE_O] = {};
#pragma unroll 2
    for (int n = warp; n < N; n += WARPS) {
        const long long at = (long long)n * RECORD;
        const float value = i + lane < I ? x[at] : i + lane == I ? 1.0f : 0.0f;
#pragma unroll
        for (int j = 0; j < TILE_O; j += 4) {
            const float4 g = *reinterpret_cast<const float4*>(d + at + j);
            sums[j] += value * g.x;
            sums[j + 1] += value * g.y;
            sums[j + 2] += value * g.z;
            sums[j + 3] += value * g.w;
        }
    }
#pragma unroll
    for (int j = 0; j < TILE_O; ++j) room[warp * THREADS + j * TILE_I + lane] = sums[j];
    __syncthreads();
    const int own_o = o + thread / TILE_I, own_i = i + thread % TILE_I;
    if (own_o >= O || own_i > I) return;
    float g = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) g += room[w * THREADS + thread];
    update(own_i < I ? at_w + own_o * I + own_i : at_b + own_o, g);
}

// 32 neighbours among the images' shares; a warp has every 16th image.
__device__ __forceinline__ void update_convolutions(
    const Update& update, float* room, const float* records, int N, int task) {
    const int thread = threadIdx.x, warp = thread / 32, i = task * 32 + thread % 32;
    float sum = 0.0f;
    if (i < SHARES)
#pragma unroll 8
        for (int n = warp; n < N; n += WARPS)
            sum += records[(long long)n * RECORD + CONVOLUTIONS + i];
    room[thread] = sum;
    __syncthreads();
    if (thread >= 32 || i >= SHARES) return;
    float g = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) g += room[w * 32 + thread];
    update(i < W1                ? AT_W1 + i
                : i < W1 + C1         ? AT_B1 + i - W1
                : i < W1 + C1 + W2    ? AT_W2 + i - W1 - C1
                                      : AT_B2 + i - W1 - C1 - W2, g);
}

__device__ __forceinline__ void add_losses(
    float* loss, float* room, const float* records, int N, int known) {
    const int thread = threadIdx.x;
    float sum = 0.0f;
    for (int n = thread; n < N; n += THREADS) sum += records[(long long)n * RECORD + LOSS];
    sum = warp_sum(sum);
    if (thread % 32 == 0) room[thread / 32] = sum;
    __syncthreads();
    if (thread >= 32) return;
    sum = warp_sum(thread < WARPS ? room[thread] : 0.0f);
    if (thread == 0) *loss = sum / known;
}
