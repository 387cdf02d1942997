/* softmax, batch and layer normalisation: sums of reduce.cu, then one pass over the elements. Batch
 * and layer normalisation are one computation over different dimensions; columns.cu computes batch
 * normalisation where channels lie side by side. Invariants: statistics are kept in double until
 * the elements are computed from them; x may have any strides. */
#include "columns.h"
#include "reduce.h"

/* ---- Views ---- */

/* t, whose dimensions are those of x from `first` on, with x's number of dimensions: extent 1 where
 * it has none. */
static ln_tensor placed(const ln_tensor *t, const ln_tensor *x, int first) {
    ln_tensor v = *t;
    v.ndim = x->ndim;
    for (int d = 0; d < x->ndim; d++) {
        bool own = d >= first && d < first + t->ndim;
        v.shape[d] = own ? t->shape[d - first] : 1;
        v.stride[d] = own ? t->stride[d - first] : 0;
    }
    return v;
}

/* The same, repeated over x; NULL stays NULL. */
static const ln_tensor *repeated(ln_tensor *view, const ln_tensor *t, const ln_tensor *x,
                                 int first) {
    if (t == NULL) return NULL;
    ln_tensor v = placed(t, x, first);
    *view = ln_broadcast(&v, x->ndim, x->shape);
    return view;
}

/* A float64 tensor beside x, with its dimensions from `first` on, n of them. */
static ln_status doubles(ln_tensor **out, const ln_tensor *x, int first, int n, const char *what) {
    return ln_out(out, LN_FLOAT64, ln_device(x), n, x->shape + first, what);
}

/* ---- softmax ---- */

template <typename T> static __global__ void softmax_kernel(walk w, bool logarithm) {
    enum { Y, X, LSE, TENSORS };
    for (int64_t i = grid_thread(); i < w.numel; i += grid_threads()) {
        int64_t at[TENSORS];
        walk_offsets<TENSORS>(w, i, at);
        double lse = walk_load<double>(w, LSE, at[LSE]);
        lse += lse - lse; /* infinite: a slice that has no softmax, NaN throughout */
        T v = (T)(walk_load<double>(w, X, at[X]) - lse);
        walk_store(w, Y, at[Y], logarithm ? v : exp(v));
    }
}

template <typename T> static __global__ void softmax_backward_kernel(walk w, bool logarithm) {
    enum { DX, DY, Y, SUM, TENSORS };
    for (int64_t i = grid_thread(); i < w.numel; i += grid_threads()) {
        int64_t at[TENSORS];
        walk_offsets<TENSORS>(w, i, at);
        T dy = walk_load<T>(w, DY, at[DY]), y = walk_load<T>(w, Y, at[Y]);
        T sum = walk_load<T>(w, SUM, at[SUM]);
        walk_store(w, DX, at[DX], logarithm ? dy - exp(y) * sum : y * (dy - sum));
    }
}

/* A float64 tensor of x's shape with extent 1 along dim. */
static ln_status one_a_line(ln_tensor **out, const ln_tensor *x, int dim, const char *what) {
    int64_t shape[LN_MAX_DIMS];
    for (int d = 0; d < x->ndim; d++) shape[d] = d == dim ? 1 : x->shape[d];
    return ln_out(out, LN_FLOAT64, ln_device(x), x->ndim, shape, what);
}

ln_status CUDA(softmax)(ln_tensor *y, const ln_tensor *x, int dim, bool logarithm) {
    const char *what = logarithm ? "log_softmax" : "softmax";
    ln_tensor *lse = NULL, view;
    ln_status status = cuda_enter(x, what);
    if (status != LN_OK || x->numel == 0) return status;
    LN_TRY(one_a_line(&lse, x, dim, what));
    LN_TRY(cuda_logsumexp(lse, x, what));
    {
        const ln_tensor *t[] = {y, x, repeated(&view, lse, x, 0)};
        walk w = walk_over(3, t, 0);
        if (y->dtype == LN_FLOAT64)
            status =
                launch(what, softmax_kernel<double>, blocks_for(w.numel), THREADS, w, logarithm);
        else
            status =
                launch(what, softmax_kernel<float>, blocks_for(w.numel), THREADS, w, logarithm);
    }
fail:
    ln_tensor_release(lse);
    return status;
}

