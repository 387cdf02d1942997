/* The matrix products that the backend asks of a library: cuBLASLt on a device, the CPU backend
 * where the kernels run on the host. Declarations only. */
#ifndef LN_CUDA_PRODUCTS_H
#define LN_CUDA_PRODUCTS_H
#include "cuda.h"

/* Matrices one `step` apart (0: one for all), whose element (i, j) is data[i * stride + j], or
 * data[j * stride + i] when transposed. */
typedef struct {
    void *data;
    int64_t stride, step;
    bool transposed;
} matrix;

/* How products are computed. */
typedef struct {
    int z, operands;      /* dtypes: floating; float32 and half operands, or both the same */
    bool rough;           /* float32 operands are rounded to TF32; unless it was asked for anyway */
    const float *factors; /* on the device, for sums in float32: z = factors[0] x y + z;
                             factors[1] is 1. NULL: z = x y, or z += x y */
} product_kind;

static inline product_kind product_of(int dtype) {
    return {dtype, dtype, false, NULL};
}

/* z (n,m) = x (n,k) y (k,m), or z += x y, for every one of `batches`. float64 is summed in float64,
 * the rest in float32. z is not transposed; no extent is 0. */
ln_status cuda_product(const product_kind &kind, matrix z, matrix x, matrix y, int64_t n, int64_t m,
                       int64_t k, int64_t batches, bool add, const char *what);

#endif
