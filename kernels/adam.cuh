// Adam's step for one element, with the numbers of adam.cu.

struct Adam {
    float step_size, root_correction, b1, b2, eps, l2, shrink;

    __device__ __forceinline__ explicit Adam(const float* numbers)
        : step_size(numbers[0]), root_correction(numbers[1]), b1(numbers[2]), b2(numbers[3]),
          eps(numbers[4]), l2(numbers[5]), shrink(numbers[6]) {}

    // The running means of the gradient g of p and of its square take it in.
    __device__ __forceinline__ void average(float p, float& m, float& v, float g) const {
        g += l2 * p;
        m += (1.0f - b1) * (g - m);
        v = b2 * v + (1.0f - b2) * g * g;
    }

    // p after the step; v: the mean of squares, or the largest so far.
    __device__ __forceinline__ float moved(float p, float m, float v) const {
        return p * shrink - step_size * m / (sqrtf(v) * root_correction + eps);
    }
};
