// The backward pass of one image by one block; as the forward pass, with a barrier of the block between
// two of these functions but where one is said to need none.

__device__ __forceinline__ float tanh_gradient(float g, float y) { return g * (1.0f - y * y); }

__device__ __forceinline__ void third_linear_back(Block& b, int classes, float* record) {
    const int i = this_thread();
    if (i >= D3 - D2) return;
    float g = 0.0f;
    if (i < O2) {
        for (int o = 0; o < classes; ++o) g += b.w3[o * O2 + i] * b.d3[o];
        g = tanh_gradient(g, b.h2[i]);
    }
    b.d2[i] = record[D2 + i] = g;
}

__device__ __forceinline__ void add_scaled(float4& sum, float4 a, float by) {
    sum.x += a.x * by;
    sum.y += a.y * by;
    sum.z += a.z * by;
    sum.w += a.w * by;
}

// Each warp has sums over its outputs, which meet in shared memory. Ends with a barrier.
__device__ __forceinline__ void second_linear_back(Block& b, const float4 (&w2)[ROWS2], float* record) {
    const int thread = this_thread(), warp = thread / 32, lane = thread % 32;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int r = 0; r < ROWS2; ++r)
        if (warp + WARPS * r < O2) add_scaled(sum, w2[r], b.d2[warp + WARPS * r]);
    if (lane < O1 / 4) *reinterpret_cast<float4*>(b.parts + warp * O1 + 4 * lane) = sum;
    __syncthreads();
    if (thread < D2 - D1) {
        float g = 0.0f;
        if (thread < O1) {
#pragma unroll
            for (int w = 0; w < WARPS; ++w) g += b.parts[w * O1 + thread];
            g = tanh_gradient(g, b.h1[thread]);
        }
        b.d1[thread] = record[D1 + thread] = g;
    }
    __syncthreads();
}

// A thread has four features and a quarter of the outputs; the quarters meet in the next function.
__device__ __forceinline__ void first_linear_back(Block& b, const float* room, const float* p, int kept) {
    constexpr int FOURS = FEATURES / 4, OUTPUTS = O1 / SLICES;
    const int thread = this_thread(), i = thread % FOURS * 4, slice = thread / FOURS;
    if (slice >= SLICES) return;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    const int begin = slice * OUTPUTS, end = begin + OUTPUTS, middle = max(begin, min(end, kept));
#pragma unroll 6
    for (int o = begin; o < middle; ++o)
        add_scaled(sum, *reinterpret_cast<const float4*>(room + o * FEATURES + i), b.d1[o]);
#pragma unroll 6
    for (int o = middle; o < end; ++o)
        add_scaled(sum, *reinterpret_cast<const float4*>(p + AT_F1 + o * FEATURES + i), b.d1[o]);
    *reinterpret_cast<float4*>(b.parts + slice * FEATURES + i) = sum;
}

