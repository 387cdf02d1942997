/* The elementwise slots of the CUDA backend: elementwise.def's expressions, a thread an element,
 * and copies. Holds no rules for shapes and dtypes (ops/elementwise.c). Operator and dtypes are
 * chosen at run time: all threads take the same branch, which memory hides. */
#include "walk.h"

/* One number for every operator: LN_NEG..., BINARY_FROM + LN_ADD..., CLAMP_BACKWARD... */
enum {
    BINARY_FROM = 64,
    COMMON_OPS = 127,
#define EXTRA(name, NAME, result, expression, integer) NAME,
#define TERNARY(name, NAME, result, expression, integer) NAME,
#include "elementwise.def"
};

enum { OPERANDS = 4 }; /* at most: the result and three more */

typedef struct {
    int op;
    double a, b;
} parameters;

/* ---- Operators ---- */

#define EACH(op, expression)                                                                       \
    case op: return (T)(expression);

template <typename T> static __device__ T compute(int op, T x, T y, T z, T a, T b) {
    switch (op) {
#define UNARY(name, NAME, result, expression, integer) EACH(LN_##NAME, expression)
#define UNARY_FLOAT(name, NAME, expression) EACH(LN_##NAME, expression)
#define BINARY(name, NAME, result, expression, integer) EACH(BINARY_FROM + LN_##NAME, expression)
#define BINARY_FLOAT(name, NAME, expression) EACH(BINARY_FROM + LN_##NAME, expression)
#define EXTRA(name, NAME, result, expression, integer) EACH(NAME, expression)
#define TERNARY(name, NAME, result, expression, integer) EACH(NAME, expression)
#include "elementwise.def"
    default: return x;
    }
}

template <>
__device__ int64_t compute(int op, int64_t x, int64_t y, int64_t z, int64_t a, int64_t b) {
    typedef int64_t T;
    switch (op) {
#define UNARY(name, NAME, result, expression, integer) EACH(LN_##NAME, integer)
#define BINARY(name, NAME, result, expression, integer) EACH(BINARY_FROM + LN_##NAME, integer)
#define EXTRA(name, NAME, result, expression, integer) EACH(NAME, integer)
#define TERNARY(name, NAME, result, expression, integer) EACH(NAME, integer)
#include "elementwise.def"
    default: return x;
    }
}

static __device__ void parameter(float *p, double v) {
    *p = (float)v;
}

static __device__ void parameter(double *p, double v) {
    *p = v;
}

static __device__ void parameter(int64_t *p, double v) {
    *p = to_integer(v, -0x1p63, 0x1p63, INT64_MIN, INT64_MAX);
}

/* Tensor 0 from the others. */
template <typename T> static __global__ void elementwise_kernel(walk w, parameters s) {
    T a, b;
    parameter(&a, s.a);
    parameter(&b, s.b);
    for (int64_t i = grid_thread(); i < w.numel; i += grid_threads()) {
        int64_t offset[OPERANDS];
        T x[OPERANDS] = {};
        walk_offsets<OPERANDS>(w, i, offset);
        for (int k = 1; k < OPERANDS; k++)
            if (k < w.tensors) x[k] = walk_load<T>(w, k, offset[k]);
        walk_store(w, 0, offset[0], compute<T>(s.op, x[1], x[2], x[3], a, b));
    }
}

/* Operators on floating types only. */
static bool floats_only(int op) {
    switch (op) {
#define UNARY_FLOAT(name, NAME, expression) case LN_##NAME:
#define BINARY_FLOAT(name, NAME, expression) case BINARY_FROM + LN_##NAME:
#include "elementwise.def"
        return true;
    default: return false;
    }
}

/* Runs the operator on n operands, the result first, computing in the type that suits dtype. */
static ln_status run(parameters s, int dtype, int n, const ln_tensor *const *operands,
                     const char *what) {
    ln_status status = cuda_enter(operands[0], what);
    if (status != LN_OK || operands[0]->numel == 0) return status;
    walk w = walk_over(n, operands, 0);
    unsigned blocks = blocks_for(w.numel);
    if (dtype == LN_FLOAT64) return launch(what, elementwise_kernel<double>, blocks, THREADS, w, s);
    if (ln_dtype_is_float(dtype) || floats_only(s.op))
        return launch(what, elementwise_kernel<float>, blocks, THREADS, w, s);
    return launch(what, elementwise_kernel<int64_t>, blocks, THREADS, w, s);
}

ln_status CUDA(unary)(ln_tensor *y, int op, const ln_tensor *x, double a, double b) {
    const ln_tensor *operands[] = {y, x};
    return run(parameters{op, a, b}, x->dtype, 2, operands, "unary");
}

ln_status CUDA(binary)(ln_tensor *z, int op, const ln_tensor *x, const ln_tensor *y) {
    const ln_tensor *operands[] = {z, x, y};
    parameters s = {BINARY_FROM + op, 0, 0};
    return run(s, ln_dtype_promote(x->dtype, y->dtype), 3, operands, "binary");
}

