/* The shim's own test, a program: that barriers, shared memory, shuffles and streams behave, and
 * that each thing a kernel or a copy may do wrong is reported. Prints what fails; its status is the
 * number of failures. */
#include "cuda_runtime.h"

#include <stdio.h>
#include <string.h>

enum { N = 96 };

static int failures;

static void expect(bool good, const char *what) {
    if (good) return;
    failures++;
    printf("cuda-host: %s\n", what);
}

template <typename... Parameters, typename... Arguments>
static cudaError_t run_shared(size_t shared, void (*kernel)(Parameters...), unsigned threads,
                              Arguments... arguments) {
    cudaLaunchConfig_t config = {dim3(2), dim3(threads), shared, NULL};
    cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
    return error != cudaSuccess ? error : cudaStreamSynchronize(NULL);
}

template <typename... Parameters, typename... Arguments>
static cudaError_t run(void (*kernel)(Parameters...), unsigned threads, Arguments... arguments) {
    return run_shared(0, kernel, threads, arguments...);
}

/* ---- Kernels that are right ---- */

static __global__ void reverse_kernel(int *out) {
    __shared__ int seen[N];
    seen[threadIdx.x] = (int)(threadIdx.x + 1000 * blockIdx.x);
    __syncthreads();
    out[blockIdx.x * N + threadIdx.x] = seen[N - 1 - threadIdx.x];
}

static __global__ void warp_kernel(int *sums, unsigned *votes) {
    int v = (int)threadIdx.x;
    for (int distance = 16; distance > 0; distance /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, distance);
    sums[threadIdx.x] = v + __shfl_down_sync(0xffffffffu, (int)threadIdx.x, 1) +
                        __shfl_up_sync(0xffffffffu, (int)threadIdx.x, 1) +
                        __shfl_sync(0xffffffffu, (int)threadIdx.x, 5);
    votes[threadIdx.x] = __ballot_sync(0xffffffffu, threadIdx.x % 3 == 0);
}

/* Every thread takes a place of its own; out begins as zeros. */
static __global__ void atomic_kernel(int *out) {
    out[2 + atomicAdd(&out[0], 1)] = 1;
    atomicMax(&out[1], (int)threadIdx.x);
}

/* The upper half of a warp exchanges alone. */
static __global__ void half_kernel(int *out) {
    if (threadIdx.x % 32 >= 16)
        out[threadIdx.x] = __shfl_xor_sync(0xffff0000u, (int)threadIdx.x, 1);
}

/* Each block finds its memory as new and exchanges values there. */
static __global__ void dynamic_kernel(int *out, int n) {
    int *memory = (int *)shared_memory(), was = memory[n - 1 - threadIdx.x];
    __syncthreads();
    memory[n - 1 - threadIdx.x] = (int)threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = was == -1 ? memory[n - N + threadIdx.x] : was;
}

/* ---- Kernels that are wrong ---- */

static __global__ void beyond_kernel(const int *in, int *out) {
    out[threadIdx.x] = in[threadIdx.x + 4];
}

static __global__ void divergent_kernel(int) {
    if (threadIdx.x < 7) __syncthreads();
}

static __global__ void lonely_kernel(int *out) {
    if (threadIdx.x == 0) *out = __shfl_sync(0xffffffffu, 1, 0);
}

static __global__ void past_shared_kernel(int) {
    ((char *)shared_memory())[16 + threadIdx.x] = 1;
}

/* Writes into the bytes between the end of an odd block and its guard. */
static __global__ void brim_kernel(char *out) {
    out[13] = 1;
}

/* ---- The tests ---- */

