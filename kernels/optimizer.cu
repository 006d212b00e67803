// Gradient descent steps over one flat buffer of parameters p with gradients g, in place.
//
//   g += wd*p first, except for lion
//   sgd       v = mu*v + g;  p -= lr * (nesterov ? g + mu*v : v)              (mu = 0: p -= lr*g)
//   adagrad   s += g*g;  p -= lr * g / (sqrt(s) + eps)
//   adadelta  s = rho*s + (1-rho)*g*g;  d = g * sqrt(u + eps) / sqrt(s + eps)
//             u = rho*u + (1-rho)*d*d;  p -= lr*d
//   rmsprop   s = a*s + (1-a)*g*g;  centered: m += (1-a)*(g - m), s - m*m in place of s
//             d = g / (sqrt(s) + eps);  v = mu*v + d;  p -= lr*v              (mu = 0: p -= lr*d)
//   lion      p *= 1 - lr*wd;  p -= lr * sign(b1*m + (1-b1)*g);  m = b2*m + (1-b2)*g
//
// and the moving average of the weights:  ema  e += (1-decay) * (p - e).
//
// The formulas of torch.optim and of Chen et al., arXiv:2302.06675 (lion); the steps of Adam and its
// relatives are in adam.cu. One launch moves every buffer once (loop: update.cuh): 12
// bytes per parameter for p and g and 8 for each state: memory-bound. Any n.

#include "common.cuh"
#include "update.cuh"

extern "C" __global__ void sgd(
    float* __restrict__ p,        // (n), updated
    float* __restrict__ v,        // (n), updated; null if momentum is 0
    const float* __restrict__ g,  // (n)
    int n, float lr, float momentum, float weight_decay, bool nesterov) {
    update_four<1>(p, {v}, g, n, [=](float& p, float (&state)[1], float g) {
        float& v = state[0];
        g += weight_decay * p;
        v = momentum * v + g;
        p -= lr * (nesterov ? g + momentum * v : v);
    });
}

extern "C" __global__ void adagrad(
    float* __restrict__ p,        // (n), updated
    float* __restrict__ s,        // (n), updated: sum of g squared
    const float* __restrict__ g,  // (n)
    int n, float lr, float eps, float weight_decay) {
    update_four<1>(p, {s}, g, n, [=](float& p, float (&state)[1], float g) {
        float& s = state[0];
        g += weight_decay * p;
        s += g * g;
        p -= lr * g / (sqrtf(s) + eps);
    });
}

extern "C" __global__ void adadelta(
    float* __restrict__ p,        // (n), updated
    float* __restrict__ s,        // (n), updated: running mean of g squared
    float* __restrict__ u,        // (n), updated: running mean of the steps squared
    const float* __restrict__ g,  // (n)
    int n, float lr, float rho, float eps, float weight_decay) {
    update_four<2>(p, {s, u}, g, n, [=](float& p, float (&state)[2], float g) {
        float &s = state[0], &u = state[1];
        g += weight_decay * p;
        s = rho * s + (1.0f - rho) * g * g;
        const float d = g * sqrtf(u + eps) / sqrtf(s + eps);
        u = rho * u + (1.0f - rho) * d * d;
        p -= lr * d;
    });
}

extern "C" __global__ void rmsprop(
    float* __restrict__ p,        // (n), updated
    float* __restrict__ s,        // (n), updated: running mean of g squared
    float* __restrict__ m,        // (n), updated: running mean of g; null if not centered
    float* __restrict__ v,        // (n), updated; null if momentum is 0
    const float* __restrict__ g,  // (n)
    int n, float lr, float alpha, float eps, float momentum, float weight_decay) {
    const bool centered = m;
    update_four<3>(p, {s, m, v}, g, n, [=](float& p, float (&state)[3], float g) {
        float &s = state[0], &m = state[1], &v = state[2];
        g += weight_decay * p;
        s = alpha * s + (1.0f - alpha) * g * g;
        float variance = s;
        if (centered) {
            m += (1.0f - alpha) * (g - m);
            variance -= m * m;
            if (variance < 0.0f) variance = 0.0f;  // rounding; a NaN stays
        }
        v = momentum * v + g / (sqrtf(variance) + eps);
        p -= lr * v;
    });
}

extern "C" __global__ void lion(
    float* __restrict__ p,        // (n), updated
    float* __restrict__ m,        // (n), updated: running mean of g
    const float* __restrict__ g,  // (n)
    int n, float lr, float b1, float b2,
    float shrink) {               // 1 - lr * weight decay
    update_four<1>(p, {m}, g, n, [=](float& p, float (&state)[1], float g) {
        float& m = state[0];
        const float c = b1 * m + (1.0f - b1) * g;
        const float sign = c > 0.0f ? 1.0f : c < 0.0f ? -1.0f : c;  // 0 and NaN stay
        p = p * shrink - lr * sign;
        m = b2 * m + (1.0f - b2) * g;
    });
}

extern "C" __global__ void ema(
    float* __restrict__ e,        // (n), updated
    const float* __restrict__ p,  // (n)
    int n, float share) {         // 1 - decay
    map_four(e, e, p, n, [share](float e, float p) { return e + share * (p - e); });
}