// The gradient behind the second convolution, by the threads that computed its output.
__device__ __forceinline__ void second_map_gradient(Block& b, float* room, const float (&t2)[4][2]) {
    const int thread = this_thread(), oc = thread % (C2 / 2) * 2, q = thread / (C2 / 2);
    float sums[2] = {0.0f, 0.0f};
    if (q < Q2) {
        float g[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            float sum = 0.0f;
#pragma unroll
            for (int s = 0; s < SLICES; ++s) sum += b.parts[s * FEATURES + q * C2 + oc + j];
            g[j] = 0.25f * sum;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 d = make_float2(tanh_gradient(g[0], t2[i][0]), tanh_gradient(g[1], t2[i][1]));
            const int pixel = (q / SIDE2 * 2 + i / 2) * 2 * SIDE2 + q % SIDE2 * 2 + i % 2;
            *reinterpret_cast<float2*>(room + ROOM_D2 + pixel * C2 + oc) = d;
            sums[0] += d.x;
            sums[1] += d.y;
        }
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {  // a warp's four squares
        sums[j] += __shfl_xor_sync(0xffffffffu, sums[j], 8);
        sums[j] += __shfl_xor_sync(0xffffffffu, sums[j], 16);
        if (thread % 32 < 8) b.sums[thread / 32][oc + j] = sums[j];
    }
}

// Four channels of a pixel of the second map's gradient; zeros outside.
__device__ __forceinline__ float4 load_gradient(const float* map, int y, int x) {
    constexpr int SIZE = 2 * SIDE2;
    if (y < 0 || y >= SIZE || x < 0 || x >= SIZE) return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    return *reinterpret_cast<const float4*>(map + (y * SIZE + x) * C2);
}

// The gradient of the pooled first map. Two warps have a row of seven 2 x 2 squares, one to a half of
// the channels; four lanes to a square, each with four of the 16 channels of the gradient that comes
// in, whose sums then meet. All lanes skip the same rows that lie outside. Needs no barrier behind it.
__device__ __forceinline__ void pooled_gradient(const Block& b, float* room) {
    const int thread = this_thread(), warp = thread / 32, lane = thread % 32, half = warp % 2;
    const int top = warp / 2 * 2, left = lane / 4 * 2, oc = lane % 4 * 4;
    if (top >= SIDE1) return;
    const float* map = room + ROOM_D2 + oc;
    float sums[4][3] = {};
#pragma unroll 1
    for (int kh = 0; kh < K; ++kh) {
        const int y = top - kh;  // that the tap takes to the upper row; the next one to the lower
        if (y >= 2 * SIDE2 || y + 1 < 0) continue;
        float4 upper[2], lower[2];  // pixels that slide to the left
        upper[1] = load_gradient(map, y, left + 1);
        lower[1] = load_gradient(map, y + 1, left + 1);
#pragma unroll
        for (int kw = 0; kw < K; ++kw) {
            const int own = kw % 2, next = 1 - own;
            upper[own] = load_gradient(map, y, left - kw);
            lower[own] = load_gradient(map, y + 1, left - kw);
#pragma unroll
            for (int c = 0; c < 3; ++c) {
                const float4 w = *reinterpret_cast<const float4*>(
                    &b.w2[(kh * K + kw) * C1 + half * 3 + c][oc]);
                sums[0][c] += dot(upper[own], w);
                sums[1][c] += dot(upper[next], w);
                sums[2][c] += dot(lower[own], w);
                sums[3][c] += dot(lower[next], w);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            float& sum = sums[i][c];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            if (lane % 4 == 0 && left < SIDE1)
                room[ROOM_P1 + ((top + i / 2) * SIDE1 + left + i % 2) * C1 + half * 3 + c] = sum;
        }
}

// The gradient of the second convolution's weights. A thread has a row of five taps by four channels for
// a channel of the input, and half of the rows of pixels: 20 sums. Has a barrier in it, and needs one.
__device__ __forceinline__ void second_weight_gradient(Block& b, float* room, float* record) {
    constexpr int OWNERS = K * C1 * C2 / 4;  // 120
    const int thread = this_thread(), slice = thread / OWNERS, owner = thread % OWNERS;
    const int oc = owner % 4 * 4, c = owner / 4 % C1, kh = owner / (4 * C1);
    float4 sums[K];
#pragma unroll
    for (int kw = 0; kw < K; ++kw) sums[kw] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (slice < 2) {
#pragma unroll 1
        for (int h = slice * SIDE2; h < (slice + 1) * SIDE2; ++h) {
            const float* x = b.pooled + (h + kh) * SIDE1 * C1 + c;
            const float* d = room + ROOM_D2 + h * 2 * SIDE2 * C2 + oc;
            float window[K];
#pragma unroll
            for (int i = 0; i < K - 1; ++i) window[i] = x[i * C1];
#pragma unroll
            for (int w = 0; w < 2 * SIDE2; ++w) {
                window[(w + K - 1) % K] = x[(w + K - 1) * C1];
                const float4 d4 = *reinterpret_cast<const float4*>(d + w * C2);
#pragma unroll
                for (int kw = 0; kw < K; ++kw) add_scaled(sums[kw], d4, window[(w + kw) % K]);
            }
        }
    }
    float* const half = room + ROOM_W2;
    if (slice == 1)
#pragma unroll
        for (int kw = 0; kw < K; ++kw)
            *reinterpret_cast<float4*>(half + (kw * OWNERS + owner) * 4) = sums[kw];
    __syncthreads();
    if (slice == 0)
#pragma unroll
        for (int kw = 0; kw < K; ++kw) {
            const float4 other = *reinterpret_cast<const float4*>(half + (kw * OWNERS + owner) * 4);
            const int at = (oc * K + kh) * K * C1 + kw * C1 + c;
            float* const to = record + CONVOLUTIONS + W1 + C1 + at;
            to[0] = sums[kw].x + other.x;
            to[W2 / C2] = sums[kw].y + other.y;
            to[2 * W2 / C2] = sums[kw].z + other.z;
            to[3 * W2 / C2] = sums[kw].w + other.w;
        }
    if (thread >= THREADS - C2) {
        const int channel = thread - (THREADS - C2);
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < (Q2 * C2 / 2 + 31) / 32; ++w) sum += b.sums[w][channel];
        record[CONVOLUTIONS + W1 + C1 + W2 + channel] = sum;
    }
}

// The gradient behind the first convolution, by the threads that computed its output. Between it and
// pooled_gradient lies the barrier of second_weight_gradient.
__device__ __forceinline__ void first_map_gradient(Block& b, float* room, const float (&t1)[4][3]) {
    const int thread = this_thread(), half = thread % 2, q = thread / 2;
    float sums[3] = {0.0f, 0.0f, 0.0f};
    if (q < Q1) {
        float g[3];
#pragma unroll
        for (int c = 0; c < 3; ++c) g[c] = 0.25f * room[ROOM_P1 + q * C1 + half * 3 + c];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float4 d = make_float4(tanh_gradient(g[0], t1[i][0]), tanh_gradient(g[1], t1[i][1]),
                                         tanh_gradient(g[2], t1[i][2]), 0.0f);
            const int h = q / SIDE1 * 2 + i / 2, w = q % SIDE1 * 2 + i % 2;
            *reinterpret_cast<float4*>(room + ROOM_D1 + half * D_HALF + h * D_PITCH + w * 4) = d;
            sums[0] += d.x;
            sums[1] += d.y;
            sums[2] += d.z;
        }
    }
#pragma unroll
    for (int c = 0; c < 3; ++c) {  // a warp's 16 squares
#pragma unroll
        for (int step = 2; step < 32; step *= 2)
            sums[c] += __shfl_xor_sync(0xffffffffu, sums[c], step);
        if (thread % 32 < 2) b.image_sums[thread / 32][half * 3 + c] = sums[c];
    }
}

// The gradient of the first convolution's weights. A thread has a row of five taps by three channels, and
// a row of pixels: 15 sums; 280 threads. Then a thread to a weight adds up the 28 rows. Has a barrier in
// it, and needs one.
__device__ __forceinline__ void first_weight_gradient(Block& b, float* room, float* record) {
    const int thread = this_thread(), half = thread % 2, kh = thread / 2 % K, h = thread / (2 * K);
    if (h < SIDE) {
        const float* x = b.image + (h + kh) * PITCH;
        const float* d = room + ROOM_D1 + half * D_HALF + h * D_PITCH;
        float sums[K][3] = {}, window[8];
        auto load = [x](float* to, int w) {
            const float4 four = *reinterpret_cast<const float4*>(x + w);
            to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
        };
        load(window + 4, 0);
#pragma unroll 1
        for (int w = 0; w < SIDE; w += 4) {
#pragma unroll
            for (int i = 0; i < 4; ++i) window[i] = window[4 + i];
            load(window + 4, w + 4);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float4 g = *reinterpret_cast<const float4*>(d + (w + i) * 4);
#pragma unroll
                for (int kw = 0; kw < K; ++kw) {
                    sums[kw][0] += window[i + kw] * g.x;
                    sums[kw][1] += window[i + kw] * g.y;
                    sums[kw][2] += window[i + kw] * g.z;
                }
            }
        }
#pragma unroll
        for (int kw = 0; kw < K; ++kw)
#pragma unroll
            for (int c = 0; c < 3; ++c)
                room[ROOM_W1 + h * W1 + (half * 3 + c) * TAPS + kh * K + kw] = sums[kw][c];
    }
    __syncthreads();
    if (thread < W1) {
        float sum = 0.0f;
#pragma unroll 7
        for (int r = 0; r < SIDE; ++r) sum += room[ROOM_W1 + r * W1 + thread];
        record[CONVOLUTIONS + thread] = sum;
    } else if (thread >= THREADS - C1) {
        const int channel = thread - (THREADS - C1);
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < (2 * Q1 + 31) / 32; ++w) sum += b.image_sums[w][channel];
        record[CONVOLUTIONS + W1 + channel] = sum;
    }
}
