/* softmax, batch and layer normalisation: checks, results' shapes and dtypes, dispatch. No element
 * loops. Invariant: what reaches a backend has been checked as ops.def promises. */
#include "check.h"

#include <math.h>

static ln_status check_float(const char *what, const ln_tensor *x) {
    if (ln_dtype_is_float(x->dtype)) return LN_OK;
    return ln_fail(LN_BAD_ARGUMENT, "%s: got %s; floating-point is taken", what, ln_text(x));
}

static ln_status check_like(const char *what, const char *name, const ln_tensor *t,
                            const ln_tensor *x) {
    if (t->dtype == x->dtype && ln_same_shape(t, x)) return LN_OK;
    return ln_fail(LN_BAD_ARGUMENT, "%s: %s is %s beside %s; they must be alike", what, name,
                   ln_text(t), ln_text(x));
}

/* t: NULL, or like x and on its device. */
static ln_status check_beside(const char *what, const char *name, const ln_tensor *t,
                              const ln_tensor *x) {
    if (t == NULL) return LN_OK;
    ln_status status = check_like(what, name, t, x);
    return status != LN_OK ? status : ln_check_inputs(what, 2, (const ln_tensor *[]){x, t});
}

/* Parameters and statistics are float32 where x is of less precision. */
static int parameter_dtype(const ln_tensor *x) {
    return x->dtype == LN_FLOAT64 ? LN_FLOAT64 : LN_FLOAT32;
}

/* t: NULL, or a tensor of this shape in x's parameter dtype on x's device. */
static ln_status check_parameter(const char *what, const char *name, const ln_tensor *t,
                                 const ln_tensor *x, int ndim, const int64_t *shape) {
    if (t == NULL) return LN_OK;
    bool fits = t->ndim == ndim && t->dtype == parameter_dtype(x);
    for (int i = 0; fits && i < ndim; i++) fits = t->shape[i] == shape[i];
    if (!fits)
        return ln_fail(LN_BAD_ARGUMENT, "%s: %s is %s; for %s it takes %s %s", what, name,
                       ln_text(t), ln_text(x), ln_text_shape(ndim, shape),
                       ln_text_dtype(parameter_dtype(x)));
    return ln_check_inputs(what, 2, (const ln_tensor *[]){x, t});
}

/* ---- softmax ---- */

ln_status ln_softmax(ln_tensor **out, const ln_tensor *x, int dim, bool logarithm) {
    const char *what = logarithm ? "log_softmax" : "softmax";
    ln_tensor *const given = *out;
    ln_status status;
    LN_TRY(ln_check_inputs(what, 1, &x));
    LN_TRY(check_float(what, x));
    LN_TRY(check_dim(what, x, dim));
    LN_TRY(ln_out(out, x->dtype, ln_device(x), x->ndim, x->shape, what));
    LN_TRY(ln_backend_of(ln_device(x))->softmax(*out, x, dim, logarithm));
    return LN_OK;
fail:
    ln_out_fail(out, given);
    return status;
}

ln_status ln_softmax_backward(ln_tensor **dx, const ln_tensor *dy, const ln_tensor *y, int dim,
                              bool logarithm) {
    const char *what = logarithm ? "log_softmax_backward" : "softmax_backward";
    ln_tensor *const given = *dx;
    ln_status status;
    LN_TRY(ln_check_inputs(what, 2, (const ln_tensor *[]){dy, y}));
    LN_TRY(check_float(what, y));
    LN_TRY(check_dim(what, y, dim));
    LN_TRY(check_like(what, "the gradient", dy, y));
    LN_TRY(ln_out(dx, y->dtype, ln_device(y), y->ndim, y->shape, what));
    LN_TRY(ln_backend_of(ln_device(y))->softmax_backward(*dx, dy, y, dim, logarithm));
    return LN_OK;
fail:
    ln_out_fail(dx, given);
    return status;
}

/* ---- Batch normalisation ---- */

static ln_status check_batch(const char *what, const ln_tensor *x, const ln_tensor *weight,
                             const ln_tensor *bias) {
    ln_status status = check_float(what, x);
    if (status != LN_OK) return status;
    if (x->ndim < 2)
        return ln_fail(LN_BAD_ARGUMENT, "%s: got %s; (N,C) or (N,C,...) is taken", what,
                       ln_text(x));
    LN_TRY(check_parameter(what, "the weight", weight, x, 1, &x->shape[1]));
    LN_TRY(check_parameter(what, "the bias", bias, x, 1, &x->shape[1]));
fail:
    return status;
}