static void right_kernels(void) {
    int *device, host[2 * N], sums[N];
    unsigned votes[N];
    cudaMallocAsync((void **)&device, sizeof host, NULL);
    expect(run(reverse_kernel, N, device) == cudaSuccess, "reverse runs");
    cudaMemcpyAsync(host, device, sizeof host, cudaMemcpyDeviceToHost, NULL);
    bool good = true;
    for (int i = 0; i < 2 * N; i++) good &= host[i] == N - 1 - i % N + 1000 * (i / N);
    expect(good, "a block's threads see each other's shared memory after a barrier");

    expect(run(warp_kernel, N, device, (unsigned *)(device + N)) == cudaSuccess, "warp runs");
    cudaMemcpyAsync(sums, device, sizeof sums, cudaMemcpyDeviceToHost, NULL);
    cudaMemcpyAsync(votes, device + N, sizeof votes, cudaMemcpyDeviceToHost, NULL);
    good = true;
    for (int i = 0; i < N; i++) {
        int first = i / 32 * 32, all = 32 * first + 31 * 16;
        int down = i % 32 < 31 ? i + 1 : i, up = i % 32 > 0 ? i - 1 : i;
        good &= sums[i] == all + down + up + first + 5;
        unsigned expected = 0;
        for (int lane = 0; lane < 32; lane++)
            expected |= (unsigned)((first + lane) % 3 == 0) << lane;
        good &= votes[i] == expected;
    }
    expect(good, "lanes exchange values and votes");

    cudaMemsetAsync(device, 0, sizeof sums, NULL);
    expect(run(atomic_kernel, 32, device) == cudaSuccess, "atomics run");
    cudaMemcpyAsync(sums, device, sizeof sums, cudaMemcpyDeviceToHost, NULL);
    good = sums[0] == 64 && sums[1] == 31;
    for (int i = 0; i < 64; i++) good &= sums[2 + i] == 1;
    expect(good, "atomics add and find the largest");

    expect(run(half_kernel, 32, device) == cudaSuccess, "half a warp runs");
    cudaMemcpyAsync(sums, device, 32 * sizeof(int), cudaMemcpyDeviceToHost, NULL);
    expect(sums[16] == 17 && sums[31] == 30, "half a warp exchanges values");

    int most = 200 << 10;
    cudaFuncSetAttribute((const void *)dynamic_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         most);
    expect(run_shared((size_t)most, dynamic_kernel, N, device, most / 4) == cudaSuccess,
           "a kernel that was allowed 200 KiB of shared memory has them");
    cudaMemcpyAsync(sums, device, sizeof sums, cudaMemcpyDeviceToHost, NULL);
    good = true;
    for (int i = 0; i < N; i++) good &= sums[i] == N - 1 - i;
    expect(good, "a block's dynamic shared memory is new, and its threads share it");
    cudaFreeAsync(device, NULL);
}

static void refusals(void) {
    int *device, host[4] = {};
    cudaMallocAsync((void **)&device, sizeof host, NULL);
    cudaLaunchConfig_t large = {dim3(1), dim3(2048), 0, NULL};
    cudaLaunchConfig_t greedy = {dim3(1), dim3(32), 300 << 10, NULL};
    expect(cudaLaunchKernelEx(&large, divergent_kernel, 0) == cudaErrorInvalidConfiguration,
           "a block of 2048 threads is refused");
    expect(cudaLaunchKernelEx(&greedy, divergent_kernel, 0) == cudaErrorInvalidConfiguration,
           "300 KiB of shared memory are refused");
    expect(run_shared(49 << 10, divergent_kernel, 7, 0) == cudaErrorInvalidValue,
           "49 KiB are refused to a kernel that was not allowed them");
    expect(cudaFuncSetAttribute((const void *)divergent_kernel,
                                cudaFuncAttributeMaxDynamicSharedMemorySize,
                                300 << 10) == cudaErrorInvalidValue,
           "300 KiB are allowed to none");
    expect(cudaMemcpyAsync(device, host, sizeof host + 1, cudaMemcpyHostToDevice, NULL) ==
               cudaErrorInvalidValue,
           "a copy past the end of a block is refused");
    expect(cudaMemcpyAsync(device, host, 4, cudaMemcpyDeviceToHost, NULL) == cudaErrorInvalidValue,
           "a copy in the wrong direction is refused");
    expect(cudaFreeAsync(host, NULL) == cudaErrorInvalidValue, "freeing host memory is refused");
    cudaFreeAsync(device, NULL);
}

/* ---- Streams ---- */

/* A copy of 1 to 4 that was asked of a stream of its own, and what goes with it. */
struct upload {
    cudaStream_t stream;
    cudaEvent_t event;
    int *from, *to;
    cudaError_t error;
};

static upload begin_upload(bool to_own_memory) {
    upload u = {};
    cudaStreamCreateWithFlags(&u.stream, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&u.event, cudaEventDisableTiming);
    cudaHostAlloc((void **)&u.from, 4 * sizeof(int), cudaHostAllocPortable);
    cudaMallocAsync((void **)&u.to, 4 * sizeof(int), to_own_memory ? u.stream : NULL);
    for (int i = 0; i < 4; i++) u.from[i] = i + 1;
    u.error = cudaMemcpyAsync(u.to, u.from, 4 * sizeof(int), cudaMemcpyHostToDevice, u.stream);
    cudaEventRecord(u.event, u.stream);
    return u;
}

static int third(const upload &u) {
    int host[4];
    cudaMemcpyAsync(host, u.to, sizeof host, cudaMemcpyDeviceToHost, NULL);
    return host[2];
}

