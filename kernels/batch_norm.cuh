// What the passes of batch normalisation share. Needs channels.cuh.

#include "moments.cuh"

template <int V>
struct Width {
    static constexpr int value = V;
};

// f(Width<V>(), c) for the channels from c on that a thread owns: four at once where all arrays are
// aligned, else one after the other. All threads of a block make the same calls.
template <class F>
__device__ __forceinline__ void own_channels(int C, bool aligned, F f) {
    const int thread = blockIdx.y * blockDim.x + threadIdx.x, each = C % 4 == 0 ? 4 : 1;
    if (each == 4 && aligned)
        f(Width<4>(), thread * 4);
    else
        for (int i = 0; i < each; ++i) f(Width<1>(), thread * each + i);
}

// The rows that a thread walks down: begin, begin + TY, ... < end of its chunk; none past the last
// channel.
struct RowWalk {
    int TY;
    long long begin, end;
    __device__ __forceinline__ RowWalk(int rows, int C, int c, int chunk_rows) {
        TY = blockDim.y;
        begin = (long long)blockIdx.x * chunk_rows + threadIdx.y;
        end = c < C ? min((long long)(blockIdx.x + 1) * chunk_rows, (long long)rows) : 0;
    }
};

// f(row, loaded) for each row, where loaded = load(row): four loads are under way before the first
// is needed.
template <class L, class F>
__device__ __forceinline__ void walk(const RowWalk& rows, L load, F f) {
    long long r = rows.begin;
    for (; r + 3 * rows.TY < rows.end; r += 4 * rows.TY) {
        decltype(load(r)) loaded[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) loaded[i] = load(r + i * rows.TY);
#pragma unroll
        for (int i = 0; i < 4; ++i) f(r + i * rows.TY, loaded[i]);
    }
    for (; r < rows.end; r += rows.TY) f(r, load(r));
}

// Of V channels: p[c..], or a constant where there is no array or no such channel.
template <int V, class T>
__device__ __forceinline__ Channels<float, V> of_channels(
    const T* p, int C, int c, float otherwise) {
    return p && c < C ? load_channels<V>(p + c) : all_channels<float, V>(otherwise);
}

// The first row where it is `own`, else the given mean.
template <int V>
__device__ __forceinline__ Channels<float, V> first_or_mean(
    const float* x, const float* mean, bool own, int C, int c) {
    return of_channels<V>(own ? x : mean, C, c, 0.0f);
}
template <int V>
__device__ __forceinline__ Channels<float, V> first_or_mean(
    const bfloat16* x, const float* mean, bool own, int C, int c) {
    return own ? of_channels<V>(x, C, c, 0.0f) : of_channels<V>(mean, C, c, 0.0f);
}

// z = (x - center) * scale + shift of V channels. The mean is the first row's value + delta, or it is
// given, and delta null. spread and eps as in inverse_deviation.
template <int V>
struct Normaliser {
    Channels<float, V> center, scale, shift;
    __device__ __forceinline__ Normaliser(
        const stored* x, const float* mean, const float* delta, const float* spread,
        const float* gamma, const float* beta, int C, int c, float eps)
        : center(first_or_mean<V>(x, mean, delta, C, c)),
          scale(of_channels<V>(gamma, C, c, 1.0f)),
          shift(of_channels<V>(beta, C, c, 0.0f)) {
        const auto d = of_channels<V>(delta, C, c, 0.0f), s = of_channels<V>(spread, C, c, 1.0f);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            scale.at[v] *= inverse_deviation(s.at[v], eps);
            if (delta) {
                const Center own(center.at[v], d.at[v]);
                center.at[v] = own.value;
                shift.at[v] = fmaf(-own.rest, scale.at[v], shift.at[v]);
            }
        }
    }
    __device__ __forceinline__ float operator()(float x, int v) const {
        return fmaf(x - center.at[v], scale.at[v], shift.at[v]);
    }
};

// dx = scale * g + slope * (x - center) + level of V channels of `count` values each; scale * g where
// the mean is given, and dgamma null.
template <int V>
struct DataGradient {
    Channels<float, V> center, scale, slope, level;
    bool fixed;
    __device__ __forceinline__ DataGradient(
        const stored* x, const float* delta, const float* spread, const float* gamma,
        const float* dgamma, const float* dbeta, int C, int c, float count, float eps)
        : center(of_channels<V>(dgamma ? x : nullptr, C, c, 0.0f)),
          scale(of_channels<V>(gamma, C, c, 1.0f)),
          slope(of_channels<V>(dgamma, C, c, 0.0f)),
          level(of_channels<V>(dgamma ? dbeta : nullptr, C, c, 0.0f)),
          fixed(!dgamma) {
        const auto s = of_channels<V>(spread, C, c, 1.0f);
        const auto d = of_channels<V>(dgamma ? delta : nullptr, C, c, 0.0f);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const Center mean(center.at[v], d.at[v]);
            center.at[v] = mean.value;
            const float invstd = inverse_deviation(s.at[v], eps);
            scale.at[v] *= invstd;
            slope.at[v] *= -scale.at[v] * invstd / count;
            level.at[v] = fmaf(-slope.at[v], mean.rest, -scale.at[v] * level.at[v] / count);
        }
    }
    __device__ __forceinline__ float operator()(float g, float x, int v) const {
        return fixed ? scale.at[v] * g
                     : fmaf(scale.at[v], g,
                            fmaf(slope.at[v], x - center.at[v], level.at[v]));
    }
};
