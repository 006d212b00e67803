// batch_norm_block.cu with max pooling: formulas, routes and traffic stand there.
//
//   y[n][oh][ow][c] = maximum over kh, kw of a[n][oh*SH - PT + kh][ow*SW - PL + kw][c]
//
// A thread keeps four channels and walks over outputs (pool and pool_sums) or over cells of x
// (pool_gradient). Windows of 2x2 every 2 cells have a path of their own: a thread reads the four cells
// at once, 64 bytes under way, and in the gradient walks over tiles of 2x2 cells, so that dy and the
// code are read once. The cells of other windows meet in the caches; the sums read the cell that
// won, the gradient is gathered from the windows that hold a cell.

#include "common.cuh"
#include "channels.cuh"
#include "batch_norm.cuh"
#include "column_sum.cuh"
#include "last_block.cuh"
#include "batch_norm_block.cuh"
#include "window.cuh"

// The windows, without dilation. KH = KW = SH = SW = 2 is `square`.
struct Pool {
    int H, W, KH, KW, OH, OW, SH, SW, PT, PL;
    __device__ __forceinline__ bool square() const {
        return KH == 2 && KW == 2 && SH == 2 && SW == 2;
    }
};

// Pixel number r of images H x W.
struct Pixel {
    int n, h, w;
    __device__ __forceinline__ Pixel(unsigned r, unsigned H, unsigned W)
        : n(r / W / H), h(r / W % H), w(r % W) {}
};

// One output of V channels, the largest a of its window and where it is.
template <int V>
struct Winner {
    Channels<float, V> a;
    Channels<unsigned, V> code;
    __device__ __forceinline__ void compete(float z, unsigned cell, float slope, int v) {
        const float value = bent(z, z <= 0.0f, slope);
        if (value > a.at[v] || value != value)
            a.at[v] = value, code.at[v] = cell | (z <= 0.0f ? NEGATIVE : 0u);
    }
};

extern "C" __global__ void __launch_bounds__(256, 2) batch_norm_block_pool(
    stored* __restrict__ y,               // (N, OH, OW, C)
    unsigned char* __restrict__ codes,    // (N, OH, OW, C)
    const stored* __restrict__ x,         // (N, H, W, C)
    const stored* __restrict__ residual,  // (N, H, W, C) or null
    const float* __restrict__ gamma,      // (C) or null
    const float* __restrict__ beta,       // (C) or null
    const float* __restrict__ mean,       // (C), null where there is a delta
    const float* __restrict__ delta,      // (C) or null
    const float* __restrict__ spread,     // (C)
    int N, int H, int W, int C, int KH, int KW, int OH, int OW, int SH, int SW, int PT, int PL,
    int chunk_rows, float eps, float slope) {
    const Pool pool = {H, W, KH, KW, OH, OW, SH, SW, PT, PL};
    const bool aligned = aligned4(y) && aligned4(x) && aligned4(residual);
    own_channels(C, aligned, [&](auto width, int c) {
        constexpr int V = decltype(width)::value;
        const Normaliser<V> normal(x, mean, delta, spread, gamma, beta, C, c, eps);
        const RowWalk own(N * OH * OW, C, c, chunk_rows);
        for (long long r = own.begin; r < own.end; r += own.TY) {
            const Pixel o(r, OH, OW);
            const int top = o.h * SH - PT, left = o.w * SW - PL;
            const int kh0 = max(0, -top), kh1 = min(KH, H - top);
            const int kw0 = max(0, -left), kw1 = min(KW, W - left);
            const long long image = (long long)o.n * H * W;
            const bool any = kh0 < kh1 && kw0 < kw1;
            // The first cell inside wins with -inf, unless another is larger.
            Winner<V> best = {all_channels<float, V>(-GPUCNN_INFINITY),
                              all_channels<unsigned, V>(
                                  any ? (kh0 * KW + kw0) | NEGATIVE : NOWHERE)};
            auto at = [&](int kh, int kw) {
                return (image + (long long)(top + kh) * W + left + kw) * C + c;
            };
            if (V == 4 && pool.square()) {
                Channels<float, V> cells[4], others[4];
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const bool inside = k / 2 >= kh0 && k / 2 < kh1 && k % 2 >= kw0 && k % 2 < kw1;
                    cells[k] = inside ? load_vector<V>(x + at(k / 2, k % 2))
                                      : all_channels<float, V>(-GPUCNN_INFINITY);
                    others[k] = inside && residual ? load_vector<V>(residual + at(k / 2, k % 2))
                                                   : all_channels<float, V>(0.0f);
                }
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    if (k / 2 < kh0 || k / 2 >= kh1 || k % 2 < kw0 || k % 2 >= kw1) continue;
#pragma unroll
                    for (int v = 0; v < V; ++v) {
                        const float z = normal(cells[k].at[v], v);
                        best.compete(residual ? z + others[k].at[v] : z, k, slope, v);
                    }
                }
            } else {
                for (int kh = kh0; kh < kh1; ++kh)
                    for (int kw = kw0; kw < kw1; ++kw) {
                        const Channels<float, V> cell = load_vector<V>(x + at(kh, kw));
                        Channels<float, V> other = all_channels<float, V>(0.0f);
                        if (residual) other = load_vector<V>(residual + at(kh, kw));
#pragma unroll
                        for (int v = 0; v < V; ++v) {
                            const float z = normal(cell.at[v], v);
                            best.compete(residual ? z + other.at[v] : z, kh * KW + kw, slope, v);
                        }
                    }
            }
#pragma unroll
            for (int v = 0; v < V; ++v)
                if (slope == 0.0f && best.code.at[v] & NEGATIVE) best.code.at[v] = NOWHERE;
            store_vector(y + r * C + c, best.a);
            store_bytes<V>(codes + r * C + c, best.code);
        }
    });
}

