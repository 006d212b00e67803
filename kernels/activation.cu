// Activations, element by element; any layout.
//
//   relu         y = x <= 0 ? 0 : x                       a NaN passes: the comparison is false
//   leaky_relu   y = x > 0 ? x : slope*x
//   elu          y = x > 0 ? scale*x : scale*alpha*(exp(x) - 1)
//   sigmoid      y = 1/(1 + exp(-x))
//   tanh         y = tanh(x)
//   softplus     y = log(1 + exp(beta*x))/beta            x itself where beta*x > threshold
//   gelu         y = x*P(x)                               P the normal distribution function
//   gelu_tanh    y = x*sigmoid(2*u), u = sqrt(2/pi)*(x + 0.044715*x^3); sigmoid(2*u) = (1 + tanh(u))/2
//   silu         y = x*sigmoid(x)
//   hardswish    y = x*min(max(x + 3, 0), 6)/6
//
//   <name>_backward   dx = dy * slope; the slope comes from y for relu, sigmoid and tanh, which need
//                     not keep x, and from x for the others: leaky_relu and elu have no inverse
//                     where their slope is negative
//
// exp() only sees numbers <= 0, so nothing overflows, and a factor that is 0 far out meets a bounded
// x, so that 0 * infinity does not arise.
//
// A thread owns four consecutive elements (eight in bfloat16): one 16-byte access per array, so a warp
// moves 512 contiguous bytes per request. 8 bytes of traffic per element forward, 12 backward (half of
// that in bfloat16), the least: memory-bound. 2048 threads of a multiprocessor have 32 KB of reads under
// way per array, where an H200 needs some 25 KB (4.8 TB/s x 0.7 us / 132): by that count one access per
// thread and array is enough.

#include "activation.cuh"
#include "common.cuh"

#define SQRT_HALF 0.707106781f
#define SQRT_2_OVER_PI 0.797884561f
#define INVERSE_SQRT_2_PI 0.398942280f
#define CUBIC 0.044715f
#define FAR 40.0f  // beyond it sigmoid(2*u) and the normal distribution are 0 or 1

extern "C" __global__ void relu_forward(
    stored* __restrict__ y,        // (n)
    const stored* __restrict__ x,  // (n)
    int n) {
    map_stored(y, x, n, [](float v) { return v <= 0.0f ? 0.0f : v; });
}

extern "C" __global__ void relu_backward(
    stored* __restrict__ dx,        // (n)
    const stored* __restrict__ dy,  // (n)
    const stored* __restrict__ y,   // (n)
    int n) {
    map_stored(dx, dy, y, n, [](float g, float v) { return v <= 0.0f ? 0.0f : g; });
}

extern "C" __global__ void leaky_relu_forward(
    stored* __restrict__ y, const stored* __restrict__ x, int n, float negative_slope) {
    map_stored(y, x, n, [=](float v) { return v > 0.0f ? v : negative_slope * v; });
}

extern "C" __global__ void leaky_relu_backward(
    stored* __restrict__ dx, const stored* __restrict__ dy, const stored* __restrict__ x, int n,
    float negative_slope) {
    map_stored(dx, dy, x, n, [=](float g, float v) { return v > 0.0f ? g : negative_slope * g; });
}

extern "C" __global__ void elu_forward(
    stored* __restrict__ y, const stored* __restrict__ x, int n, float alpha, float scale) {
    map_stored(y, x, n, [=](float v) {
        return v > 0.0f ? scale * v : scale * alpha * expm1f(v);
    });
}

extern "C" __global__ void elu_backward(
    stored* __restrict__ dx, const stored* __restrict__ dy, const stored* __restrict__ x, int n,
    float alpha, float scale) {
    map_stored(dx, dy, x, n, [=](float g, float v) {
        return g * (v > 0.0f ? scale : scale * alpha * expf(v));
    });
}

extern "C" __global__ void sigmoid_forward(
    stored* __restrict__ y, const stored* __restrict__ x, int n) {
    map_stored(y, x, n, [](float v) { return sigmoid(v); });
}

extern "C" __global__ void sigmoid_backward(
    stored* __restrict__ dx, const stored* __restrict__ dy, const stored* __restrict__ y, int n) {
    map_stored(dx, dy, y, n, [](float g, float v) { return g * (v * (1.0f - v)); });
}

