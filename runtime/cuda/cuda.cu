/* The CUDA backend's entry: its table, devices, memory and errors. Holds no kernels and no copies.
 * Invariants: a device that failed for good is never used again, and every later call says so;
 * nothing is asked of a stream but the calling thread's own. */
#include <stdio.h>

#include "capture.h"
#include "convolve.h"
#include "copies.h"
#include "index.h"

static const ln_backend table = {
#define OP(name, arguments) .name = CUDA(name),
#include "ops.def"
#undef OP
};

/* ---- Errors ---- */

/* Why the device is lost; set before the flag is. One sticky error ends the whole context. */
static char loss[160];
static bool is_lost;

bool cuda_lost(void) {
    return __atomic_load_n(&is_lost, __ATOMIC_ACQUIRE);
}

/* After these, every call in this process fails. */
static bool sticky(cudaError_t error) {
    switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContextIsDestroyed: return true;
    default: return false;
    }
}

ln_status cuda_fail(cudaError_t error, const char *what) {
    cudaGetLastError(); /* the runtime's copy of it, which a later call would return again */
    const char *name = cudaGetErrorName(error), *text = cudaGetErrorString(error);
    if (error == cudaErrorMemoryAllocation)
        return ln_fail(LN_OUT_OF_MEMORY, "%s: out of memory on a cuda device", what);
    if (!sticky(error)) return ln_fail(LN_INTERNAL, "%s: %s (%s)", what, text, name);
    if (!cuda_lost()) {
        snprintf(loss, sizeof loss, "%s (%s)", text, name);
        __atomic_store_n(&is_lost, true, __ATOMIC_RELEASE);
    }
    return ln_fail(LN_DEVICE_LOST,
                   "%s: the cuda device is lost: %s, in this or an earlier operator; start anew in "
                   "another process",
                   what, loss);
}

ln_status cuda_enter_device(int device, const char *what) {
    if (cuda_lost())
        return ln_fail(LN_DEVICE_LOST,
                       "%s: the cuda device was lost before: %s; start anew in another process",
                       what, loss);
    ln_status status = ln_capture_admits(device, what);
    return status != LN_OK ? status : cuda_check(cudaSetDevice(device - LN_CUDA), what);
}

ln_status cuda_enter(const ln_tensor *t, const char *what) {
    return cuda_enter_device(ln_device(t), what);
}

/* ---- Memory: the runtime's pool orders it by streams and caches it ---- */

static ln_status pool_of(cudaMemPool_t *pool, int device) {
    return cuda_check(cudaDeviceGetDefaultMemPool(pool, device - LN_CUDA), "memory");
}

static ln_status wait_for(int device) {
    ln_status status = cuda_enter_device(device, "synchronize");
    if (status == LN_OK) status = cuda_copies_end(device);
    if (status != LN_OK) return status;
    return cuda_check(cudaStreamSynchronize(cudaStreamPerThread), "synchronize");
}

static ln_status synchronize(int device) {
    ln_status status = wait_for(device);
    return status != LN_OK ? status : cuda_index_found(device);
}

/* Leaves what was found of indices to be told by one who asks for results. */
static ln_status flush(int device) {
    cudaMemPool_t pool;
    ln_status status = wait_for(device);
    if (status == LN_OK) status = pool_of(&pool, device);
    if (status == LN_OK) status = cuda_check(cudaMemPoolTrimTo(pool, 0), "memory_flush");
    return status;
}

/* Memory that the stream of copies asks for need not wait for what the other does. */
static ln_status acquire(void **out, int device, size_t bytes, bool ahead) {
    cudaStream_t stream = cudaStreamPerThread;
    ln_status status = cuda_enter_device(device, "memory");
    if (status == LN_OK && ahead) status = cuda_copy_stream(&stream, device, COPY_UP);
    for (int attempt = 0; status == LN_OK; attempt++) {
        cudaError_t error = cudaMallocAsync(out, bytes > 0 ? bytes : 1, stream);
        if (error != cudaErrorMemoryAllocation || attempt > 0) return cuda_check(error, "memory");
        cudaGetLastError();
        status = flush(device);
    }
    return status;
}

