// Losses of pairs of numbers, element by element, of scores x against targets t; any layout.
//
//   l1_loss      |x - t|                                            slope sign(x - t), 0 at 0
//   mse_loss     (x - t)^2                                          slope 2*(x - t)
//   huber_loss   curvature*a*(|x - t| - a/2), a = min(|x - t|, delta)
//                slope curvature*(x - t), with x - t cut to -delta..delta
//   bce_with_logits_loss  -t*log sigmoid(x) - (1 - t)*log sigmoid(-x)    slope sigmoid(x) - t
//   weighted_bce_with_logits_loss  -p*w*t*log sigmoid(x) - w*(1 - t)*log sigmoid(-x)
//                slope w*((p*t + 1 - t)*sigmoid(x) - p*t); w and p are vectors that repeat along x
//   hinge_loss   max(0, 1 - t*x), t = -1 or 1                       slope -t where 1 - t*x > 0, else 0
//   kl_div       t*(log t - x), 0 where t is 0                      slope -t
//   kl_div_log   exp(t)*(t - x), 0 where exp(t) is 0                slope -exp(t)
//
// Each writes what is asked for: loss[i] = factor * loss; sums[block] = their sum over the elements
// of a block; dx[i] = factor * dy[i] * slope, with dy = 1 where it is null. NaN passes.
//
// A block takes `each` consecutive elements, a multiple of 1024, in steps of 1024: a thread moves
// four at a time, one 16-byte access per array, so a warp moves 512 contiguous bytes per request.
// The sum and the gradient come from one pass: 12 bytes per element, memory-bound. The threads' sums
// meet in shuffles and shared memory, the caller adds those of the blocks: no atomics, the order of
// additions depends on n alone. Any n.

#include "common.cuh"
#include "warp.cuh"

// f(more, j, x[i+j], t[i+j], slope) is the loss of element i+j, more = load(i), for j = 0..3; i+j may lie
// past the end, by 3 at most.
template <class L, class F>
__device__ __forceinline__ void pairs_and_more(
    float* loss, float* sums, float* dx, const float* x, const float* t, const float* dy, int n,
    int each, float factor, L load, F f) {
    __shared__ float of_warp[8];
    const unsigned begin = blockIdx.x * (unsigned)each, end = min(begin + each, (unsigned)n);
    float sum = 0.0f;
    for (unsigned i = begin + 4 * threadIdx.x; i < end; i += 4 * blockDim.x) {
        const float4 x4 = load_four(x, i, n), t4 = load_four(t, i, n);
        const float4 g4 = dy ? load_four(dy, i, n) : make_float4(1.0f, 1.0f, 1.0f, 1.0f);
        const float u[4] = {x4.x, x4.y, x4.z, x4.w}, v[4] = {t4.x, t4.y, t4.z, t4.w};
        const float g[4] = {g4.x, g4.y, g4.z, g4.w};
        const auto more = load(i);
        float values[4], gradients[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float slope;
            values[j] = factor * f(more, j, u[j], v[j], slope);
            gradients[j] = factor * g[j] * slope;
            if (i + j < n) sum += values[j];  // what lies past n was read as 0
        }
        if (loss) store_four(loss, i, n, make_float4(values[0], values[1], values[2], values[3]));
        if (dx)
            store_four(dx, i, n, make_float4(gradients[0], gradients[1], gradients[2], gradients[3]));
    }
    if (!sums) return;
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
    __syncthreads();  // the sums of the other warps
    if (threadIdx.x == 0) {
        for (int w = 1; w < blockDim.x / 32; ++w) sum += of_warp[w];
        sums[blockIdx.x] = sum;
    }
}

template <class F>
__device__ __forceinline__ void pairs(
    float* loss, float* sums, float* dx, const float* x, const float* t, const float* dy, int n,
    int each, float factor, F f) {
    pairs_and_more(
        loss, sums, dx, x, t, dy, n, each, factor, [](unsigned) { return 0; },
        [=](int, int, float u, float v, float& slope) { return f(u, v, slope); });
}

extern "C" __global__ void __launch_bounds__(256) l1_loss(
    float* __restrict__ loss,      // (n) or null
    float* __restrict__ sums,      // (blocks) or null
    float* __restrict__ dx,        // (n) or null
    const float* __restrict__ x,   // (n)
    const float* __restrict__ t,   // (n)
    const float* __restrict__ dy,  // (n) or null
    int n, int each, float factor) {
    pairs(loss, sums, dx, x, t, dy, n, each, factor, [](float u, float v, float& slope) {
        const float d = u - v;
        slope = d > 0.0f ? 1.0f : d < 0.0f ? -1.0f : d;
        return fabsf(d);
    });
}

extern "C" __global__ void __launch_bounds__(256) mse_loss(
    float* __restrict__ loss, float* __restrict__ sums, float* __restrict__ dx,
    const float* __restrict__ x, const float* __restrict__ t, const float* __restrict__ dy,
    int n, int each, float factor) {
    pairs(loss, sums, dx, x, t, dy, n, each, factor, [](float u, float v, float& slope) {
        const float d = u - v;
        slope = 2.0f * d;
        return d * d;
    });
}