ln_status CUDA(softmax_backward)(ln_tensor *dx, const ln_tensor *dy, const ln_tensor *y, int dim,
                                 bool logarithm) {
    const char *what = logarithm ? "log_softmax_backward" : "softmax_backward";
    ln_tensor *sum = NULL, view;
    ln_status status = cuda_enter(y, what);
    if (status != LN_OK || y->numel == 0) return status;
    LN_TRY(one_a_line(&sum, y, dim, what));
    LN_TRY(cuda_sums(sum, NULL, dy, logarithm ? NULL : y, NULL, NULL, NULL, what));
    {
        const ln_tensor *t[] = {dx, dy, y, repeated(&view, sum, y, 0)};
        walk w = walk_over(4, t, 0);
        if (y->dtype == LN_FLOAT64)
            status = launch(what, softmax_backward_kernel<double>, blocks_for(w.numel), THREADS, w,
                            logarithm);
        else
            status = launch(what, softmax_backward_kernel<float>, blocks_for(w.numel), THREADS, w,
                            logarithm);
    }
fail:
    ln_tensor_release(sum);
    return status;
}

/* ---- Normalisation ---- */

/* A statistic has x's dimensions from stat_first on, the weight from weight_first on. */
typedef struct {
    const char *what;
    const ln_tensor *x, *weight, *bias;
    int stat_first, stat_ndim, weight_first;
    double count;              /* elements to a statistic */
    const ln_tensor *residual; /* NULL: none */
    bool relu, columns;        /* columns: columns.h takes x and what is like it */
} normalisation;

static normalisation normalisation_of(const char *what, const ln_tensor *x, const ln_tensor *weight,
                                      const ln_tensor *bias, int stat_first, int stat_ndim,
                                      int weight_first) {
    int64_t statistics = 1;
    for (int d = 0; d < stat_ndim; d++) statistics *= x->shape[stat_first + d];
    double count = statistics > 0 ? (double)(x->numel / statistics) : 0;
    return {what, x, weight, bias, stat_first, stat_ndim, weight_first, count, NULL, false, false};
}

typedef struct {
    bool training; /* the statistics are x's own */
    double momentum, eps, count;
} statistics;

/* A thread a statistic: what is given out, and rstd in the place of the squares. */
static __global__ void statistics_kernel(walk w, statistics s) {
    enum { M, SQUARES, MEAN, RSTD, RUNNING_MEAN, RUNNING_VAR, TENSORS };
    for (int64_t i = grid_thread(); i < w.numel; i += grid_threads()) {
        int64_t at[TENSORS];
        walk_offsets<TENSORS>(w, i, at);
        double mean = 0, var = 0;
        if (!s.training) {
            mean = walk_load<double>(w, RUNNING_MEAN, at[RUNNING_MEAN]);
            var = walk_load<double>(w, RUNNING_VAR, at[RUNNING_VAR]);
        } else if (s.count > 0) {
            mean = walk_load<double>(w, M, at[M]);
            double squares = walk_load<double>(w, SQUARES, at[SQUARES]);
            var = squares / s.count;
            if (w.data[RUNNING_MEAN] != NULL) {
                double m = walk_load<double>(w, RUNNING_MEAN, at[RUNNING_MEAN]);
                double v = walk_load<double>(w, RUNNING_VAR, at[RUNNING_VAR]);
                m += s.momentum * (mean - m);
                v += s.momentum * (squares / (s.count - 1) - v);
                walk_store(w, RUNNING_MEAN, at[RUNNING_MEAN], m);
                walk_store(w, RUNNING_VAR, at[RUNNING_VAR], v);
            }
        }
        double rstd = 1 / sqrt(var + s.eps);
        walk_store(w, M, at[M], mean);
        walk_store(w, SQUARES, at[SQUARES], rstd);
        walk_store(w, MEAN, at[MEAN], mean);
        walk_store(w, RSTD, at[RSTD], rstd);
    }
}

