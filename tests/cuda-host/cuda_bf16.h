/* CUDA's bfloat16 on the host. */
#ifndef LN_CUDA_HOST_BF16_H
#define LN_CUDA_HOST_BF16_H
#include "backend.h"

typedef struct {
    uint16_t bits;
} __nv_bfloat16;

static inline float __bfloat162float(__nv_bfloat16 x) {
    return ln_bfloat16_to_float(x.bits);
}

static inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    return {ln_float_to_bfloat16(x)};
}

#endif
