/* What kernels use of CUDA, on the host; see cuda_runtime.h. Includes little: kernels that are
 * compiled at run time begin with it. */
#ifndef LN_CUDA_HOST_DEVICE_H
#define LN_CUDA_HOST_DEVICE_H
#include <stdint.h>

#pragma GCC visibility push(default) /* to those kernels too */

#define __global__
#define __device__
#define __host__
#define __shared__ static /* blocks run one after another */
#define __launch_bounds__(...)

typedef struct {
    unsigned x, y, z;
} uint3;

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {
    }
};

/* Of the fibre that runs. */
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

static inline float __int_as_float(int bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

static inline int __float_as_int(float x) {
    int bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* ---- What threads of a block do together ---- */

/* The block's dynamic shared memory, which ends at a page that may not be touched and is filled
 * with 0xff when the block begins. */
void *shared_memory(void);

void __syncthreads(void);
void __syncwarp(unsigned mask = 0xffffffffu);

/* Gives the 8 bytes that each lane of the mask brings to the others: those of lane `from`. */
uint64_t cuda_host_exchange(unsigned mask, uint64_t bits, int from);
int cuda_host_lane(void);

template <typename T> T cuda_host_shuffle(unsigned mask, T value, int from) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "shuffles move up to 8 bytes");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof value);
    bits = cuda_host_exchange(mask, bits, from);
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

template <typename T> T __shfl_sync(unsigned mask, T value, int from) {
    return cuda_host_shuffle(mask, value, from);
}

template <typename T> T __shfl_xor_sync(unsigned mask, T value, int distance) {
    return cuda_host_shuffle(mask, value, cuda_host_lane() ^ distance);
}

/* Lanes past the warp's end keep their own value. */
template <typename T> T __shfl_down_sync(unsigned mask, T value, int distance) {
    int from = cuda_host_lane() + distance;
    return cuda_host_shuffle(mask, value, from < 32 ? from : cuda_host_lane());
}

template <typename T> T __shfl_up_sync(unsigned mask, T value, int distance) {
    int from = cuda_host_lane() - distance;
    return cuda_host_shuffle(mask, value, from >= 0 ? from : cuda_host_lane());
}

unsigned __ballot_sync(unsigned mask, int vote);

static inline int __ffs(int bits) {
    return __builtin_ffs(bits);
}

/* One fibre runs at a time, so nothing comes between. */
template <typename T> T atomicAdd(T *p, T value) {
    T old = *p;
    *p += value;
    return old;
}

template <typename T> T atomicMax(T *p, T value) {
    T old = *p;
    if (value > old) *p = value;
    return old;
}

template <typename T> T atomicMin(T *p, T value) {
    T old = *p;
    if (value < old) *p = value;
    return old;
}

#pragma GCC visibility pop
#endif
