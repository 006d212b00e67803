// Concatenation along an axis, and its gradient: both copy a band of columns between two matrices.
//
//   copy_columns   y[r][to + j] = x[r][from + j],  0 <= j < columns
//
// An array of shape (..., A, inner...) is a matrix of A*inner columns for everything before the axis.
// Forward copies each input into its band of the output, backward each band of dy into a gradient.
// A thread copies four consecutive columns of one row: as 16 bytes (8 in bfloat16) where both sides are
// aligned, which is so when channels are multiples of 4. 8 bytes per element (4 in bfloat16):
// memory-bound. Any sizes.

#include "common.cuh"

struct __align__(4 * sizeof(stored)) Four {
    stored at[4];
};

extern "C" __global__ void copy_columns(
    stored* __restrict__ y,        // (rows, y_width), its band written
    const stored* __restrict__ x,  // (rows, x_width)
    int rows, int columns, int y_width, int x_width, int to, int from) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned fours = ((unsigned)columns + 3) / 4;
    const unsigned r = i / fours, j = i % fours * 4;
    if (r >= rows) return;
    x += (long long)r * x_width + from + j;
    y += (long long)r * y_width + to + j;
    const unsigned left = columns - j;
    if (left >= 4 && aligned4(x) && aligned4(y)) {
        *reinterpret_cast<Four*>(y) = *reinterpret_cast<const Four*>(x);
        return;
    }
#pragma unroll
    for (unsigned k = 0; k < 4; ++k)
        if (k < left) y[k] = x[k];
}
