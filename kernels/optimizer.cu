// Gradient descent steps over the flat buffers of an optimizer: parameters p with gradients g, in
// place, all groups in one launch.
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
// relatives are in adam.cu. One launch moves every buffer once, adds gradients that lie in slices,
// clips them and keeps exchanged copies of filters (update.cuh): 12 bytes per parameter for p and g
// and 8 for each state: memory-bound. Any n < 2^31.
//
// Rates and decays may change from step to step, so they are read from device memory: a launch that
// a graph replays finds the numbers of its own step there. All threads of a block read the same few
// words, those of its group.

#include "common.cuh"
#include "update.cuh"

extern "C" __global__ void __launch_bounds__(256) sgd(
    float* __restrict__ p,        // (n), updated
    float* __restrict__ v,        // (n), updated; null if no momentum is
    float* __restrict__ g,        // (n), updated where it is summed or scaled
    float* __restrict__ copies,   // of parts that are copied
    bfloat16* __restrict__ narrow,      // of parts that are narrowed
    const float* __restrict__ numbers,  // (groups, 4)
    const int* __restrict__ table,      // (parts, 15) or null
    const float* __restrict__ slices,   // of parts that are summed
    const float* __restrict__ scale,    // (1), of parts that are scaled
    int n, int width) {
    const Part part = part_of_block(table, n);
    numbers += part.group * width;
    const float lr = numbers[0], momentum = numbers[1], weight_decay = numbers[2];
    const bool nesterov = numbers[3] != 0.0f;
    const auto step = [=](float& p, float (&state)[1], float g) {
        float& v = state[0];
        g += weight_decay * p;
        if (momentum != 0.0f) {
            v = momentum * v + g;
            g = nesterov ? g + momentum * v : v;
        }
        p -= lr * g;
    };
    update<1>(part, p, {v}, g, copies, narrow, slices, scale, step);
}

extern "C" __global__ void __launch_bounds__(256) adagrad(
    float* __restrict__ p,        // (n), updated
    float* __restrict__ s,        // (n), updated: sum of g squared
    float* __restrict__ g,        // (n), updated where it is summed or scaled
    float* __restrict__ copies,   // of parts that are copied
    bfloat16* __restrict__ narrow,      // of parts that are narrowed
    const float* __restrict__ numbers,  // (groups, 3)
    const int* __restrict__ table,      // (parts, 15) or null
    const float* __restrict__ slices,   // of parts that are summed
    const float* __restrict__ scale,    // (1), of parts that are scaled
    int n, int width) {
    const Part part = part_of_block(table, n);
    numbers += part.group * width;
    const float lr = numbers[0], eps = numbers[1], weight_decay = numbers[2];
    const auto step = [=](float& p, float (&state)[1], float g) {
        float& s = state[0];
        g += weight_decay * p;
        s += g * g;
        p -= lr * g / (sqrtf(s) + eps);
    };
    update<1>(part, p, {s}, g, copies, narrow, slices, scale, step);
}

extern "C" __global__ void __launch_bounds__(256) adadelta(
    float* __restrict__ p,        // (n), updated
    float* __restrict__ s,        // (n), updated: running mean of g squared
    float* __restrict__ u,        // (n), updated: running mean of the steps squared
    float* __restrict__ g,        // (n), updated where it is summed or scaled
    float* __restrict__ copies,   // of parts that are copied
    bfloat16* __restrict__ narrow,      // of parts that are narrowed
    const float* __restrict__ numbers,  // (groups, 4)
    const int* __restrict__ table,      // (parts, 15) or null
    const float* __restrict__ slices,   // of parts that are summed
    const float* __restrict__ scale,    // (1), of parts that are scaled
    int n, int width) {
    const Part part = part_of_block(table, n);
    numbers += part.group * width;
    const float lr = numbers[0], rho = numbers[1], eps = numbers[2], weight_decay = numbers[3];
    const auto step = [=](float& p, float (&state)[2], float g) {
        float &s = state[0], &u = state[1];
        g += weight_decay * p;
        s = rho * s + (1.0f - rho) * g * g;
        const float d = g * sqrtf(u + eps) / sqrtf(s + eps);
        u = rho * u + (1.0f - rho) * d * d;
        p -= lr * d;
    };
    update<2>(part, p, {s, u}, g, copies, narrow, slices, scale, step);
}

extern "C" __global__ void __launch_bounds__(256) rmsprop(
    float* __restrict__ p,        // (n), updated
    float* __restrict__ s,        // (n), updated: running mean of g squared
    float* __restrict__ m,        // (n), updated: running mean of g; null if none is centered
    float* __restrict__ v,        // (n), updated; null if no momentum is
    float* __restrict__ g,        // (n), updated where it is summed or scaled
    float* __restrict__ copies,   // of parts that are copied
    bfloat16* __restrict__ narrow,      // of parts that are narrowed
    const float* __restrict__ numbers,  // (groups, 6)
    const int* __restrict__ table,      // (parts, 15) or null
    const float* __restrict__ slices,   // of parts that are summed
    const float* __restrict__ scale,    // (1), of parts that are scaled
    int n, int width) {
    const Part part = part_of_block(table, n);
    numbers += part.group * width;
    const float lr = numbers[0], alpha = numbers[1], eps = numbers[2], momentum = numbers[3];
    const float weight_decay = numbers[4];
    const bool centered = numbers[5] != 0.0f;
    const auto step = [=](float& p, float (&state)[3], float g) {
        float &s = state[0], &m = state[1], &v = state[2];
        g += weight_decay * p;
        s = alpha * s + (1.0f - alpha) * g * g;
        float variance = s;
        if (centered) {
            m += (1.0f - alpha) * (g - m);
            variance -= m * m;
            if (variance < 0.0f) variance = 0.0f;  // rounding; a NaN stays
        }
        float d = g / (sqrtf(variance) + eps);
        if (momentum != 0.0f) d = v = momentum * v + d;
        p -= lr * d;
    };
    update<3>(part, p, {s, m, v}, g, copies, narrow, slices, scale, step);
}

extern "C" __global__ void __launch_bounds__(256) lion(
    float* __restrict__ p,        // (n), updated
    float* __restrict__ m,        // (n), updated: running mean of g
    float* __restrict__ g,        // (n), updated where it is summed or scaled
    float* __restrict__ copies,   // of parts that are copied
    bfloat16* __restrict__ narrow,      // of parts that are narrowed
    const float* __restrict__ numbers,  // (groups, 4), the last one 1 - lr * weight decay
    const int* __restrict__ table,      // (parts, 15) or null
    const float* __restrict__ slices,   // of parts that are summed
    const float* __restrict__ scale,    // (1), of parts that are scaled
    int n, int width) {
    const Part part = part_of_block(table, n);
    numbers += part.group * width;
    const float lr = numbers[0], b1 = numbers[1], b2 = numbers[2], shrink = numbers[3];
    const auto step = [=](float& p, float (&state)[1], float g) {
        float& m = state[0];
        const float c = b1 * m + (1.0f - b1) * g;
        const float sign = c > 0.0f ? 1.0f : c < 0.0f ? -1.0f : c;  // 0 and NaN stay
        p = p * shrink - lr * sign;
        m = b2 * m + (1.0f - b2) * g;
    };
    update<1>(part, p, {m}, g, copies, narrow, slices, scale, step);
}

extern "C" __global__ void ema(
    float* __restrict__ e,        // (n), updated
    const float* __restrict__ p,  // (n)
    const float* __restrict__ share,  // (1): 1 - decay
    int n) {
    const float step = *share;
    map_four(e, e, p, n, [step](float e, float p) { return e + step * (p - e); });
}