extern "C" __global__ void __launch_bounds__(256, 2) batch_norm_block_pool_sums(
    float* __restrict__ dgamma,               // (C)
    float* __restrict__ dbeta,                // (C)
    float* __restrict__ sums,                 // (2, C, chunks)
    unsigned* __restrict__ arrived,           // (groups of columns, 1 + groups of chunks), zeros
    const stored* __restrict__ dy,            // (N, OH, OW, C)
    const stored* __restrict__ x,             // (N, H, W, C)
    const unsigned char* __restrict__ codes,  // (N, OH, OW, C)
    const float* __restrict__ mean,           // (C), null where there is a delta
    const float* __restrict__ delta,          // (C) or null
    const float* __restrict__ spread,         // (C)
    int N, int H, int W, int C, int KH, int KW, int OH, int OW, int SH, int SW, int PT, int PL,
    int chunk_rows, float eps, float slope) {
    const Pool pool = {H, W, KH, KW, OH, OW, SH, SW, PT, PL};
    own_channels(C, aligned4(dy) && aligned4(x), [&](auto width, int c) {
        constexpr int V = decltype(width)::value;
        const Normaliser<V> normal(x, mean, delta, nullptr, nullptr, nullptr, C, c, 0.0f);
        Sums<V> own = {};
        const RowWalk rows(N * OH * OW, C, c, chunk_rows);
        for (long long r = rows.begin; r < rows.end; r += rows.TY) {
            const Pixel o(r, OH, OW);
            const int top = o.h * SH - PT, left = o.w * SW - PL;
            const long long image = (long long)o.n * H * W;
            const Channels<float, V> gradient = load_vector<V>(dy + r * C + c);
            const Channels<unsigned, V> code = load_bytes<V>(codes + r * C + c);
            auto at = [&](int kh, int kw) {
                return (image + (long long)(top + kh) * W + left + kw) * C + c;
            };
            Channels<float, V> value = normal.center;  // of the cell that won, if one did
            if (V == 4 && pool.square()) {
                Channels<float, V> cells[4];
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const int h = top + k / 2, w = left + k % 2;
                    cells[k] = h >= 0 && h < H && w >= 0 && w < W
                                   ? load_vector<V>(x + at(k / 2, k % 2))
                                   : normal.center;
                }
#pragma unroll
                for (int k = 0; k < 4; ++k)
#pragma unroll
                    for (int v = 0; v < V; ++v)
                        if ((code.at[v] & ~NEGATIVE) == k) value.at[v] = cells[k].at[v];
            } else {
#pragma unroll
                for (int v = 0; v < V; ++v) {
                    const int k = code.at[v] & ~NEGATIVE;
                    if (code.at[v] != NOWHERE) value.at[v] = to_float(x[at(k / KW, k % KW) + v]);
                }
            }
#pragma unroll
            for (int v = 0; v < V; ++v)
                own.add(of_code(gradient.at[v], code.at[v], slope),
                        value.at[v] - normal.center.at[v], v);
        }
        own.finish(sums, C, c);
    });
    join_own_channels({sums, dgamma, dbeta, x, delta, spread, C, (int)gridDim.x, eps}, arrived);
}

