// Convolution by Winograd's F(2x2, 3x3): 16 multiplications for four outputs where the sum takes 36.
//
//   y(tile) = A' [ sum over c of (G w(oc, c) G') * (B' x(tile, c) B) ] A,  * element by element
//
//        1  0 -1  0          1   0   0          1  1  1  0     x(tile, c): 4 x 4 cells of channel c,
//   B' = 0  1  1  0      G = .5  .5  .5    A' = 0  1 -1 -1     two from one tile to the next;
//        0 -1  1  0          .5 -.5  .5                        y(tile): 2 x 2 outputs
//        0  1  0 -1          0   0   1
//
// S. Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, arXiv:1509.09308. Filters
// 3 x 3, stride and dilation 1, any padding, groups, C and OC. Layout NHWC; w is (OC, 3, 3, CG). The data
// gradient is the same kernel on dy, with turned filters whose channels are exchanged. Floats on any GPU.
//
// conv2d_winograd_filters writes u = G w G' in the order in which blocks read it, padded with zeros. In
// conv2d_winograd_forward a block takes 64 tiles by 32 channels oc, one warp for each of the 16 elements
// ("points") of the products: there it is a matrix product over c, whose 8 x 8 sums a thread keeps. c
// comes in slabs of four, two of them staged at a time, for 32 bytes of a cell are a sector:
//
//   raw (2 slabs)  the cells of the tiles with their halo, by asynchronous copies of 16 bytes
//   v   (2 stages) B' x B: a thread transforms a tile of one channel and writes its 16 points
//   u   (2 stages) 8 KiB that lie together in memory, one copy of 16 bytes a thread
//
//   slab 2P    | transform 2P+1 (half the warps) | multiply 2P                            |
//   slab 2P+1  | copy raw P+1, u | multiply half | transform 2P+2 (others) | other half   |
//
// so that transforms and copies pass under the multiplications, with three barriers for eight channels.
// In the end the sums go through shared memory, to the threads that own all 16 points of a tile.
//
// Counted for eight channels and a thread, compiled for sm_90: 512 multiply-adds, worth 1152 of the plain
// sum, 32 reads of 16 bytes for their operands (a word feeds eight), a transform's 16 reads, 32 additions
// and 16 writes, 4 copies, 3 barriers, 716 instructions in all: 0.62 for a multiply-add of the plain sum,
// where conv2d_register_tiled takes 1.35. From L2 a block gets 16 KiB of u and 10 KiB of x, a byte for 22
// multiply-adds of the plain sum; a tile of 128 x 128 there, for 16. Filling the pipeline and the last
// transform cost as much as eight channels more, and 32 filters are computed where there are fewer, so
// that 16 -> 16 channels gain nothing over the plain sum at its best, 64 and more a factor of 1.4 to 1.6.
// Three products of tensor cores in TF32 allow a factor of 1.55 on an H200 (mma.sync), none where TF32 is
// no faster than float32. At most 123 registers, 64 KiB, 16 warps on a multiprocessor of any GPU.
//
// Products are larger than those of the plain sum, but each sum has a ninth as many: its error is no larger
// than that of a running sum of float32. Every sum has its order, whatever the tiles. NaN or infinity in x
// becomes NaN in all four outputs of its tiles.

#include "async_copy.cuh"
#include "common.cuh"

constexpr int TILES = 64, FILTERS = 32, SLAB = 4;
constexpr int POINT_V = SLAB * TILES, POINT_U = SLAB * FILTERS;  // floats of a point in a slab
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int UNROLL = 1;  // unrolled, the loop takes more registers there than there are
#else
constexpr int UNROLL = 2;
#endif
constexpr int STAGE_V = 16 * POINT_V, STAGE_U = 16 * POINT_U;

__device__ __forceinline__ bool aligned8(const void* pointer) {
    return (reinterpret_cast<unsigned long long>(pointer) & 7) == 0;
}

// a / b of numbers that are not negative, which takes fewer instructions without a sign.
__device__ __forceinline__ int quotient(unsigned a, unsigned b) { return (int)(a / b); }