static ln_status check_running(const char *what, const ln_tensor *x, const ln_tensor *mean,
                               const ln_tensor *var, bool training) {
    ln_status status;
    LN_TRY(check_parameter(what, "the running mean", mean, x, 1, &x->shape[1]));
    LN_TRY(check_parameter(what, "the running variance", var, x, 1, &x->shape[1]));
    if ((mean == NULL) != (var == NULL) || (!training && mean == NULL))
        return ln_fail(LN_BAD_ARGUMENT, "%s: takes running mean and variance %s", what,
                       training ? "together" : "when not training");
    if (training && x->numel > 0 && x->numel == x->shape[1])
        return ln_fail(LN_BAD_ARGUMENT, "%s: training takes more than one value a channel; got %s",
                       what, ln_text(x));
fail:
    return status;
}

ln_status ln_batch_norm(ln_tensor **out, ln_tensor **mean, ln_tensor **rstd, const ln_tensor *x,
                        const ln_tensor *weight, const ln_tensor *bias, const ln_tensor *residual,
                        ln_tensor *running_mean, ln_tensor *running_var, bool training, bool relu,
                        double momentum, double eps) {
    const char *what = "batch_norm";
    ln_tensor *const given[] = {*out, *mean, *rstd};
    ln_status status;
    LN_TRY(ln_check_inputs(what, 1, &x));
    LN_TRY(check_batch(what, x, weight, bias));
    LN_TRY(check_beside(what, "the residual", residual, x));
    if ((weight == NULL) != (bias == NULL))
        return ln_fail(LN_BAD_ARGUMENT, "%s: takes weight and bias together", what);
    LN_TRY(check_running(what, x, running_mean, running_var, training));
    int dtype = parameter_dtype(x), device = ln_device(x);
    LN_TRY(ln_out_like(out, x->dtype, x, x->ndim, x->shape, what));
    LN_TRY(ln_out(mean, dtype, device, 1, &x->shape[1], what));
    LN_TRY(ln_out(rstd, dtype, device, 1, &x->shape[1], what));
    LN_TRY(ln_backend_of(device)->batch_norm(*out, *mean, *rstd, x, weight, bias, residual,
                                             running_mean, running_var, training, relu, momentum,
                                             eps));
    if (training && running_mean != NULL) ln_wrote(running_mean);
    if (training && running_var != NULL) ln_wrote(running_var);
    return LN_OK;
fail:
    ln_out_fail(out, given[0]);
    ln_out_fail(mean, given[1]);
    ln_out_fail(rstd, given[2]);
    return status;
}

/* Makes a gradient that is wanted. */
static ln_status make_gradient(ln_tensor **out, const ln_tensor *x, int ndim, const int64_t *shape,
                               const char *what) {
    if (out == NULL) return LN_OK;
    return ln_out(out, parameter_dtype(x), ln_device(x), ndim, shape, what);
}

static void drop_gradient(ln_tensor **out, const ln_tensor *given) {
    if (out != NULL) ln_out_fail(out, given);
}

ln_status ln_batch_norm_backward(ln_tensor **dx, ln_tensor **dweight, ln_tensor **dbias,
                                 ln_tensor **dresidual, const ln_tensor *dy, const ln_tensor *x,
                                 const ln_tensor *y, const ln_tensor *weight, const ln_tensor *mean,
                                 const ln_tensor *rstd, bool training) {
    const char *what = "batch_norm_backward";
    ln_tensor **const outs[] = {dx, dweight, dbias, dresidual};
    ln_tensor *given[] = {NULL, NULL, NULL, NULL}, *made[] = {NULL, NULL, NULL, NULL};
    for (int i = 0; i < 4; i++)
        if (outs[i] != NULL) given[i] = *outs[i];
    ln_status status;
    LN_TRY(ln_check_inputs(what, 4, (const ln_tensor *[]){dy, x, mean, rstd}));
    LN_TRY(check_batch(what, x, weight, NULL));
    LN_TRY(check_like(what, "the gradient", dy, x));
    LN_TRY(check_beside(what, "the output", y, x));
    if (dresidual != NULL && y == NULL)
        return ln_fail(LN_BAD_ARGUMENT, "%s: without relu the residual's gradient is dy", what);
    LN_TRY(check_parameter(what, "the mean", mean, x, 1, &x->shape[1]));
    LN_TRY(check_parameter(what, "the rstd", rstd, x, 1, &x->shape[1]));
    LN_TRY(ln_out_like(dx, x->dtype, x, x->ndim, x->shape, what));
    LN_TRY(make_gradient(dweight, x, 1, &x->shape[1], what));
    LN_TRY(make_gradient(dbias, x, 1, &x->shape[1], what));
    if (dresidual != NULL) LN_TRY(ln_out_like(dresidual, x->dtype, x, x->ndim, x->shape, what));
    for (int i = 0; i < 4; i++)
        if (outs[i] != NULL) made[i] = *outs[i];
    LN_TRY(ln_backend_of(ln_device(x))
               ->batch_norm_backward(made[0], made[1], made[2], made[3], dy, x, y, weight, mean,
                                     rstd, training));
    return LN_OK;
fail:
    for (int i = 0; i < 4; i++) drop_gradient(outs[i], given[i]);
    return status;
}

