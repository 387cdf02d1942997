/* Devices of host memory: two of them, and pinned memory. A block of device memory ends at a page
 * that may not be touched, is filled with 0xff (not a number, -1) when new, and lies under a
 * protection key that opens for kernels and copies only. Invariant: after a fault every call fails
 * with it.
 *
 * LUNCE_CUDA_HOST_BYTES: the memory of each device (4 GiB where not given);
 * LUNCE_CUDA_HOST_FAULT: the number of the launch that loses the device;
 * LUNCE_CUDA_HOST_DEVICES: 0 for a driver without devices, -1 for no driver;
 * LUNCE_CUDA_HOST_LEAKS: 1 to have blocks counted that are not given back at exit;
 * LUNCE_CUDA_HOST_DRY: 1 to have kernels and products asked for but not run, so that what matrices
 * allocate that no host can go through is known. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* pkey_alloc */
#endif
#include "host.h"

#include <map>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, ALIGNMENT = 16, DEVICES = 2, PAD = 0xa5 };

struct block {
    char *start; /* of the mapping, whose last page is the guard */
    size_t bytes, mapped;
    int device;
    cudaStream_t stream; /* that asked for it */
    long tick;           /* when */
};

/* Never destroyed: tensors may be released while the process ends. */
static std::map<char *, block> &blocks = *new std::map<char *, block>;
static std::map<char *, size_t> &pinned = *new std::map<char *, size_t>;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    size_t used, reserved; /* what is used; the most that was, as a pool that caches has it */
} pools[DEVICES];
static int key = -2; /* the protection key; -1 where the processor has none */
static cudaError_t fault;
static char fault_text[400];
static thread_local int current_device;

static long setting(const char *name, long otherwise) {
    const char *given = getenv(name);
    return given == NULL ? otherwise : atol(given);
}

/* ---- The door ---- */

void cuda_host_open(void) {
    if (key > 0) pkey_set(key, 0);
}

void cuda_host_close(void) {
    if (key > 0) pkey_set(key, PKEY_DISABLE_ACCESS);
}

/* ---- Errors ---- */

cudaError_t cuda_host_fault(cudaError_t error, const char *format, ...) {
    va_list arguments;
    if (fault != cudaSuccess) return fault;
    va_start(arguments, format);
    vsnprintf(fault_text, sizeof fault_text, format, arguments);
    va_end(arguments);
    return fault = error;
}

cudaError_t cuda_host_begin(void) {
    static long launches;
    if (++launches == setting("LUNCE_CUDA_HOST_FAULT", 0))
        cuda_host_fault(cudaErrorIllegalAddress, "a simulated illegal address");
    return fault;
}

bool cuda_host_dry(void) {
    static const bool dry = setting("LUNCE_CUDA_HOST_DRY", 0) != 0;
    return dry;
}

cudaError_t cudaGetLastError(void) {
    return fault;
}

const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorIllegalState: return "cudaErrorIllegalState";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorStreamCaptureIsolation: return "cudaErrorStreamCaptureIsolation";
    default: return "another error";
    }
}

const char *cudaGetErrorString(cudaError_t error) {
    return fault != cudaSuccess && error == fault ? fault_text : cudaGetErrorName(error);
}

/* ---- Devices ---- */

cudaError_t cudaGetDeviceCount(int *count) {
    long devices = setting("LUNCE_CUDA_HOST_DEVICES", DEVICES);
    if (devices < 0) return cudaErrorInsufficientDriver;
    if (devices == 0) return cudaErrorNoDevice;
    *count = DEVICES;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
    if (device < 0 || device >= DEVICES) return cudaErrorInvalidDevice;
    snprintf(properties->name, sizeof properties->name, "cuda-host");
    return fault;
}

cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= DEVICES) return cudaErrorInvalidDevice;
    current_device = device;
    return fault;
}

cudaError_t cudaGetDevice(int *device) {
    *device = current_device;
    return cudaSuccess;
}

static size_t total(void) {
    return (size_t)setting("LUNCE_CUDA_HOST_BYTES", 4L << 30);
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *all) {
    *all = total();
    *available = *all - pools[current_device].used;
    return fault;
}

/* ---- Blocks ---- */

static block *find(const void *p, size_t bytes) {
    auto next = blocks.upper_bound((char *)p);
    if (next == blocks.begin()) return NULL;
    auto &[start, b] = *--next;
    return (char *)p + bytes <= start + b.bytes ? &b : NULL;
}

