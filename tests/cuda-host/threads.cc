/* Kernels on the host: a grid's blocks one after another, a block's threads as fibres that run
 * until they finish or have to wait for others. Holds launches, dynamic shared memory, barriers and
 * what a warp does together. Invariants: one kernel runs at a time; a barrier lets its threads go
 * when all have come, and one that cannot be reached by all ends the kernel as a fault, as does a
 * bad access to memory.
 *
 * LUNCE_CUDA_HOST_REVERSE: the last thread of a block runs first. */
#include "host.h"

#include <map>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

enum { MOST_THREADS = 1024, STACK = 64 << 10, GUARD = 4096, WARP = 32 };
enum { MOST_SHARED = 227 << 10, PLAIN_SHARED = 48 << 10, ALIGNMENT = 16 };

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

enum state { READY, AT_BARRIER, AT_WARP, DONE, STATES };

struct fibre {
    enum state state;
    unsigned mask; /* of the lanes that it waits for AT_WARP */
    uint64_t bits; /* what it gives them */
    uint3 place;   /* its threadIdx */
    void *stack_pointer;
};

static struct {
    pthread_mutex_t lock;
    char *stacks;
    char *shared_end; /* of the largest dynamic shared memory: a guard page */
    size_t shared_bytes;
    struct fibre fibres[MOST_THREADS];
    int count, current; /* threads of a block; the one that runs, or -1: the scheduler */
    int in[STATES];     /* how many are in each state */
    bool reverse;       /* another order, in which another missing barrier shows */
    void *scheduler;    /* its stack pointer while a fibre runs */
    void (*thread)(void *context);
    void *context;
    cudaError_t fault;
} run = {
    PTHREAD_MUTEX_INITIALIZER, NULL, NULL, 0, {}, 0, -1, {}, false, NULL, NULL, NULL, cudaSuccess};

/* Kernels that were allowed more shared memory than others. */
static std::map<const void *, int> &allowed = *new std::map<const void *, int>;

/* ---- Fibres ---- */

/* Saves what a function keeps for its caller, stores the stack pointer, and goes on with another.
 */
extern "C" void cuda_host_switch(void **save, void *next);
asm(".text\n"
    ".globl cuda_host_switch\n"
    ".hidden cuda_host_switch\n"
    "cuda_host_switch:\n"
    "  push %rbp\n  push %rbx\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
    "  mov %rsp, (%rdi)\n"
    "  mov %rsi, %rsp\n"
    "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbx\n  pop %rbp\n"
    "  ret\n");

static void enter(struct fibre *f, enum state state) {
    run.in[f->state]--;
    run.in[state]++;
    f->state = state;
}

static void leave(enum state state) {
    struct fibre *f = &run.fibres[run.current];
    enter(f, state);
    cuda_host_switch(&f->stack_pointer, run.scheduler);
}

static void fibre_main(void) {
    run.thread(run.context);
    leave(DONE);
}

/* A stack from which the switch returns into fibre_main. */
static void start(int i) {
    char *top = run.stacks + (size_t)(i + 1) * (STACK + GUARD);
    void **p = (void **)top;
    *--p = NULL; /* where fibre_main would return to; its stack is aligned as after a call */
    *--p = (void *)fibre_main;
    run.fibres[i].stack_pointer = p - 6;
    run.fibres[i].state = READY;
    run.fibres[i].place = {(unsigned)i % blockDim.x, (unsigned)i / blockDim.x % blockDim.y,
                           (unsigned)i / blockDim.x / blockDim.y};
}

static void resume(int i) {
    run.current = i;
    threadIdx = run.fibres[i].place;
    cuda_host_switch(&run.scheduler, run.fibres[i].stack_pointer);
    run.current = -1;
}

/* ---- Bad accesses ---- */

static void faulted(void) {
    leave(DONE);
}

/* Inside a kernel: the thread ends, and with it the kernel. Elsewhere host code has touched device
 * memory or has another fault of its own: it ends as it would. */
static void on_fault(int signal_number, siginfo_t *info, void *where) {
    if (run.current < 0) {
        static const char text[] = "cuda-host: a bad access in host code; device memory?\n";
        if (write(STDERR_FILENO, text, sizeof text - 1) < 0) _exit(1);
        signal(signal_number, SIG_DFL);
        return;
    }
    run.fault =
        cuda_host_fault(cudaErrorIllegalAddress, "an illegal address: %p by thread %u of block %u",
                        info->si_addr, threadIdx.x, blockIdx.x);
    greg_t *registers = ((ucontext_t *)where)->uc_mcontext.gregs;
    registers[REG_RSP] = (registers[REG_RSP] - 256) / 16 * 16 - 8;
    registers[REG_RIP] = (greg_t)faulted;
}

