/* Library products on the host: operands are copied out of device memory, multiplied by the CPU
 * backend, and the result is copied back. Holds no arithmetic. */
#include "products.h"

#include "host.h"

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

static ln_status multiply(int dtype, matrix z, matrix x, matrix y, int64_t n, int64_t m, int64_t k,
                          int64_t batches, bool add) {
    const ln_backend *cpu = ln_cpu_backend();
    ln_status status = LN_OK;
    for (int64_t b = 0; b < batches && status == LN_OK; b++) {
        ln_tensor *t[3] = {}, *sum = NULL;
        LN_TRY(fetch(&t[0], &z, dtype, n, m, b, add));
        LN_TRY(fetch(&t[1], &x, dtype, n, k, b, true));
        LN_TRY(fetch(&t[2], &y, dtype, k, m, b, true));
        LN_TRY(ln_tensor_empty(&sum, dtype, LN_CPU, 2, t[0]->shape));
        LN_TRY(cpu->matmul(sum, t[1], t[2], NULL));
        if (add) LN_TRY(cpu->axpby(sum, 1, t[0], 1));
        LN_TRY(give(&z, sum, b));
    fail:
        for (int i = 0; i < 3; i++) ln_tensor_release(t[i]);
        ln_tensor_release(sum);
    }
    return status;
}

ln_status cuda_product(int dtype, matrix z, matrix x, matrix y, int64_t n, int64_t m, int64_t k,
                       int64_t batches, bool add, const char *what) {
    if (!cuda_host_captures()) return multiply(dtype, z, x, y, n, m, k, batches, add);
    auto later = [=] {
        ln_status status = multiply(dtype, z, x, y, n, m, k, batches, add);
        return status == LN_OK ? cudaSuccess : cudaErrorLaunchFailure;
    };
    return cuda_check(cuda_host_ask(later), what);
}
