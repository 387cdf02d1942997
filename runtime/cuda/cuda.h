/* Shared by the files of the CUDA backend: the naming of its slots, launches, errors, and how
 * kernels read and write elements of any dtype. Holds no kernels. Invariants: every launch goes
 * through launch(), which checks it; all but uploads and downloads is asked of the calling thread's
 * own stream; the same sources compile with nvcc and, for tests, as C++ that runs on the host. */
#ifndef LN_CUDA_CUDA_H
#define LN_CUDA_CUDA_H
#include <cuda_runtime.h>

#include <math.h>

#include "backend.h"
#include "element.h"

#define CUDA(name) ln_cuda_##name

#define OP(name, arguments) ln_status CUDA(name) arguments;
#include "ops.def"
#undef OP

/* ---- Errors and the device ---- */

/* The message and status of a failed call of CUDA's; a device that failed for good is marked. */
ln_status cuda_fail(cudaError_t error, const char *what);

static inline ln_status cuda_check(cudaError_t error, const char *what) {
    return error == cudaSuccess ? LN_OK : cuda_fail(error, what);
}

bool cuda_lost(void);
/* Makes a device the calling thread's; fails where it was lost. Every slot begins with t's. */
ln_status cuda_enter_device(int device, const char *what);
ln_status cuda_enter(const ln_tensor *t, const char *what);

/* Memory for the kernels of one slot. Released, it serves later work of the thread. */
ln_status cuda_scratch(void **out, size_t bytes, const char *what);
void cuda_scratch_release(void *p); /* NULL allowed */

/* ---- Launches ---- */

enum {
    THREADS = 256, /* a block, unless a kernel says otherwise */
    WARP = 32
};

/* Bytes of shared memory that every kernel may ask for; one that asks for more is allowed it. */
static const size_t PLAIN_SHARED = 48 << 10;

/* Limits that the tests' build shrinks, so that what goes round them does so in small cases. */
#ifndef LN_MOST_BLOCKS
#define LN_MOST_BLOCKS (1 << 16)
#define LN_SCRATCH_BYTES (1 << 28)
#endif
static const int64_t MOST_BLOCKS = LN_MOST_BLOCKS; /* kernels stride over what is more */
/* What one operator works on at once where it cuts its work into pieces. */
static const int64_t SCRATCH = LN_SCRATCH_BYTES;

static inline int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

/* Blocks for n items of which a block handles `each`. */
static inline unsigned blocks_for(int64_t n, int64_t each = THREADS) {
    int64_t blocks = ceil_div(n, each);
    return (unsigned)(blocks < 1 ? 1 : blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS);
}

/* With so many bytes of shared memory for each block, besides what the kernel declares. */
template <typename... Parameters, typename... Arguments>
static ln_status launch_shared(const char *what, void (*kernel)(Parameters...), unsigned blocks,
                               unsigned threads, size_t bytes, Arguments... arguments) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = bytes;
    config.stream = cudaStreamPerThread;
    cudaError_t error = cudaSuccess;
    if (bytes > PLAIN_SHARED)
        error = cudaFuncSetAttribute((const void *)kernel,
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
    return cuda_check(error, what);
}

template <typename... Parameters, typename... Arguments>
static ln_status launch(const char *what, void (*kernel)(Parameters...), unsigned blocks,
                        unsigned threads, Arguments... arguments) {
    return launch_shared(what, kernel, blocks, threads, 0, arguments...);
}

#ifdef __CUDACC__
/* What launch_shared gave the block, at a multiple of 16 bytes. The tests' build has its own. */
static inline __device__ void *shared_memory() {
    extern __shared__ float4 block_memory[];
    return block_memory;
}
#endif

/* This thread's place among all of the grid, and their number. */
static inline __device__ int64_t grid_thread() {
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

static inline __device__ int64_t grid_threads() {
    return (int64_t)gridDim.x * blockDim.x;
}

#endif
