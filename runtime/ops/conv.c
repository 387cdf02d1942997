/* Checks convolutions and pooling, and dispatches them. Holds no element loops. Invariant: a
 * backend sees extents that fit each other and, but for the batch, none of 0. */
#include <string.h>

#include "backend.h"

/* ---- Extents ---- */

/* The places that a window of `span` has on a padded extent. */
static int64_t places(int64_t extent, int64_t span, int64_t stride, int64_t padding) {
    return extent + 2 * padding < span ? 0 : (extent + 2 * padding - span) / stride + 1;
}

/* Values of a window lie in least..2^31 - 1, so that sums and products of them do not overflow. */
static bool in_range(int64_t least, int n, const int64_t *values) {
    for (int i = 0; i < n; i++)
        if (values[i] < least || values[i] > INT32_MAX) return false;
    return true;
}

static ln_status check_image(const ln_tensor *x, const char *what) {
    bool empty = x->ndim != 4;
    for (int i = 1; i < x->ndim; i++) empty |= x->shape[i] == 0;
    if (!empty && ln_dtype_is_float(x->dtype)) return LN_OK;
    return ln_fail(LN_BAD_ARGUMENT, "%s: takes a floating (N,C,H,W), only N may be 0; got %s", what,
                   ln_text(x));
}

static ln_status check_dtype(const ln_tensor *x, const ln_tensor *other, const char *what) {
    if (other->dtype == x->dtype) return LN_OK;
    return ln_fail(LN_BAD_ARGUMENT, "%s: takes equal dtypes; got %s and %s", what, ln_text(x),
                   ln_text(other));
}

static ln_status check_gradient(const ln_tensor *dy, const int64_t *shape, const char *what) {
    if (dy->ndim == 4 && memcmp(dy->shape, shape, 4 * sizeof *shape) == 0) return LN_OK;
    return ln_fail(LN_BAD_ARGUMENT, "%s: the output is %s; its gradient is %s", what,
                   ln_text_shape(4, shape), ln_text(dy));
}

/* ---- Convolution ---- */

/* The operand whose memory format the results about x have. */
static const ln_tensor *format_of(const ln_tensor *x, const ln_tensor *w) {
    return ln_is_channels_last(w) ? w : x;
}

static ln_status check_params(const ln_conv_params *p, const char *what) {
    if (in_range(1, 2, p->stride) && in_range(0, 2, p->padding) && in_range(1, 2, p->dilation) &&
        in_range(1, 1, &p->groups))
        return LN_OK;
    return ln_fail(LN_BAD_ARGUMENT,
                   "%s: got stride %s, padding %s, dilation %s and groups %lld; paddings are 0 or "
                   "more, the others 1 or more",
                   what, ln_text_shape(2, p->stride), ln_text_shape(2, p->padding),
                   ln_text_shape(2, p->dilation), (long long)p->groups);
}

static ln_status check_channels(const ln_tensor *x, const ln_tensor *w, int64_t groups,
                                const char *what) {
    if (w->ndim != 4 || w->numel == 0 || !in_range(1, 4, w->shape))
        return ln_fail(LN_BAD_ARGUMENT, "%s: the weight is (O,C/groups,kh,kw), none 0; got %s",
                       what, ln_text(w));
    if (x->shape[1] != w->shape[1] * groups)
        return ln_fail(LN_BAD_ARGUMENT,
                       "%s: input %s has %lld channels; weight %s with groups %lld takes %lld",
                       what, ln_text_shape(4, x->shape), (long long)x->shape[1],
                       ln_text_shape(4, w->shape), (long long)groups,
                       (long long)(w->shape[1] * groups));
    if (w->shape[0] % groups != 0)
        return ln_fail(LN_BAD_ARGUMENT, "%s: weight %s: %lld outputs are not %lld groups", what,
                       ln_text_shape(4, w->shape), (long long)w->shape[0], (long long)groups);
    return check_dtype(x, w, what);
}

/* shape: that of the output. */
static ln_status check_conv(int64_t *shape, const ln_tensor *x, const ln_tensor *w,
                            const ln_conv_params *p, const char *what) {
    ln_status status;
    LN_TRY(check_params(p, what));
    LN_TRY(check_image(x, what));
    LN_TRY(check_channels(x, w, p->groups, what));
    shape[0] = x->shape[0];
    shape[1] = w->shape[0];
    for (int i = 0; i < 2; i++)
        shape[2 + i] = places(x->shape[2 + i], (w->shape[2 + i] - 1) * p->dilation[i] + 1,
                              p->stride[i], p->padding[i]);
    if (shape[2] == 0 || shape[3] == 0)
        return ln_fail(LN_BAD_ARGUMENT,
                       "%s: weight %s with dilation %s is larger than input %s "
                       "with padding %s",
                       what, ln_text_shape(4, w->shape), ln_text_shape(2, p->dilation),
                       ln_text_shape(4, x->shape), ln_text_shape(2, p->padding));
fail:
    return status;
}