static __global__ void normalise_kernel(walk w, bool relu) {
    enum { Y, X, MEAN, RSTD, WEIGHT, BIAS, RESIDUAL, TENSORS };
    for (int64_t i = grid_thread(); i < w.numel; i += grid_threads()) {
        int64_t at[TENSORS];
        double v[TENSORS];
        walk_offsets<TENSORS>(w, i, at);
        for (int k = X; k < TENSORS; k++) v[k] = walk_load<double>(w, k, at[k]);
        double y = (v[X] - v[MEAN]) * v[RSTD] * v[WEIGHT] + v[BIAS] + v[RESIDUAL];
        walk_store(w, Y, at[Y], relu && y < 0 ? 0 : y);
    }
}

static ln_status apply(const normalisation &n, ln_tensor *y, const ln_tensor *mean,
                       const ln_tensor *rstd) {
    ln_tensor view[4];
    const ln_tensor *t[] = {y,
                            n.x,
                            repeated(&view[0], mean, n.x, n.stat_first),
                            repeated(&view[1], rstd, n.x, n.stat_first),
                            repeated(&view[2], n.weight, n.x, n.weight_first),
                            repeated(&view[3], n.bias, n.x, n.weight_first),
                            n.residual};
    if (y->numel == 0) return LN_OK;
    if (n.columns)
        return cuda_columns_normalise(y, n.x, mean, rstd, n.weight, n.bias, n.residual, n.relu,
                                      n.what);
    walk w = walk_over(7, t, 0);
    walk_number(&w, 4, 1);
    return launch(n.what, normalise_kernel, blocks_for(w.numel), THREADS, w, n.relu);
}

static ln_status forward(const normalisation &n, ln_tensor *y, ln_tensor *mean, ln_tensor *rstd,
                         ln_tensor *running_mean, ln_tensor *running_var, statistics s) {
    ln_tensor *m = NULL, *squares = NULL;
    ln_status status = cuda_enter(n.x, n.what);
    if (status != LN_OK || mean->numel == 0) return status;
    s.count = n.count;
    LN_TRY(doubles(&m, n.x, n.stat_first, n.stat_ndim, n.what));
    LN_TRY(doubles(&squares, n.x, n.stat_first, n.stat_ndim, n.what));
    if (s.training && n.count > 0 && n.columns) {
        LN_TRY(cuda_columns_moments(m, squares, n.x, n.what));
    } else if (s.training && n.count > 0) {
        ln_tensor m_view = placed(m, n.x, n.stat_first);
        ln_tensor squares_view = placed(squares, n.x, n.stat_first);
        LN_TRY(cuda_moments(&m_view, &squares_view, n.x, n.what));
    }
    {
        const ln_tensor *t[] = {m, squares, mean, rstd, running_mean, running_var};
        walk w = walk_over(6, t, 0);
        LN_TRY(launch(n.what, statistics_kernel, blocks_for(w.numel), THREADS, w, s));
    }
    status = apply(n, y, m, squares);
fail:
    ln_tensor_release(m);
    ln_tensor_release(squares);
    return status;
}

/* With x_hat = (x - mean) rstd and g the gradient of x_hat: dx = rstd (g - mean of g - x_hat mean
 * of g x_hat). The weight is part of g where it varies among the elements of a statistic (inner);
 * otherwise it is a factor of dx. */
