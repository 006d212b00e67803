// The forward pass of one image by one block, from shared memory into shared memory. Between two of
// these functions there is a barrier of the block. What later phases of the launch need goes to the
// image's record.

#define ROWS1 ((O1 + WARPS - 1) / WARPS)  // outputs of the linear layers to a warp
#define ROWS2 ((O2 + WARPS - 1) / WARPS)

// Once per block: all parameters but the weights of the first two linear layers.
__device__ __forceinline__ void load_parameters(Block& b, const float* p, int classes) {
    const int thread = this_thread();
    for (int i = thread; i < (SIDE + 4) * PITCH; i += THREADS) b.image[i] = 0.0f;
    for (int i = thread; i < TAPS * 8; i += THREADS) {
        const int tap = i / 8, half = i / 4 % 2, c = i % 4;
        b.w1[tap][half][c] = c < 3 ? p[AT_W1 + (half * 3 + c) * TAPS + tap] : 0.0f;
    }
    for (int i = thread; i < W2; i += THREADS)
        b.w2[i % (TAPS * C1)][i / (TAPS * C1)] = p[AT_W2 + i];
    for (int i = thread; i < classes * O2; i += THREADS) b.w3[i] = p[AT_F3 + i];
    if (thread < 8) b.b1[thread / 4][thread % 4] = thread % 4 < 3 ? p[AT_B1 + thread / 4 * 3 + thread % 4] : 0.0f;
    if (thread < C2) b.b2[thread] = p[AT_B2 + thread];
    if (thread < O1) b.g1[thread] = p[AT_G1 + thread];
    if (thread < O2) b.g2[thread] = p[AT_G2 + thread];
    if (thread < classes) b.g3[thread] = p[at_g3(classes) + thread];
}

// Starts to copy the first `kept` rows of the first linear layer's weights.
__device__ __forceinline__ void begin_copy(float* room, const float* p, int kept) {
    for (int i = this_thread() * 4; i < kept * FEATURES; i += THREADS * 4)
        copy_async<16>(room + i, p + AT_F1 + i, true);
    commit_copies();
}

__device__ __forceinline__ void load_image(Block& b, const float* x) {
    for (int i = this_thread(); i < SIDE * SIDE; i += THREADS)
        b.image[(i / SIDE + 2) * PITCH + i % SIDE + 2] = x[i];
}

// A thread has three channels of a 2 x 2 square: 12 sums, with two rows of six pixels in registers, and
// one load of weights for 12 multiply-adds. 392 threads.
__device__ __forceinline__ void first_convolution(Block& b, float (&t1)[4][3]) {
    const int thread = this_thread(), half = thread % 2, q = thread / 2;
    if (q >= Q1) return;
    const float* from = b.image + q / SIDE1 * 2 * PITCH + q % SIDE1 * 2;
    float rows[2][6];
    auto load = [from](float (&row)[6], int r) {
#pragma unroll
        for (int i = 0; i < 6; i += 2) {
            const float2 two = *reinterpret_cast<const float2*>(from + r * PITCH + i);
            row[i] = two.x, row[i + 1] = two.y;
        }
    };
#pragma unroll
    for (int c = 0; c < 3; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) t1[i][c] = b.b1[half][c];
    load(rows[0], 0);
#pragma unroll
    for (int kh = 0; kh < K; ++kh) {
        const float(&upper)[6] = rows[kh % 2];
        float(&lower)[6] = rows[1 - kh % 2];
        load(lower, kh + 1);
#pragma unroll
        for (int kw = 0; kw < K; ++kw) {
            const float4 w4 = *reinterpret_cast<const float4*>(b.w1[kh * K + kw][half]);
            const float w[3] = {w4.x, w4.y, w4.z};
#pragma unroll
            for (int c = 0; c < 3; ++c) {
                t1[0][c] += upper[kw] * w[c];
                t1[1][c] += upper[kw + 1] * w[c];
                t1[2][c] += lower[kw] * w[c];
                t1[3][c] += lower[kw + 1] * w[c];
            }
        }
    }
#pragma unroll
    for (int c = 0; c < 3; ++c) {
#pragma unroll
        for (int i = 0; i < 4; ++i) t1[i][c] = tanhf(t1[i][c]);
        b.pooled[q * C1 + half * 3 + c] = 0.25f * (t1[0][c] + t1[1][c] + t1[2][c] + t1[3][c]);
    }
}

__device__ __forceinline__ void load_pixel(float (&pixel)[C1], const float* from) {
#pragma unroll
    for (int c = 0; c < C1; c += 2) {
        const float2 two = *reinterpret_cast<const float2*>(from + c);
        pixel[c] = two.x, pixel[c + 1] = two.y;
    }
}

