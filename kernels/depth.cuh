// Kernels with windows over images (DIMS = 2) and volumes (DIMS = 3) take the sizes along the depth in
// both cases. For images they are constants, so that the compiler drops that axis.

#ifndef DIMS
#error "DIMS is 2 or 3"
#endif

#if DIMS == 2
#define WINDOWS_HAVE_NO_DEPTH D = KD = OD = SD = 1, PF = 0
#define IMAGES_HAVE_NO_DEPTH WINDOWS_HAVE_NO_DEPTH, DD = 1
#else
#define WINDOWS_HAVE_NO_DEPTH
#define IMAGES_HAVE_NO_DEPTH
#endif
