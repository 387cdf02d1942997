/* Copies between the host and devices, pinned memory, and the streams that uploads run on. Holds no
 * kernels. Invariants: a transfer has ended when it returns; an upload or a download runs on a
 * stream of copies of the thread that asked for it, beside the thread's other work, and each of its
 * ends carries a mark, an event after it; pinned memory that one reads or writes is neither given
 * out again nor given back before. */
#include "copies.h"

#include <pthread.h>
#include <stdlib.h>

#include "index.h"

/* ---- Streams ---- */

typedef struct {
    cudaStream_t of[COPY_WAYS][LN_MOST_DEVICES];
} streams;

static pthread_key_t key;
static bool has_key;

/* Of a thread that ends; its copies end by themselves. */
static void streams_release(void *value) {
    streams *s = (streams *)value;
    for (int way = 0; way < COPY_WAYS; way++)
        for (int i = 0; i < LN_MOST_DEVICES; i++)
            if (s->of[way][i] != NULL && !cuda_lost()) cudaStreamDestroy(s->of[way][i]);
    free(s);
}

static void make_key(void) {
    has_key = pthread_key_create(&key, streams_release) == 0;
}

/* The calling thread's, or NULL where there is no memory for them. */
static streams *own_streams(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_key);
    if (!has_key) return NULL;
    streams *s = (streams *)pthread_getspecific(key);
    if (s != NULL) return s;
    s = (streams *)calloc(1, sizeof *s);
    if (s == NULL || pthread_setspecific(key, s) == 0) return s;
    free(s);
    return NULL;
}

ln_status cuda_copy_stream(cudaStream_t *out, int device, copy_way way) {
    streams *s = own_streams();
    if (s == NULL) return ln_fail(LN_OUT_OF_MEMORY, "copy: out of memory for a stream");
    cudaStream_t *stream = &s->of[way][device];
    if (*stream == NULL) {
        cudaError_t error = cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking);
        if (error != cudaSuccess) return cuda_fail(error, "copy");
    }
    *out = *stream;
    return LN_OK;
}

ln_status cuda_copies_end(int device) {
    streams *s = own_streams();
    ln_status status = LN_OK;
    for (int way = 0; way < COPY_WAYS && s != NULL && status == LN_OK; way++)
        if (s->of[way][device] != NULL)
            status = cuda_check(cudaStreamSynchronize(s->of[way][device]), "synchronize");
    return status;
}

/* ---- Marks ---- */

static ln_status mark(cudaEvent_t *out, cudaStream_t stream) {
    ln_status status;
    LN_TRY(cuda_check(cudaEventCreateWithFlags(out, cudaEventDisableTiming), "copy"));
    LN_TRY(cuda_check(cudaEventRecord(*out, stream), "copy"));
fail:
    return status;
}

static void unmark(cudaEvent_t event) {
    if (event != NULL && !cuda_lost()) cudaEventDestroy(event);
}

static bool has_ended(void *mark) {
    if (mark == NULL || cuda_lost() || cudaEventQuery((cudaEvent_t)mark) == cudaSuccess)
        return true;
    cudaGetLastError(); /* which also keeps that it is not ready */
    return false;
}

/* On a device that is lost nothing is copied any more. */
bool cuda_wait(void *mark) {
    if (mark == NULL) return true;
    if (cuda_lost()) return false;
    cudaError_t error = cudaEventSynchronize((cudaEvent_t)mark);
    if (error != cudaSuccess) cuda_fail(error, "copy");
    unmark((cudaEvent_t)mark);
    return error == cudaSuccess;
}

/* A capture takes in nothing that another stream does: there the copy is waited for. */
void cuda_follow(void *mark, int device) {
    if (ln_capturing() != NULL) {
        cuda_wait(mark);
        return;
    }
    if (cuda_enter_device(device, "copy") == LN_OK) {
        cudaError_t error = cudaStreamWaitEvent(cudaStreamPerThread, (cudaEvent_t)mark, 0);
        if (error != cudaSuccess) cuda_fail(error, "copy");
    }
    unmark((cudaEvent_t)mark);
}

/* ---- Pinned memory of the host, which takes milliseconds to make: some blocks are kept ---- */

enum { KEPT = 32 };

typedef struct {
    void *p, *mark; /* of a copy from or to it */
    size_t bytes;
} pinned_block;

static struct {
    pthread_mutex_t lock;
    pinned_block block[KEPT]; /* p is NULL in places that are free */
} kept = {PTHREAD_MUTEX_INITIALIZER, {}};

/* Units in which pinned blocks are made and kept: what asks for about as much fits again. */
static size_t pinned_bytes(size_t bytes) {
    size_t unit = 4096;
    while (unit * 8 < bytes) unit *= 2;
    return (bytes + unit - 1) / unit * unit + (bytes == 0 ? unit : 0);
}

/* A kept block of this size, sooner one that nothing uses than one to wait for. */
static pinned_block take_kept(size_t bytes) {
    pinned_block found = {}, *place = NULL;
    pthread_mutex_lock(&kept.lock);
    for (int i = 0; i < KEPT; i++) {
        pinned_block *b = &kept.block[i];
        if (b->p == NULL || b->bytes != bytes) continue;
        place = b;
        if (has_ended(b->mark)) break;
    }
    if (place != NULL) {
        found = *place;
        place->p = NULL;
    }
    pthread_mutex_unlock(&kept.lock);
    return found;
}