static cudaError_t allocate(void **p, size_t bytes, cudaStream_t stream) {
    if (fault != cudaSuccess) return fault;
    if (bytes == 0) return cudaErrorInvalidValue;
    if (bytes > total() - pools[current_device].used) return cudaErrorMemoryAllocation;
    size_t room = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    size_t pages = (room + PAGE - 1) / PAGE * PAGE;
    char *start = (char *)mmap(NULL, pages + PAGE, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return cudaErrorMemoryAllocation;
    char *data = start + pages - room;
    memset(data, 0xff, bytes);
    memset(data + bytes, PAD, room - bytes);
    mprotect(start + pages, PAGE, PROT_NONE);
    pthread_mutex_lock(&lock);
    if (key == -2) key = pkey_alloc(0, PKEY_DISABLE_ACCESS);
    if (key > 0) pkey_mprotect(start, pages, PROT_READ | PROT_WRITE, key);
    blocks[data] = {start, bytes, pages + PAGE, current_device, stream, cuda_host_tick()};
    auto &pool = pools[current_device];
    pool.used += bytes;
    if (pool.used > pool.reserved) pool.reserved = pool.used;
    pthread_mutex_unlock(&lock);
    *p = data;
    return cudaSuccess;
}

__attribute__((destructor)) static void tell_leaks(void) {
    if (setting("LUNCE_CUDA_HOST_LEAKS", 0) == 0 || blocks.empty()) return;
    fprintf(stderr, "cuda-host: %zu blocks were not given back\n", blocks.size());
}

/* The bytes between a block's end and its guard page must be as they were. */
static void check_pad(const char *data, const block &b) {
    cuda_host_open();
    for (const char *p = data + b.bytes; p < b.start + b.mapped - PAGE; p++)
        if (*p != (char)PAD)
            cuda_host_fault(cudaErrorIllegalAddress, "a write past the end of a block of %zu bytes",
                            b.bytes);
    cuda_host_close();
}

static cudaError_t give_back(void *p) {
    cuda_host_check_free(p);
    pthread_mutex_lock(&lock);
    auto found = blocks.find((char *)p);
    bool known = found != blocks.end();
    if (known) {
        check_pad((char *)p, found->second);
        pools[found->second.device].used -= found->second.bytes;
        munmap(found->second.start, found->second.mapped);
        blocks.erase(found);
    }
    pthread_mutex_unlock(&lock);
    return known ? fault : cudaErrorInvalidValue;
}

cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t stream) {
    cudaError_t error = stream == NULL ? cuda_host_refuse() : cudaSuccess;
    return error != cudaSuccess ? error : allocate(p, bytes, stream);
}

cudaError_t cudaFreeAsync(void *p, cudaStream_t stream) {
    cudaError_t error = stream == NULL ? cuda_host_refuse() : cudaSuccess;
    return error != cudaSuccess ? error : give_back(p);
}

cudaError_t cudaMalloc(void **p, size_t bytes) {
    return allocate(p, bytes, NULL);
}

/* Waits for the device, which a capture of any stream forbids. */
cudaError_t cudaFree(void *p) {
    cudaError_t error = cuda_host_refuse();
    return error != cudaSuccess ? error : give_back(p);
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned) {
    if (fault != cudaSuccess) return fault;
    *p = aligned_alloc(PAGE, (bytes + PAGE - 1) / PAGE * PAGE);
    if (*p == NULL) return cudaErrorMemoryAllocation;
    pthread_mutex_lock(&lock);
    pinned[(char *)*p] = bytes;
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *p) {
    cuda_host_check_free(p);
    pthread_mutex_lock(&lock);
    bool known = pinned.erase((char *)p) > 0;
    pthread_mutex_unlock(&lock);
    if (known) free(p);
    return known ? fault : cudaErrorInvalidValue;
}

/* ---- The pool, which says what one that caches would reserve, but caches nothing: so that what
 * was released cannot be touched ---- */

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device) {
    *pool = (cudaMemPool_t)(pools + device);
    return fault;
}

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t) {
    auto of = (decltype(&pools[0]))pool;
    of->reserved = of->used;
    return fault;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *) {
    return fault;
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr which, void *value) {
    auto of = (decltype(&pools[0]))pool;
    *(uint64_t *)value = which == cudaMemPoolAttrUsedMemCurrent ? of->used : of->reserved;
    return fault;
}

/* ---- Copies ---- */

bool cuda_host_holds(const void *block, const void *p) {
    pthread_mutex_lock(&lock);
    auto host = pinned.find((char *)block);
    auto device = blocks.find((char *)block);
    size_t bytes = host != pinned.end()     ? host->second
                   : device != blocks.end() ? device->second.bytes
                                            : 0;
    pthread_mutex_unlock(&lock);
    return (const char *)p >= (const char *)block && (const char *)p < (const char *)block + bytes;
}

