/* The elementwise slots of the CPU backend: elementwise.def's expressions in loops over blocks, and
 * copies. Holds no walks (block.c) and no rules for shapes and dtypes (ops/elementwise.c). */
#include "block.h"

#include "vector_math.h"
#include <string.h>

/* One number for every operator: LN_NEG..., BINARY_FROM + LN_ADD..., CLAMP_BACKWARD... */
enum {
    BINARY_FROM = 64,
    COMMON_OPS = 127,
#define EXTRA(name, NAME, result, expression, integer) NAME,
#define TERNARY(name, NAME, result, expression, integer) NAME,
#include "elementwise.def"
};

typedef struct {
    int op;
    double a, b;
} parameters;

/* ---- The loops ---- */

#define EACH(op, operands, expression)                                                             \
    case op:                                                                                       \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                      \
            operands;                                                                              \
            p0[i] = (T)(expression);                                                               \
        }                                                                                          \
        break;
#define X const T x __attribute__((unused)) = p1[i]
#define X_Y const T x = p1[i], y = p2[i]
#define X_Y_Z const T x = p1[i], y = p2[i], z = p3[i]

static void float_blocks(void *const *p, int64_t n, int64_t start, const void *context) {
    typedef float T;
    const parameters *s = context;
    const T a = (T)s->a, b = (T)s->b, *p1 = p[1], *p2 = p[2], *p3 = p[3];
    T *p0 = p[0];
    (void)start;
    n = n / BLOCK_LANES * BLOCK_LANES;
    switch (s->op) {
#define UNARY(name, NAME, result, expression, integer) EACH(LN_##NAME, X, expression)
#define UNARY_FLOAT(name, NAME, expression) EACH(LN_##NAME, X, expression)
#define BINARY(name, NAME, result, expression, integer)                                            \
    EACH(BINARY_FROM + LN_##NAME, X_Y, expression)
#define BINARY_FLOAT(name, NAME, expression) EACH(BINARY_FROM + LN_##NAME, X_Y, expression)
#define EXTRA(name, NAME, result, expression, integer) EACH(NAME, X_Y, expression)
#define TERNARY(name, NAME, result, expression, integer) EACH(NAME, X_Y_Z, expression)
#include "elementwise.def"
    }
}

/* float_blocks of the operators that take long, a line of the result at a time: what is computed
 * and what is stored overlap, and lines to come are fetched meanwhile. */
static void float_streamed(void *const *p, int64_t n, int64_t start, const void *context) {
    typedef float T;
    const parameters *s = context;
    const T *p1 = p[1];
    T *p0 = p[0];
    (void)start;
    n = n / BLOCK_LANES * BLOCK_LANES;
    switch (s->op) {
#define UNARY_FLOAT(name, NAME, expression)                                                        \
    case LN_##NAME:                                                                                \
        for (int64_t i = 0; i < n; i += BLOCK_LANES) {                                             \
            T line[BLOCK_LANES];                                                                   \
            __builtin_prefetch(p1 + i + 256);                                                      \
            _Pragma("omp simd") for (int j = 0; j < BLOCK_LANES; j++) {                            \
                const T x = p1[i + j];                                                             \
                line[j] = expression;                                                              \
            }                                                                                      \
            block_stream(p0 + i, line, sizeof line);                                               \
        }                                                                                          \
        break;
#include "elementwise.def"
    }
}

static void double_blocks(void *const *p, int64_t n, int64_t start, const void *context) {
    typedef double T;
    const parameters *s = context;
    const T a = s->a, b = s->b, *p1 = p[1], *p2 = p[2], *p3 = p[3];
    T *p0 = p[0];
    (void)start;
    n = n / BLOCK_LANES * BLOCK_LANES;
    switch (s->op) {
#define UNARY(name, NAME, result, expression, integer) EACH(LN_##NAME, X, expression)
#define UNARY_FLOAT(name, NAME, expression) EACH(LN_##NAME, X, expression)
#define BINARY(name, NAME, result, expression, integer)                                            \
    EACH(BINARY_FROM + LN_##NAME, X_Y, expression)
#define BINARY_FLOAT(name, NAME, expression) EACH(BINARY_FROM + LN_##NAME, X_Y, expression)
#define EXTRA(name, NAME, result, expression, integer) EACH(NAME, X_Y, expression)
#define TERNARY(name, NAME, result, expression, integer) EACH(NAME, X_Y_Z, expression)
#include "elementwise.def"
    }
}

static int64_t saturated(double v) {
    return v >= 0x1p63 ? INT64_MAX : v <= -0x1p63 ? INT64_MIN : (int64_t)v;
}

static void int64_blocks(void *const *p, int64_t n, int64_t start, const void *context) {
    typedef int64_t T;
    const parameters *s = context;
    const T a = saturated(s->a), b = saturated(s->b), *p1 = p[1], *p2 = p[2], *p3 = p[3];
    T *p0 = p[0];
    (void)start;
    n = n / BLOCK_LANES * BLOCK_LANES;
    switch (s->op) {
#define UNARY(name, NAME, result, expression, integer) EACH(LN_##NAME, X, integer)
#define BINARY(name, NAME, result, expression, integer) EACH(BINARY_FROM + LN_##NAME, X_Y, integer)
#define EXTRA(name, NAME, result, expression, integer) EACH(NAME, X_Y, integer)
#define TERNARY(name, NAME, result, expression, integer) EACH(NAME, X_Y_Z, integer)
#include "elementwise.def"
    }
}

/* ---- The slots ---- */

/* Operators on floating types only, which are also those that cost much. */
static const bool floats_only[COMMON_OPS] = {
#define UNARY_FLOAT(name, NAME, expression) [LN_##NAME] = true,
#define BINARY_FLOAT(name, NAME, expression) [BINARY_FROM + LN_##NAME] = true,
#include "elementwise.def"
};

/* Runs the operator on n operands, the result first, computing in the type that suits dtype. */
static ln_status run(const parameters *s, int dtype, int n, const ln_tensor *const *operands) {
    static block_body *const bodies[] = {
        [BLOCK_FLOAT] = float_blocks, [BLOCK_DOUBLE] = double_blocks, [BLOCK_INT64] = int64_blocks};
    bool is_float = s->op < COMMON_OPS && floats_only[s->op];
    block_type type = block_type_of(dtype);
    if (is_float && type == BLOCK_INT64) type = BLOCK_FLOAT;
    block_kernel kernel = {.body = bodies[type],
                           .streamed =
                               is_float && n == 2 && type == BLOCK_FLOAT ? float_streamed : NULL,
                           .context = s,
                           .type = type,
                           .cost = is_float ? 8 : 1,
                           .reads = ~1u,
                           .writes = 1};
    CPU(block_run)(&kernel, n, operands);
    return LN_OK;
}

ln_status CPU(unary)(ln_tensor *y, int op, const ln_tensor *x, double a, double b) {
    return run(&(parameters){op, a, b}, x->dtype, 2, (const ln_tensor *[]){y, x});
}

ln_status CPU(binary)(ln_tensor *z, int op, const ln_tensor *x, const ln_tensor *y) {
    return run(&(parameters){BINARY_FROM + op, 0, 0}, ln_dtype_promote(x->dtype, y->dtype), 3,
               (const ln_tensor *[]){z, x, y});
}

ln_status CPU(where)(ln_tensor *z, const ln_tensor *cond, const ln_tensor *x, const ln_tensor *y) {
    return run(&(parameters){WHERE, 0, 0}, z->dtype, 4, (const ln_tensor *[]){z, cond, x, y});
}

ln_status CPU(clamp_backward)(ln_tensor *dx, const ln_tensor *dy, const ln_tensor *x, double a,
                              double b) {
    return run(&(parameters){CLAMP_BACKWARD, a, b}, ln_dtype_promote(dy->dtype, x->dtype), 3,
               (const ln_tensor *[]){dx, dy, x});
}

ln_status CPU(axpby)(ln_tensor *dst, double a, const ln_tensor *x, double b) {
    int dtype = ln_dtype_promote(dst->dtype, x->dtype);
    parameters s = {AXPBY, a, b};
    return run(&s, dtype, 3, (const ln_tensor *[]){dst, x, dst});
}

/* dst = src, converted: through the walk's blocks, which hold src's values exactly. */
static ln_status convert(ln_tensor *dst, const ln_tensor *src) {
    block_kernel kernel = {.type = block_type_of(src->dtype), .cost = 1, .reads = 2, .writes = 1};
    CPU(block_run)(&kernel, 2, (const ln_tensor *[]){dst, src});
    return LN_OK;
}

ln_status CPU(copy)(ln_tensor *dst, const ln_tensor *src) {
    if (dst->dtype != src->dtype) return convert(dst, src);
    CPU(block_move)(dst, src);
    return LN_OK;
}

ln_status CPU(fill)(ln_tensor *dst, double value) {
    double element;
    ln_element_set(dst->dtype, &element, value);
    ln_tensor constant = *dst;
    constant.data = (char *)&element;
    memset(constant.stride, 0, sizeof constant.stride);
    return convert(dst, &constant);
}

/* The start-th position onwards of start + step * position. */
static void arange_blocks(void *const *p, int64_t n, int64_t start, const void *context) {
    const parameters *s = context;
    double *y = p[0];
    n = n / BLOCK_LANES * BLOCK_LANES;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = s->a + (double)(start + i) * s->b;
}

ln_status CPU(arange)(ln_tensor *dst, double start, double step) {
    parameters s = {.a = start, .b = step};
    block_kernel kernel = {.body = arange_blocks,
                           .context = &s,
                           .type = BLOCK_DOUBLE,
                           .cost = 1,
                           .writes = 1,
                           .row_major = true};
    CPU(block_run)(&kernel, 1, (const ln_tensor *[]){dst});
    return LN_OK;
}