// In the square path a thread walks over tiles of 2x2 cells, each the cells of one window, or of none
// past the last one; else over cells.
extern "C" __global__ void __launch_bounds__(256, 2) batch_norm_block_pool_gradient(
    stored* __restrict__ dx,                  // (N, H, W, C)
    stored* __restrict__ dresidual,           // (N, H, W, C) or null
    const stored* __restrict__ dy,            // (N, OH, OW, C)
    const stored* __restrict__ x,             // (N, H, W, C)
    const unsigned char* __restrict__ codes,  // (N, OH, OW, C)
    const float* __restrict__ gamma,          // (C) or null
    const float* __restrict__ delta,          // (C), null where the mean is given
    const float* __restrict__ spread,         // (C)
    const float* __restrict__ dgamma,         // (C), null where the mean is given
    const float* __restrict__ dbeta,          // (C), null where the mean is given
    int N, int H, int W, int C, int KH, int KW, int OH, int OW, int SH, int SW, int PT, int PL,
    int chunk_rows, float eps, float slope) {
    const Pool pool = {H, W, KH, KW, OH, OW, SH, SW, PT, PL};
    const bool aligned = aligned4(dx) && aligned4(dresidual) && aligned4(dy) && aligned4(x);
    own_channels(C, aligned, [&](auto width, int c) {
        constexpr int V = decltype(width)::value;
        const DataGradient<V> gradient(
            x, delta, spread, gamma, dgamma, dbeta, C, c, (float)N * H * W, eps);
        auto store = [&](long long at, const Channels<float, V>& g, Channels<float, V> value) {
            if (dresidual) store_vector(dresidual + at, g);
#pragma unroll
            for (int v = 0; v < V; ++v) value.at[v] = gradient(g.at[v], value.at[v], v);
            store_vector(dx + at, value);
        };
        if (pool.square()) {
            const int TH = (H + PT + 1) / 2, TW = (W + PL + 1) / 2;
            const RowWalk tiles(N * TH * TW, C, c, chunk_rows);
            for (long long r = tiles.begin; r < tiles.end; r += tiles.TY) {
                const Pixel t(r, TH, TW);
                const int top = t.h * 2 - PT, left = t.w * 2 - PL;
                const bool any = t.h < OH && t.w < OW;
                const long long o = (((long long)t.n * OH + t.h) * OW + t.w) * C + c;
                Channels<float, V> won = all_channels<float, V>(0.0f), cells[4];
                Channels<unsigned, V> code = all_channels<unsigned, V>(NOWHERE);
                if (any) won = load_vector<V>(dy + o), code = load_bytes<V>(codes + o);
                auto inside = [&](int k) {
                    return top + k / 2 >= 0 && top + k / 2 < H && left + k % 2 >= 0 && left + k % 2 < W;
                };
                auto at = [&](int k) {
                    return (((long long)t.n * H + top + k / 2) * W + left + k % 2) * C + c;
                };
#pragma unroll
                for (int k = 0; k < 4; ++k)
                    cells[k] = inside(k) ? load_vector<V>(x + at(k))
                                         : all_channels<float, V>(0.0f);
#pragma unroll
                for (int v = 0; v < V; ++v) won.at[v] = of_code(won.at[v], code.at[v], slope);
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    if (!inside(k)) continue;
                    Channels<float, V> g;
#pragma unroll
                    for (int v = 0; v < V; ++v)
                        g.at[v] = (code.at[v] & ~NEGATIVE) == k ? won.at[v] : 0.0f;
                    store(at(k), g, cells[k]);
                }
            }
            return;
        }
        const RowWalk cells(N * H * W, C, c, chunk_rows);
        for (long long r = cells.begin; r < cells.end; r += cells.TY) {
            const Pixel p(r, H, W);
            const Span rows = windows_over(p.h, KH, SH, PT, 1, OH);
            const Span columns = windows_over(p.w, KW, SW, PL, 1, OW);
            const Channels<float, V> value = load_vector<V>(x + r * C + c);
            Channels<float, V> g = all_channels<float, V>(0.0f);
            for (int oh = rows.begin; oh < rows.end; ++oh)
                for (int ow = columns.begin; ow < columns.end; ++ow) {
                    const long long o = (((long long)p.n * OH + oh) * OW + ow) * C + c;
                    const Channels<unsigned, V> code = load_bytes<V>(codes + o);
                    const Channels<float, V> won = load_vector<V>(dy + o);
                    const unsigned k = (p.h + PT - oh * SH) * KW + p.w + PL - ow * SW;
#pragma unroll
                    for (int v = 0; v < V; ++v)
                        if ((code.at[v] & ~NEGATIVE) == k)
                            g.at[v] += of_code(won.at[v], code.at[v], slope);
                }
            store(r * C + c, g, value);
        }
    });
}
