/* Capture and graphs: under capture what is asked of the calling thread's own stream is kept and
 * not done, and a launch of the graph does it, in its order, with the arguments of then. Holds no
 * kernel and no copy. Invariant: a call that a capture cannot take fails and spoils it: what is
 * asked of the stream fails from then on, and no graph comes of it. Stricter than CUDA: memory of
 * the captured stream is refused, which CUDA would make a part of the graph. */
#include "host.h"

#include <vector>

typedef std::vector<std::function<cudaError_t()>> calls;

struct cuda_host_graph {
    calls made;
};

struct cuda_host_executable {
    calls made;
};

static thread_local cudaGraph_t capture;
static thread_local bool is_spoilt;
static thread_local long last;

bool cuda_host_captures(void) {
    return capture != NULL;
}

cudaError_t cuda_host_refuse(void) {
    if (capture == NULL) return cudaSuccess;
    cudaError_t error =
        is_spoilt ? cudaErrorStreamCaptureInvalidated : cudaErrorStreamCaptureUnsupported;
    is_spoilt = true;
    return error;
}

cudaError_t cuda_host_ask(const std::function<cudaError_t()> &call) {
    last = cuda_host_tick();
    if (capture == NULL) return call();
    if (is_spoilt) return cudaErrorStreamCaptureInvalidated;
    capture->made.push_back(call);
    return cudaSuccess;
}

long cuda_host_last(void) {
    return last;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
    if (stream != NULL || mode != cudaStreamCaptureModeRelaxed) return cudaErrorInvalidValue;
    if (capture != NULL) return cudaErrorIllegalState;
    capture = new cuda_host_graph();
    is_spoilt = false;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph) {
    if (capture == NULL) return cudaErrorIllegalState;
    *graph = is_spoilt ? NULL : capture;
    if (is_spoilt) delete capture;
    capture = NULL;
    return is_spoilt ? cudaErrorStreamCaptureInvalidated : cudaGetLastError();
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph,
                                 unsigned long long) {
    *executable = new cuda_host_executable{graph->made};
    return cudaGetLastError();
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaGetLastError();
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
    delete executable;
    return cudaGetLastError();
}

/* A call that fails now, when its arguments were good then, is a fault of the device. */
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    if (stream != NULL) return cudaErrorInvalidValue;
    cudaError_t error = cuda_host_refuse();
    if (error == cudaSuccess) error = cudaGetLastError();
    if (error != cudaSuccess) return error;
    last = cuda_host_tick();
    for (const auto &call : executable->made) {
        error = call();
        if (error != cudaSuccess)
            cuda_host_fault(cudaErrorIllegalAddress, "a recorded call failed: %s",
                            cudaGetErrorString(error));
    }
    return cudaSuccess; /* as of kernels, the next call meets what went wrong */
}