extern "C" __global__ void tanh_forward(stored* __restrict__ y, const stored* __restrict__ x, int n) {
    map_stored(y, x, n, [](float v) { return tanhf(v); });
}

extern "C" __global__ void tanh_backward(
    stored* __restrict__ dx, const stored* __restrict__ dy, const stored* __restrict__ y, int n) {
    map_stored(dx, dy, y, n, [](float g, float v) { return g * (1.0f - v * v); });
}

extern "C" __global__ void softplus_forward(
    stored* __restrict__ y, const stored* __restrict__ x, int n, float beta, float threshold) {
    map_stored(y, x, n, [=](float v) {
        const float t = beta * v;
        return t > threshold ? v : (not_below(t, 0.0f) + log1pf(expf(-fabsf(t)))) / beta;
    });
}

extern "C" __global__ void softplus_backward(
    stored* __restrict__ dx, const stored* __restrict__ dy, const stored* __restrict__ x, int n,
    float beta, float threshold) {
    map_stored(dx, dy, x, n, [=](float g, float v) {
        const float t = beta * v;
        return t > threshold ? g : g * sigmoid(t);
    });
}

extern "C" __global__ void gelu_forward(stored* __restrict__ y, const stored* __restrict__ x, int n) {
    map_stored(y, x, n, [](float v) {
        return not_below(v, -FAR) * 0.5f * erfcf(-SQRT_HALF * v);
    });
}

extern "C" __global__ void gelu_backward(
    stored* __restrict__ dx, const stored* __restrict__ dy, const stored* __restrict__ x, int n) {
    map_stored(dx, dy, x, n, [](float g, float v) {
        v = bounded(v, FAR);
        const float density = INVERSE_SQRT_2_PI * expf(-0.5f * v * v);
        return g * (0.5f * erfcf(-SQRT_HALF * v) + v * density);
    });
}

extern "C" __global__ void gelu_tanh_forward(
    stored* __restrict__ y, const stored* __restrict__ x, int n) {
    map_stored(y, x, n, [](float v) {
        const float w = bounded(v, FAR);
        return not_below(v, -FAR) * sigmoid(2.0f * SQRT_2_OVER_PI * w * (1.0f + CUBIC * w * w));
    });
}

extern "C" __global__ void gelu_tanh_backward(
    stored* __restrict__ dx, const stored* __restrict__ dy, const stored* __restrict__ x, int n) {
    map_stored(dx, dy, x, n, [](float g, float v) {
        v = bounded(v, FAR);
        const float s = sigmoid(2.0f * SQRT_2_OVER_PI * v * (1.0f + CUBIC * v * v));
        const float inner = 2.0f * SQRT_2_OVER_PI * (1.0f + 3.0f * CUBIC * v * v);
        return g * (s + v * inner * (s * (1.0f - s)));
    });
}

// Beyond 1000 sigmoid(x) is 0 or 1, in float64 as well.
extern "C" __global__ void silu_forward(stored* __restrict__ y, const stored* __restrict__ x, int n) {
    map_stored(y, x, n, [](float v) { return not_below(v, -1000.0f) * sigmoid(v); });
}

extern "C" __global__ void silu_backward(
    stored* __restrict__ dx, const stored* __restrict__ dy, const stored* __restrict__ x, int n) {
    map_stored(dx, dy, x, n, [](float g, float v) {
        const float s = sigmoid(v);
        return g * (s + bounded(v, 1000.0f) * (s * (1.0f - s)));
    });
}

extern "C" __global__ void hardswish_forward(
    stored* __restrict__ y, const stored* __restrict__ x, int n) {
    map_stored(y, x, n, [](float v) {
        return v <= -3.0f ? 0.0f : v >= 3.0f ? v : v * (v + 3.0f) / 6.0f;
    });
}

extern "C" __global__ void hardswish_backward(
    stored* __restrict__ dx, const stored* __restrict__ dy, const stored* __restrict__ x, int n) {
    map_stored(dx, dy, x, n, [](float g, float v) {
        return v <= -3.0f ? 0.0f * g : v >= 3.0f ? g : g * (v / 3.0f + 0.5f);
    });
}