extern "C" __global__ void __launch_bounds__(256) huber_loss(
    float* __restrict__ loss, float* __restrict__ sums, float* __restrict__ dx,
    const float* __restrict__ x, const float* __restrict__ t, const float* __restrict__ dy,
    int n, int each, float factor, float delta, float curvature) {
    pairs(loss, sums, dx, x, t, dy, n, each, factor, [=](float u, float v, float& slope) {
        const float d = u - v, distance = fabsf(d);
        const float a = distance < delta ? distance : delta;
        slope = curvature * (d > delta ? delta : d < -delta ? -delta : d);
        return curvature * a * (distance - 0.5f * a);
    });
}

extern "C" __global__ void __launch_bounds__(256) bce_with_logits_loss(
    float* __restrict__ loss, float* __restrict__ sums, float* __restrict__ dx,
    const float* __restrict__ x, const float* __restrict__ t, const float* __restrict__ dy,
    int n, int each, float factor) {
    pairs(loss, sums, dx, x, t, dy, n, each, factor, [](float u, float v, float& slope) {
        const float e = expf(-fabsf(u));
        slope = (u < 0.0f ? e : 1.0f) / (1.0f + e) - v;
        return (u < 0.0f ? -u * v : u * (1.0f - v)) + log1pf(e);
    });
}

// Elements i .. i+3, i a multiple of 4, of a vector that repeats: 16 bytes where its length allows.
__device__ __forceinline__ float4 repeated(const float* a, unsigned i, unsigned length) {
    if (!a) return make_float4(1.0f, 1.0f, 1.0f, 1.0f);
    if (length % 4 == 0 && aligned16(a)) return *reinterpret_cast<const float4*>(a + i % length);
    return make_float4(a[i % length], a[(i + 1) % length], a[(i + 2) % length], a[(i + 3) % length]);
}

struct Weights {
    float w[4], p[4];
};

extern "C" __global__ void __launch_bounds__(256) weighted_bce_with_logits_loss(
    float* __restrict__ loss, float* __restrict__ sums, float* __restrict__ dx,
    const float* __restrict__ x, const float* __restrict__ t, const float* __restrict__ dy,
    int n, int each, float factor,
    const float* __restrict__ weight,      // (weights) or null
    const float* __restrict__ pos_weight,  // (pos_weights) or null
    int weights, int pos_weights) {
    auto load = [=](unsigned i) {
        const float4 w = repeated(weight, i, weights), p = repeated(pos_weight, i, pos_weights);
        return Weights{{w.x, w.y, w.z, w.w}, {p.x, p.y, p.z, p.w}};
    };
    auto f = [](const Weights& more, int j, float u, float v, float& slope) {
        const float positive = more.w[j] * more.p[j] * v;
        const float negative = more.w[j] * (1.0f - v), both = positive + negative;
        const float e = expf(-fabsf(u));
        slope = both * ((u < 0.0f ? e : 1.0f) / (1.0f + e)) - positive;
        return (u < 0.0f ? -u * positive : u * negative) + both * log1pf(e);
    };
    pairs_and_more(loss, sums, dx, x, t, dy, n, each, factor, load, f);
}

extern "C" __global__ void __launch_bounds__(256) hinge_loss(
    float* __restrict__ loss, float* __restrict__ sums, float* __restrict__ dx,
    const float* __restrict__ x, const float* __restrict__ t, const float* __restrict__ dy,
    int n, int each, float factor) {
    pairs(loss, sums, dx, x, t, dy, n, each, factor, [](float u, float v, float& slope) {
        const float m = 1.0f - v * u;
        slope = m <= 0.0f ? 0.0f : m > 0.0f ? -v : m;
        return m <= 0.0f ? 0.0f : m;
    });
}

extern "C" __global__ void __launch_bounds__(256) kl_div(
    float* __restrict__ loss, float* __restrict__ sums, float* __restrict__ dx,
    const float* __restrict__ x, const float* __restrict__ t, const float* __restrict__ dy,
    int n, int each, float factor) {
    pairs(loss, sums, dx, x, t, dy, n, each, factor, [](float u, float v, float& slope) {
        slope = -v;
        return v == 0.0f && u == u ? 0.0f : v * (logf(v) - u);
    });
}

extern "C" __global__ void __launch_bounds__(256) kl_div_log(
    float* __restrict__ loss, float* __restrict__ sums, float* __restrict__ dx,
    const float* __restrict__ x, const float* __restrict__ t, const float* __restrict__ dy,
    int n, int each, float factor) {
    pairs(loss, sums, dx, x, t, dy, n, each, factor, [](float u, float v, float& slope) {
        const float p = expf(v);
        slope = -p;
        return p == 0.0f && u == u ? 0.0f : p * (v - u);
    });
}
