// One step of an optimizer: a pass over its flat buffers of parameters p, gradients g and states.
//
// A block works on one row of a table, a part of up to 1024 elements: `rows` stretches of `columns`
// neighbours that lie `pitch` elements apart, all of one group, whose numbers (rates, decays) are
// row `group` of an array in device memory. Without a table block b works on elements 1024b .. of
// group 0. A thread owns four neighbouring elements and moves each of their buffers as 16 bytes
// where they are aligned. On the way a part can be
//
//   summed       its gradient still lies in slices, which are added here: slices.cuh. As many lanes
//                as that has share a quad, and the part is as much smaller
//   scaled       its gradient is multiplied by *scale, a coefficient that clips the norm
//   copied       its new parameters are also written with rows and columns exchanged: a part is
//                then a tile of one tap of a filter, rows output channels, columns input channels
//
//      p (OCG, taps, CG)        tile in shared memory        copy (CG, taps, OCG)
//      oc  ########  -> c       one float of padding   ->    c  ########  -> oc
//          ########             per row: columns lie             ########
//                               in different banks
//
// so that both sides move whole 32-byte sectors.
//
//   narrowed     its new parameters are also written in bfloat16, as they lie and exchanged
//
// What was summed or scaled is written back to g.
// Traffic: 12 bytes per element for p and g, 8 for each state, 4 for g where it is written, 4 for
// each slice, 4 for a copy, 2 for one in bfloat16; 60 for the table per part. step(p, state, g) updates one element in
// place; state is an array of STATES floats. A null state buffer reads as 0 and is not written.

#include "slices.cuh"

constexpr int PART_WORDS = 15, PART_ELEMENTS = 1024;
constexpr int NO_COPY = -0x7fffffff - 1;

struct Part {
    int start, rows, columns, pitch, column_bits;  // 2^column_bits columns at most
    int group;
    int slices_at, slices, stride, lane_bits;  // slices + slices_at + i is element i of the first
    int copy_at, copy_pitch;                   // copy_at < 0: no copy
    int scaled;
    int narrowed_at, narrowed_copy_at;  // narrow + narrowed_at + i is element i; NO_COPY; < 0: none
};

__device__ __forceinline__ Part part_of_table(const int* table, int row) {
    const int* word = table + (long long)row * PART_WORDS;
    return {word[0], word[1], word[2], word[3], word[4],  word[5], word[6],
            word[7], word[8], word[9], word[10], word[11], word[12], word[13], word[14]};
}

__device__ __forceinline__ Part part_of_block(const int* table, int n) {
    if (table) return part_of_table(table, blockIdx.x);
    const int start = blockIdx.x * PART_ELEMENTS;
    return {start, 1, min(n - start, PART_ELEMENTS), 0, 10, 0, 0, 0, 0, 0, -1, 0, 0, NO_COPY, -1};
}

// A thread's four elements of a part.
struct Quad {
    int row, column;  // of the first
    long long at;     // index in the flat buffers
    int count;        // how many exist
};

__device__ __forceinline__ Quad quad_of(const Part& part) {
    const int quad = quad_of_thread(part.lane_bits);
    const int row = quad >> (part.column_bits - 2);
    const int column = (quad << 2) & ((1 << part.column_bits) - 1);
    const int count = row < part.rows ? min(max(part.columns - column, 0), 4) : 0;
    return {row, column, part.start + (long long)row * part.pitch + column, count};
}

// The gradient of a quad, right in lane 0: summed where it lies in slices. All threads take part.
__device__ __forceinline__ float4 gradient_of(
    const Part& part, const Quad& quad, const float* g, const float* slices) {
    if (!part.slices) return load_quad(g + quad.at, quad.count);
    const float* first = slices + part.slices_at + quad.at;
    return sum_of_slices(first, part.slices, part.stride, quad.count, part.lane_bits);
}

template <int STATES, class Step>
__device__ __forceinline__ void update(
    const Part& part, float* p, float* const (&state)[STATES], float* g, float* copies,
    bfloat16* narrow, const float* slices, const float* scale, Step step) {
    __shared__ float tile[PART_ELEMENTS + PART_ELEMENTS / 4];  // four columns are the fewest
    const Quad quad = quad_of(part);
    const bool first_lane = threadIdx.x < SLICE_THREADS >> part.lane_bits;
    const int count = first_lane ? quad.count : 0, padded = (1 << part.column_bits) + 1;
    const bool exchanged = part.copy_at >= 0 || part.narrowed_copy_at >= 0;
    const float4 g4 = gradient_of(part, quad, g, slices);
    if (count) {
        // All loads before the first use.
        const float4 p4 = load_quad(p + quad.at, count);
        float parameters[4] = {p4.x, p4.y, p4.z, p4.w}, values[4][STATES];
#pragma unroll
        for (int s = 0; s < STATES; ++s) {
            float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (state[s]) v = load_quad(state[s] + quad.at, count);
            values[0][s] = v.x, values[1][s] = v.y, values[2][s] = v.z, values[3][s] = v.w;
        }
        float gradients[4] = {g4.x, g4.y, g4.z, g4.w};
        if (part.scaled) {
            const float factor = *scale;
            // Rounded before anything is added to it, as where the gradient is scaled in memory.
#pragma unroll
            for (int j = 0; j < 4; ++j) gradients[j] = __fmul_rn(factor, gradients[j]);
        }
        if (part.slices || part.scaled)
            store_quad(g + quad.at, count,
                       make_float4(gradients[0], gradients[1], gradients[2], gradients[3]));
#pragma unroll
        for (int j = 0; j < 4; ++j) step(parameters[j], values[j], gradients[j]);
        store_quad(p + quad.at, count,
                   make_float4(parameters[0], parameters[1], parameters[2], parameters[3]));
#pragma unroll
        for (int s = 0; s < STATES; ++s)
            if (state[s])
                store_quad(state[s] + quad.at, count,
                           make_float4(values[0][s], values[1][s], values[2][s], values[3][s]));
        if (part.narrowed_at != NO_COPY) {
            bfloat16* y = narrow + part.narrowed_at + quad.at;
            if (count == 4 && aligned4(y)) {
                write_four(y, make_float4(parameters[0], parameters[1], parameters[2], parameters[3]));
            } else {
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    if (j < count) set(y[j], parameters[j]);
            }
        }
        if (exchanged)
#pragma unroll
            for (int j = 0; j < 4; ++j)
                tile[quad.row * padded + quad.column + j] = parameters[j];
    }
    if (!exchanged) return;
    __syncthreads();  // the tile is complete; each warp reads what all of them wrote
    const int elements = PART_ELEMENTS >> part.lane_bits;
    const int row_bits = 10 - part.lane_bits - part.column_bits;
    for (int i = threadIdx.x; i < elements; i += SLICE_THREADS) {
        const int row = i & ((1 << row_bits) - 1), column = i >> row_bits;
        if (row >= part.rows || column >= part.columns) continue;
        const long long place = (long long)column * part.copy_pitch + row;
        const float value = tile[row * padded + column];
        if (part.copy_at >= 0) copies[part.copy_at + place] = value;
        if (part.narrowed_copy_at >= 0) set(narrow[part.narrowed_copy_at + place], value);
    }
}
