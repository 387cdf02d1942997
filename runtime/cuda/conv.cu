/* Convolutions: cuDNN's (convolve.h) where there is one; else matrix products by cuBLASLt, those of
 * channels-last tensors in conv_rows.cu. Of others, and of groups, here: the input is laid out as
 * columns, a column for each place of the output with the elements under the kernel, for so many
 * samples at a time as scratch memory holds columns for. Invariant: an element of a gradient is
 * summed by one thread or one product, in a fixed order.
 *
 * Columns are kh * kw times the input: written and read once, they cost a multiple of the memory
 * traffic of a kernel that never stores them. */
#include "conv_shape.h"
#include "convolve.h"

/* A tensor (N,C,H,W) with any strides, from a sample on. */
typedef struct {
    char *data;
    int dtype;
    int64_t stride[4];
} image;

static image image_of(const ln_tensor *t, int64_t sample) {
    image v = {t->data + sample * t->stride[0] * (int64_t)ln_dtype_size(t->dtype), t->dtype, {}};
    for (int d = 0; d < 4; d++) v.stride[d] = t->stride[d];
    return v;
}

/* ---- Columns: element (tap, sample, place) of group g at ((g taps + tap) samples + sample) places
 * + place ---- */

template <typename T>
static __global__ void columns_kernel(shape s, image x, char *columns, int64_t samples) {
    int64_t total = s.C * s.kh * s.kw * samples * s.places;
    for (int64_t t = grid_thread(); t < total; t += grid_threads()) {
        int64_t rest = divide(t, s.places), place = t - rest * s.places;
        int64_t row = divide(rest, samples), n = rest - row * samples;
        int64_t above = divide(row, s.kw), c = divide(above, s.kh);
        int64_t oi = divide(place, s.ow);
        int64_t i = under(s, 0, oi, above - c * s.kh);
        int64_t j = under(s, 1, place - oi * s.ow, row - above * s.kw);
        T v = 0;
        if (i >= 0 && i < s.H && j >= 0 && j < s.W)
            v = load<T>(x.data, x.dtype,
                        n * x.stride[0] + c * x.stride[1] + i * x.stride[2] + j * x.stride[3]);
        store(columns, x.dtype, t, v);
    }
}

/* dx from the gradient of the columns: a thread an element of dx. */
template <typename T>
static __global__ void image_kernel(shape s, image dx, const char *columns, int64_t samples) {
    int64_t total = samples * s.C * s.H * s.W;
    for (int64_t t = grid_thread(); t < total; t += grid_threads()) {
        int64_t row = divide(t, s.W), j = t - row * s.W;
        int64_t plane = divide(row, s.H), i = row - plane * s.H;
        int64_t n = divide(plane, s.C), c = plane - n * s.C;
        T sum = 0;
        for (int64_t a = 0; a < s.kh; a++)
            for (int64_t b = 0; b < s.kw; b++) {
                int64_t oi = over(s, 0, i, a, s.oh), oj = over(s, 1, j, b, s.ow);
                if (oi < 0 || oj < 0) continue;
                int64_t tap = (c * s.kh + a) * s.kw + b;
                sum += load<T>(columns, dx.dtype, (tap * samples + n) * s.places + oi * s.ow + oj);
            }
        store(dx.data, dx.dtype,
              n * dx.stride[0] + c * dx.stride[1] + i * dx.stride[2] + j * dx.stride[3], sum);
    }
}

static ln_status make_columns(const shape &s, const ln_tensor *x, int64_t sample, int64_t samples,
                              void *columns, const char *what) {
    unsigned blocks = blocks_for(s.C * s.kh * s.kw * samples * s.places);
    image from = image_of(x, sample);
    if (x->dtype == LN_FLOAT64)
        return launch(what, columns_kernel<double>, blocks, THREADS, s, from, (char *)columns,
                      samples);
    return launch(what, columns_kernel<float>, blocks, THREADS, s, from, (char *)columns, samples);
}

static ln_status make_image(const shape &s, ln_tensor *dx, int64_t sample, int64_t samples,
                            const void *columns, const char *what) {
    unsigned blocks = blocks_for(samples * s.C * s.H * s.W);
    image to = image_of(dx, sample);
    if (dx->dtype == LN_FLOAT64)
        return launch(what, image_kernel<double>, blocks, THREADS, s, to, (const char *)columns,
                      samples);
    return launch(what, image_kernel<float>, blocks, THREADS, s, to, (const char *)columns,
                  samples);
}

/* ---- Work for some samples at a time ---- */

typedef struct {
    shape s;
    int dtype;
    int64_t size;         /* bytes of an element */
    int64_t batch;        /* samples at a time */
    void *columns, *rows; /* rows: (O, samples, places) of the output or its gradient */
    ln_tensor *made;      /* w in row-major order, where it was not */
    const ln_tensor *w;
    const char *what;
} conv;

