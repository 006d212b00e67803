// Windows that slide over an image: cell (kh, kw) of window (oh, ow) is the pixel
//
//   ih = oh*SH - PT + kh*DH,  iw = ow*SW - PL + kw*DW
//
// What pooling and unpooling ask of them, in both directions. Needs channels.cuh.

// The k of the first cell at or after 0, for cells at begin, begin + d, begin + 2d, ...
__device__ __forceinline__ int first_inside(int begin, int d) {
    return begin < 0 ? (-begin + d - 1) / d : 0;
}

// One past the k of the last cell before size, at most count; <= 0 if there is none.
__device__ __forceinline__ int end_inside(int begin, int d, int size, int count) {
    return begin < size ? min(count, (size - begin + d - 1) / d) : 0;
}

// The windows begin <= o < end along one axis; none if end <= begin.
struct Span {
    int begin, end;
};

// Those whose first cell lies at most a window's reach before cell i, and not after it: with
// dilation 1 the windows that hold i, else some that step over it too.
__device__ __forceinline__ Span windows_over(int i, int K, int S, int P, int D, int O) {
    const int before = i + P - (K - 1) * D;
    return {before > 0 ? (before + S - 1) / S : 0, min(O, (i + P) / S + 1)};
}

// A batch and its windows, dilation 1.
struct Windows {
    int N, H, W, C, KH, KW, OH, OW, SH, SW, PT, PL;
};

// What a thread owns of an array (N, H, W, C): V channels from c on of the pixel (n, h, w). n >= N
// in the threads past the end.
struct Place {
    int n, h, w, c;
};

template <int V>
__device__ __forceinline__ Place place_of(unsigned i, int H, int W, int C) {
    const unsigned CV = C / V, pixel = i / CV;
    return {int(pixel / W / H), int(pixel / W % H), int(pixel % W), int(i % CV * V)};
}

// Σ x[n][h][w][c] * weight(h, w) over the cells of window (p.h, p.w) inside the image, in raster
// order.
template <int V, class F>
__device__ __forceinline__ Channels<float, V> sum_of_cells(
    const stored* x, const Windows& s, const Place& p, F weight) {
    const int top = p.h * s.SH - s.PT, left = p.w * s.SW - s.PL;
    const int h0 = max(top, 0), h1 = min(top + s.KH, s.H);
    const int w0 = max(left, 0), w1 = min(left + s.KW, s.W);
    const stored* image = x + (long long)p.n * s.H * s.W * s.C + p.c;
    Channels<float, V> sum = all_channels<float, V>(0.0f);
    for (int h = h0; h < h1; ++h)
        for (int w = w0; w < w1; ++w) {
            const Channels<float, V> cell =
                load_channels<V>(image + ((long long)h * s.W + w) * s.C);
            const float factor = weight(h, w);
#pragma unroll
            for (int v = 0; v < V; ++v) sum.at[v] += cell.at[v] * factor;
        }
    return sum;
}

// Σ y[n][oh][ow][c] * weight(oh, ow) over the windows that hold cell (p.h, p.w), in raster order.
template <int V, class F>
__device__ __forceinline__ Channels<float, V> sum_of_windows(
    const stored* y, const Windows& s, const Place& p, F weight) {
    const Span rows = windows_over(p.h, s.KH, s.SH, s.PT, 1, s.OH);
    const Span columns = windows_over(p.w, s.KW, s.SW, s.PL, 1, s.OW);
    const stored* image = y + (long long)p.n * s.OH * s.OW * s.C + p.c;
    Channels<float, V> sum = all_channels<float, V>(0.0f);
    for (int oh = rows.begin; oh < rows.end; ++oh)
        for (int ow = columns.begin; ow < columns.end; ++ow) {
            const Channels<float, V> value =
                load_channels<V>(image + ((long long)oh * s.OW + ow) * s.C);
            const float factor = weight(oh, ow);
#pragma unroll
            for (int v = 0; v < V; ++v) sum.at[v] += value.at[v] * factor;
        }
    return sum;
}
