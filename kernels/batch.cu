// Training batches, gathered from the data set in device memory, augmented and normalised.
//
//   gather_batch   x[n] = share * a(i) + (1 - share) * a(j),   i: image n of the batch, j: n + 1
//                  x[n] = a(i) without mixup
//
// a(i) is image i with every pixel looked up where the augmentation takes it from, backwards:
//
//   output (h, w) -> mirrored -> in the image padded by crop -> in the image padded by shift -> image
//
// as (level * scale - offset) * factor + added * scale, and 0 in the square that is cut out. Every
// product and sum is rounded by itself (no fused multiply-add), so that NumPy gives the same bits.
//
// What is drawn for image i is a function of (seed, epoch, i): a word of one Philox block and the
// four of another. Epoch and batch are read from position, in device memory: a graph that replays
// this launch gathers whatever batch position says.
//
// A block works on one image, or on a part of it. Its first thread draws for image i (its second for
// j, in the same instructions) and leaves some twenty numbers in shared memory. Then each thread makes
// four elements, channel fastest, per 16-byte store, up to four times; the four bytes behind them are
// in flight together.
//
// An element costs 1 byte read (2 with mixup) and 4 written (2 in bfloat16), a label map 8 per pixel, and
// about 25 integer instructions: memory-bound. float32 images from the host would be 4 bytes per element
// over the bus, many times slower than device memory, after the CPU has made them.
//
// Bytes are loaded one by one, since a shift aligns them anyhow: neighbouring lanes read
// neighbouring bytes, and the first level of cache serves the four loads that share sectors. Any
// sizes; the host refuses cutouts of images above 2^16 pixels along an axis.

#include "common.cuh"
#include "philox.cuh"

struct Change {
    int image;
    int down, across;            // added to a coordinate for the shift, then kept inside
    int crop_down, crop_across;  // added before that; outside is padding
    int flip, vertical_flip;
    int top, left;  // of the square that is cut out
    float factor, added, share;
};

// 0 .. n-1 by the upper bits of a word, or of its lower half.
__device__ __forceinline__ int by_upper(unsigned word, int bits, int n) {
    return (int)(((unsigned long long)(word >> (32 - bits)) * n) >> bits);
}

// Uniform in (-1, 1) by 16 bits, exact.
__device__ __forceinline__ float centred(unsigned bits) {
    return __fmul_rn((float)(2 * (int)bits - 65535), 1.0f / 65536.0f);
}

__device__ __forceinline__ int clamped(int at, int n) { return min(max(at, 0), n - 1); }

// Where cell `at` of n along an axis comes from, -1 for padding of zeros.
__device__ __forceinline__ int source(int at, int n, bool mirrored, int cropped, int moved, bool reflect) {
    at = (mirrored ? n - 1 - at : at) + cropped;
    if ((unsigned)at >= n) {
        if (!reflect) return -1;
        at = at < 0 ? -at : 2 * (n - 1) - at;
    }
    return clamped(at + moved, n);
}

// What an image gives to a row of the output.
struct Row {
    const unsigned char* image;  // the source image
    int start;                   // of the source row in it, -1 for padding
    bool cut;                    // whether the square that is cut out crosses it
};

// Four elements of an image before they are normalised.
struct Levels {
    unsigned char level[4];
    unsigned cut;  // bit k: element k lies in the square that is cut out
};

// The four elements from e on of an output image. CHANNELS: their number, or 0: it is C.
template <int CHANNELS>
struct Maker {
    const unsigned char* images;
    const float *scale, *offset;
    int H, W, C;
    bool reflect;
    int cutout;
    bool levels_change;

    __device__ __forceinline__ int channels() const { return CHANNELS ? CHANNELS : C; }

    __device__ __forceinline__ Row row(const Change& a, int h) const {
        const int from = source(h, H, a.vertical_flip, a.crop_down, a.down, reflect);
        return {images + (long long)a.image * H * W * channels(),
                from < 0 ? -1 : from * W * channels(), (unsigned)(h - a.top) < cutout};
    }

    // Their levels before anything is computed with one of them: four loads in flight.
    __device__ __forceinline__ Levels levels(const Change& a, int c, int w, int h) const {
        Levels found = {};
        Row from = row(a, h);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const int column = source(w, W, a.flip, a.crop_across, a.across, reflect);
            const bool here = h < H && from.start >= 0 && column >= 0;
            found.level[k] = here ? from.image[from.start + column * channels() + c] : 0;
            found.cut |= (from.cut && (unsigned)(w - a.left) < cutout) << k;
            if (++c < channels()) continue;
            c = 0;
            if (++w < W) continue;
            w = 0;
            from = row(a, ++h);
        }
        return found;
    }

    __device__ __forceinline__ float normalised(
        const Change& a, const Levels& found, int k, float scale, float offset) const {
        float v = __fsub_rn(__fmul_rn(found.level[k], scale), offset);
        if (levels_change) v = __fadd_rn(__fmul_rn(v, a.factor), __fmul_rn(a.added, scale));
        return found.cut >> k & 1 ? 0.0f : v;
    }

    __device__ __forceinline__ float4 four(
        const Change& own, const Change& other, bool mixup, int e) const {
        const int w = e / channels() % W, h = e / channels() / W;
        int c = e % channels();
        const Levels first = levels(own, c, w, h), second = mixup ? levels(other, c, w, h) : first;
        const float rest = __fsub_rn(1.0f, own.share);
        float v[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const float s = scale[c], o = offset[c];
            v[k] = normalised(own, first, k, s, o);
            if (mixup)
                v[k] = __fadd_rn(__fmul_rn(own.share, v[k]),
                                 __fmul_rn(rest, normalised(other, second, k, s, o)));
            if (++c == channels()) c = 0;
        }
        return make_float4(v[0], v[1], v[2], v[3]);
    }

    __device__ __forceinline__ void write(
        stored* out, const Change* changes, bool mixup, int part, int per_block) const {
        const Change own = changes[0];
        const int elements = H * W * channels();
        for (int group = 0; group < 4; ++group) {
            const unsigned e = part * per_block + (group * blockDim.x + threadIdx.x) * 4;
            if (e >= elements) break;
            store_four(out, e, elements, four(own, changes[1], mixup, e));
        }
    }
};

