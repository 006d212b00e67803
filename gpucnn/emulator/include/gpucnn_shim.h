// CUDA C for g++: what NVRTC predefines, in terms of the emulator's runtime.
#pragma once

#include <stdint.h>

#define GPUCNN_EMULATED 1
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __forceinline__ __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __CUDA_ALIGN__(n) __attribute__((aligned(n)))

// Inlined so that a fault is reported at the line that uses the function.
#define GPUCNN_INLINE static inline __attribute__((always_inline))

// One operation of a GPU that takes several here. Builds that count operations count its calls, and
// not what is inside; flops.py has the names.
#ifdef GPUCNN_COUNTED
#define GPUCNN_OPERATION static __attribute__((noipa))
#else
#define GPUCNN_OPERATION GPUCNN_INLINE
#endif

#include "gpucnn_vector_types.h"
#include "gpucnn_math.h"
#include "gpucnn_warp.h"
#include "gpucnn_atomics.h"
#include "gpucnn_half.h"
#include "gpucnn_bfloat16.h"
#include "gpucnn_builtins.h"
#include "gpucnn_matrix.h"