/* ---- Layer normalisation ---- */

static ln_status check_layer(const char *what, const ln_tensor *x, const ln_tensor *weight,
                             const ln_tensor *bias, int n) {
    ln_status status = check_float(what, x);
    if (status != LN_OK) return status;
    if (n < 1 || n > x->ndim)
        return ln_fail(LN_BAD_ARGUMENT, "%s: cannot go over the last %d dimensions of %s", what, n,
                       ln_text(x));
    const int64_t *shape = x->shape + x->ndim - n;
    LN_TRY(check_parameter(what, "the weight", weight, x, n, shape));
    LN_TRY(check_parameter(what, "the bias", bias, x, n, shape));
fail:
    return status;
}

ln_status ln_layer_norm(ln_tensor **out, ln_tensor **mean, ln_tensor **rstd, const ln_tensor *x,
                        const ln_tensor *weight, const ln_tensor *bias, int ndim_normalised,
                        double eps) {
    const char *what = "layer_norm";
    ln_tensor *const given[] = {*out, *mean, *rstd};
    ln_status status;
    LN_TRY(ln_check_inputs(what, 1, &x));
    LN_TRY(check_layer(what, x, weight, bias, ndim_normalised));
    int dtype = parameter_dtype(x), device = ln_device(x), leading = x->ndim - ndim_normalised;
    LN_TRY(ln_out(out, x->dtype, device, x->ndim, x->shape, what));
    LN_TRY(ln_out(mean, dtype, device, leading, x->shape, what));
    LN_TRY(ln_out(rstd, dtype, device, leading, x->shape, what));
    LN_TRY(ln_backend_of(device)->layer_norm(*out, *mean, *rstd, x, weight, bias, ndim_normalised,
                                             eps));
    return LN_OK;
fail:
    ln_out_fail(out, given[0]);
    ln_out_fail(mean, given[1]);
    ln_out_fail(rstd, given[2]);
    return status;
}

ln_status ln_layer_norm_backward(ln_tensor **dx, ln_tensor **dweight, ln_tensor **dbias,
                                 const ln_tensor *dy, const ln_tensor *x, const ln_tensor *weight,
                                 const ln_tensor *mean, const ln_tensor *rstd,
                                 int ndim_normalised) {
    const char *what = "layer_norm_backward";
    ln_tensor *const given_dx = *dx, *const given_dweight = dweight ? *dweight : NULL,
                     *const given_dbias = dbias ? *dbias : NULL;
    ln_status status;
    LN_TRY(ln_check_inputs(what, 4, (const ln_tensor *[]){dy, x, mean, rstd}));
    LN_TRY(check_layer(what, x, weight, NULL, ndim_normalised));
    LN_TRY(check_like(what, "the gradient", dy, x));
    int leading = x->ndim - ndim_normalised;
    LN_TRY(check_parameter(what, "the mean", mean, x, leading, x->shape));
    LN_TRY(check_parameter(what, "the rstd", rstd, x, leading, x->shape));
    LN_TRY(ln_out(dx, x->dtype, ln_device(x), x->ndim, x->shape, what));
    LN_TRY(make_gradient(dweight, x, ndim_normalised, x->shape + leading, what));
    LN_TRY(make_gradient(dbias, x, ndim_normalised, x->shape + leading, what));
    LN_TRY(ln_backend_of(ln_device(x))
               ->layer_norm_backward(*dx, dweight ? *dweight : NULL, dbias ? *dbias : NULL, dy, x,
                                     weight, mean, rstd, ndim_normalised));
    return LN_OK;
fail:
    ln_out_fail(dx, given_dx);
    drop_gradient(dweight, given_dweight);
    drop_gradient(dbias, given_dbias);
    return status;
}