// grid (filter tiles * pairs of slabs, G): a block transforms 32 output by 8 input channels of a group.
// turned: for the data gradient, whose output channels are the input channels of w.
extern "C" __global__ void __launch_bounds__(256) conv2d_winograd_filters(
    float* __restrict__ u,        // (G, filter tiles, slabs, 16, 4, 32)
    const float* __restrict__ w,  // (OC, 3, 3, CG)
    int OC, int CG, int G, int turned) {
    __shared__ float taps[9][8][36];  // a gap of four: lanes that hold eight i meet 32 banks
    const int OCG = OC / G, g = blockIdx.y;
    const int outputs = turned ? CG : OCG, inputs = turned ? OCG : CG;
    const int pairs = (inputs + 2 * SLAB - 1) / (2 * SLAB);
    const int first_o = (int)blockIdx.x / pairs * FILTERS, first_i = (int)blockIdx.x % pairs * 2 * SLAB;

    for (int e = threadIdx.x; e < 9 * 256; e += 256) {  // lanes along the channels of w
        const int tap = e / 256, i = turned ? e / 32 % 8 : e % 8, o = turned ? e % 32 : e / 8 % 32;
        const bool exists = first_o + o < outputs && first_i + i < inputs;
        const int oc = g * OCG + (turned ? first_i + i : first_o + o);
        const int c = turned ? first_o + o : first_i + i;
        taps[turned ? 8 - tap : tap][i][o] = exists ? w[(oc * 9 + tap) * CG + c] : 0.0f;
    }
    __syncthreads();  // all filters are here

    const int i = threadIdx.x / 32, o = threadIdx.x % 32;
    float rows[4][3];  // G w
#pragma unroll
    for (int kw = 0; kw < 3; ++kw) {
        const float top = taps[kw][i][o], middle = taps[3 + kw][i][o], bottom = taps[6 + kw][i][o];
        rows[0][kw] = top, rows[3][kw] = bottom;
        rows[1][kw] = 0.5f * (top + bottom + middle), rows[2][kw] = 0.5f * (top + bottom - middle);
    }
    const int slab = 2 * (int)blockIdx.x + i / SLAB;  // of all slabs of all filter tiles
    const int slabs = 2 * (int)gridDim.x;
    float* to = u + (g * slabs + slab) * STAGE_U + i % SLAB * FILTERS + o;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        const float left = rows[r][0], middle = rows[r][1], right = rows[r][2];
        to[(4 * r + 0) * POINT_U] = left;
        to[(4 * r + 1) * POINT_U] = 0.5f * (left + right + middle);
        to[(4 * r + 2) * POINT_U] = 0.5f * (left + right - middle);
        to[(4 * r + 3) * POINT_U] = right;
    }
}

// The tiles of a block: images x rows x columns of them, at most 64, and where the first one lies.
struct Block {
    int images, rows, columns;
    int n, th, tw;
    __device__ __forceinline__ int tiles() const { return images * rows * columns; }
};

struct Tile {
    int image, row, column;
};

__device__ __forceinline__ Tile tile_of(const Block& block, int tile) {
    const int row = quotient(tile, block.columns), image = quotient(row, block.rows);
    return {image, row - image * block.rows, tile - row * block.columns};
}

// Cells are staged in pieces of four channels: the cell of column w in row h of an image is piece
//   w % 2 * ODD + image * image_pitch + h * row_pitch + w / 2
// of its slab, so that the cells that eight tiles in a row read at once are neighbours.
constexpr int ODD = 252, RAW = 508;  // pieces from even to odd columns, and from one slab to the next

// B' d B of the 4 x 4 cells whose first one is at `cell`, to the 16 points from `v` on.
__device__ __forceinline__ void transform_tile(float* v, const float* cell, int row_pitch) {
    float left[4], middle[4], right[4];  // columns of B' d
    auto column = [&](float (&t)[4], int j) {
        float d[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) d[r] = cell[4 * (r * row_pitch + j % 2 * ODD + j / 2)];
        t[0] = d[0] - d[2], t[1] = d[1] + d[2], t[2] = d[2] - d[1], t[3] = d[1] - d[3];
    };
    auto store = [&](int j, auto value) {
#pragma unroll
        for (int r = 0; r < 4; ++r) v[(4 * r + j) * POINT_V] = value(r);
    };
    column(left, 0), column(right, 2);
    store(0, [&](int r) { return left[r] - right[r]; });
    column(middle, 1);
    store(1, [&](int r) { return middle[r] + right[r]; });
    store(2, [&](int r) { return right[r] - middle[r]; });
    column(right, 3);
    store(3, [&](int r) { return middle[r] - right[r]; });
}

__device__ __forceinline__ void read_four(float* to, const float* shared) {
    const float4 v = *reinterpret_cast<const float4*>(shared);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

// sums += v u of one point, over two channels. A thread has tiles 4 m .. + 3 and 32 + 4 m .. + 3 (m: 0 .. 7),
// and filters 4 o .. + 3 and 16 + 4 o .. + 3 (o: 0 .. 3).
__device__ __forceinline__ void multiply_two(
    float (&sums)[8][8], const float* first, const float* second, const float* u) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
        float a[8], b[8];
        const float* tiles = c ? second : first;
        read_four(a, tiles), read_four(a + 4, tiles + 32);
        read_four(b, u + c * FILTERS), read_four(b + 4, u + c * FILTERS + 16);
#pragma unroll
        for (int i = 0; i < 8; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j) sums[i][j] = fmaf(a[i], b[j], sums[i][j]);
    }
}