// A thread has two channels of a 2 x 2 square: 8 sums, with a window of 2 x 2 pixels that slides to the
// right. 200 threads.
__device__ __forceinline__ void second_convolution(Block& b, float (&t2)[4][2], float* record) {
    const int thread = this_thread(), oc = thread % (C2 / 2) * 2, q = thread / (C2 / 2);
    if (q >= Q2) return;
    const float* from = b.pooled + (q / SIDE2 * 2 * SIDE1 + q % SIDE2 * 2) * C1;
#pragma unroll
    for (int i = 0; i < 4; ++i) t2[i][0] = b.b2[oc], t2[i][1] = b.b2[oc + 1];
#pragma unroll 1
    for (int kh = 0; kh < K; ++kh, from += SIDE1 * C1) {
        float window[2][2][C1];
        load_pixel(window[0][0], from);
        load_pixel(window[1][0], from + SIDE1 * C1);
#pragma unroll
        for (int kw = 0; kw < K; ++kw) {
            const int left = kw % 2, right = 1 - left;
            load_pixel(window[0][right], from + (kw + 1) * C1);
            load_pixel(window[1][right], from + (SIDE1 + kw + 1) * C1);
#pragma unroll
            for (int c = 0; c < C1; ++c) {
                const float2 w = *reinterpret_cast<const float2*>(&b.w2[(kh * K + kw) * C1 + c][oc]);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float pixel = window[i / 2][i % 2 ? right : left][c];
                    t2[i][0] += pixel * w.x;
                    t2[i][1] += pixel * w.y;
                }
            }
        }
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) t2[i][j] = tanhf(t2[i][j]);
        const float mean = 0.25f * (t2[0][j] + t2[1][j] + t2[2][j] + t2[3][j]);
        b.features[q * C2 + oc + j] = record[X1 + q * C2 + oc + j] = mean;
    }
}

__device__ __forceinline__ float dot(float4 a, float4 b) {
    return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

// A warp has an output, eight in turn; its lanes have every 32nd four of the features.
__device__ __forceinline__ void first_linear(
    Block& b, const float* room, const float* p, int kept, float* record) {
    constexpr int FOURS = FEATURES / 4, EACH = (FOURS + 31) / 32;
    const int thread = this_thread(), warp = thread / 32, lane = thread % 32;
    float4 x[EACH];
#pragma unroll
    for (int j = 0; j < EACH; ++j) {
        const int i = lane + 32 * j;
        x[j] = i < FOURS ? reinterpret_cast<const float4*>(b.features)[i]
                         : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    auto row = [&](const float* w) {
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < EACH; ++j)
            if (lane + 32 * j < FOURS) sum += dot(reinterpret_cast<const float4*>(w)[lane + 32 * j], x[j]);
        return sum;
    };
#pragma unroll 4
    for (int r = 0; r < ROWS1; ++r) {
        const int o = warp + WARPS * r;
        if (o >= O1) break;
        const float sum =
            warp_sum(o < kept ? row(room + o * FEATURES) : row(p + AT_F1 + o * FEATURES));
        if (lane == 0) b.h1[o] = record[X2 + o] = tanhf(sum + b.g1[o]);
    }
}

// Output warp + 16 r, inputs 4 lane to 4 lane + 3.
__device__ __forceinline__ void load_second(float4 (&w2)[ROWS2], const float* p) {
    const int thread = this_thread(), warp = thread / 32, lane = thread % 32;
#pragma unroll
    for (int r = 0; r < ROWS2; ++r) {
        const int o = warp + WARPS * r;
        w2[r] = o < O2 && lane < O1 / 4
                    ? *reinterpret_cast<const float4*>(p + AT_F2 + o * O1 + 4 * lane)
                    : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
}

__device__ __forceinline__ void second_linear(Block& b, const float4 (&w2)[ROWS2], float* record) {
    const int thread = this_thread(), warp = thread / 32, lane = thread % 32;
    const bool inside = lane < O1 / 4;  // not 0 times what lies behind, which may be no number
    const float4 x = inside ? *reinterpret_cast<const float4*>(b.h1 + 4 * lane)
                            : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int r = 0; r < ROWS2; ++r) {
        const int o = warp + WARPS * r;
        const float sum = warp_sum(dot(w2[r], x));
        if (lane == 0 && o < O2) b.h2[o] = record[X3 + o] = tanhf(sum + b.g2[o]);
    }
}

// A warp to a class.
__device__ __forceinline__ void third_linear(Block& b, float* scores, int classes) {
    const int thread = this_thread(), o = thread / 32, lane = thread % 32;
    if (o >= classes) return;
    float sum = 0.0f;
    if (lane < O2 / 4)
        sum = dot(*reinterpret_cast<const float4*>(b.w3 + o * O2 + 4 * lane),
                  *reinterpret_cast<const float4*>(b.h2 + 4 * lane));
    sum = warp_sum(sum);
    if (lane == 0) b.scores[o] = scores[o] = sum + b.g3[o];
}

// One warp: the loss of the image, unscaled, and the gradient of its scores, times `share`. Ignored and
// unknown labels as in cross_entropy.cu.
__device__ __forceinline__ void cross_entropy(
    Block& b, int label, int classes, int ignore_index, float share, float* record) {
    const int lane = this_thread();
    if (lane >= 32) return;
    const bool inside = lane < classes, ignored = label == ignore_index;
    const bool known = label >= 0 && label < classes;
    const float score = inside ? b.scores[lane] : -GPUCNN_INFINITY;
    const float distance = score - warp_max(score), e = inside ? expf(distance) : 0.0f;
    const float sum = warp_sum(e), weight = known ? 1.0f : __int_as_float(0x7fffffff);
    const float own = __shfl_sync(0xffffffffu, distance, known ? label : 0);
    if (lane == 0) record[LOSS] = ignored ? 0.0f : weight * (logf(sum) - own);
    if (lane >= MOST_CLASSES) return;
    const float d = weight * e / sum - (lane == label ? weight : 0.0f);
    b.d3[lane] = record[D3 + lane] = inside && !ignored ? share * d : 0.0f;
}
