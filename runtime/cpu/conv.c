/* Convolutions: float32 and the halves by oneDNN; float64, which checks gradients, by direct loops
 * here. Invariant: an element's terms are added in an order that its place alone decides, so the
 * float64 bits do not depend on the team. */
#include "dense.h"
#include "onednn.h"
#include "window.h"

#include <string.h>

static ln_conv_shape shape_of(const ln_tensor *x, const ln_tensor *w, const ln_tensor *y,
                              const ln_conv_params *p) {
    return (ln_conv_shape){x->shape[0], x->shape[1], x->shape[2], x->shape[3], w->shape[0],
                           w->shape[2], w->shape[3], y->shape[2], y->shape[3], *p};
}

static int64_t work_of(const ln_conv_shape *s) {
    return s->N * s->O * s->oh * s->ow * s->C / s->p.groups * s->kh * s->kw;
}

/* ---- float64: one weight at a time, over a whole plane ---- */

/* The part of a plane that one weight of a filter reads and writes: output (i, j) in [i0, i1) x
 * [j0, j1) meets input (i stride + di, j stride + dj). */
typedef struct {
    int64_t i0, i1, j0, j1, di, dj;
} tap;

static tap tap_of(const ln_conv_shape *s, int64_t kernel_element) {
    tap t = {.di = kernel_element / s->kw * s->p.dilation[0] - s->p.padding[0],
             .dj = kernel_element % s->kw * s->p.dilation[1] - s->p.padding[1]};
    window_inside(&t.i0, &t.i1, s->oh, s->H, s->p.stride[0], t.di);
    window_inside(&t.j0, &t.j1, s->ow, s->W, s->p.stride[1], t.dj);
    return t;
}

/* y (N,O,oh,ow) = x * w + bias: one output plane an item. */
static void forward(double *y, const double *x, const double *w, const double *bias,
                    const ln_conv_shape *s) {
    int64_t out = s->oh * s->ow, in = s->H * s->W, kernel = s->kh * s->kw, step = s->p.stride[1];
    int64_t C = s->C / s->p.groups, O = s->O / s->p.groups;
#pragma omp parallel for schedule(static) num_threads(ln_team(work_of(s)))
    for (int64_t plane = 0; plane < s->N * s->O; plane++) {
        int64_t n = plane / s->O, o = plane % s->O;
        double *yp = y + plane * out;
        for (int64_t i = 0; i < out; i++) yp[i] = bias == NULL ? 0 : bias[o];
        for (int64_t c = 0; c < C; c++)
            for (int64_t e = 0; e < kernel; e++) {
                tap t = tap_of(s, e);
                const double *xp = x + (n * s->C + o / O * C + c) * in;
                double weight = w[(o * C + c) * kernel + e];
                for (int64_t i = t.i0; i < t.i1; i++) {
                    const double *row = xp + (i * s->p.stride[0] + t.di) * s->W + t.dj;
                    for (int64_t j = t.j0; j < t.j1; j++)
                        yp[i * s->ow + j] += weight * row[j * step];
                }
            }
    }
}

/* dx (N,C,H,W): one input plane an item. */
static void backward_data(double *dx, const double *dy, const double *w, const ln_conv_shape *s) {
    int64_t out = s->oh * s->ow, in = s->H * s->W, kernel = s->kh * s->kw, step = s->p.stride[1];
    int64_t C = s->C / s->p.groups, O = s->O / s->p.groups;
#pragma omp parallel for schedule(static) num_threads(ln_team(work_of(s)))
    for (int64_t plane = 0; plane < s->N * s->C; plane++) {
        int64_t n = plane / s->C, group = plane % s->C / C, c = plane % C;
        double *dxp = dx + plane * in;
        memset(dxp, 0, (size_t)in * sizeof *dxp);
        for (int64_t o = group * O; o < (group + 1) * O; o++)
            for (int64_t e = 0; e < kernel; e++) {
                tap t = tap_of(s, e);
                const double *dyp = dy + (n * s->O + o) * out;
                double weight = w[(o * C + c) * kernel + e];
                for (int64_t i = t.i0; i < t.i1; i++) {
                    double *row = dxp + (i * s->p.stride[0] + t.di) * s->W + t.dj;
                    for (int64_t j = t.j0; j < t.j1; j++)
                        row[j * step] += weight * dyp[i * s->ow + j];
                }
            }
    }
}

