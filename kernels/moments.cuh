// Mean and variance of parts of a channel, and the sums of their gradients: how parts are joined.

// first + delta as the nearest float and what that misses.
struct Center {
    float value, rest;
    __device__ __forceinline__ Center(float first, float delta)
        : value(first + delta), rest(delta - (value - first)) {}
};

// 1 / deviation; spread is that already where eps is 0, else it is the variance.
__device__ __forceinline__ float inverse_deviation(float spread, float eps) {
    return eps == 0.0f ? spread : 1.0f / sqrtf(spread + eps);
}

// count values with a mean and a sum of squared deviations from it.
struct Moments {
    float count, mean, squares;
};

// Of two sets, without cancellation, by the formula of Chan, Golub and LeVeque; a is not the smaller
// one, unless it is empty.
__device__ __forceinline__ Moments join(const Moments& a, const Moments& b) {
    if (b.count == 0.0f) return a;
    const float count = a.count + b.count, share = b.count / count, apart = b.mean - a.mean;
    return {count, fmaf(apart, share, a.mean),
            a.squares + b.squares + apart * apart * a.count * share};
}

__device__ __forceinline__ Moments shuffled_down(const Moments& a, int lanes) {
    return {__shfl_down_sync(0xffffffffu, a.count, lanes),
            __shfl_down_sync(0xffffffffu, a.mean, lanes),
            __shfl_down_sync(0xffffffffu, a.squares, lanes)};
}

// The moments of the chunks of all channels, (4, C, chunks): the number of values; a pivot, one of them;
// the mean as distance from the pivot; the sum of squared deviations from the mean. And what comes of
// them: the mean as distance from the pivot of chunk 0, 1 / deviation, running statistics where
// there are any.
struct MomentParts {
    typedef Moments Part;
    float* at;
    float *delta, *invstd, *running_mean, *running_var;
    int C, chunks;
    float momentum, eps;

    __device__ __forceinline__ long long place(int c, int chunk) const {
        return (long long)c * chunks + chunk;
    }
    __device__ __forceinline__ long long plane() const { return (long long)C * chunks; }
    static __device__ __forceinline__ Moments none() { return {0.0f, 0.0f, 0.0f}; }
    // The mean is the distance from the pivot of chunk `first`.
    __device__ __forceinline__ Moments load(int c, int first, int chunk) const {
        const float* part = at + place(c, chunk);
        const float pivot = at[place(c, first) + plane()];
        return {part[0], (part[plane()] - pivot) + part[2 * plane()], part[3 * plane()]};
    }
    __device__ __forceinline__ void store(int c, int chunk, const Moments& v) const {
        float* part = at + place(c, chunk);
        part[0] = v.count, part[2 * plane()] = v.mean, part[3 * plane()] = v.squares;
    }
    __device__ __forceinline__ void finish(int c, const Moments& v) const {
        delta[c] = v.mean;
        invstd[c] = 1.0f / sqrtf(v.squares / v.count + eps);
        if (!running_mean) return;
        running_mean[c] =
            (1.0f - momentum) * running_mean[c] + momentum * (at[place(c, 0) + plane()] + v.mean);
        running_var[c] =
            (1.0f - momentum) * running_var[c] + momentum * (v.squares / (v.count - 1.0f));
    }
};

// Sum of dy * (x - center) and sum of dy.
struct PairOfSums {
    float product, total;
};

__device__ __forceinline__ PairOfSums join(const PairOfSums& a, const PairOfSums& b) {
    return {a.product + b.product, a.total + b.total};
}

__device__ __forceinline__ PairOfSums shuffled_down(const PairOfSums& a, int lanes) {
    return {__shfl_down_sync(0xffffffffu, a.product, lanes),
            __shfl_down_sync(0xffffffffu, a.total, lanes)};
}

// The sums of the chunks of all channels, (2, C, chunks), and what comes of them: the gradients.
struct SumParts {
    typedef PairOfSums Part;
    float* at;
    float *dgamma, *dbeta;
    const stored* x;      // (rows, C): its first row is read where there is a delta
    const float* delta;   // (C), null where the mean is given
    const float* spread;  // (C)
    int C, chunks;
    float eps;

    static __device__ __forceinline__ PairOfSums none() { return {0.0f, 0.0f}; }
    __device__ __forceinline__ PairOfSums load(int c, int, int chunk) const {
        const float* part = at + ((long long)c * chunks + chunk);
        return {part[0], part[(long long)C * chunks]};
    }
    __device__ __forceinline__ void store(int c, int chunk, const PairOfSums& v) const {
        float* part = at + ((long long)c * chunks + chunk);
        part[0] = v.product, part[(long long)C * chunks] = v.total;
    }
    __device__ __forceinline__ void finish(int c, const PairOfSums& v) const {
        float product = v.product;
        if (delta) product = fmaf(-Center(to_float(x[c]), delta[c]).rest, v.total, product);
        dgamma[c] = product * inverse_deviation(spread[c], eps);
        dbeta[c] = v.total;
    }
};
