// One training step of LeNet-5 in one launch: forward, cross-entropy, backward, Adam.
//
//   28 x 28 x 1 -> 5 x 5, 6 channels, padding 2 -> tanh -> mean of 2 x 2 -> 5 x 5, 16 -> tanh -> mean of
//   2 x 2 -> 120 -> tanh -> 84 -> tanh -> classes;   loss = mean over the N labels that are known
//
// Counted, for 128 images and the 132 multiprocessors of an H200 at 1.8 GHz:
//
//   arithmetic        1.13 M multiply-adds per image, 0.29 GFLOP: 4.9 us of one image per multiprocessor
//                     at its full rate. By layer, forward and twice backward (once for the first):
//                     118, 240, 48, 10, 1 thousand.
//   memory            the images, 0.4 MB, and 28 bytes for each of 61 706 parameters, 1.7 MB, once: 0.5 us.
//                     Each block reads all weights from L2: 32 MB in all, 6 us, of which the
//                     convolutions hide a half.
//   launches          5 us for the graph, about 1 us for each kernel in it: 30 to 35 us for the 25 to
//                     30 kernels of the layers, and what any of them takes beyond that.
//
// So the launches are the cost, and the aim is one launch with as few barriers of the grid as possible,
// at 1 to 1.5 us each. Here there is one:
//
//   1. Image by image, a block each. Everything between the layers stays in shared memory and registers.
//      The 48 000 weights of the first linear layer, of which each is needed once forward and once
//      backward, are copied into shared memory (192 KB) while the convolutions run; those of the second
//      stay in registers between their two uses. What an image leaves behind is small: the inputs and
//      gradients of the linear layers (844 numbers) and its share of the gradients of the
//      convolutions (2572), 14 KB. Partial gradients of all weights would be 247 KB.
//   2. Barrier.
//   3. Weight by weight: a tile of 16 x 32 weights of a linear layer to a block, a slice of the images to
//      each warp, then a thread to a weight, which it updates. 131 tiles: one for each multiprocessor. A
//      bias is the weight of an input that is 1.
//
// Within phase 1, in instructions of a warp scheduler, of which a multiprocessor has four (multiply-adds
// alone; loads of shared memory run beside them and come to less): convolutions forward 0.9 and 2.4
// thousand, linear layers 1.6 (bound by shared memory), back 1.9, the second convolution's two gradients
// 2.0 and 3.3, the first one's 1.3; hyperbolic tangents 1.2. Together 15 thousand, 8 us; the weights that
// are waited for, 3 us; barriers of the block, 20 of them, 1 us. Phase 3: 1 us, the grid's barrier 1.5,
// the launch 5: 19 to 20 us against 30 to 35 of launches alone. Predicted, not measured.
//
// 512 threads of at most 128 registers, one block to a multiprocessor, all of them resident
// (grid_barrier.cuh); any grid will do, and any number of images. All sums are in an order that does
// not depend on the grid: over images, 16 slices (image n in slice n mod 16), then the slices in order.
// So the bits depend on the inputs alone. Of the first linear layer's weights, `kept` rows have room in
// shared memory, all 120 on sm_90, 39 where a block has 99 KB; the others are read from L2 twice, for
// the same bits. Refused: less than 84 KB of shared memory for a block (sm_75), more than 16 classes.

#include "common.cuh"
#include "activation.cuh"
#include "async_copy.cuh"
#include "warp.cuh"
#include "adam.cuh"
#include "grid_barrier.cuh"
#include "lenet5.cuh"
#include "lenet5_forward.cuh"
#include "lenet5_backward.cuh"
#include "lenet5_update.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) lenet5_step(
    float* p,                           // parameters, updated
    float* m,                           // updated: running mean of the gradients
    float* v,                           // updated: running mean of their squares
    float* __restrict__ loss,           // (1)
    float* __restrict__ scores,         // (N, classes)
    float* records,                     // (N, RECORD)
    int* meeting,                       // (1), where blocks meet: 0 before the first launch
    const float* __restrict__ x,        // (N, 28, 28, 1)
    const int* __restrict__ target,     // (N)
    const float* __restrict__ numbers,  // (7), those of adam
    int N, int classes, int kept, int ignore_index) {
    extern __shared__ float4 memory[];
    Block& b = *reinterpret_cast<Block*>(memory);
    float* const room = reinterpret_cast<float*>(memory) + BLOCK_FLOATS;

    load_parameters(b, p, classes);
    int known = 0;
    for (int i = threadIdx.x; i - (int)threadIdx.x < N; i += THREADS)
        known += __syncthreads_count(i < N && target[i] != ignore_index && target[i] >= 0 &&
                                     target[i] < classes);
    const float share = known ? 1.0f / known : 0.0f;  // nothing counts: no score matters

    for (int n = blockIdx.x; n < N; n += gridDim.x) {
        float* const record = records + (long long)n * RECORD;
        __syncthreads();  // the image before is done with the room and with its pixels
        begin_copy(room, p, kept);
        load_image(b, x + (long long)n * SIDE * SIDE);
        __syncthreads();
        float t1[4][3], t2[4][2];  // the maps behind their tanh, kept for the way back
        first_convolution(b, t1);
        __syncthreads();
        second_convolution(b, t2, record);
        float4 w2[ROWS2];  // of the second linear layer, likewise
        load_second(w2, p);
        wait_for_copies<0>();
        __syncthreads();
        first_linear(b, room, p, kept, record);
        __syncthreads();
        second_linear(b, w2, record);
        __syncthreads();
        third_linear(b, scores + (long long)n * classes, classes);
        __syncthreads();
        cross_entropy(b, target[n], classes, ignore_index, share, record);
        __syncthreads();
        third_linear_back(b, classes, record);
        __syncthreads();
        second_linear_back(b, w2, record);
        first_linear_back(b, room, p, kept);
        __syncthreads();  // the weights in the room are used up
        second_map_gradient(b, room, t2);
        __syncthreads();
        pooled_gradient(b, room);
        second_weight_gradient(b, room, record);
        first_map_gradient(b, room, t1);
        __syncthreads();
        first_weight_gradient(b, room, record);
    }

    grid_barrier(reinterpret_cast<unsigned*>(meeting));
    const Update update{Adam(numbers), p, m, v};
    for (int task = blockIdx.x; task < TASKS; task += gridDim.x) {
        __syncthreads();  // the task before is done with the room
        if (task < LINEAR_TASKS)
            update_linear(update, room, records, N, classes, task);
        else if (task < LINEAR_TASKS + CONVOLUTION_TASKS)
            update_convolutions(update, room, records, N, task - LINEAR_TASKS);
        else
            add_losses(loss, room, records, N, known);
    }
}
