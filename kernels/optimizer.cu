// Gradient descent steps over one flat buffer of parameters p with gradients g, in place.
//
//   sgd    g += wd*p;  v = mu*v + g;  p -= lr * (nesterov ? g + mu*v : v)      (mu = 0: p -= lr*g)
//   adam   coupled:   g += wd*p       decoupled (AdamW):   p *= 1 - lr*wd
//          m += (1-b1)*(g - m);  v = b2*v + (1-b2)*g*g
//          p -= lr/(1-b1^t) * m / (sqrt(v)/sqrt(1-b2^t) + eps)
//
// These are the formulas of torch.optim.SGD, Adam and AdamW. The corrections by the step t come from
// the host, in double precision. A thread owns four consecutive elements of every buffer: sgd moves
// 20 bytes per parameter (12 without momentum), adam 28, all in 16-byte accesses. Any n.

#include "common.cuh"

extern "C" __global__ void sgd(
    float* __restrict__ p,        // (n), updated
    float* __restrict__ v,        // (n), updated; null if momentum is 0
    const float* __restrict__ g,  // (n)
    int n, float lr, float momentum, float weight_decay, bool nesterov) {
    const unsigned i = first_of_four();
    if (i >= n) return;
    const float4 p4 = load_four(p, i, n), g4 = load_four(g, i, n);
    const float4 v4 = v ? load_four(v, i, n) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float parameters[4] = {p4.x, p4.y, p4.z, p4.w};
    float velocities[4] = {v4.x, v4.y, v4.z, v4.w};
    const float gradients[4] = {g4.x, g4.y, g4.z, g4.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const float d = gradients[j] + weight_decay * parameters[j];
        velocities[j] = momentum * velocities[j] + d;
        parameters[j] -= lr * (nesterov ? d + momentum * velocities[j] : velocities[j]);
    }
    store_four(p, i, n, make_float4(parameters[0], parameters[1], parameters[2], parameters[3]));
    if (v)
        store_four(v, i, n, make_float4(velocities[0], velocities[1], velocities[2], velocities[3]));
}

extern "C" __global__ void adam(
    float* __restrict__ p,        // (n), updated
    float* __restrict__ m,        // (n), updated: running mean of g
    float* __restrict__ v,        // (n), updated: running mean of g squared
    const float* __restrict__ g,  // (n)
    int n, float step_size,       // lr / (1 - b1^t)
    float root_correction,        // 1 / sqrt(1 - b2^t)
    float b1, float b2, float eps,
    float l2,                     // weight decay added to g; 0 for AdamW
    float shrink) {               // 1 - lr * weight decay for AdamW; 1 for Adam
    const unsigned i = first_of_four();
    if (i >= n) return;
    const float4 p4 = load_four(p, i, n), g4 = load_four(g, i, n);
    const float4 m4 = load_four(m, i, n), v4 = load_four(v, i, n);
    float parameters[4] = {p4.x, p4.y, p4.z, p4.w};
    float means[4] = {m4.x, m4.y, m4.z, m4.w};
    float squares[4] = {v4.x, v4.y, v4.z, v4.w};
    const float gradients[4] = {g4.x, g4.y, g4.z, g4.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const float d = gradients[j] + l2 * parameters[j];
        means[j] += (1.0f - b1) * (d - means[j]);
        squares[j] = b2 * squares[j] + (1.0f - b2) * d * d;
        parameters[j] = parameters[j] * shrink -
                        step_size * means[j] / (sqrtf(squares[j]) * root_correction + eps);
    }
    store_four(p, i, n, make_float4(parameters[0], parameters[1], parameters[2], parameters[3]));
    store_four(m, i, n, make_float4(means[0], means[1], means[2], means[3]));
    store_four(v, i, n, make_float4(squares[0], squares[1], squares[2], squares[3]));
}