ln_status ln_conv2d(ln_tensor **out, const ln_tensor *x, const ln_tensor *w, const ln_tensor *bias,
                    const ln_conv_params *p) {
    const char *what = "conv2d";
    const ln_tensor *inputs[] = {x, w, bias};
    ln_tensor *before = *out;
    int64_t shape[4];
    ln_status status;
    LN_TRY(ln_check_inputs(what, bias == NULL ? 2 : 3, inputs));
    LN_TRY(check_conv(shape, x, w, p, what));
    if (bias != NULL) {
        LN_TRY(check_dtype(x, bias, what));
        if (bias->ndim != 1 || bias->shape[0] != shape[1])
            return ln_fail(LN_BAD_ARGUMENT, "conv2d: bias %s does not fit %lld outputs",
                           ln_text(bias), (long long)shape[1]);
    }
    LN_TRY(ln_out_like(out, x->dtype, format_of(x, w), 4, shape, what));
    LN_TRY(ln_backend_of(ln_device(x))->conv2d(*out, x, w, bias, p));
    return LN_OK;
fail:
    ln_out_fail(out, before);
    return status;
}

ln_status ln_conv2d_backward(ln_tensor **dx, ln_tensor **dw, ln_tensor **db, const ln_tensor *dy,
                             const ln_tensor *x, const ln_tensor *w, const ln_conv_params *p) {
    const char *what = "conv2d_backward";
    const ln_tensor *inputs[] = {dy, x, w};
    ln_tensor **outs[] = {dx, dw, db}, *before[3], *given[3] = {NULL};
    for (int i = 0; i < 3; i++) before[i] = outs[i] == NULL ? NULL : *outs[i];
    int64_t shape[4];
    ln_status status;
    LN_TRY(ln_check_inputs(what, 3, inputs));
    LN_TRY(check_conv(shape, x, w, p, what));
    LN_TRY(check_dtype(x, dy, what));
    LN_TRY(check_gradient(dy, shape, what));
    const int64_t *shapes[] = {x->shape, w->shape, w->shape}; /* db (O): the first of w's */
    for (int i = 0; i < 3; i++) {
        if (outs[i] == NULL) continue;
        const ln_tensor *like = i == 0 ? format_of(x, w) : w;
        LN_TRY(ln_out_like(outs[i], x->dtype, like, i == 2 ? 1 : 4, shapes[i], what));
        given[i] = *outs[i];
    }
    LN_TRY(ln_backend_of(ln_device(x))->conv2d_backward(given[0], given[1], given[2], dy, x, w, p));
    return LN_OK;
fail:
    for (int i = 0; i < 3; i++)
        if (outs[i] != NULL) ln_out_fail(outs[i], before[i]);
    return status;
}

/* ---- Pooling ---- */

/* Extents that a caller names, of the image that a gradient belongs to or of an adaptive output. */
static ln_status check_extents(int64_t height, int64_t width, const char *what) {
    if (in_range(1, 1, &height) && in_range(1, 1, &width)) return LN_OK;
    return ln_fail(LN_BAD_ARGUMENT, "%s: got height %lld and width %lld; they are 1 or more", what,
                   (long long)height, (long long)width);
}

/* shape: that of the output of a pool over images of this shape. */
static ln_status check_pool(int64_t *shape, const int64_t *image, const ln_pool_params *p,
                            const char *what) {
    bool valid = in_range(1, 2, p->kernel) && in_range(1, 2, p->stride);
    for (int i = 0; i < 2; i++) valid &= p->padding[i] >= 0 && p->padding[i] <= p->kernel[i] / 2;
    if (!valid)
        return ln_fail(LN_BAD_ARGUMENT,
                       "%s: got kernel %s, stride %s and padding %s; kernel and stride are 1 or "
                       "more, padding 0 to half of the kernel",
                       what, ln_text_shape(2, p->kernel), ln_text_shape(2, p->stride),
                       ln_text_shape(2, p->padding));
    memcpy(shape, image, 2 * sizeof *shape);
    for (int i = 0; i < 2; i++)
        shape[2 + i] = places(image[2 + i], p->kernel[i], p->stride[i], p->padding[i]);
    if (shape[2] > 0 && shape[3] > 0) return LN_OK;
    return ln_fail(LN_BAD_ARGUMENT, "%s: kernel %s is larger than %s with padding %s", what,
                   ln_text_shape(2, p->kernel), ln_text_shape(4, image),
                   ln_text_shape(2, p->padding));
}

ln_status ln_max_pool2d(ln_tensor **out, ln_tensor **indices, const ln_tensor *x,
                        const ln_pool_params *p) {
    const char *what = "max_pool2d";
    ln_tensor *before = *out, *indices_before = *indices;
    int64_t shape[4];
    ln_status status;
    LN_TRY(ln_check_inputs(what, 1, &x));
    LN_TRY(check_image(x, what));
    LN_TRY(check_pool(shape, x->shape, p, what));
    if (x->shape[2] > INT32_MAX / x->shape[3])
        return ln_fail(LN_BAD_ARGUMENT, "max_pool2d: a plane of %s has more than 2^31 - 1 elements",
                       ln_text(x));
    LN_TRY(ln_out_like(out, x->dtype, x, 4, shape, what));
    LN_TRY(ln_out_like(indices, LN_INT32, x, 4, shape, what));
    LN_TRY(ln_backend_of(ln_device(x))->max_pool2d(*out, *indices, x, p));
    return LN_OK;
fail:
    ln_out_fail(out, before);
    ln_out_fail(indices, indices_before);
    return status;
}