extern "C" __global__ void __launch_bounds__(256) gather_batch(
    stored* __restrict__ x,                    // (N, H, W, C)
    int* __restrict__ y,                       // (N) or (N, H, W), null with mixup
    float* __restrict__ target,                // (N, classes), null without mixup
    const unsigned char* __restrict__ images,  // (M, H, W, C)
    const int* __restrict__ labels,            // (M) or (M, H, W)
    const int* __restrict__ order,             // (K, L): images of the epochs e = row (mod K)
    const int* __restrict__ position,          // (2): epoch, batch
    const float* __restrict__ scale,           // (C)
    const float* __restrict__ offset,          // (C)
    const float* __restrict__ blend,           // (4096), null without mixup
    int K, int L, int N, int H, int W, int C, int per_pixel, int classes, int no_label, int flips,
    int shift, int crop, int reflect, int cutout, float brightness, float contrast, int levels_change,
    unsigned long long seed) {
    __shared__ Change changes[2];
    const int pixels = H * W, elements = pixels * C;
    const int per_block = blockDim.x * 16, blocks = (elements + per_block - 1) / per_block;
    const int n = blockIdx.x / blocks, part = blockIdx.x % blocks;

    if (threadIdx.x < (blend ? 2 : 1)) {
        const unsigned epoch = position[0];
        const int m = threadIdx.x == 0 ? n : n + 1 < N ? n + 1 : 0;
        const int i = order[(long long)(epoch % K) * L + ((long long)position[1] * N + m) % L];
        const uint4 four = philox(i / 4, (3ull << 32) + epoch, seed);
        const uint4 more = philox(i, (9ull << 32) + epoch, seed);
        const unsigned first = i % 4 == 0 ? four.x : i % 4 == 1 ? four.y : i % 4 == 2 ? four.z : four.w;
        Change& a = changes[threadIdx.x];
        a.image = i;
        a.down = by_upper(first, 12, 2 * shift + 1) - shift;
        a.across = by_upper(first << 12, 12, 2 * shift + 1) - shift;
        a.crop_down = by_upper(more.x, 16, 2 * crop + 1) - crop;
        a.crop_across = by_upper(more.x << 16, 16, 2 * crop + 1) - crop;
        a.flip = first & flips & 1;
        a.vertical_flip = first & flips & 2;
        a.factor = __fadd_rn(1.0f, __fmul_rn(contrast, centred(more.y >> 16)));
        a.added = __fmul_rn(brightness, centred(more.y & 0xFFFF));
        a.top = by_upper(more.z, 16, H) - cutout / 2;
        a.left = by_upper(more.z << 16, 16, W) - cutout / 2;
        a.share = blend ? blend[more.w >> 20] : 1.0f;
    }
    __syncthreads();
    stored* const out = x + (long long)n * elements;
    if (C == 1)
        Maker<1>{images, scale, offset, H, W, 1, reflect != 0, cutout, levels_change != 0}.write(
            out, changes, blend, part, per_block);
    else
        Maker<0>{images, scale, offset, H, W, C, reflect != 0, cutout, levels_change != 0}.write(
            out, changes, blend, part, per_block);

    const Change& own = changes[0];
    if (target) {
        if (part > 0) return;
        const int label = labels[own.image], other = labels[changes[1].image];
        for (int c = threadIdx.x; c < classes; c += blockDim.x)
            target[(long long)n * classes + c] =
                __fadd_rn(c == label ? own.share : 0.0f,
                          c == other ? __fsub_rn(1.0f, own.share) : 0.0f);
    } else if (!per_pixel) {
        if (part == 0 && threadIdx.x == 0) y[n] = labels[own.image];
    } else {
        for (int p = part * per_block + threadIdx.x; p < min(pixels, (part + 1) * per_block);
             p += blockDim.x) {
            const int h = source(p / W, H, own.vertical_flip, own.crop_down, own.down, reflect);
            const int w = source(p % W, W, own.flip, own.crop_across, own.across, reflect);
            y[(long long)n * pixels + p] =
                h < 0 || w < 0 ? no_label : labels[(long long)own.image * pixels + h * W + w];
        }
    }
}
