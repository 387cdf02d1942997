/* Tensor cores on the host, for kernels that are compiled at run time: what runtime/cuda/mma.h
 * gives them on a device. See mma.cc. */
#ifndef LN_CUDA_HOST_MMA_H
#define LN_CUDA_HOST_MMA_H
#include "device.h"

#pragma GCC visibility push(default)
unsigned cuda_host_half_pair(bool bfloat16, float first, float second);
void cuda_host_mma(bool bfloat16, float sums[4], const unsigned a[4], const unsigned b[2]);
void cuda_host_fragments(unsigned out[4], const void *row, bool transposed);
void copy_begin(void *to, const void *from, bool given);
void copy_group(void);
void copy_wait(int left);
#pragma GCC visibility pop

#ifdef LN_BFLOAT16
enum { CUDA_HOST_BFLOAT16 = true };
#else
enum { CUDA_HOST_BFLOAT16 = false };
#endif

static inline unsigned half_pair(float first, float second) {
    return cuda_host_half_pair(CUDA_HOST_BFLOAT16, first, second);
}

static inline void mma(float sums[4], const unsigned a[4], const unsigned b[2]) {
    cuda_host_mma(CUDA_HOST_BFLOAT16, sums, a, b);
}

typedef const char *shared_place;

static inline shared_place shared_place_of(const void *p) {
    return (shared_place)p;
}

static inline void fragment_rows(unsigned out[4], shared_place row) {
    cuda_host_fragments(out, row, false);
}

static inline void fragment_columns(unsigned out[4], shared_place row) {
    cuda_host_fragments(out, row, true);
}

static inline char *block_memory(void) {
    return (char *)shared_memory();
}

#endif