bool cuda_host_find(const void *p, const void **begin, size_t *bytes) {
    pthread_mutex_lock(&lock);
    auto device = blocks.upper_bound((char *)p);
    auto host = pinned.upper_bound((char *)p);
    bool on_device = device != blocks.begin(), on_host = host != pinned.begin();
    if (on_device) --device;
    if (on_host) --host;
    on_device = on_device && (char *)p < device->first + device->second.bytes;
    on_host = on_host && (char *)p < host->first + host->second;
    if (on_device) *begin = device->first, *bytes = device->second.bytes;
    else if (on_host) *begin = host->first, *bytes = host->second;
    pthread_mutex_unlock(&lock);
    return on_device || on_host;
}

static bool is_sound(const void *p, size_t bytes, bool on_device) {
    pthread_mutex_lock(&lock);
    bool known = find(p, bytes) != NULL, touches = known || find(p, 0) != NULL;
    pthread_mutex_unlock(&lock);
    return on_device ? known : !touches;
}

static bool ends_are_sound(const cuda_host_copy &c) {
    bool up = c.kind == cudaMemcpyHostToDevice, down = c.kind == cudaMemcpyDeviceToHost;
    return is_sound(c.dst, c.bytes, !down) && is_sound(c.src, c.bytes, !up);
}

cudaError_t cuda_host_do(const cuda_host_copy &c) {
    if (fault != cudaSuccess) return fault;
    if (!ends_are_sound(c)) return cudaErrorInvalidValue;
    cuda_host_open();
    memmove(c.dst, c.src, c.bytes);
    cuda_host_close();
    return cudaSuccess;
}

/* Under the lock. */
static bool is_pinned(const void *p, size_t bytes) {
    auto from = pinned.upper_bound((char *)p);
    if (from == pinned.begin()) return false;
    --from;
    return (char *)p + bytes <= from->first + from->second;
}

/* What a graph copies lies on the device, or in memory that stays where it is. */
static bool may_be_recorded(const cuda_host_copy &c) {
    pthread_mutex_lock(&lock);
    bool good = (c.kind != cudaMemcpyHostToDevice || is_pinned(c.src, c.bytes)) &&
                (c.kind != cudaMemcpyDeviceToHost || is_pinned(c.dst, c.bytes));
    pthread_mutex_unlock(&lock);
    return good;
}

/* A device reads later only from pinned memory, and writes what was allocated before; it writes
 * later only to pinned memory, and reads what the thread's own work before it has written. */
static bool may_be_put_off(const cuda_host_copy &c, cudaStream_t stream) {
    bool up = c.kind == cudaMemcpyHostToDevice, down = c.kind == cudaMemcpyDeviceToHost;
    if (!(up || down) || !ends_are_sound(c)) return false;
    pthread_mutex_lock(&lock);
    bool good = is_pinned(up ? c.src : c.dst, c.bytes);
    const block *at = up ? find((char *)c.dst, c.bytes) : NULL;
    good &= down ? cuda_host_is_after(stream, cuda_host_last())
                 : at->stream == stream || cuda_host_is_after(stream, at->tick);
    pthread_mutex_unlock(&lock);
    return good;
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    cuda_host_copy copy = {dst, src, bytes, kind};
    if (stream == cudaStreamPerThread) {
        if (cuda_host_captures() && !may_be_recorded(copy)) return cuda_host_refuse();
        return cuda_host_ask([copy] { return cuda_host_do(copy); });
    }
    if (fault != cudaSuccess) return fault;
    if (!may_be_put_off(copy, stream)) return cudaErrorInvalidValue;
    cuda_host_put_off(stream, copy);
    return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
    cudaError_t error = cudaSuccess;
    if (width > dst_pitch || width > src_pitch) return cudaErrorInvalidValue;
    for (size_t i = 0; i < height && error == cudaSuccess; i++)
        error = cudaMemcpyAsync((char *)dst + i * dst_pitch, (const char *)src + i * src_pitch,
                                width, kind, stream);
    return error;
}

cudaError_t cudaMemcpyPeerAsync(void *dst, int, const void *src, int, size_t bytes,
                                cudaStream_t stream) {
    return cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, stream);
}

static cudaError_t set(void *p, int value, size_t bytes) {
    if (fault != cudaSuccess) return fault;
    if (!is_sound(p, bytes, true)) return cudaErrorInvalidValue;
    cuda_host_open();
    memset(p, value, bytes);
    cuda_host_close();
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t) {
    return cuda_host_ask([=] { return set(p, value, bytes); });
}