extern __shared__ __align__(16) float shared_floats[];

// grid (blocks of tiles * filter tiles, G); 64 KiB of dynamic shared memory
extern "C" __global__ void __launch_bounds__(512, 1) conv2d_winograd_forward(
    float* __restrict__ y,        // (N, OH, OW, OC)
    const float* __restrict__ x,  // (N, H, W, C)
    const float* __restrict__ u,  // (G, filter tiles, slabs, 16, 4, 32)
    const float* __restrict__ b,  // (OC) or null
    int N, int H, int W, int CG, int OCG, int OH, int OW, int PT, int PL, int filter_tiles,
    int images, int rows, int columns, int row_pitch, int image_pitch, int across, int down) {
    float* v = shared_floats;         // 2 stages (16, 4, 64)
    float* filters = v + 2 * STAGE_V;  // 2 stages (16, 4, 32)
    float* raw = filters + 2 * STAGE_U;
    const int thread = threadIdx.x, point = thread / 32, g = blockIdx.y;
    const int C = CG * (int)gridDim.y, OC = OCG * (int)gridDim.y;
    const int place = quotient(blockIdx.x, filter_tiles), filter_tile = (int)blockIdx.x - place * filter_tiles;
    const int line = quotient(place, across), n0 = quotient(line, down);
    const Block block = {images, rows, columns, n0 * images, (line - n0 * down) * rows,
                         (place - line * across) * columns};
    int* origin = reinterpret_cast<int*>(raw + 4 * 2 * RAW);  // registers are scarce until the end
    if (thread == 0)
        origin[0] = block.n, origin[1] = block.th, origin[2] = block.tw, origin[3] = filter_tile * FILTERS;

    // This thread copies one slab of an even column and of the odd one beside it; its neighbour copies the
    // other slab, from the same sectors. Four consecutive pieces of both slabs meet 32 banks.
    const bool by_fours = CG % 4 == 0 && aligned16(x);
    const int slab = thread % 2, piece = thread / 2;
    const int image = quotient(piece, image_pitch), row = quotient(piece - image * image_pitch, row_pitch);
    const int column = piece - image * image_pitch - row * row_pitch;
    const bool staged = image < images && row < 2 * rows + 2 && column <= columns;
    int from[2];  // where channel 0 lies, or -1 outside the image
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int n = block.n + image, ih = 2 * block.th - PT + row;
        const int iw = 2 * (block.tw + column) + i - PL;
        const bool inside = n < N && ih >= 0 && ih < H && iw >= 0 && iw < W;
        from[i] = inside ? ((n * H + ih) * W + iw) * C + g * CG + SLAB * slab : -1;
    }
    auto copy_raw = [&](int c) {
        if (!staged) return;
        const int rest = CG - c - SLAB * slab;  // channels from this piece on
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float* cell = from[i] < 0 ? x : x + (from[i] + c);
            float* to = raw + 4 * (slab * RAW + i * ODD + piece);
            if (by_fours)
                copy_async<16>(to, cell, from[i] >= 0 && rest > 0);
            else
#pragma unroll
                for (int j = 0; j < 4; ++j) copy_async<4>(to + j, cell + j, from[i] >= 0 && rest > j);
        }
    };
    const int pairs = (CG + 2 * SLAB - 1) / (2 * SLAB);
    int next_u = (g * filter_tiles + filter_tile) * pairs * 2 * STAGE_U + 4 * thread;
    auto copy_filters = [&](int stage) {
        copy_async<16>(filters + stage * STAGE_U + 4 * thread, u + next_u, true);
        next_u += STAGE_U;
    };

    // Threads 0 .. 255 transform even slabs, the others odd ones: four channels of eight tiles a warp.
    const int own = thread % 256 / 4, c = thread % 4;
    const Tile mine = tile_of(block, own < block.tiles() ? own : 0);
    const float* cell = raw + 4 * (mine.image * image_pitch + 2 * mine.row * row_pitch + mine.column) + c;
    float* transformed = v + c * TILES + (own ^ 8 * c);
    const bool even = thread < 256;

    // Lanes x and x ^ 1 share tiles, x and x ^ 2 filters, so that their reads of 16 bytes merge.
    const int o = (thread & 1) | (thread >> 1 & 2), m = (thread >> 1 & 1) | (thread >> 2 & 6);
    // Channel c of v holds tile t at t ^ 8 c, so that lanes that transform four channels meet 32 banks.
    const float* first_v = v + point * POINT_V + 4 * m;
    const float* second_v = v + point * POINT_V + TILES + (4 * m ^ 8);
    const float* first_u = filters + point * POINT_U + 4 * o;
    const int next = 2 * TILES + (4 * m ^ 16) - 4 * m;  // from channels 0 and 1 to 2 and 3
    float sums[8][8];
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) sums[i][j] = 0.0f;

    copy_raw(0);
    copy_filters(0);
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();  // the first cells and filters are here
    if (even) transform_tile(transformed, cell, row_pitch);
    for (int first = 0; first < CG; first += 2 * SLAB) {
        const bool both = first + SLAB < CG, more = first + 2 * SLAB < CG;
        __syncthreads();  // the even slab is transformed, the odd one was read
        if (both) copy_filters(1);
        commit_copies();
        if (both && !even) transform_tile(transformed + STAGE_V, cell + 4 * RAW, row_pitch);
#pragma unroll UNROLL
        for (int c = 0; c < 2; ++c)
            multiply_two(sums, first_v + c * next, second_v + c * next, first_u + c * 2 * FILTERS);
        if (!both) break;
        wait_for_copies<0>();
        __syncthreads();  // the odd slab is transformed, the even one and the cells were read
        if (more) copy_raw(first + 2 * SLAB);
        commit_copies();
        if (more) copy_filters(0);
        commit_copies();
        multiply_two(sums, first_v + STAGE_V, second_v + STAGE_V, first_u + STAGE_U);
        if (more) {
            wait_for_copies<1>();
            __syncthreads();  // the next cells are here
            if (even) transform_tile(transformed, cell, row_pitch);
        }
        multiply_two(sums, first_v + STAGE_V + next, second_v + STAGE_V + next,
                     first_u + STAGE_U + 2 * FILTERS);
        wait_for_copies<0>();
    }

    const Block end = {images, rows, columns, origin[0], origin[1], origin[2]};

    // Points of 32 tiles at a time, (16, 32 tiles, 32 filters): piece q of a tile's filters is at
    // q ^ turn(tile / 4), so that lanes that write four pieces of two tiles meet 32 banks.
    const int tile = thread / 16, pair = thread % 16;
    auto turn = [](int four) { return (four & 1) << 2 | four >> 1; };
    const float* read = shared_floats + tile * FILTERS + 4 * (pair / 2 ^ turn(tile / 4)) + pair % 2 * 2;
    const int oc = origin[3] + 2 * pair;
    const bool by_twos = OCG % 2 == 0 && aligned8(y) && aligned8(b);
    float2 bias = make_float2(0.0f, 0.0f);
    if (b && oc < OCG) {
        const float* from = b + g * OCG + oc;
        if (by_twos)
            bias = *reinterpret_cast<const float2*>(from);
        else
            bias.x = from[0], bias.y = oc + 1 < OCG ? from[1] : 0.0f;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        __syncthreads();  // shared memory was read
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const float* s = sums[4 * half + i] + 4 * j;
                float* row = shared_floats + (point * 32 + 4 * m + i) * FILTERS;
                *reinterpret_cast<float4*>(row + 4 * (4 * j + o ^ turn(m))) =
                    make_float4(s[0], s[1], s[2], s[3]);
            }
        __syncthreads();  // all points of the tiles are here
        float2 out[2][2] = {{bias, bias}, {bias, bias}};
