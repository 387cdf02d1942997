/* CUDA's float16 on the host. */
#ifndef LN_CUDA_HOST_FP16_H
#define LN_CUDA_HOST_FP16_H
#include "backend.h"

typedef struct {
    uint16_t bits;
} __half;

static inline float __half2float(__half x) {
    return ln_float16_to_float(x.bits);
}

static inline __half __float2half_rn(float x) {
    return {ln_float_to_float16(x)};
}

#endif
