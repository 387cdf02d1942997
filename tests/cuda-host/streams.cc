/* Streams and events. What is asked of a thread's own stream is done at once; of another stream, at
 * the last moment: when a stream or the host waits for it. So a wait that is missing shows in the
 * values, and memory that is freed too early as a fault. Holds no copy's bytes. Invariant: the
 * steps of a stream are done in their order, and an event has passed when the steps before it are
 * done. */
#include "host.h"

#include <deque>
#include <pthread.h>
#include <set>

/* A place in a stream: passed when so many of its steps are done. */
struct place {
    cudaStream_t stream; /* NULL: a thread's own, where it is passed already */
    long steps;
    long tick; /* of a thread's own: when the event was recorded */
};

struct cuda_host_event {
    place at;
};

/* A copy, or, where its bytes are 0, a wait. */
struct step {
    cuda_host_copy copy;
    place after;
};

struct cuda_host_stream {
    std::deque<step> waiting;
    long asked, done;
    long tick; /* of the threads' own streams: what is asked next comes after it */
};

/* Recursive, as a step may wait for another stream's. */
static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static std::set<cudaStream_t> &streams = *new std::set<cudaStream_t>;
static long ticks;

long cuda_host_tick(void) {
    return __atomic_add_fetch(&ticks, 1, __ATOMIC_RELAXED);
}

bool cuda_host_is_after(cudaStream_t stream, long tick) {
    return stream->tick >= tick;
}

/* ---- Doing what was put off ---- */

static void pass(place to) {
    if (to.stream == NULL || streams.count(to.stream) == 0) return;
    while (to.stream->done < to.steps) {
        step next = to.stream->waiting.front();
        to.stream->waiting.pop_front();
        to.stream->done++;
        if (next.copy.bytes == 0) pass(next.after);
        else if (cuda_host_do(next.copy) == cudaErrorInvalidValue)
            cuda_host_fault(cudaErrorIllegalAddress, "a copy that was put off met freed memory");
    }
}

static bool passed(place to) {
    return to.stream == NULL || streams.count(to.stream) == 0 || to.stream->done >= to.steps;
}

static void ask(cudaStream_t stream, const step &s) {
    stream->waiting.push_back(s);
    stream->asked++;
}

void cuda_host_put_off(cudaStream_t stream, const cuda_host_copy &copy) {
    pthread_mutex_lock(&lock);
    ask(stream, {copy, {}});
    pthread_mutex_unlock(&lock);
}

void cuda_host_check_free(const void *block) {
    pthread_mutex_lock(&lock);
    for (cudaStream_t stream : streams)
        for (const step &s : stream->waiting)
            if (cuda_host_holds(block, s.copy.src) || cuda_host_holds(block, s.copy.dst))
                cuda_host_fault(cudaErrorIllegalAddress, "memory freed under a copy of %zu bytes",
                                s.copy.bytes);
    pthread_mutex_unlock(&lock);
}

/* ---- Streams ---- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
    *stream = new cuda_host_stream();
    pthread_mutex_lock(&lock);
    streams.insert(*stream);
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    cudaError_t error = stream == NULL ? cuda_host_refuse() : cudaSuccess;
    if (error != cudaSuccess) return error;
    pthread_mutex_lock(&lock);
    if (stream != NULL) pass({stream, stream->asked, 0});
    pthread_mutex_unlock(&lock);
    return cudaGetLastError();
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    cudaError_t error = cudaStreamSynchronize(stream);
    pthread_mutex_lock(&lock);
    streams.erase(stream);
    pthread_mutex_unlock(&lock);
    delete stream;
    return error;
}

/* What is captured waits for nothing outside of the capture. */
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    cudaError_t error = stream == NULL ? cuda_host_refuse() : cudaSuccess;
    if (error != cudaSuccess)
        return error == cudaErrorStreamCaptureUnsupported ? cudaErrorStreamCaptureIsolation : error;
    pthread_mutex_lock(&lock);
    if (stream == NULL) pass(event->at);
    else if (event->at.stream != NULL) ask(stream, {{}, event->at});
    else if (event->at.tick > stream->tick) stream->tick = event->at.tick;
    pthread_mutex_unlock(&lock);
    return cudaGetLastError();
}

/* ---- Events ---- */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    cudaError_t error = cudaGetLastError();
    if (error == cudaSuccess) *event = new cuda_host_event();
    return error;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaGetLastError();
}

/* CUDA would make an event a part of the graph, for which nothing here has a use. */
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    cudaError_t error = stream == NULL ? cuda_host_refuse() : cudaSuccess;
    if (error != cudaSuccess) return error;
    pthread_mutex_lock(&lock);
    event->at = {stream, stream == NULL ? 0 : stream->asked, cuda_host_tick()};
    pthread_mutex_unlock(&lock);
    return cudaGetLastError();
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    pthread_mutex_lock(&lock);
    bool is_past = passed(event->at);
    pthread_mutex_unlock(&lock);
    return is_past ? cudaGetLastError() : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    pthread_mutex_lock(&lock);
    pass(event->at);
    pthread_mutex_unlock(&lock);
    return cudaGetLastError();
}