#pragma unroll
        for (int j = 0; j < 4; ++j) {  // A' m, then times A, column by column
            float2 p[4];
#pragma unroll
            for (int r = 0; r < 4; ++r)
                p[r] = *reinterpret_cast<const float2*>(read + (4 * r + j) * 32 * FILTERS);
            const float2 top = make_float2(p[0].x + p[1].x + p[2].x, p[0].y + p[1].y + p[2].y);
            const float2 low = make_float2(p[1].x - p[2].x - p[3].x, p[1].y - p[2].y - p[3].y);
            if (j < 3) out[0][0].x += top.x, out[0][0].y += top.y, out[1][0].x += low.x, out[1][0].y += low.y;
            if (j == 1) out[0][1].x += top.x, out[0][1].y += top.y, out[1][1].x += low.x, out[1][1].y += low.y;
            if (j > 1) out[0][1].x -= top.x, out[0][1].y -= top.y, out[1][1].x -= low.x, out[1][1].y -= low.y;
        }
        if (32 * half + tile >= end.tiles() || oc >= OCG) continue;
        const Tile at = tile_of(end, 32 * half + tile);
        const int n = end.n + at.image, oh = 2 * (end.th + at.row), ow = 2 * (end.tw + at.column);
        if (n >= N) continue;
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                if (oh + r >= OH || ow + j >= OW) continue;
                float* pixel = y + ((n * OH + oh + r) * OW + ow + j) * OC + g * OCG + oc;
                if (by_twos) {
                    *reinterpret_cast<float2*>(pixel) = out[r][j];
                } else {
                    pixel[0] = out[r][j].x;
                    if (oc + 1 < OCG) pixel[1] = out[r][j].y;
                }
            }
    }
}