static void order(void) {
    upload u = begin_upload(true), v = begin_upload(true);
    expect(u.error == cudaSuccess && cudaEventQuery(u.event) == cudaErrorNotReady,
           "a copy on another stream is put off");
    expect(third(u) == -1, "who does not wait sees what was there");
    cudaStreamWaitEvent(NULL, u.event, 0);
    expect(third(u) == 3 && cudaEventQuery(u.event) == cudaSuccess, "who waits sees the copy");
    v.from[2] = 7;
    cudaStreamWaitEvent(u.stream, v.event, 0);
    expect(third(v) == -1, "a stream that waits for another is itself waited for first");
    cudaStreamSynchronize(u.stream);
    expect(third(v) == 7, "a source that is rewritten too early shows");
    cudaFreeAsync(u.to, NULL);
    cudaFreeHost(u.from);
    expect(cudaStreamDestroy(u.stream) == cudaSuccess, "what has ended may be freed");
}

/* The other way: after what the thread asked before, and before what it does to the source. */
static void downloads(void) {
    int *to, *from, host[4] = {1, 2, 3, 4};
    cudaStream_t stream;
    cudaEvent_t before, end;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&before, cudaEventDisableTiming);
    cudaEventCreateWithFlags(&end, cudaEventDisableTiming);
    cudaHostAlloc((void **)&to, sizeof host, cudaHostAllocPortable);
    cudaMallocAsync((void **)&from, sizeof host, NULL);
    cudaMemcpyAsync(from, host, sizeof host, cudaMemcpyHostToDevice, NULL);
    to[1] = 0;
    expect(cudaMemcpyAsync(to, from, sizeof host, cudaMemcpyDeviceToHost, stream) ==
               cudaErrorInvalidValue,
           "a copy that does not come after the thread's work is refused");
    cudaEventRecord(before, NULL);
    cudaStreamWaitEvent(stream, before, 0);
    expect(cudaMemcpyAsync(host, from, sizeof host, cudaMemcpyDeviceToHost, stream) ==
               cudaErrorInvalidValue,
           "a destination that is not pinned is refused");
    cudaMemcpyAsync(to, from, sizeof host, cudaMemcpyDeviceToHost, stream);
    cudaEventRecord(end, stream);
    expect(to[1] == 0, "a download is put off");
    cudaEventSynchronize(end);
    expect(to[1] == 2, "who waits for a download sees it");
    cudaFreeAsync(from, NULL);
    cudaFreeHost(to);
    expect(cudaStreamDestroy(stream) == cudaSuccess, "what has ended may be freed");
}

/* Memory that a copy may not be put off to or from. */
static void strangers(void) {
    upload u = begin_upload(false);
    int host[4] = {};
    expect(u.error == cudaErrorInvalidValue, "memory that another stream asked for is refused");
    cudaEventRecord(u.event, NULL);
    cudaStreamWaitEvent(u.stream, u.event, 0);
    expect(cudaMemcpyAsync(u.to, u.from, 16, cudaMemcpyHostToDevice, u.stream) == cudaSuccess,
           "after a wait for that stream it is taken");
    expect(cudaMemcpyAsync(u.to, host, 16, cudaMemcpyHostToDevice, u.stream) ==
               cudaErrorInvalidValue,
           "a source that is not pinned is refused");
}

/* ---- Capture ---- */

static __global__ void add_kernel(int *out, int what) {
    out[threadIdx.x] += what;
}

static cudaError_t add(int *out, int what) {
    cudaLaunchConfig_t config = {dim3(1), dim3(4), 0, NULL};
    return cudaLaunchKernelEx(&config, add_kernel, out, what);
}

static int second(const int *device) {
    int host[4];
    cudaMemcpyAsync(host, device, sizeof host, cudaMemcpyDeviceToHost, NULL);
    return host[1];
}

static cudaGraphExec_t recorded(int *device) {
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    int what = 5;
    cudaStreamBeginCapture(NULL, cudaStreamCaptureModeRelaxed);
    add(device, what);
    what = 100;
    add(device, 2);
    expect(cudaStreamEndCapture(NULL, &graph) == cudaSuccess, "what was recorded is a graph");
    cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    return executable;
}

static void captures(void) {
    int *device;
    cudaMallocAsync((void **)&device, 4 * sizeof(int), NULL);
    cudaMemsetAsync(device, 0, 4 * sizeof(int), NULL);
    cudaGraphExec_t executable = recorded(device);
    expect(second(device) == 0, "what is recorded is not done");
    cudaGraphLaunch(executable, NULL);
    cudaGraphLaunch(executable, NULL);
    expect(second(device) == 14, "a launch does it again, with the arguments of then");
    cudaGraphExecDestroy(executable);
    cudaFreeAsync(device, NULL);
}

