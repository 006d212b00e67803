// Formulas of activations that need care at the ends of their range.

// x cut to -limit..limit; a NaN passes, which fminf and fmaxf would swallow.
__device__ __forceinline__ float bounded(float x, float limit) {
    return x > limit ? limit : x < -limit ? -limit : x;
}

__device__ __forceinline__ float not_below(float x, float least) { return x < least ? least : x; }

__device__ __forceinline__ float sigmoid(float x) {
    const float e = expf(-fabsf(x));
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

// The activations that an epilogue computes, and their slopes from their output: RELU and LEAKY_RELU
// (negative_slope > 0) keep the sign, so that an output tells on which side its input lay.
enum Activation { IDENTITY, RELU, LEAKY_RELU, SIGMOID, TANH };

// A call, not inline: long code that few networks need.
__device__ __noinline__ float activate_smooth(float v, int activation) {
    return activation == TANH ? tanhf(v) : sigmoid(v);
}

__device__ __forceinline__ float activate(float v, int activation, float negative_slope) {
    switch (activation) {
        case IDENTITY: return v;
        case RELU: return v <= 0.0f ? 0.0f : v;
        case LEAKY_RELU: return v > 0.0f ? v : negative_slope * v;
        default: return activate_smooth(v, activation);
    }
}

// The gradient of an activation's input; y is its output, g the gradient of that.
__device__ __forceinline__ float activation_gradient(
    float g, float y, int activation, float negative_slope) {
    switch (activation) {
        case RELU: return y <= 0.0f ? 0.0f : g;
        case LEAKY_RELU: return y > 0.0f ? g : negative_slope * g;
        case SIGMOID: return g * (y * (1.0f - y));
        case TANH: return g * (1.0f - y * y);
        default: return g;
    }
}