/* dw (O,C/groups,kh,kw): one weight an item. */
static void backward_weights(double *dw, const double *dy, const double *x,
                             const ln_conv_shape *s) {
    int64_t out = s->oh * s->ow, in = s->H * s->W, kernel = s->kh * s->kw, step = s->p.stride[1];
    int64_t C = s->C / s->p.groups, O = s->O / s->p.groups;
#pragma omp parallel for schedule(static) num_threads(ln_team(work_of(s)))
    for (int64_t weight = 0; weight < s->O * C * kernel; weight++) {
        int64_t o = weight / kernel / C, c = o / O * C + weight / kernel % C;
        tap t = tap_of(s, weight % kernel);
        double sum = 0;
        for (int64_t n = 0; n < s->N; n++)
            for (int64_t i = t.i0; i < t.i1; i++) {
                const double *dyp = dy + (n * s->O + o) * out + i * s->ow;
                const double *row =
                    x + (n * s->C + c) * in + (i * s->p.stride[0] + t.di) * s->W + t.dj;
                for (int64_t j = t.j0; j < t.j1; j++) sum += dyp[j] * row[j * step];
            }
        dw[weight] = sum;
    }
}

/* db (O) */
static void backward_bias(double *db, const double *dy, const ln_conv_shape *s) {
    int64_t out = s->oh * s->ow;
    for (int64_t o = 0; o < s->O; o++) {
        double sum = 0;
        for (int64_t n = 0; n < s->N; n++)
            for (int64_t i = 0; i < out; i++) sum += dy[(n * s->O + o) * out + i];
        db[o] = sum;
    }
}

/* ---- The operators ---- */

static int compute_dtype(const ln_tensor *t) {
    return t->dtype == LN_FLOAT64 ? LN_FLOAT64 : LN_FLOAT32;
}

ln_status CPU(conv2d)(ln_tensor *y, const ln_tensor *x, const ln_tensor *w, const ln_tensor *bias,
                      const ln_conv_params *p) {
    if (y->numel == 0) return LN_OK;
    const char *what = "conv2d";
    int dtype = compute_dtype(y);
    ln_conv_shape s = shape_of(x, w, y, p);
    enum { X, W, BIAS, Y, OPERANDS };
    const ln_tensor *inputs[] = {x, w, bias};
    ln_dense d[OPERANDS] = {0};
    ln_status status;
    for (int i = X; i <= BIAS; i++) LN_TRY(CPU(dense_input)(&d[i], inputs[i], dtype, what));
    LN_TRY(CPU(dense_output)(&d[Y], y, dtype, what));
    void *a[OPERANDS];
    for (int i = 0; i < OPERANDS; i++) a[i] = d[i].t.data;
    if (dtype == LN_FLOAT32) LN_TRY(ln_onednn_conv2d(a[Y], a[X], a[W], a[BIAS], &s));
    else forward(a[Y], a[X], a[W], a[BIAS], &s);
    LN_TRY(CPU(dense_finish)(&d[Y], y));
fail:
    for (int i = 0; i < OPERANDS; i++) ln_scratch_release(d[i].scratch);
    return status;
}

ln_status CPU(conv2d_backward)(ln_tensor *dx, ln_tensor *dw, ln_tensor *db, const ln_tensor *dy,
                               const ln_tensor *x, const ln_tensor *w, const ln_conv_params *p) {
    const char *what = "conv2d_backward";
    int dtype = compute_dtype(dy);
    ln_conv_shape s = shape_of(x, w, dy, p);
    enum { X, W, DY, DX, DW, DB, OPERANDS };
    const ln_tensor *inputs[] = {x, w, dy};
    ln_tensor *outputs[] = {[DX] = dx, [DW] = dw, [DB] = db};
    ln_dense d[OPERANDS] = {0};
    ln_status status = LN_OK;
    if (s.N == 0) {
        for (int i = DX; i <= DB; i++)
            if (outputs[i] != NULL) LN_TRY(CPU(fill)(outputs[i], 0));
        return LN_OK;
    }
    for (int i = X; i <= DY; i++) LN_TRY(CPU(dense_input)(&d[i], inputs[i], dtype, what));
    for (int i = DX; i <= DB; i++) LN_TRY(CPU(dense_output)(&d[i], outputs[i], dtype, what));
    void *a[OPERANDS];
    for (int i = 0; i < OPERANDS; i++) a[i] = d[i].t.data;
    if (dtype == LN_FLOAT32) {
        LN_TRY(ln_onednn_conv2d_backward(a[DX], a[DW], a[DB], a[DY], a[X], a[W], &s));
    } else {
        if (dx != NULL) backward_data(a[DX], a[DY], a[W], &s);
        if (dw != NULL) backward_weights(a[DW], a[DY], a[X], &s);
        if (db != NULL) backward_bias(a[DB], a[DY], &s);
    }
    for (int i = DX; i <= DB; i++)
        if (outputs[i] != NULL) LN_TRY(CPU(dense_finish)(&d[i], outputs[i]));
fail:
    for (int i = 0; i < OPERANDS; i++) ln_scratch_release(d[i].scratch);
    return status;
}