ln_status CUDA(where)(ln_tensor *z, const ln_tensor *cond, const ln_tensor *x, const ln_tensor *y) {
    const ln_tensor *operands[] = {z, cond, x, y};
    return run(parameters{WHERE, 0, 0}, z->dtype, 4, operands, "where");
}

ln_status CUDA(clamp_backward)(ln_tensor *dx, const ln_tensor *dy, const ln_tensor *x, double a,
                               double b) {
    const ln_tensor *operands[] = {dx, dy, x};
    parameters s = {CLAMP_BACKWARD, a, b};
    return run(s, ln_dtype_promote(dy->dtype, x->dtype), 3, operands, "clamp_backward");
}

ln_status CUDA(axpby)(ln_tensor *dst, double a, const ln_tensor *x, double b) {
    /* b = 0 must not read dst, which may hold anything: a x then */
    const ln_tensor *operands[] = {dst, x, dst};
    parameters s = {AXPBY, a, b};
    return run(s, ln_dtype_promote(dst->dtype, x->dtype), b == 0 ? 2 : 3, operands, "axpby");
}

/* ---- Copies ---- */

template <typename T> static __global__ void convert_kernel(walk w) {
    for (int64_t i = grid_thread(); i < w.numel; i += grid_threads()) {
        int64_t offset[2];
        walk_offsets<2>(w, i, offset);
        walk_store(w, 0, offset[0], walk_load<T>(w, 1, offset[1]));
    }
}

/* Bits: a NaN keeps its payload. */
template <typename Bits> static __global__ void move_kernel(walk w) {
    for (int64_t i = grid_thread(); i < w.numel; i += grid_threads()) {
        int64_t offset[2];
        walk_offsets<2>(w, i, offset);
        ((Bits *)w.data[0])[offset[0]] = ((const Bits *)w.data[1])[offset[1]];
    }
}

/* dst = src, converted by way of the type that holds src's values exactly. */
static ln_status convert(const walk &w, int dtype, const char *what) {
    unsigned blocks = blocks_for(w.numel);
    if (dtype == LN_FLOAT64) return launch(what, convert_kernel<double>, blocks, THREADS, w);
    if (ln_dtype_is_float(dtype)) return launch(what, convert_kernel<float>, blocks, THREADS, w);
    return launch(what, convert_kernel<int64_t>, blocks, THREADS, w);
}

static ln_status move(const walk &w, size_t size, const char *what) {
    unsigned blocks = blocks_for(w.numel);
    switch (size) {
    case 1: return launch(what, move_kernel<uint8_t>, blocks, THREADS, w);
    case 2: return launch(what, move_kernel<uint16_t>, blocks, THREADS, w);
    case 4: return launch(what, move_kernel<uint32_t>, blocks, THREADS, w);
    default: return launch(what, move_kernel<uint64_t>, blocks, THREADS, w);
    }
}

ln_status CUDA(copy)(ln_tensor *dst, const ln_tensor *src) {
    ln_status status = cuda_enter(dst, "copy");
    if (status != LN_OK || dst->numel == 0) return status;
    size_t size = ln_dtype_size(src->dtype);
    if (dst->dtype == src->dtype && ln_is_contiguous(dst) && ln_is_contiguous(src))
        return cuda_check(cudaMemcpyAsync(dst->data, src->data, (size_t)dst->numel * size,
                                          cudaMemcpyDeviceToDevice, cudaStreamPerThread),
                          "copy");
    const ln_tensor *operands[] = {dst, src};
    walk w = walk_over(2, operands, 0);
    if (dst->dtype == src->dtype) return move(w, size, "copy");
    return convert(w, src->dtype, "copy");
}

ln_status CUDA(fill)(ln_tensor *dst, double value) {
    ln_status status = cuda_enter(dst, "fill");
    if (status != LN_OK || dst->numel == 0) return status;
    const ln_tensor *operands[] = {dst, NULL};
    walk w = walk_over(2, operands, 0);
    walk_number(&w, 1, value);
    return convert(w, LN_FLOAT64, "fill");
}

static __global__ void arange_kernel(walk w, double start, double step) {
    for (int64_t i = grid_thread(); i < w.numel; i += grid_threads()) {
        int64_t offset[1];
        walk_offsets<1>(w, i, offset);
        walk_store(w, 0, offset[0], start + (double)i * step);
    }
}

ln_status CUDA(arange)(ln_tensor *dst, double start, double step) {
    ln_status status = cuda_enter(dst, "arange");
    if (status != LN_OK || dst->numel == 0) return status;
    const ln_tensor *operands[] = {dst};
    walk w = walk_over(1, operands, ROW_MAJOR);
    return launch("arange", arange_kernel, blocks_for(w.numel), THREADS, w, start, step);
}
