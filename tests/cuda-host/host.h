/* Between the files of the shim: faults, the door to device memory, and copies put off. */
#ifndef LN_CUDA_HOST_HOST_H
#define LN_CUDA_HOST_HOST_H
#include "cuda_runtime.h"

#include <functional>

/* The device is lost with this error and text from now on. Returns the error. */
cudaError_t cuda_host_fault(cudaError_t error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* What every launch begins with: the error of a lost device, or that of a fault to be simulated. */
cudaError_t cuda_host_begin(void);

/* Whether kernels and products are not to be run. */
bool cuda_host_dry(void);

/* Between these the calling thread may touch device memory. */
void cuda_host_open(void);
void cuda_host_close(void);

/* Of a tensor core, by a warp (mma.cc). */
void cuda_host_count_multiplication(void);

/* A launch that is run as a whole, by a function that gets the copied context, instead of thread by
 * thread. */
typedef void (*cuda_host_grid)(const cudaLaunchConfig_t *config, void *context);
cudaError_t cuda_host_launch_grid(const cudaLaunchConfig_t *config, const void *kernel,
                                  cuda_host_grid whole, void *context, size_t bytes);

/* ---- Copies (memory.cc) that wait in a stream (streams.cc) ---- */

struct cuda_host_copy {
    void *dst;
    const void *src;
    size_t bytes;
    cudaMemcpyKind kind;
};

/* Does it now; fails where either end is not what the kind says. */
cudaError_t cuda_host_do(const cuda_host_copy &copy);
/* Does it when something waits for what was asked of the stream. */
void cuda_host_put_off(cudaStream_t stream, const cuda_host_copy &copy);
/* The block of device or pinned memory in which p lies. */
bool cuda_host_find(const void *p, const void **begin, size_t *bytes);
/* Whether p lies in the block that begins there. */
bool cuda_host_holds(const void *block, const void *p);
/* A fault where a copy that is put off reads or writes the block. */
void cuda_host_check_free(const void *block);

/* Counts what is asked of the threads' own streams and matters to others: allocations, events. */
long cuda_host_tick(void);
/* When something was last asked of the calling thread's own stream. */
long cuda_host_last(void);
/* Whether what is asked of the stream next comes after this of the threads' own streams. */
bool cuda_host_is_after(cudaStream_t stream, long tick);

/* ---- Capture (graphs.cc); also for the stand-in of cuDNN ---- */

#pragma GCC visibility push(default)
/* Whether the calling thread's own stream is under capture. */
bool cuda_host_captures(void);
/* What is asked of that stream: done now or, under capture, kept for the launches of the graph. */
cudaError_t cuda_host_ask(const std::function<cudaError_t()> &call);
#pragma GCC visibility pop
/* What a capture cannot take: fails under one, and spoils it. */
cudaError_t cuda_host_refuse(void);

#endif
