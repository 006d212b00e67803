// Adam and its relatives: a step over the flat buffers of an optimizer, parameters p with gradients
// g, in place, all groups in one launch.
//
//   coupled:   g += wd*p       decoupled:   p *= 1 - lr*wd
//   m += (1-b1)*(g - m)
//   adam     v = b2*v + (1-b2)*g*g
//            p -= lr/(1-b1^t) * m / (sqrt(v)/sqrt(1-b2^t) + eps)
//   amsgrad  as adam, with the largest v so far in place of v
//   nadam    v as adam;  p -= (c_g*g + c_m*m) / (sqrt(v)/sqrt(1-b2^t) + eps)
//   adamax   u = max(b2*u, |g| + eps);  p -= lr/(1-b1^t) * m / u
//
// with c_g = lr*(1-mu_t)/(1-mu_1*..*mu_t), c_m = lr*mu_{t+1}/(1-mu_1*..*mu_{t+1}) and
// mu_t = b1*(1 - 0.96^(t*psi)/2). These are the formulas of torch.optim; what depends on the step t
// comes from the host, which computes it in double precision. It lies in device memory, so that a
// launch that a graph replays finds the numbers of its own step; all threads of a block read the
// same few words, those of its group. One launch reads and writes every buffer once, adds gradients
// that lie in slices, clips them and keeps exchanged copies of filters (update.cuh): 28 bytes per
// parameter, 36 for amsgrad: memory-bound. Any n < 2^31.
//
// numbers, of those that a kernel takes: step_size = lr / (1 - b1^t); root_correction = 1 / sqrt(1 -
// b2^t); l2, the weight decay added to g, 0 if decoupled; shrink = 1 - lr * weight decay if
// decoupled, else 1.

#include "common.cuh"
#include "adam.cuh"
#include "update.cuh"

extern "C" __global__ void __launch_bounds__(256) adam(
    float* __restrict__ p,        // (n), updated
    float* __restrict__ m,        // (n), updated: running mean of g
    float* __restrict__ v,        // (n), updated: running mean of g squared
    float* __restrict__ w,        // (n), updated: the largest v so far; null for adam
    float* __restrict__ g,        // (n), updated where it is summed or scaled
    float* __restrict__ copies,   // of parts that are copied
    bfloat16* __restrict__ narrow,      // of parts that are narrowed
    const float* __restrict__ numbers,  // (groups, 7)
    const int* __restrict__ table,      // (parts, 15) or null
    const float* __restrict__ slices,   // of parts that are summed
    const float* __restrict__ scale,    // (1), of parts that are scaled
    int n, int width) {
    const Part part = part_of_block(table, n);
    const Adam adam(numbers + part.group * width);
    const bool keep_largest = w;
    const auto step = [=](float& p, float (&state)[3], float g) {
        float &m = state[0], &v = state[1], &w = state[2];
        adam.average(p, m, v, g);
        if (!keep_largest || !(w >= v)) w = v;
        p = adam.moved(p, m, w);
    };
    update<3>(part, p, {m, v, w}, g, copies, narrow, slices, scale, step);
}

extern "C" __global__ void __launch_bounds__(256) nadam(
    float* __restrict__ p,        // (n), updated
    float* __restrict__ m,        // (n), updated: running mean of g
    float* __restrict__ v,        // (n), updated: running mean of g squared
    float* __restrict__ g,        // (n), updated where it is summed or scaled
    float* __restrict__ copies,   // of parts that are copied
    bfloat16* __restrict__ narrow,      // of parts that are narrowed
    const float* __restrict__ numbers,  // (groups, 8), the first two c_g and c_m
    const int* __restrict__ table,      // (parts, 15) or null
    const float* __restrict__ slices,   // of parts that are summed
    const float* __restrict__ scale,    // (1), of parts that are scaled
    int n, int width) {
    const Part part = part_of_block(table, n);
    numbers += part.group * width;
    const float gradient_factor = numbers[0], mean_factor = numbers[1];
    const float root_correction = numbers[2], b1 = numbers[3], b2 = numbers[4], eps = numbers[5];
    const float l2 = numbers[6], shrink = numbers[7];
    const auto step = [=](float& p, float (&state)[2], float g) {
        float &m = state[0], &v = state[1];
        g += l2 * p;
        m += (1.0f - b1) * (g - m);
        v = b2 * v + (1.0f - b2) * g * g;
        p = p * shrink -
            (gradient_factor * g + mean_factor * m) / (sqrtf(v) * root_correction + eps);
    };
    update<2>(part, p, {m, v}, g, copies, narrow, slices, scale, step);
}

extern "C" __global__ void __launch_bounds__(256) adamax(
    float* __restrict__ p,        // (n), updated
    float* __restrict__ m,        // (n), updated: running mean of g
    float* __restrict__ u,        // (n), updated: decaying maximum of |g|
    float* __restrict__ g,        // (n), updated where it is summed or scaled
    float* __restrict__ copies,   // of parts that are copied
    bfloat16* __restrict__ narrow,      // of parts that are narrowed
    const float* __restrict__ numbers,  // (groups, 5)
    const int* __restrict__ table,      // (parts, 15) or null
    const float* __restrict__ slices,   // of parts that are summed
    const float* __restrict__ scale,    // (1), of parts that are scaled
    int n, int width) {
    const Part part = part_of_block(table, n);
    numbers += part.group * width;
    const float step_size = numbers[0], b1 = numbers[1], b2 = numbers[2], eps = numbers[3];
    const float l2 = numbers[4];
    const auto step = [=](float& p, float (&state)[2], float g) {
        float &m = state[0], &u = state[1];
        g += l2 * p;
        m += (1.0f - b1) * (g - m);
        const float decayed = b2 * u, size = fabsf(g) + eps;
        u = decayed > size ? decayed : size;
        p -= step_size * m / u;
    };
    update<2>(part, p, {m, u}, g, copies, narrow, slices, scale, step);
}