/* Does a call under capture, which must fail with this error and spoil the capture, or neither. */
template <typename Call>
static void under_capture(Call call, cudaError_t expected, const char *what) {
    int *device;
    cudaGraph_t graph = NULL;
    bool good = expected == cudaSuccess;
    cudaMallocAsync((void **)&device, 4 * sizeof(int), NULL);
    cudaStreamBeginCapture(NULL, cudaStreamCaptureModeRelaxed);
    expect(call(device) == expected, what);
    expect((add(device, 1) == cudaSuccess) == good, what);
    expect((cudaStreamEndCapture(NULL, &graph) == cudaSuccess) == good && (graph != NULL) == good,
           what);
    if (good) cudaGraphDestroy(graph);
    expect(cudaStreamSynchronize(NULL) == cudaSuccess, "after a capture all is as before");
    cudaFreeAsync(device, NULL);
}

static void spoilt_captures(void) {
    static int host[4];
    int *pinned, *own = NULL;
    upload u = begin_upload(true);
    cudaHostAlloc((void **)&pinned, sizeof host, cudaHostAllocPortable);
    const cudaError_t no = cudaErrorStreamCaptureUnsupported;
    under_capture([](int *) { return cudaStreamSynchronize(NULL); }, no, "a wait is refused");
    under_capture(
        [](int *d) { return cudaMemcpyAsync(host, d, sizeof host, cudaMemcpyDeviceToHost, NULL); },
        no, "a copy to pageable memory is refused");
    under_capture(
        [=](int *d) {
            return cudaMemcpyAsync(d, pinned, sizeof host, cudaMemcpyHostToDevice, NULL);
        },
        cudaSuccess, "a copy from pinned memory is recorded");
    under_capture([](int *d) { return cudaFreeAsync(d, NULL); }, no, "freeing is refused");
    under_capture([&](int *) { return cudaMallocAsync((void **)&own, 16, NULL); }, no,
                  "memory of the stream is refused");
    under_capture([&](int *) { return cudaMalloc((void **)&own, 16); }, cudaSuccess,
                  "memory of the device is given");
    under_capture([=](int *) { return cudaFree(own); }, no, "giving it back is refused");
    under_capture([=](int *) { return cudaStreamWaitEvent(NULL, u.event, 0); },
                  cudaErrorStreamCaptureIsolation, "a wait for what is not captured is refused");
    under_capture([=](int *) { return cudaEventSynchronize(u.event); }, cudaSuccess,
                  "the host may wait for it");
    cudaFree(own);
    cudaFreeHost(pinned);
}

/* Each in a process of its own, for it loses the device. */
static void fault(const char *name) {
    int *in, *out;
    char *odd;
    cudaMallocAsync((void **)&in, 32 * sizeof(int), NULL);
    cudaMallocAsync((void **)&out, 32 * sizeof(int), NULL);
    cudaMallocAsync((void **)&odd, 13, NULL);
    if (strcmp(name, "beyond") == 0) {
        expect(run(beyond_kernel, 32, in, out) == cudaErrorIllegalAddress,
               "a read past the end of a block is an illegal address");
        expect(cudaMallocAsync((void **)&in, 4, NULL) == cudaErrorIllegalAddress,
               "after a fault every call fails");
    } else if (strcmp(name, "divergent") == 0) {
        expect(run(divergent_kernel, 32, 0) == cudaErrorLaunchFailure &&
                   strstr(cudaGetErrorString(cudaErrorLaunchFailure), "barrier") != NULL,
               "a barrier that 7 of 32 threads reach is reported");
    } else if (strcmp(name, "lonely") == 0) {
        expect(run(lonely_kernel, 32, out) == cudaErrorLaunchFailure,
               "a shuffle that one of 32 lanes reaches is reported");
    } else if (strcmp(name, "shared") == 0) {
        expect(run_shared(16, past_shared_kernel, 1, 0) == cudaErrorIllegalAddress,
               "a write past the end of shared memory is an illegal address");
    } else if (strcmp(name, "brim") == 0) {
        expect(run(brim_kernel, 1, odd) == cudaSuccess, "the write lands before the guard");
        expect(cudaFreeAsync(odd, NULL) == cudaErrorIllegalAddress,
               "a write past an odd end is found when the block is freed");
    } else if (strcmp(name, "source") == 0) {
        expect(cudaFreeHost(begin_upload(true).from) == cudaErrorIllegalAddress,
               "a source that is freed too early is reported");
    } else if (strcmp(name, "destination") == 0) {
        expect(cudaFreeAsync(begin_upload(true).to, NULL) == cudaErrorIllegalAddress,
               "a destination that is freed too early is reported");
    } else {
        printf("cuda-host: there is no fault %s\n", name);
        failures++;
    }
}

int main(int argc, char **argv) {
    if (argc > 1) {
        fault(argv[1]);
    } else {
        right_kernels();
        refusals();
        order();
        downloads();
        strangers();
        captures();
        spoilt_captures();
    }
    return failures;
}