/* A result with the planes of t in other extents. */
static ln_status planes_out(ln_tensor **out, const ln_tensor *t, int64_t height, int64_t width,
                            bool channels_last, const char *what) {
    const int64_t shape[] = {t->shape[0], t->shape[1], height, width};
    const bool made = *out == NULL;
    ln_status status = ln_out(out, t->dtype, ln_device(t), 4, shape, what);
    if (status == LN_OK && made && channels_last) ln_set_channels_last(*out);
    return status;
}

ln_status ln_max_pool2d_backward(ln_tensor **dx, const ln_tensor *dy, const ln_tensor *indices,
                                 int64_t height, int64_t width) {
    const char *what = "max_pool2d_backward";
    const ln_tensor *inputs[] = {dy, indices};
    ln_tensor *before = *dx;
    ln_status status;
    LN_TRY(ln_check_inputs(what, 2, inputs));
    LN_TRY(check_image(dy, what));
    LN_TRY(check_extents(height, width, what));
    if (indices->dtype != LN_INT32 || !ln_same_shape(indices, dy))
        return ln_fail(LN_BAD_ARGUMENT, "%s: gradient %s and indices %s are not of one max_pool2d",
                       what, ln_text(dy), ln_text(indices));
    LN_TRY(planes_out(dx, dy, height, width, ln_is_channels_last(indices), what));
    LN_TRY(ln_backend_of(ln_device(dy))->max_pool2d_backward(*dx, dy, indices));
    return LN_OK;
fail:
    ln_out_fail(dx, before);
    return status;
}

ln_status ln_avg_pool2d(ln_tensor **out, const ln_tensor *x, const ln_pool_params *p) {
    const char *what = "avg_pool2d";
    ln_tensor *before = *out;
    int64_t shape[4];
    ln_status status;
    LN_TRY(ln_check_inputs(what, 1, &x));
    LN_TRY(check_image(x, what));
    LN_TRY(check_pool(shape, x->shape, p, what));
    LN_TRY(ln_out_like(out, x->dtype, x, 4, shape, what));
    LN_TRY(ln_backend_of(ln_device(x))->avg_pool2d(*out, x, p));
    return LN_OK;
fail:
    ln_out_fail(out, before);
    return status;
}

ln_status ln_avg_pool2d_backward(ln_tensor **dx, const ln_tensor *dy, int64_t height, int64_t width,
                                 const ln_pool_params *p, bool channels_last) {
    const char *what = "avg_pool2d_backward";
    ln_tensor *before = *dx;
    int64_t shape[4];
    ln_status status;
    LN_TRY(ln_check_inputs(what, 1, &dy));
    LN_TRY(check_image(dy, what));
    LN_TRY(check_extents(height, width, what));
    LN_TRY(check_pool(shape, (int64_t[]){dy->shape[0], dy->shape[1], height, width}, p, what));
    LN_TRY(check_gradient(dy, shape, what));
    LN_TRY(planes_out(dx, dy, height, width, channels_last, what));
    LN_TRY(ln_backend_of(ln_device(dy))->avg_pool2d_backward(*dx, dy, p));
    return LN_OK;
fail:
    ln_out_fail(dx, before);
    return status;
}

ln_status ln_adaptive_avg_pool2d(ln_tensor **out, const ln_tensor *x, int64_t height,
                                 int64_t width) {
    const char *what = "adaptive_avg_pool2d";
    ln_tensor *before = *out;
    ln_status status;
    LN_TRY(ln_check_inputs(what, 1, &x));
    LN_TRY(check_image(x, what));
    LN_TRY(check_extents(height, width, what));
    LN_TRY(planes_out(out, x, height, width, ln_is_channels_last(x), what));
    LN_TRY(ln_backend_of(ln_device(x))->adaptive_avg_pool2d(*out, x));
    return LN_OK;
fail:
    ln_out_fail(out, before);
    return status;
}

ln_status ln_adaptive_avg_pool2d_backward(ln_tensor **dx, const ln_tensor *dy, int64_t height,
                                          int64_t width, bool channels_last) {
    const char *what = "adaptive_avg_pool2d_backward";
    ln_tensor *before = *dx;
    ln_status status;
    LN_TRY(ln_check_inputs(what, 1, &dy));
    LN_TRY(check_image(dy, what));
    LN_TRY(check_extents(height, width, what));
    LN_TRY(planes_out(dx, dy, height, width, channels_last, what));
    LN_TRY(ln_backend_of(ln_device(dy))->adaptive_avg_pool2d_backward(*dx, dy));
    return LN_OK;
fail:
    ln_out_fail(dx, before);
    return status;
}