/* On a device that is lost there is nothing to give back. */
static void release(void *p, int device) {
    if (p == NULL || cuda_lost()) return;
    cudaSetDevice(device - LN_CUDA);
    cudaError_t error = cudaFreeAsync(p, cudaStreamPerThread);
    if (error != cudaSuccess) cuda_fail(error, "free");
}

static ln_status memory(int64_t *total, int64_t *available, int64_t *cached, int device) {
    cudaMemPool_t pool;
    size_t free_bytes, total_bytes;
    uint64_t reserved, used, all = UINT64_MAX;
    ln_status status;
    LN_TRY(cuda_enter_device(device, "memory"));
    LN_TRY(pool_of(&pool, device));
    LN_TRY(
        cuda_check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all), "memory"));
    LN_TRY(cuda_check(cudaMemGetInfo(&free_bytes, &total_bytes), "memory"));
    LN_TRY(cuda_check(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &reserved),
                      "memory"));
    LN_TRY(
        cuda_check(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &used), "memory"));
    *total = (int64_t)total_bytes;
    *available = (int64_t)free_bytes;
    *cached = (int64_t)(reserved - used);
fail:
    return status;
}

ln_status cuda_scratch(void **out, size_t bytes, const char *what) {
    int device;
    *out = NULL;
    ln_graph *graph = ln_capturing();
    ln_status status = cuda_check(cudaGetDevice(&device), what);
    if (status == LN_OK && graph != NULL)
        return ln_graph_acquire(out, graph, LN_CUDA + device, bytes, what);
    if (status == LN_OK) status = acquire(out, LN_CUDA + device, bytes, false);
    if (status == LN_OUT_OF_MEMORY)
        return ln_fail(status, "%s: out of memory: %zu bytes of scratch on cuda:%d", what, bytes,
                       device);
    return status;
}

void cuda_scratch_release(void *p) {
    int device;
    ln_graph *graph = ln_capturing();
    if (p == NULL) return;
    if (graph != NULL) ln_graph_give_back(graph, p);
    else if (cudaGetDevice(&device) == cudaSuccess) release(p, LN_CUDA + device);
}

/* ---- Devices ---- */

/* What is kept for pinning belongs to no device. */
static ln_status flush_devices(int device) {
    cuda_unpin_kept();
    return flush(device);
}

static ln_status name_of(const char **out, int device) {
    static thread_local cudaDeviceProp properties;
    ln_status status = cuda_check(cudaGetDeviceProperties(&properties, device - LN_CUDA), "name");
    if (status == LN_OK) *out = properties.name;
    return status;
}

/* ---- The entry ---- */

ln_status ln_driver_open(const ln_driver **out) {
    static ln_driver driver = {};
    int devices = 0;
    cudaError_t error = cudaGetDeviceCount(&devices);
    if (error == cudaErrorInsufficientDriver)
        return ln_fail(LN_NO_DEVICE, "there is no NVIDIA driver, or one older than CUDA %d.%d",
                       CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (error == cudaErrorNoDevice || (error == cudaSuccess && devices == 0))
        return ln_fail(LN_NO_DEVICE, "the NVIDIA driver finds no device");
    if (error != cudaSuccess)
        return ln_fail(LN_NO_DEVICE, "%s (%s)", cudaGetErrorString(error), cudaGetErrorName(error));
    driver = {LN_DRIVER_VERSION,
              devices,
              &table,
              acquire,
              release,
              cuda_pin,
              cuda_unpin,
              cuda_transfer,
              cuda_upload,
              cuda_download,
              cuda_follow,
              cuda_wait,
              synchronize,
              flush_devices,
              memory,
              cuda_capture_begin,
              cuda_capture_end,
              cuda_graph_launch,
              cuda_graph_destroy,
              cuda_reserve,
              cuda_unreserve,
              name_of,
              cuda_lost,
              cuda_cudnn_version};
    *out = &driver;
    return LN_OK;
}
