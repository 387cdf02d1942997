/* CUDA graphs: the calling thread's stream captured, and what was captured launched. Holds no
 * kernels. Invariants: a capture allocates and frees nothing by streams, which CUDA would record:
 * the memory of a graph is asked of the device itself; who waits for the stream has been refused
 * before (graph.c), as that would spoil the capture. */
#include "capture.h"

/* Relaxed: pinned memory, modules and memory of the device may be asked for meanwhile. */
ln_status cuda_capture_begin(int device) {
    ln_status status = cuda_enter_device(device, "graph");
    if (status != LN_OK) return status;
    return cuda_check(cudaStreamBeginCapture(cudaStreamPerThread, cudaStreamCaptureModeRelaxed),
                      "graph");
}

ln_status cuda_capture_end(void **made, int device) {
    cudaGraph_t graph = NULL;
    cudaGraphExec_t executable = NULL;
    ln_status status = cuda_enter_device(device, "graph");
    cudaError_t error = cudaStreamEndCapture(cudaStreamPerThread, &graph);
    if (status == LN_OK && made != NULL) status = cuda_check(error, "graph");
    else if (error != cudaSuccess) cudaGetLastError(); /* of a capture that is given up */
    if (status == LN_OK && made != NULL)
        status = cuda_check(cudaGraphInstantiate(&executable, graph, 0), "graph");
    if (graph != NULL && !cuda_lost()) cudaGraphDestroy(graph);
    if (status == LN_OK && made != NULL) *made = executable;
    return status;
}

ln_status cuda_graph_launch(void *made, int device) {
    ln_status status = cuda_enter_device(device, "graph");
    if (status != LN_OK) return status;
    return cuda_check(cudaGraphLaunch((cudaGraphExec_t)made, cudaStreamPerThread), "graph");
}

void cuda_graph_destroy(void *made, int) {
    if (!cuda_lost()) cudaGraphExecDestroy((cudaGraphExec_t)made);
}

/* What the pool of streams keeps is given back where there is nothing else. */
ln_status cuda_reserve(void **out, int device, size_t bytes) {
    cudaMemPool_t pool;
    ln_status status = cuda_enter_device(device, "memory");
    if (status != LN_OK) return status;
    cudaError_t error = cudaMalloc(out, bytes);
    if (error != cudaErrorMemoryAllocation) return cuda_check(error, "memory");
    cudaGetLastError();
    status = cuda_check(cudaDeviceGetDefaultMemPool(&pool, device - LN_CUDA), "memory");
    if (status == LN_OK) status = cuda_check(cudaMemPoolTrimTo(pool, 0), "memory");
    return status != LN_OK ? status : cuda_check(cudaMalloc(out, bytes), "memory");
}

void cuda_unreserve(void *p, int device) {
    if (cuda_lost()) return;
    cudaSetDevice(device - LN_CUDA);
    cudaError_t error = cudaFree(p);
    if (error != cudaSuccess) cuda_fail(error, "free");
}
