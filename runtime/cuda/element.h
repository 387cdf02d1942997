/* Elements of any dtype, in device code: to and from the three types that kernels compute in, with
 * the CPU's meaning of every conversion. Holds no loops. Invariant: float holds float32, bfloat16
 * and float16 exactly, double every floating dtype, int64 every integer and bool. */
#ifndef LN_CUDA_ELEMENT_H
#define LN_CUDA_ELEMENT_H
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "backend.h"

static inline __device__ int64_t saturate(double v, double low, double high, int64_t lowest,
                                          int64_t highest) {
    if (v != v) return 0;
    return v <= low ? lowest : v >= high ? highest : (int64_t)v;
}

/* int64 wraps into smaller integers; floating values saturate, and NaN becomes 0. */
static inline __device__ int64_t to_integer(int64_t v, double, double, int64_t, int64_t) {
    return v;
}

static inline __device__ int64_t to_integer(double v, double low, double high, int64_t lowest,
                                            int64_t highest) {
    return saturate(v, low, high, lowest, highest);
}

static inline __device__ int64_t to_integer(float v, double low, double high, int64_t lowest,
                                            int64_t highest) {
    return saturate(v, low, high, lowest, highest);
}

/* T: float, double or int64_t, but int64_t for integers and bool only. */
template <typename T> static inline __device__ T load(const void *p, int dtype, int64_t i) {
    switch (dtype) {
    case LN_FLOAT32: return (T)((const float *)p)[i];
    case LN_FLOAT64: return (T)((const double *)p)[i];
    case LN_BFLOAT16: return (T)__bfloat162float(((const __nv_bfloat16 *)p)[i]);
    case LN_FLOAT16: return (T)__half2float(((const __half *)p)[i]);
    case LN_INT64: return (T)((const int64_t *)p)[i];
    case LN_INT32: return (T)((const int32_t *)p)[i];
    default: return (T)((const uint8_t *)p)[i]; /* uint8 and bool */
    }
}

template <typename T> static inline __device__ void store(void *p, int dtype, int64_t i, T v) {
    switch (dtype) {
    case LN_FLOAT32: ((float *)p)[i] = (float)v; break;
    case LN_FLOAT64: ((double *)p)[i] = (double)v; break;
    case LN_BFLOAT16: ((__nv_bfloat16 *)p)[i] = __float2bfloat16_rn((float)v); break;
    case LN_FLOAT16: ((__half *)p)[i] = __float2half_rn((float)v); break;
    case LN_INT64: ((int64_t *)p)[i] = to_integer(v, -0x1p63, 0x1p63, INT64_MIN, INT64_MAX); break;
    case LN_INT32:
        ((int32_t *)p)[i] = (int32_t)to_integer(v, INT32_MIN, INT32_MAX, INT32_MIN, INT32_MAX);
        break;
    case LN_UINT8: ((uint8_t *)p)[i] = (uint8_t)to_integer(v, 0, 255, 0, 255); break;
    default: ((uint8_t *)p)[i] = v != 0; break; /* bool */
    }
}

#endif