static __global__ void backward_kernel(walk w, double count, bool inner) {
    enum { DX, DY, X, MEAN, RSTD, WEIGHT, SUM, DOT, TENSORS };
    for (int64_t i = grid_thread(); i < w.numel; i += grid_threads()) {
        int64_t at[TENSORS];
        double v[TENSORS];
        walk_offsets<TENSORS>(w, i, at);
        for (int k = DY; k < TENSORS; k++) v[k] = walk_load<double>(w, k, at[k]);
        double g = inner ? v[DY] * v[WEIGHT] : v[DY], x_hat = (v[X] - v[MEAN]) * v[RSTD];
        double dx = (g - v[SUM] / count - x_hat * (v[DOT] / count)) * v[RSTD];
        walk_store(w, DX, at[DX], inner ? dx : dx * v[WEIGHT]);
    }
}

/* sum, dot: of the statistics, in float64; NULL where they do not depend on x. */
static ln_status backward(const normalisation &n, ln_tensor *dx, const ln_tensor *dy,
                          const ln_tensor *mean, const ln_tensor *rstd, const ln_tensor *sum,
                          const ln_tensor *dot, bool inner) {
    ln_tensor view[5];
    const ln_tensor *t[] = {dx,
                            dy,
                            n.x,
                            repeated(&view[0], mean, n.x, n.stat_first),
                            repeated(&view[1], rstd, n.x, n.stat_first),
                            repeated(&view[2], n.weight, n.x, n.weight_first),
                            repeated(&view[3], sum, n.x, n.stat_first),
                            repeated(&view[4], dot, n.x, n.stat_first)};
    if (dx->numel == 0) return LN_OK;
    walk w = walk_over(8, t, 0);
    walk_number(&w, 5, 1);
    return launch(n.what, backward_kernel, blocks_for(w.numel), THREADS, w, n.count, inner);
}

/* Of each statistic: the sums of g and of g x_hat; factor: the weight, where g has it. */
static ln_status sums_of(ln_tensor *sum, ln_tensor *dot, const normalisation &n,
                         const ln_tensor *dy, const ln_tensor *factor, const ln_tensor *mean,
                         const ln_tensor *rstd, int first) {
    ln_tensor view[5];
    const ln_tensor *f = repeated(&view[0], factor, n.x, n.weight_first);
    const ln_tensor *m = repeated(&view[1], mean, n.x, n.stat_first);
    const ln_tensor *r = repeated(&view[2], rstd, n.x, n.stat_first);
    if (sum != NULL) view[3] = placed(sum, n.x, first);
    if (dot != NULL) view[4] = placed(dot, n.x, first);
    return cuda_sums(sum == NULL ? NULL : &view[3], dot == NULL ? NULL : &view[4], dy, f, n.x, m, r,
                     n.what);
}

/* ---- The operators ---- */

ln_status CUDA(batch_norm)(ln_tensor *y, ln_tensor *mean, ln_tensor *rstd, const ln_tensor *x,
                           const ln_tensor *weight, const ln_tensor *bias,
                           const ln_tensor *residual, ln_tensor *running_mean,
                           ln_tensor *running_var, bool training, bool relu, double momentum,
                           double eps) {
    const ln_tensor *alike[] = {x, y, residual};
    normalisation n = normalisation_of("batch_norm", x, weight, bias, 1, 1, 1);
    n.residual = residual;
    n.relu = relu;
    n.columns = cuda_columns_fit(3, alike);
    return forward(n, y, mean, rstd, running_mean, running_var, {training, momentum, eps, 0});
}

/* What of dy passes relu: in dresidual, or else in *made. */
static ln_status mask(const ln_tensor **dy, ln_tensor **made, ln_tensor *dresidual,
                      const ln_tensor *y, const char *what) {
    ln_tensor *masked = dresidual;
    ln_status status = LN_OK;
    if (masked == NULL) {
        LN_TRY(ln_out(made, y->dtype, ln_device(y), y->ndim, y->shape, what));
        masked = *made;
    }
    status = CUDA(binary)(masked, LN_RELU_BACKWARD, *dy, y);
    *dy = masked;
fail:
    return status;
}

