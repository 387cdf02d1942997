/* Kernels that are compiled while the program runs: by NVRTC for a device, by the C++ compiler
 * where kernels run on the host. Declarations only. */
#ifndef LN_CUDA_COMPILE_H
#define LN_CUDA_COMPILE_H
#include "cuda.h"

/* A kernel, of the process: it is never given back. */
typedef struct compiled compiled;

/* The kernel epilogue_kernel of a source (CUDA C++ that includes nothing), for the current device.
 * Compiled when it is asked for first; later processes find it on disk. */
ln_status cuda_compile(const compiled **out, const char *source, const char *what);
/* Launches it with its one argument, a structure of so many bytes, and so many bytes of dynamic
 * shared memory for each block. */
ln_status cuda_run(const compiled *kernel, unsigned blocks, unsigned threads, size_t shared,
                   const void *argument, size_t bytes, const char *what);

#endif
