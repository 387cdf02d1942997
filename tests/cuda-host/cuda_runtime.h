/* CUDA's runtime as far as runtime/cuda/ uses it, on the host: the same sources compile as C++ and
 * their kernels run there, a block at a time, its threads as fibres. Holds declarations and the
 * typed launch; what kernels use is in device.h. Invariants: whatever a real device would refuse or
 * lose is refused or lost here, and more: accesses one past a block of memory, barriers that not
 * all threads reach, device memory that host code touches, and memory that is freed under a copy.
 * See threads.cc, memory.cc, streams.cc and graphs.cc. */
#ifndef LN_CUDA_HOST_RUNTIME_H
#define LN_CUDA_HOST_RUNTIME_H
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "device.h"

#define CUDART_VERSION 13000

#pragma GCC visibility push(default) /* to the stand-in for cuDNN */

/* ---- Errors, with CUDA's numbers ---- */

typedef enum {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorECCUncorrectable = 214,
    cudaErrorNvlinkUncorrectable = 220,
    cudaErrorIllegalState = 401,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorLaunchTimeout = 702,
    cudaErrorContextIsDestroyed = 709,
    cudaErrorAssert = 710,
    cudaErrorHardwareStackError = 714,
    cudaErrorIllegalInstruction = 715,
    cudaErrorMisalignedAddress = 716,
    cudaErrorInvalidAddressSpace = 717,
    cudaErrorInvalidPc = 718,
    cudaErrorLaunchFailure = 719,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
    cudaErrorStreamCaptureIsolation = 905
} cudaError_t;

const char *cudaGetErrorName(cudaError_t error);
const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError(void);

/* ---- Devices, streams, memory ---- */

typedef struct cuda_host_stream *cudaStream_t;
typedef struct cuda_host_pool *cudaMemPool_t;
static const cudaStream_t cudaStreamPerThread = NULL;

struct cudaDeviceProp {
    char name[256];
};
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device);
typedef enum { cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 } cudaDeviceAttr;
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr name, int device);
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int *device);

/* On the thread's own stream everything is done when a call returns; on another one as late as
 * possible: see streams.cc. */
typedef struct cuda_host_event *cudaEvent_t;
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventSynchronize(cudaEvent_t event);

/* See graphs.cc. */
typedef struct cuda_host_graph *cudaGraph_t;
typedef struct cuda_host_executable *cudaGraphExec_t;
typedef enum { cudaStreamCaptureModeRelaxed = 2 } cudaStreamCaptureMode;
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph,
                                 unsigned long long flags);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable);
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream);

typedef enum {
    cudaMemPoolAttrReleaseThreshold,
    cudaMemPoolAttrReservedMemCurrent,
    cudaMemPoolAttrUsedMemCurrent
} cudaMemPoolAttr;

cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t stream);
cudaError_t cudaFreeAsync(void *p, cudaStream_t stream);
enum { cudaHostAllocPortable = 1, cudaHostAllocMapped = 2 };
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaMemGetInfo(size_t *available, size_t *total);
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device);
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t keep);
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr name, void *value);
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr name, void *value);

typedef enum {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice
} cudaMemcpyKind;

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream);
cudaError_t cudaMemcpyPeerAsync(void *dst, int dst_device, const void *src, int src_device,
                                size_t bytes, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream);

#pragma GCC visibility pop

/* ---- Launches ---- */

typedef struct {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
} cudaLaunchConfig_t;

/* How much dynamic shared memory a kernel's blocks may have, where that is more than 48 KiB. */
typedef enum { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 } cudaFuncAttribute;
cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute name, int value);

/* Runs thread(context), which calls the kernel, for every thread of the grid. The context's bytes
 * are copied where that happens later. */
cudaError_t cuda_host_launch(const cudaLaunchConfig_t *config, const void *kernel,
                             void (*thread)(void *context), void *context, size_t bytes);

/* Whether kernels are run as PTX; and such a launch: where each argument lies, and their sizes with
 * a 0 behind them. See ptx_entries.cc. */
bool cuda_host_interprets(void);
cudaError_t cuda_host_interpret(const cudaLaunchConfig_t *config, const void *kernel,
                                const void *const *places, const size_t *bytes);

template <typename... Parameters>
cudaError_t cuda_host_launch_typed(const cudaLaunchConfig_t *config, void (*kernel)(Parameters...),
                                   Parameters... arguments) {
    const void *places[] = {&arguments..., NULL};
    const size_t bytes[] = {sizeof arguments..., 0};
    if (cuda_host_interprets())
        return cuda_host_interpret(config, (const void *)kernel, places, bytes);
    auto thread = [=] { kernel(arguments...); };
    return cuda_host_launch(
        config, (const void *)kernel, [](void *context) { (*(decltype(thread) *)context)(); },
        &thread, sizeof thread);
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(Parameters...),
                               Arguments &&...arguments) {
    return cuda_host_launch_typed<Parameters...>(config, kernel, Parameters(arguments)...);
}

#endif