static bool prepare(void) {
    if (run.stacks != NULL) return true;
    size_t stacks = (size_t)MOST_THREADS * (STACK + GUARD);
    size_t shared = (MOST_SHARED + GUARD - 1) / GUARD * GUARD;
    void *p = mmap(NULL, stacks + shared + GUARD, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return false;
    run.stacks = (char *)p;
    run.shared_end = run.stacks + stacks + shared;
    for (int i = 0; i < MOST_THREADS; i++)
        mprotect(run.stacks + (size_t)i * (STACK + GUARD), GUARD, PROT_NONE);
    mprotect(run.shared_end, GUARD, PROT_NONE);
    run.reverse = getenv("LUNCE_CUDA_HOST_REVERSE") != NULL;
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO;
    return sigaction(SIGSEGV, &action, NULL) == 0;
}

/* ---- Waiting ---- */

/* Lets a warp go whose lanes all wait for all: the usual case. */
static bool release_all(int first) {
    int lanes = run.count - first < WARP ? run.count - first : WARP;
    unsigned all = lanes < WARP ? (1u << lanes) - 1 : ~0u;
    for (int i = first; i < first + lanes; i++)
        if (run.fibres[i].state != AT_WARP || run.fibres[i].mask != all) return false;
    for (int i = first; i < first + lanes; i++) enter(&run.fibres[i], READY);
    return true;
}

/* Lets the lanes go that wait for each other, where all of them have come. */
static bool release_warp(int first) {
    bool released = false;
    if (release_all(first)) return true;
    for (int i = first; i < first + WARP && i < run.count; i++) {
        struct fibre *f = &run.fibres[i];
        if (f->state != AT_WARP) continue;
        bool all = f->mask >> (i - first) & 1;
        for (int j = first; j < first + WARP && j < run.count; j++)
            if (f->mask >> (j - first) & 1)
                all &= run.fibres[j].state == AT_WARP && run.fibres[j].mask == f->mask;
        unsigned mask = f->mask;
        for (int j = first; all && j < first + WARP && j < run.count; j++)
            if (mask >> (j - first) & 1) enter(&run.fibres[j], READY);
        released |= all;
    }
    return released;
}

/* Lets whom it can go on; a fault where threads wait and none can. */
static bool release(void) {
    bool released = false;
    for (int i = 0; run.in[AT_WARP] > 0 && i < run.count; i += WARP) released |= release_warp(i);
    if (run.in[AT_BARRIER] == run.count) {
        for (int i = 0; i < run.count; i++) enter(&run.fibres[i], READY);
        released = true;
    }
    if (!released)
        run.fault = cuda_host_fault(cudaErrorLaunchFailure,
                                    "a barrier that not all threads reach: of %d in block %u, %d "
                                    "wait at one, %d in a warp, %d have ended",
                                    run.count, blockIdx.x, run.in[AT_BARRIER], run.in[AT_WARP],
                                    run.in[DONE]);
    return released;
}

void *shared_memory(void) {
    return run.shared_end - (run.shared_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static void run_block(void) {
    memset(shared_memory(), 0xff, run.shared_bytes);
    for (int i = 0; i < STATES; i++) run.in[i] = 0;
    for (int i = 0; i < run.count; i++) start(i);
    run.in[READY] = run.count;
    do
        for (int n = 0; n < run.count && run.fault == cudaSuccess; n++) {
            int i = run.reverse ? run.count - 1 - n : n;
            if (run.fibres[i].state == READY) resume(i);
        }
    while (run.fault == cudaSuccess && run.in[DONE] < run.count && release());
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr, int) {
    *value = MOST_SHARED;
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute, int value) {
    if (value < 0 || value > MOST_SHARED) return cudaErrorInvalidValue;
    pthread_mutex_lock(&run.lock);
    allowed[kernel] = value;
    pthread_mutex_unlock(&run.lock);
    return cudaSuccess;
}

/* Under the lock. */
static size_t shared_limit(const void *kernel) {
    auto found = allowed.find(kernel);
    return found == allowed.end() ? (size_t)PLAIN_SHARED : (size_t)found->second;
}

static cudaError_t check(const cudaLaunchConfig_t *config, const void *kernel) {
    dim3 grid = config->gridDim, block = config->blockDim;
    uint64_t threads = (uint64_t)block.x * block.y * block.z;
    if (threads < 1 || threads > MOST_THREADS || config->dynamicSmemBytes > MOST_SHARED ||
        grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.y > 65535 || grid.z > 65535)
        return cudaErrorInvalidConfiguration;
    pthread_mutex_lock(&run.lock);
    bool fits = config->dynamicSmemBytes <= shared_limit(kernel);
    pthread_mutex_unlock(&run.lock);
    return fits ? cudaSuccess : cudaErrorInvalidValue;
}

static void run_fibres(dim3 grid) {
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x && run.fault == cudaSuccess; x++) {
                blockIdx = {x, y, z};
                run_block();
            }
}

static cudaError_t run_grid(const cudaLaunchConfig_t *config, cuda_host_grid whole,
                            void (*thread)(void *context), void *context) {
    cudaError_t error = cuda_host_begin();
    if (error != cudaSuccess || cuda_host_dry()) return error;
    dim3 grid = config->gridDim, block = config->blockDim;
    pthread_mutex_lock(&run.lock);
    if (!prepare()) abort();
    cuda_host_open();
    blockDim = block;
    gridDim = grid;
    run.count = (int)(block.x * block.y * block.z);
    run.shared_bytes = config->dynamicSmemBytes;
    run.thread = thread;
    run.context = context;
    run.fault = cudaSuccess;
    if (whole != NULL) whole(config, context);
    else run_fibres(grid);
    cuda_host_close();
    pthread_mutex_unlock(&run.lock);
    return cudaSuccess; /* what went wrong in it is met by the next call, as on a device */
}

static cudaError_t launch(const cudaLaunchConfig_t *config, const void *kernel,
                          cuda_host_grid whole, void (*thread)(void *context), void *context,
                          size_t bytes) {
    cudaError_t error = check(config, kernel);
    if (error != cudaSuccess) return error;
    if (!cuda_host_captures()) return run_grid(config, whole, thread, context);
    std::vector<char> copy((char *)context, (char *)context + bytes);
    cudaLaunchConfig_t then = *config;
    return cuda_host_ask([=]() mutable { return run_grid(&then, whole, thread, copy.data()); });
}

cudaError_t cuda_host_launch(const cudaLaunchConfig_t *config, const void *kernel,
                             void (*thread)(void *context), void *context, size_t bytes) {
    return launch(config, kernel, NULL, thread, context, bytes);
}

cudaError_t cuda_host_launch_grid(const cudaLaunchConfig_t *config, const void *kernel,
                                  cuda_host_grid whole, void *context, size_t bytes) {
    return launch(config, kernel, whole, NULL, context, bytes);
}

/* ---- What threads of a block do together ---- */

void __syncthreads(void) {
    leave(AT_BARRIER);
}

static void wait_for_warp(unsigned mask) {
    int first = run.current / WARP * WARP;
    if (run.count - first < WARP) mask &= (1u << (run.count - first)) - 1;
    run.fibres[run.current].mask = mask;
    leave(AT_WARP);
}

void __syncwarp(unsigned mask) {
    wait_for_warp(mask);
}

int cuda_host_lane(void) {
    return run.current % WARP;
}

/* The first wait is until all have given, the second until all have taken. A lane that gives
 * nothing is undefined on a device, and here a value that shows. */
uint64_t cuda_host_exchange(unsigned mask, uint64_t bits, int from) {
    int first = run.current / WARP * WARP;
    run.fibres[run.current].bits = bits;
    wait_for_warp(mask);
    bool gives = mask >> (from % WARP) & 1 && first + from % WARP < run.count;
    uint64_t taken = gives ? run.fibres[first + from % WARP].bits : UINT64_MAX;
    wait_for_warp(mask);
    return taken;
}

unsigned __ballot_sync(unsigned mask, int vote) {
    unsigned votes = 0;
    int first = run.current / WARP * WARP;
    run.fibres[run.current].bits = vote != 0;
    wait_for_warp(mask);
    for (int i = 0; i < WARP && first + i < run.count; i++)
        if (mask >> i & 1) votes |= (unsigned)run.fibres[first + i].bits << i;
    wait_for_warp(mask);
    return votes;
}
