// Mean and variance of parts of a channel, and how two parts are joined without cancellation: the
// formula of Chan, Golub and LeVeque.

// count values with a mean and a sum of squared deviations from it.
struct Moments {
    float count, mean, squares;
};

// Of two sets; a is not the smaller one, unless it is empty.
__device__ __forceinline__ Moments join(const Moments& a, const Moments& b) {
    if (b.count == 0.0f) return a;
    const float count = a.count + b.count, share = b.count / count, apart = b.mean - a.mean;
    return {count, fmaf(apart, share, a.mean),
            a.squares + b.squares + apart * apart * a.count * share};
}