static ln_status begin(conv *c, const shape &s, const ln_tensor *w, const char *what) {
    *c = {};
    c->s = s;
    c->what = what;
    c->w = w;
    c->dtype = w->dtype;
    c->size = (int64_t)ln_dtype_size(w->dtype);
    int64_t sample = s.C * s.kh * s.kw * s.places * c->size;
    c->batch = SCRATCH / sample < 1 ? 1 : SCRATCH / sample;
    if (c->batch > s.N) c->batch = s.N;
    ln_status status;
    LN_TRY(cuda_scratch(&c->columns, (size_t)(c->batch * sample), what));
    LN_TRY(cuda_scratch(&c->rows, (size_t)(c->batch * s.O * s.places * c->size), what));
    if (!ln_is_contiguous(w)) {
        LN_TRY(ln_contiguous(&c->made, w));
        c->w = c->made;
    }
fail:
    return status;
}

static void end(conv *c) {
    cuda_scratch_release(c->columns);
    cuda_scratch_release(c->rows);
    ln_tensor_release(c->made);
}

/* c->rows as a tensor (samples, O, oh, ow), and the part of y that belongs to it. */
static void row_views(const conv *c, const ln_tensor *y, int64_t sample, int64_t samples,
                      ln_tensor *rows, ln_tensor *part) {
    *part = *y;
    part->data += sample * y->stride[0] * c->size;
    part->shape[0] = samples;
    part->numel = samples * c->s.O * c->s.places;
    *rows = *part;
    rows->data = (char *)c->rows;
    rows->stride[0] = c->s.places;
    rows->stride[1] = samples * c->s.places;
    rows->stride[2] = c->s.ow;
    rows->stride[3] = 1;
}

/* A group's part of the weights (O/groups, taps), of the columns (taps, samples places) and of the
 * rows (O/groups, samples places); groups are the batch of a product. */
static matrix weights(const conv *c, void *data) {
    return {data, c->s.taps, c->s.O / c->s.p.groups * c->s.taps, false};
}

static matrix columns(const conv *c, int64_t samples) {
    int64_t width = samples * c->s.places;
    return {c->columns, width, c->s.taps * width, false};
}

static matrix rows(const conv *c, int64_t samples) {
    int64_t width = samples * c->s.places;
    return {c->rows, width, c->s.O / c->s.p.groups * width, false};
}

static matrix transposed(matrix a) {
    a.transposed = true;
    return a;
}

static ln_status multiply_forward(ln_tensor *y, const ln_tensor *x, const ln_tensor *w,
                                  const ln_conv_params *p) {
    shape s = shape_of(x, w, y, p);
    conv c;
    ln_status status;
    LN_TRY(begin(&c, s, w, "conv2d"));
    for (int64_t n = 0; n < s.N; n += c.batch) {
        int64_t samples = s.N - n < c.batch ? s.N - n : c.batch;
        ln_tensor all, part;
        row_views(&c, y, n, samples, &all, &part);
        LN_TRY(make_columns(s, x, n, samples, c.columns, c.what));
        LN_TRY(cuda_product(product_of(c.dtype), rows(&c, samples), weights(&c, c.w->data),
                            columns(&c, samples), s.O / p->groups, samples * s.places, s.taps,
                            p->groups, false, c.what));
        LN_TRY(CUDA(copy)(&part, &all));
    }
fail:
    end(&c);
    return status;
}

/* db (O): the sum over samples and places. */
static ln_status bias_gradient(ln_tensor *db, const ln_tensor *dy) {
    ln_tensor sum = *db;
    sum.ndim = 4;
    for (int d = 0; d < 4; d++) {
        sum.shape[d] = d == 1 ? db->shape[0] : 1;
        sum.stride[d] = d == 1 ? db->stride[0] : 0;
    }
    return CUDA(reduce)(&sum, LN_SUM, dy, 0);
}

/* dw, row-major: the products of all samples added up. */
static ln_status gradients(conv *c, ln_tensor *dx, ln_tensor *dw, const ln_tensor *dy,
                           const ln_tensor *x) {
    const shape &s = c->s;
    int64_t outputs = s.O / s.p.groups;
    ln_status status = LN_OK;
    for (int64_t n = 0; n < s.N; n += c->batch) {
        int64_t samples = s.N - n < c->batch ? s.N - n : c->batch, width = samples * s.places;
        ln_tensor all, part;
        row_views(c, dy, n, samples, &all, &part);
        LN_TRY(CUDA(copy)(&all, &part));
        if (dw != NULL) {
            LN_TRY(make_columns(s, x, n, samples, c->columns, c->what));
            LN_TRY(cuda_product(product_of(c->dtype), weights(c, dw->data), rows(c, samples),
                                transposed(columns(c, samples)), outputs, s.taps, width, s.p.groups,
                                n > 0, c->what));
        }
        if (dx != NULL) {
            LN_TRY(cuda_product(product_of(c->dtype), columns(c, samples),
                                transposed(weights(c, c->w->data)), rows(c, samples), s.taps, width,
                                outputs, s.p.groups, false, c->what));
            LN_TRY(make_image(s, dx, n, samples, c->columns, c->what));
        }
    }
fail:
    return status;
}