ln_status cuda_pin(void **out, size_t bytes) {
    bytes = pinned_bytes(bytes);
    pinned_block found = take_kept(bytes);
    cuda_wait(found.mark);
    if (found.p == NULL) {
        ln_status status = cuda_check(cudaHostAlloc(&found.p, bytes, cudaHostAllocPortable), "pin");
        if (status != LN_OK) return status;
    }
    *out = found.p;
    return LN_OK;
}

static void give_back(pinned_block b) {
    if (b.p == NULL) return;
    cuda_wait(b.mark);
    if (!cuda_lost()) cudaFreeHost(b.p);
}

void cuda_unpin(void *p, size_t bytes, void *mark) {
    pinned_block b = {p, mark, pinned_bytes(bytes)};
    pthread_mutex_lock(&kept.lock);
    for (int i = 0; i < KEPT && b.p != NULL; i++)
        if (kept.block[i].p == NULL) {
            kept.block[i] = b;
            b.p = NULL;
        }
    pthread_mutex_unlock(&kept.lock);
    give_back(b);
}

void cuda_unpin_kept(void) {
    pthread_mutex_lock(&kept.lock);
    for (int i = 0; i < KEPT; i++) {
        give_back(kept.block[i]);
        kept.block[i].p = NULL;
    }
    pthread_mutex_unlock(&kept.lock);
}

/* ---- Copies ---- */

/* From a device's stream to another device, whose own stream has to be done with the memory: it
 * may be that of a tensor that was freed a moment ago. */
static cudaError_t copy_across(void *dst, int dst_device, const void *src, int src_device,
                               size_t bytes) {
    int to = dst_device - LN_CUDA, from = src_device - LN_CUDA;
    cudaError_t error = cudaSetDevice(to);
    if (error == cudaSuccess) error = cudaStreamSynchronize(cudaStreamPerThread);
    if (error == cudaSuccess) error = cudaSetDevice(from);
    if (error != cudaSuccess) return error;
    return cudaMemcpyPeerAsync(dst, to, src, from, bytes, cudaStreamPerThread);
}

ln_status cuda_transfer(void *dst, int dst_device, const void *src, int src_device, size_t bytes) {
    bool down = dst_device == LN_CPU, up = src_device == LN_CPU;
    ln_status status = cuda_enter_device(up ? dst_device : src_device, "copy");
    if (status != LN_OK || bytes == 0) return status;
    cudaStream_t stream = cudaStreamPerThread;
    cudaError_t error;
    if (up || down)
        error = cudaMemcpyAsync(dst, src, bytes,
                                up ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost, stream);
    else error = copy_across(dst, dst_device, src, src_device, bytes);
    status = cuda_check(error, "copy");
    if (status == LN_OK) status = cuda_check(cudaStreamSynchronize(stream), "copy");
    return status != LN_OK ? status : cuda_index_found(up ? dst_device : src_device);
}

/* A copy on a stream of copies, after an event, and a mark for each of its ends. */
static ln_status copy_aside(void **written, void **read, cudaStream_t stream, cudaEvent_t after,
                            void *dst, const void *src, size_t bytes, cudaMemcpyKind kind) {
    cudaEvent_t ends[2] = {};
    ln_status status;
    if (after != NULL) LN_TRY(cuda_check(cudaStreamWaitEvent(stream, after, 0), "copy"));
    LN_TRY(cuda_check(cudaMemcpyAsync(dst, src, bytes, kind, stream), "copy"));
    for (int i = 0; i < 2; i++) LN_TRY(mark(&ends[i], stream));
    *written = ends[0];
    *read = ends[1];
    return LN_OK;
fail:
    if (!cuda_lost()) cudaStreamSynchronize(stream);
    for (int i = 0; i < 2; i++) unmark(ends[i]);
    return status;
}

ln_status cuda_upload(void **written, void **read, void *dst, int device, const void *src,
                      size_t bytes, void *after) {
    cudaStream_t stream;
    ln_status status;
    LN_TRY(cuda_enter_device(device, "copy"));
    LN_TRY(cuda_copy_stream(&stream, device, COPY_UP));
    LN_TRY(copy_aside(written, read, stream, (cudaEvent_t)after, dst, src, bytes,
                      cudaMemcpyHostToDevice));
    unmark((cudaEvent_t)after);
    return LN_OK;
fail:
    cuda_wait(after);
    return status;
}

ln_status cuda_download(void **written, void **read, void *dst, const void *src, int device,
                        size_t bytes) {
    cudaEvent_t before = NULL;
    cudaStream_t stream;
    ln_status status;
    LN_TRY(cuda_enter_device(device, "copy"));
    LN_TRY(cuda_copy_stream(&stream, device, COPY_DOWN));
    LN_TRY(mark(&before, cudaStreamPerThread));
    status = copy_aside(written, read, stream, before, dst, src, bytes, cudaMemcpyDeviceToHost);
fail:
    unmark(before);
    return status;
}
