// 3-D max pooling: the indices of a maximum that was found in two steps.
//
// A window of a volume is a 2-D window in each plane and then a window along depth over the winners
// of the planes, so pool2d.cu (or adaptive_pool2d.cu) does the work twice (KH*KW + KD reads instead
// of KD*KH*KW, and what overlapping windows share along depth is computed once):
//
//   volume (N*D, H, W, C) -> planes (N*D, OH, OW, C), inner = h*W + w of the winner in its plane
//   planes (N, D, 1, P) -> best (N, OD, 1, P), outer = d; the places of a plane are P = OH*OW*C
//   channels
//
// The first maximum along depth, and in it the first in raster order, is the first in raster order
// of the volume; the last NaN likewise. This kernel joins the two: index = (d*H + h)*W + w. In the
// windows from ZD, ZH or ZW on, which reach past the padded volume, a 0 competes with index -1, and
// loses a tie; winners is outer without those: where the gradient goes.
//
// A thread owns one output, lanes run along the channels. Traffic per output: 12 bytes read, 12
// written: memory-bound. Takes any sizes.

extern "C" __global__ void __launch_bounds__(256) max_pool3d_join(
    float* __restrict__ y,           // (N, OD, OH, OW, C)
    int* __restrict__ indices,       // (N, OD, OH, OW, C)
    int* __restrict__ winners,       // (N, OD, 1, OH*OW*C)
    const float* __restrict__ best,  // (N, OD, 1, OH*OW*C)
    const int* __restrict__ inner,   // (N*D, OH, OW, C)
    const int* __restrict__ outer,   // (N, OD, 1, OH*OW*C)
    int N, int D, int H, int W, int C, int OD, int OH, int OW, int ZD, int ZH, int ZW) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned pixel = i / C, row = pixel / OW, slab = row / OH;
    const int ow = pixel % OW, oh = row % OH, od = slab % OD, n = slab / OD;
    if (n >= N) return;
    const int P = OH * OW * C;
    float value = best[i];
    int winner = outer[i], index = -1;
    if (winner >= 0) {
        const int at = inner[((long long)n * D + winner) * P + i % P];
        if (at >= 0) index = winner * H * W + at;
    }
    if ((od >= ZD || oh >= ZH || ow >= ZW) && value < 0.0f) {
        value = 0.0f;
        index = winner = -1;
    }
    y[i] = value;
    indices[i] = index;
    winners[i] = winner;
}