static ln_status multiply_backward(ln_tensor *dx, ln_tensor *dw, const ln_tensor *dy,
                                   const ln_tensor *x, const ln_tensor *w,
                                   const ln_conv_params *p) {
    ln_tensor *packed = NULL, *target = dw;
    conv c = {};
    ln_status status;
    LN_TRY(begin(&c, shape_of(x, w, dy, p), w, "conv2d_backward"));
    if (dw != NULL && !ln_is_contiguous(dw)) {
        LN_TRY(ln_out(&packed, dw->dtype, ln_device(dw), 4, dw->shape, c.what));
        target = packed;
    }
    LN_TRY(gradients(&c, dx, target, dy, x));
    if (packed != NULL) status = CUDA(copy)(dw, packed);
fail:
    end(&c);
    ln_tensor_release(packed);
    return status;
}

/* ---- Operands without gaps, all in one memory format: for cuDNN and conv_rows.cu ---- */

static bool is_dense(const ln_tensor *t, bool channels_last) {
    if (!channels_last) return ln_is_contiguous(t);
    ln_tensor moved = ln_channels_moved_last(t);
    return ln_is_contiguous(&moved);
}

/* *t, or a copy in *made, or, of what is written, a place in *made. */
static ln_status make_dense(const ln_tensor **t, ln_tensor **made, bool channels_last,
                            bool written) {
    ln_status status = LN_OK;
    if (is_dense(*t, channels_last)) return status;
    if (!written) {
        status = channels_last ? ln_channels_last(made, *t) : ln_contiguous(made, *t);
    } else {
        status = ln_out(made, (*t)->dtype, ln_device(*t), 4, (*t)->shape, "conv2d");
        if (status == LN_OK && channels_last) ln_set_channels_last(*made);
    }
    if (status == LN_OK) *t = *made;
    return status;
}

/* One pass, where *done; its result is the one of x, w and y that the pass computes. */
static ln_status convolve(bool *done, convolve_pass pass, const ln_tensor *x, const ln_tensor *w,
                          const ln_tensor *y, const ln_conv_params *p, const char *what) {
    static const int results[] = {2, 0, 1}; /* ORDER of convolve_pass: y, dx, dw */
    const ln_tensor *t[] = {x, w, y};
    const int result = results[pass];
    ln_tensor *made[3] = {}, *out = NULL;
    const char *why;
    ln_status status = LN_OK;
    bool channels_last = false;
    for (int i = 0; i < 3; i++) channels_last |= ln_is_channels_last(t[i]);
    bool by_rows = channels_last && p->groups == 1;
    bool by_cudnn =
        x->dtype != LN_FLOAT64 && ln_cuda_cudnn_allowed() && cuda_cudnn_version(&why) > 0;
    *done = false;
    if (!by_cudnn && !by_rows) return LN_OK;
    out = (ln_tensor *)t[result];
    for (int i = 0; i < 3; i++) LN_TRY(make_dense(&t[i], &made[i], channels_last, i == result));
    if (by_cudnn) LN_TRY(cuda_convolve(done, pass, t[0], t[1], t[2], channels_last, p, what));
    if (by_rows && !*done) {
        LN_TRY(cuda_convolve_rows(pass, t[0], t[1], t[2], p, what));
        *done = true;
    }
    if (*done && made[result] != NULL) status = CUDA(copy)(out, made[result]);
fail:
    for (int i = 0; i < 3; i++) ln_tensor_release(made[i]);
    return status;
}

/* ---- The operators ---- */

ln_status CUDA(conv2d)(ln_tensor *y, const ln_tensor *x, const ln_tensor *w, const ln_tensor *bias,
                       const ln_conv_params *p) {
    bool done;
    ln_status status = cuda_enter(y, "conv2d");
    if (status != LN_OK || y->numel == 0) return status;
    status = convolve(&done, CONVOLVE_FORWARD, x, w, y, p, "conv2d");
    if (status == LN_OK && !done) status = multiply_forward(y, x, w, p);
    if (status != LN_OK || bias == NULL) return status;
    ln_tensor b = *bias;
    b.ndim = 4;
    for (int d = 0; d < 4; d++) {
        b.shape[d] = y->shape[d];
        b.stride[d] = d == 1 ? bias->stride[0] : 0;
    }
    return CUDA(axpby)(y, 1, &b, 1);
}

ln_status CUDA(conv2d_backward)(ln_tensor *dx, ln_tensor *dw, ln_tensor *db, const ln_tensor *dy,
                                const ln_tensor *x, const ln_tensor *w, const ln_conv_params *p) {
    const char *what = "conv2d_backward";
    bool has_dx = dx == NULL, has_dw = dw == NULL;
    ln_status status;
    LN_TRY(cuda_enter(dy, what));
    if (db != NULL) LN_TRY(bias_gradient(db, dy));
    if (dy->numel == 0) return dw == NULL ? status : CUDA(fill)(dw, 0);
    if (!has_dx) LN_TRY(convolve(&has_dx, CONVOLVE_DATA, dx, w, dy, p, what));
    if (!has_dw) LN_TRY(convolve(&has_dw, CONVOLVE_FILTER, x, dw, dy, p, what));
    if (!has_dx || !has_dw)
        status = multiply_backward(has_dx ? NULL : dx, has_dw ? NULL : dw, dy, x, w, p);
fail:
    return status;
}