/* The gradient before relu is the residual's: where that is wanted, columns.cu writes it while it
 * sums and reads it then; where it is not, it masks dy both times. */
ln_status CUDA(batch_norm_backward)(ln_tensor *dx, ln_tensor *dweight, ln_tensor *dbias,
                                    ln_tensor *dresidual, const ln_tensor *dy, const ln_tensor *x,
                                    const ln_tensor *y, const ln_tensor *weight,
                                    const ln_tensor *mean, const ln_tensor *rstd, bool training) {
    normalisation n = normalisation_of("batch_norm_backward", x, weight, NULL, 1, 1, 1);
    const ln_tensor *alike[] = {x, dy, y, dx, dresidual};
    ln_tensor *sum = NULL, *dot = NULL, *made = NULL;
    ln_status status = cuda_enter(x, n.what);
    if (status != LN_OK || mean->numel == 0) return status;
    n.columns = x->numel > 0 && cuda_columns_fit(5, alike);
    LN_TRY(doubles(&sum, x, 1, 1, n.what));
    LN_TRY(doubles(&dot, x, 1, 1, n.what));
    if (n.columns) {
        LN_TRY(cuda_columns_sums(sum, dot, dresidual, dy, x, y, mean, rstd, n.what));
        if (dresidual != NULL) dy = dresidual, y = NULL;
    } else {
        if (y != NULL) LN_TRY(mask(&dy, &made, dresidual, y, n.what));
        LN_TRY(sums_of(sum, dot, n, dy, NULL, mean, rstd, 1));
    }
    if (dweight != NULL) LN_TRY(CUDA(copy)(dweight, dot));
    if (dbias != NULL) LN_TRY(CUDA(copy)(dbias, sum));
    if (n.columns)
        status = cuda_columns_gradient(dx, dy, x, y, weight, mean, rstd, training ? sum : NULL,
                                       training ? dot : NULL, n.what);
    else
        status =
            backward(n, dx, dy, mean, rstd, training ? sum : NULL, training ? dot : NULL, false);
fail:
    ln_tensor_release(sum);
    ln_tensor_release(dot);
    ln_tensor_release(made);
    return status;
}

ln_status CUDA(layer_norm)(ln_tensor *y, ln_tensor *mean, ln_tensor *rstd, const ln_tensor *x,
                           const ln_tensor *weight, const ln_tensor *bias, int ndim_normalised,
                           double eps) {
    int leading = x->ndim - ndim_normalised;
    normalisation n = normalisation_of("layer_norm", x, weight, bias, 0, leading, leading);
    return forward(n, y, mean, rstd, NULL, NULL, {true, 0, eps, 0});
}

ln_status CUDA(layer_norm_backward)(ln_tensor *dx, ln_tensor *dweight, ln_tensor *dbias,
                                    const ln_tensor *dy, const ln_tensor *x,
                                    const ln_tensor *weight, const ln_tensor *mean,
                                    const ln_tensor *rstd, int ndim_normalised) {
    int leading = x->ndim - ndim_normalised;
    normalisation n = normalisation_of("layer_norm_backward", x, weight, NULL, 0, leading, leading);
    ln_tensor *sum = NULL, *dot = NULL;
    ln_status status = cuda_enter(x, n.what);
    if (status != LN_OK) return status;
    LN_TRY(doubles(&sum, x, 0, leading, n.what));
    LN_TRY(doubles(&dot, x, 0, leading, n.what));
    if (sum->numel > 0) LN_TRY(sums_of(sum, dot, n, dy, weight, mean, rstd, 0));
    LN_TRY(sums_of(dbias, dweight, n, dy, NULL, mean, rstd, leading));
    status = backward(n, dx, dy, mean, rstd, sum, dot, true);
fail:
    ln_tensor_release(sum);
    ln_tensor_release(dot);
    return status;
}
