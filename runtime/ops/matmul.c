/* Checks matrix products and dispatches them. Holds no element loops. Invariant: a backend sees
 * operands of equal dtype and number of dimensions whose inner extents match. */
#include "backend.h"

/* t with its last two dimensions as they are, and its leading ones broadcast to those of shape. */
static ln_tensor broadcast_leading(const ln_tensor *t, int ndim, const int64_t *shape) {
    int64_t full[LN_MAX_DIMS];
    for (int i = 0; i < ndim - 2; i++) full[i] = shape[i];
    for (int i = 1; i <= 2; i++) full[ndim - i] = t->shape[t->ndim - i];
    return ln_broadcast(t, ndim, full);
}

/* The shape of x y. */
static ln_status product_shape(int *ndim, int64_t *shape, const ln_tensor *x, const ln_tensor *y) {
    if (x->ndim < 2 || y->ndim < 2)
        return ln_fail(LN_BAD_ARGUMENT, "matmul: takes two or more dimensions; got %s and %s",
                       ln_text(x), ln_text(y));
    ln_tensor leading_x = *x, leading_y = *y;
    leading_x.ndim -= 2;
    leading_y.ndim -= 2;
    bool inner = x->shape[x->ndim - 1] == y->shape[y->ndim - 2];
    if (!inner || !ln_broadcast_shape(ndim, shape, &leading_x, &leading_y))
        return ln_fail(LN_BAD_ARGUMENT, "matmul: %s and %s do not fit: %s", ln_text(x), ln_text(y),
                       inner ? "their leading dimensions do not broadcast"
                             : "the columns of the first are not the rows of the second");
    shape[*ndim] = x->shape[x->ndim - 2];
    shape[*ndim + 1] = y->shape[y->ndim - 1];
    *ndim += 2;
    return LN_OK;
}

static ln_status check_dtypes(const ln_tensor *x, const ln_tensor *y, const ln_tensor *bias,
                              int64_t columns) {
    if (x->dtype != y->dtype || (bias != NULL && bias->dtype != x->dtype))
        return ln_fail(LN_BAD_ARGUMENT, "matmul: takes equal dtypes; got %s, %s%s%s", ln_text(x),
                       ln_text(y), bias ? ", bias " : "", bias ? ln_text(bias) : "");
    if (x->dtype == LN_BOOL)
        return ln_fail(LN_BAD_ARGUMENT, "matmul: takes numbers; got %s and %s", ln_text(x),
                       ln_text(y));
    if (bias != NULL && (bias->ndim != 1 || bias->shape[0] != columns))
        return ln_fail(LN_BAD_ARGUMENT, "matmul: bias %s does not fit %lld columns", ln_text(bias),
                       (long long)columns);
    return LN_OK;
}

ln_status ln_matmul(ln_tensor **out, const ln_tensor *x, const ln_tensor *y,
                    const ln_tensor *bias) {
    const ln_tensor *inputs[] = {x, y, bias};
    ln_tensor *before = *out;
    int ndim;
    int64_t shape[LN_MAX_DIMS];
    ln_status status;
    LN_TRY(ln_check_inputs("matmul", bias == NULL ? 2 : 3, inputs));
    LN_TRY(product_shape(&ndim, shape, x, y));
    LN_TRY(check_dtypes(x, y, bias, shape[ndim - 1]));
    LN_TRY(ln_out(out, x->dtype, ln_device(x), ndim, shape, "matmul"));
    ln_tensor full_x = broadcast_leading(x, ndim, shape);
    ln_tensor full_y = broadcast_leading(y, ndim, shape);
    LN_TRY(ln_backend_of(ln_device(x))->matmul(*out, &full_x, &full_y, bias));
    return LN_OK;
fail:
    ln_out_fail(out, before);
    return status;
}
