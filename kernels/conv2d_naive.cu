// Convolution, the first rung: one thread per output element, everything from global memory.
//
//   y[n][oh][ow][oc]  = b[oc] + sum over kh, kw, c of x[n][ih][iw][g*CG + c] * w[oc][kh][kw][c]
//   ih = oh*SH - PT + kh*DH,  iw = ow*SW - PL + kw*DW,  g = oc / OCG,  CG = C/G,  OCG = OC/G
//
// (cross-correlation: the filter is not flipped; x is zero outside the image)
//
// Layout NHWC; w is (OC, KH, KW, CG). With DIMS = 3 images are volumes, NDHWC, w is
// (OC, KD, KH, KW, CG), and the sum also runs over kd. Lanes run along the last dimension of what
// they write, so stores coalesce. Every multiply-add reads two floats from global memory (caches
// help): at 8 bytes per 2 FLOPs this rung is bound by the load units. In the forward pass the lanes'
// filters lie K floats apart, a sector each. The next rung, conv2d_tiled, exists to reuse what was
// loaded. The two backward passes gather: each output of them has one writer, so that they need no
// atomics and give the same bits every time.
//
// Any stride, padding, dilation, groups and channel counts.

#include "common.cuh"
#include "depth.cuh"

extern "C" __global__ void conv2d_naive_forward(
    float* __restrict__ y,        // (N, OD, OH, OW, OC)
    const float* __restrict__ x,  // (N, D, H, W, C)
    const float* __restrict__ w,  // (OC, KD, KH, KW, CG)
    const float* __restrict__ b,  // (OC) or null
    int N, int D, int H, int W, int C, int OC, int KD, int KH, int KW, int OD, int OH, int OW,
    int SD, int SH, int SW, int PF, int PT, int PL, int DD, int DH, int DW, int G) {
    IMAGES_HAVE_NO_DEPTH;
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned outputs = (unsigned)N * OD * OH * OW * OC;
    if (i >= outputs) return;
    const int oc = i % OC, ow = i / OC % OW, oh = i / OC / OW % OH;
    const int od = i / OC / OW / OH % OD, n = i / OC / OW / OH / OD;
    const int CG = C / G, g = oc / (OC / G);

    float sum = b ? b[oc] : 0.0f;
    for (int kd = 0; kd < KD; ++kd) {
        const int id = od * SD - PF + kd * DD;
        if (DIMS == 3 && (id < 0 || id >= D)) continue;
        for (int kh = 0; kh < KH; ++kh) {
            const int ih = oh * SH - PT + kh * DH;
            if (ih < 0 || ih >= H) continue;
            for (int kw = 0; kw < KW; ++kw) {
                const int iw = ow * SW - PL + kw * DW;
                if (iw < 0 || iw >= W) continue;
                const float* pixel =
                    x + ((((long long)n * D + id) * H + ih) * W + iw) * C + g * CG;
                const float* tap = w + ((((long long)oc * KD + kd) * KH + kh) * KW + kw) * CG;
                for (int c = 0; c < CG; ++c) sum = fmaf(pixel[c], tap[c], sum);
            }
        }
    }
    y[i] = sum;
}

// dx[n][h][w][c] = sum over oc, kh, kw of dy[n][oh][ow][oc] * w[oc][kh][kw][c], where oh and ow are
// the outputs that read pixel (h, w) through tap (kh, kw): oh*SH = h + PT - kh*DH, if that divides.
extern "C" __global__ void conv2d_naive_data_gradient(
    float* __restrict__ dx,        // (N, D, H, W, C)
    const float* __restrict__ dy,  // (N, OD, OH, OW, OC)
    const float* __restrict__ w,   // (OC, KD, KH, KW, CG)
    int N, int D, int H, int W, int C, int OC, int KD, int KH, int KW, int OD, int OH, int OW,
    int SD, int SH, int SW, int PF, int PT, int PL, int DD, int DH, int DW, int G) {
    IMAGES_HAVE_NO_DEPTH;
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned inputs = (unsigned)N * D * H * W * C;
    if (i >= inputs) return;
    const int c = i % C, iw = i / C % W, ih = i / C / W % H;
    const int id = i / C / W / H % D, n = i / C / W / H / D;
    const int CG = C / G, OCG = OC / G, g = c / CG;

    float sum = 0.0f;
    for (int kd = 0; kd < KD; ++kd) {
        const int d = id + PF - kd * DD;
        if (DIMS == 3 && (d < 0 || d % SD || d / SD >= OD)) continue;
        for (int kh = 0; kh < KH; ++kh) {
            const int h = ih + PT - kh * DH;
            if (h < 0 || h % SH || h / SH >= OH) continue;
            for (int kw = 0; kw < KW; ++kw) {
                const int v = iw + PL - kw * DW;
                if (v < 0 || v % SW || v / SW >= OW) continue;
                const float* pixel =
                    dy + ((((long long)n * OD + d / SD) * OH + h / SH) * OW + v / SW) * OC + g * OCG;
                const float* tap =
                    w + ((((long long)g * OCG * KD + kd) * KH + kh) * KW + kw) * CG + c % CG;
                for (int oc = 0; oc < OCG; ++oc)
                    sum = fmaf(pixel[oc], tap[(long long)oc * KD * KH * KW * CG], sum);
            }
        }
    }
    dx[i] = sum;
}

// dw[oc][kh][kw][c] = sum over n, oh, ow of dy[n][oh][ow][oc] * x[n][ih][iw][g*CG + c]
// partial[s] is the part of slice s of the N*OH*OW pixels; sum_slices in reduce.cu adds the slices.
extern "C" __global__ void conv2d_naive_weight_gradient(
    float* __restrict__ partial,   // (slices, OC, KD, KH, KW, CG)
    const float* __restrict__ dy,  // (N, OD, OH, OW, OC)
    const float* __restrict__ x,   // (N, D, H, W, C)
    int N, int D, int H, int W, int C, int OC, int KD, int KH, int KW, int OD, int OH, int OW,
    int SD, int SH, int SW, int PF, int PT, int PL, int DD, int DH, int DW, int G,
    int slice_pixels) {
    IMAGES_HAVE_NO_DEPTH;
    const int CG = C / G;
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned weights = (unsigned)OC * KD * KH * KW * CG;
    if (i >= weights) return;
    const int c = i % CG, kw = i / CG % KW, kh = i / CG / KW % KH;
    const int kd = i / CG / KW / KH % KD, oc = i / CG / KW / KH / KD;
    const int g = oc / (OC / G);
    const int begin = blockIdx.y * slice_pixels;
    const int end = begin + min(slice_pixels, N * OD * OH * OW - begin);

    float sum = 0.0f;
    for (int p = begin; p < end; ++p) {
        const int ow = p % OW, oh = p / OW % OH, od = p / OW / OH % OD, n = p / OW / OH / OD;
        const int ih = oh * SH - PT + kh * DH, iw = ow * SW - PL + kw * DW;
        const int id = od * SD - PF + kd * DD;
        if (ih < 0 || ih >= H || iw < 0 || iw >= W) continue;
        if (DIMS == 3 && (id < 0 || id >= D)) continue;
        sum = fmaf(dy[(long long)p * OC + oc],
                   x[((((long long)n * D + id) * H + ih) * W + iw) * C + g * CG + c], sum);
    }
    partial[(long long)blockIdx.y * weights + i] = sum;
}
