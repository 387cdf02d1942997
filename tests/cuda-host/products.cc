/* Library products on the host: operands are copied out of device memory, multiplied by the CPU
 * backend, and the result is copied back. Holds no arithmetic but the rounding to TF32. Invariant:
 * what cuBLASLt would refuse is refused. */
#include "products.h"

#include "host.h"

#include <string.h>

/* Matrix b of a batch as a tensor in host memory. With `values`, the device's are copied in. */
static ln_status fetch(ln_tensor **out, const matrix *a, int dtype, int64_t n, int64_t m, int64_t b,
                       bool values) {
    int64_t shape[] = {n, m}, size = (int64_t)ln_dtype_size(dtype);
    int64_t rows = a->transposed ? m : n, columns = a->transposed ? n : m;
    int64_t stored[] = {rows, columns};
    ln_tensor *t = NULL;
    ln_status status = ln_tensor_empty(&t, dtype, LN_CPU, 2, stored);
    const char *from = (const char *)a->data + b * a->step * size;
    if (status == LN_OK && values)
        status = cuda_check(cudaMemcpy2DAsync(t->data, (size_t)(columns * size), from,
                                              (size_t)(a->stride * size), (size_t)(columns * size),
                                              (size_t)rows, cudaMemcpyDeviceToHost, NULL),
                            "product");
    if (status == LN_OK && a->transposed) {
        t->shape[0] = shape[0];
        t->shape[1] = shape[1];
        t->stride[0] = 1;
        t->stride[1] = columns;
    }
    *out = t;
    return status;
}

static ln_status give(const matrix *a, const ln_tensor *t, int64_t b) {
    int64_t size = (int64_t)ln_dtype_size(t->dtype), row = t->shape[1] * size;
    char *to = (char *)a->data + b * a->step * size;
    return cuda_check(cudaMemcpy2DAsync(to, (size_t)(a->stride * size), t->data, (size_t)row,
                                        (size_t)row, (size_t)t->shape[0], cudaMemcpyHostToDevice,
                                        NULL),
                      "product");
}

/* To 10 bits of fraction, nearest even. */
static float round_to_tf32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7f800000) != 0x7f800000) bits += 0xfff + (bits >> 13 & 1);
    bits &= ~0x1fffu;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* An operand as it is multiplied: a half's values as float32, where the sums are kept so. */
static ln_status fetch_operand(ln_tensor **out, const product_kind &kind, const matrix *a,
                               int64_t n, int64_t m, int64_t b) {
    ln_tensor *t = NULL;
    ln_status status = fetch(&t, a, kind.operands, n, m, b, true);
    bool rough = kind.operands == LN_FLOAT32 && (kind.rough || ln_cuda_tf32());
    if (status == LN_OK && kind.operands != kind.z) {
        ln_tensor *half = t;
        t = NULL;
        status = ln_cast(&t, half, kind.z);
        ln_tensor_release(half);
    }
    for (int64_t i = 0; status == LN_OK && rough && i < t->numel; i++)
        ((float *)t->data)[i] = round_to_tf32(((float *)t->data)[i]);
    *out = t;
    return status;
}

/* One matrix of a batch: z = factors[0] x y + factors[1] z. */
static ln_status multiply(const product_kind &kind, const float factors[2], const matrix &z,
                          const matrix &x, const matrix &y, int64_t n, int64_t m, int64_t k,
                          int64_t b) {
    const ln_backend *cpu = ln_cpu_backend();
    ln_tensor *t[3] = {}, *sum = NULL;
    ln_status status;
    LN_TRY(fetch(&t[0], &z, kind.z, n, m, b, factors[1] != 0));
    LN_TRY(fetch_operand(&t[1], kind, &x, n, k, b));
    LN_TRY(fetch_operand(&t[2], kind, &y, k, m, b));
    LN_TRY(ln_tensor_empty(&sum, kind.z, LN_CPU, 2, t[0]->shape));
    LN_TRY(cpu->matmul(sum, t[1], t[2], NULL));
    if (factors[1] != 0) LN_TRY(cpu->axpby(sum, factors[1], t[0], factors[0]));
    LN_TRY(give(&z, sum, b));
fail:
    for (int i = 0; i < 3; i++) ln_tensor_release(t[i]);
    ln_tensor_release(sum);
    return status;
}

static ln_status multiply_all(const product_kind &kind, const matrix &z, const matrix &x,
                              const matrix &y, int64_t n, int64_t m, int64_t k, int64_t batches,
                              bool add) {
    float factors[] = {1, add ? 1.0f : 0.0f};
    ln_status status = LN_OK;
    if (cuda_host_dry()) return status;
    if (kind.factors != NULL)
        status = cuda_check(
            cudaMemcpyAsync(factors, kind.factors, sizeof factors, cudaMemcpyDeviceToHost, NULL),
            "product");
    for (int64_t b = 0; b < batches && status == LN_OK; b++)
        status = multiply(kind, factors, z, x, y, n, m, k, b);
    return status;
}

/* cuBLASLt's leading dimension is at least the length of what lies together. */
static ln_status check_matrix(const matrix &a, int64_t n, int64_t m, int64_t batches,
                              const char *what) {
    int64_t together = a.transposed ? n : m, most = INT32_MAX;
    if (n >= 1 && m >= 1 && n <= most && m <= most && batches <= most && a.stride >= together)
        return LN_OK;
    return ln_fail(LN_INTERNAL, "%s: cuBLASLt takes no %lld matrices (%lld,%lld) of stride %lld",
                   what, (long long)batches, (long long)n, (long long)m, (long long)a.stride);
}

ln_status cuda_product(const product_kind &kind, matrix z, matrix x, matrix y, int64_t n, int64_t m,
                       int64_t k, int64_t batches, bool add, const char *what) {
    ln_status checked = check_matrix(z, n, m, batches, what);
    if (checked == LN_OK) checked = check_matrix(x, n, k, batches, what);
    if (checked == LN_OK) checked = check_matrix(y, k, m, batches, what);
    if (checked != LN_OK) return checked;
    if (!cuda_host_captures()) return multiply_all(kind, z, x, y, n, m, k, batches, add);
    auto later = [=] {
        ln_status status = multiply_all(kind, z, x, y, n, m, k, batches, add);
        return status == LN_OK ? cudaSuccess : cudaErrorLaunchFailure;
    };
    return cuda_check(cuda_host_ask(later), what);
}
