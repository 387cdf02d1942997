/* Reductions, extremes and running sums: checks, results' shapes and dtypes, dispatch. No element
 * loops. Invariant: what reaches a backend has been checked as ops.def promises. */
#include "check.h"

#include <math.h>

/* ORDER REDUCE */
static const char *const names[] = {"sum", "mean", "prod", "min",       "max",
                                    "any", "all",  "var",  "logsumexp", "norm"};

static int result_dtype(int op, int dtype) {
    switch (op) {
    case LN_ANY:
    case LN_ALL: return LN_BOOL;
    case LN_MIN:
    case LN_MAX: return dtype;
    case LN_SUM:
    case LN_PROD: return ln_dtype_is_float(dtype) ? dtype : LN_INT64;
    default: return ln_dtype_is_float(dtype) ? dtype : LN_FLOAT32;
    }
}

/* The shape of x with the dimensions of the bit set reduced to 1, or left out. */
static int reduced_shape(int64_t *shape, const ln_tensor *x, uint32_t dims, bool keepdim) {
    int n = 0;
    for (int i = 0; i < x->ndim; i++) {
        bool reduced = dims >> i & 1;
        if (!reduced || keepdim) shape[n++] = reduced ? 1 : x->shape[i];
    }
    return n;
}

/* A stack copy of a result with the dimensions that were left out put back as 1. */
static ln_tensor with_reduced(const ln_tensor *out, const ln_tensor *x, uint32_t dims,
                              bool keepdim) {
    ln_tensor full = *out;
    full.ndim = x->ndim;
    for (int i = 0, from = 0; i < x->ndim; i++) {
        bool absent = !keepdim && dims >> i & 1;
        full.shape[i] = absent ? 1 : out->shape[from];
        full.stride[i] = absent ? 1 : out->stride[from];
        from += !absent;
    }
    return full;
}

static ln_status check_not_empty(const char *what, const ln_tensor *x, uint32_t dims) {
    int64_t results = 1, each = 1;
    for (int i = 0; i < x->ndim; i++) *(dims >> i & 1 ? &each : &results) *= x->shape[i];
    if (each > 0 || results == 0) return LN_OK;
    return ln_fail(LN_BAD_ARGUMENT, "%s: %s has no elements to choose from", what, ln_text(x));
}

static ln_status check_reduce(int op, const ln_tensor *x, uint32_t dims, double a) {
    const char *what = names[op];
    ln_status status = ln_check_inputs(what, 1, &x);
    if (status == LN_OK && dims >> x->ndim != 0)
        status = check_dim(what, x, 31 - __builtin_clz(dims));
    if (status != LN_OK) return status;
    if (op == LN_NORM && a != 1 && a != 2 && a != INFINITY)
        return ln_fail(LN_BAD_ARGUMENT, "norm: got order %g; 1, 2 and infinity are taken", a);
    if (op == LN_VAR && !isfinite(a))
        return ln_fail(LN_BAD_ARGUMENT, "var: got correction %g; a finite one is taken", a);
    return LN_OK;
}

ln_status ln_reduce(ln_tensor **out, int op, const ln_tensor *x, uint32_t dims, bool keepdim,
                    double a) {
    if (op < LN_SUM || op > LN_NORM) return ln_fail(LN_BAD_ARGUMENT, "reduce: no operator %d", op);
    ln_tensor *const given = *out;
    ln_status status = check_reduce(op, x, dims, a);
    if (status != LN_OK) return status;
    if (dims == 0) dims = (1u << x->ndim) - 1;
    if (op == LN_MIN || op == LN_MAX) LN_TRY(check_not_empty(names[op], x, dims));
    int64_t shape[LN_MAX_DIMS];
    int ndim = reduced_shape(shape, x, dims, keepdim);
    LN_TRY(ln_out(out, result_dtype(op, x->dtype), ln_device(x), ndim, shape, names[op]));
    ln_tensor full = with_reduced(*out, x, dims, keepdim);
    LN_TRY(ln_backend_of(ln_device(x))->reduce(&full, op, x, a));
    return LN_OK;
fail:
    ln_out_fail(out, given);
    return status;
}

ln_status ln_extreme(ln_tensor **values, ln_tensor **indices, const ln_tensor *x, int dim,
                     bool keepdim, bool largest) {
    const char *what = largest ? "max" : "min";
    ln_tensor *const given_values = *values, *const given_indices = *indices;
    ln_status status = ln_check_inputs(what, 1, &x);
    if (status == LN_OK) status = check_dim(what, x, dim);
    if (status != LN_OK) return status;
    uint32_t dims = 1u << dim;
    LN_TRY(check_not_empty(what, x, dims));
    int64_t shape[LN_MAX_DIMS];
    int ndim = reduced_shape(shape, x, dims, keepdim);
    LN_TRY(ln_out(values, x->dtype, ln_device(x), ndim, shape, what));
    LN_TRY(ln_out(indices, LN_INT64, ln_device(x), ndim, shape, what));
    ln_tensor full_values = with_reduced(*values, x, dims, keepdim);
    ln_tensor full_indices = with_reduced(*indices, x, dims, keepdim);
    LN_TRY(ln_backend_of(ln_device(x))->extreme(&full_values, &full_indices, x, dim, largest));
    return LN_OK;
fail:
    ln_out_fail(values, given_values);
    ln_out_fail(indices, given_indices);
    return status;
}

ln_status ln_cumsum(ln_tensor **out, const ln_tensor *x, int dim, bool reverse) {
    ln_tensor *const given = *out;
    ln_status status = ln_check_inputs("cumsum", 1, &x);
    if (status == LN_OK) status = check_dim("cumsum", x, dim);
    if (status != LN_OK) return status;
    int dtype = ln_dtype_is_float(x->dtype) ? x->dtype : LN_INT64;
    LN_TRY(ln_out(out, dtype, ln_device(x), x->ndim, x->shape, "cumsum"));
    LN_TRY(ln_backend_of(ln_device(x))->cumsum(*out, x, dim, reverse));
    return LN_OK;
fail:
    ln_out_fail(out, given);
    return status;
}
