/* Checks for the elementwise operators and for filling and copying: broadcasting, promotion,
 * results in place, then dispatch. Holds no element loops. Invariant: a backend never sees a result
 * that partly overlaps an input. */
#include "backend.h"

#include <math.h>
#include <string.h>

/* ---- Operators and their result dtypes ---- */

typedef enum { SAME, BOOL, FLOAT } result_class;

typedef struct {
    const char *name;
    result_class result;
} operator_info;

static const operator_info unary_ops[] = {
#define UNARY(name, NAME, result, expression, integer) [LN_##NAME] = {#name, result},
#define UNARY_FLOAT(name, NAME, expression) [LN_##NAME] = {#name, FLOAT},
#include "elementwise.def"
};

static const operator_info binary_ops[] = {
#define BINARY(name, NAME, result, expression, integer) [LN_##NAME] = {#name, result},
#define BINARY_FLOAT(name, NAME, expression) [LN_##NAME] = {#name, FLOAT},
#include "elementwise.def"
};

enum {
    UNARY_OPS = sizeof unary_ops / sizeof *unary_ops,
    BINARY_OPS = sizeof binary_ops / sizeof *binary_ops
};
_Static_assert(UNARY_OPS == LN_LOGICAL_NOT + 1 && BINARY_OPS == LN_COS_BACKWARD + 1,
               "elementwise.def follows ln.h");

static int result_dtype(result_class result, int dtype) {
    if (result == BOOL) return LN_BOOL;
    return result == FLOAT && !ln_dtype_is_float(dtype) ? LN_FLOAT32 : dtype;
}

/* PyTorch's promotion: a tensor without dimensions counts only where its class is the higher. */
static int promote(const ln_tensor *x, const ln_tensor *y) {
    if (x->dtype != y->dtype && (x->ndim == 0) != (y->ndim == 0)) {
        const ln_tensor *array = x->ndim == 0 ? y : x, *scalar = x->ndim == 0 ? x : y;
        bool higher = array->dtype == LN_BOOL || ln_dtype_is_float(scalar->dtype);
        if (ln_dtype_is_float(array->dtype) || !higher) return array->dtype;
    }
    return ln_dtype_promote(x->dtype, y->dtype);
}

/* ---- Shapes and overlaps ---- */

enum { MAX_INPUTS = 3 };

/* The inputs of one call, broadcast to the result's shape. */
typedef struct {
    const ln_tensor *in[MAX_INPUTS];
    ln_tensor view[MAX_INPUTS];
    ln_tensor *copy[MAX_INPUTS]; /* of inputs that the result partly overlaps */
    int n;
} inputs;

static ln_status take(inputs *s, const char *what, int n, const ln_tensor *x, const ln_tensor *y,
                      const ln_tensor *z) {
    s->n = n;
    s->in[0] = x;
    s->in[1] = y;
    s->in[2] = z;
    memset(s->copy, 0, sizeof s->copy);
    return ln_check_inputs(what, n, s->in);
}

static bool same_layout(const ln_tensor *a, const ln_tensor *b) {
    return a->data == b->data && a->dtype == b->dtype && ln_same_shape(a, b) &&
           memcmp(a->stride, b->stride, (size_t)a->ndim * sizeof *a->stride) == 0;
}

/* One past the last byte that t reaches. */
static const char *end_of(const ln_tensor *t) {
    int64_t last = 0;
    for (int i = 0; i < t->ndim; i++) last += (t->shape[i] - 1) * t->stride[i];
    return t->data + (last + 1) * (int64_t)ln_dtype_size(t->dtype);
}

/* Whether writing out could change x before it is read elsewhere. Says yes too often where two
 * tensors interleave. */
static bool overlaps(const ln_tensor *out, const ln_tensor *x) {
    if (out->storage != x->storage || out->numel == 0 || x->numel == 0) return false;
    return !same_layout(out, x) && out->data < end_of(x) && x->data < end_of(out);
}

static ln_status protect(inputs *s, const ln_tensor *out) {
    ln_status status = LN_OK;
    for (int i = 0; i < s->n && status == LN_OK; i++)
        if (overlaps(out, s->in[i])) {
            status = ln_contiguous(&s->copy[i], s->in[i]);
            s->in[i] = s->copy[i];
        }
    return status;
}

static void broadcast(inputs *s, const ln_tensor *out) {
    for (int i = 0; i < s->n; i++) {
        if (ln_same_shape(s->in[i], out)) continue;
        s->view[i] = ln_broadcast(s->in[i], out->ndim, out->shape);
        s->in[i] = &s->view[i];
    }
}

static void give_back(inputs *s) {
    for (int i = 0; i < s->n; i++) ln_tensor_release(s->copy[i]);
}

/* The shape that all inputs broadcast to. */
static ln_status common_shape(int *ndim, int64_t *shape, const inputs *s, const char *what) {
    ln_tensor whole = *s->in[0];
    for (int i = 1; i < s->n; i++) {
        if (!ln_broadcast_shape(ndim, shape, &whole, s->in[i]))
            return ln_fail(LN_BAD_ARGUMENT, "%s: shapes %s and %s do not broadcast", what,
                           ln_text_shape(whole.ndim, whole.shape),
                           ln_text_shape(s->in[i]->ndim, s->in[i]->shape));
        whole.ndim = *ndim;
        memcpy(whole.shape, shape, (size_t)*ndim * sizeof *shape);
    }
    return LN_OK;
}

/* The input whose memory format the result takes: a channels-last one of its shape, if any is. */
static const ln_tensor *format_of(const inputs *s, int ndim, const int64_t *shape) {
    for (int i = 0; i < s->n; i++)
        if (ln_is_channels_last(s->in[i]) && ndim == 4 &&
            memcmp(s->in[i]->shape, shape, 4 * sizeof *shape) == 0)
            return s->in[i];
    return NULL;
}

/* Makes *out of the inputs' common shape and readies them for a backend. On failure nothing is
 * left to give back. */
static ln_status prepare(inputs *s, ln_tensor **out, int dtype, int device, const char *what) {
    const ln_tensor *given = *out, *first = s->in[0];
    int64_t shape[LN_MAX_DIMS];
    int ndim = first->ndim;
    bool same = true;
    for (int i = 1; same && i < s->n; i++) same = ln_same_shape(first, s->in[i]);
    ln_status status = LN_OK;
    if (!same) status = common_shape(&ndim, shape, s, what);
    if (status != LN_OK) return status;
    if (same) memcpy(shape, first->shape, (size_t)ndim * sizeof *shape);
    const ln_tensor *like = format_of(s, ndim, shape);
    if (like != NULL) status = ln_out_like(out, dtype, like, ndim, shape, what);
    else status = ln_out(out, dtype, device, ndim, shape, what);
    if (status != LN_OK) return status;
    if (given != NULL) status = protect(s, given);
    if (status != LN_OK) give_back(s);
    else if (!same) broadcast(s, *out);
    return status;
}

static ln_status finish(inputs *s, ln_tensor **out, const ln_tensor *given, ln_status status) {
    give_back(s);
    if (status != LN_OK) ln_out_fail(out, given);
    return status;
}

/* ---- Elementwise ---- */

ln_status ln_unary(ln_tensor **out, int op, const ln_tensor *x, double a, double b) {
    if (op < 0 || op >= UNARY_OPS) return ln_fail(LN_BAD_ARGUMENT, "unary: no operator %d", op);
    const ln_tensor *given = *out;
    const char *what = unary_ops[op].name;
    inputs s;
    ln_status status = take(&s, what, 1, x, NULL, NULL);
    if (status != LN_OK) return status;
    if (op == LN_NEG && x->dtype == LN_BOOL)
        return ln_fail(LN_BAD_ARGUMENT, "neg: %s has no sign; use logical_not", ln_text(x));
    if (op == LN_CLAMP && !ln_dtype_is_float(x->dtype)) {
        a = isnan(a) ? -INFINITY : ceil(a);
        b = isnan(b) ? INFINITY : floor(b);
    }
    status = prepare(&s, out, result_dtype(unary_ops[op].result, x->dtype), ln_device(x), what);
    if (status != LN_OK) return status;
    status = ln_backend_of(ln_device(x))->unary(*out, op, s.in[0], a, b);
    return finish(&s, out, given, status);
}

/* x op y, whose operands promote to dtype. */
static ln_status binary(ln_tensor **out, int op, inputs *s, int dtype, int device) {
    const ln_tensor *given = *out;
    result_class result = binary_ops[op].result;
    if (op == LN_SUB && dtype == LN_BOOL)
        return ln_fail(LN_BAD_ARGUMENT, "sub: bool takes no difference; use logical_xor");
    ln_status status = prepare(s, out, result_dtype(result, dtype), device, binary_ops[op].name);
    if (status != LN_OK) return status;
    status = ln_backend_of(device)->binary(*out, op, s->in[0], s->in[1]);
    return finish(s, out, given, status);
}

static ln_status check_binary(int op) {
    if (op >= 0 && op < BINARY_OPS) return LN_OK;
    return ln_fail(LN_BAD_ARGUMENT, "binary: no operator %d", op);
}

ln_status ln_binary(ln_tensor **out, int op, const ln_tensor *x, const ln_tensor *y) {
    inputs s;
    ln_status status = check_binary(op);
    if (status == LN_OK) status = take(&s, binary_ops[op].name, 2, x, y, NULL);
    if (status != LN_OK) return status;
    return binary(out, op, &s, promote(x, y), ln_device(x));
}

/* The dtype that a number takes beside x, and the one that the two promote to. A comparison of an
 * integer with a fraction is made in float64, where it is exact up to 2^53. */
static int number_dtype(int op, const ln_tensor *x, double y, int *promoted) {
    *promoted = x->dtype;
    if (ln_dtype_is_float(x->dtype)) return x->dtype == LN_FLOAT64 ? LN_FLOAT64 : LN_FLOAT32;
    if (y == floor(y) && fabs(y) < 0x1p63) {
        if (x->dtype == LN_BOOL) *promoted = LN_INT64;
        return LN_INT64;
    }
    *promoted = LN_FLOAT32;
    return binary_ops[op].result == BOOL ? LN_FLOAT64 : LN_FLOAT32;
}

ln_status ln_binary_scalar(ln_tensor **out, int op, const ln_tensor *x, double y, bool swapped) {
    inputs s;
    ln_status status = check_binary(op);
    if (status == LN_OK) status = take(&s, binary_ops[op].name, 1, x, NULL, NULL);
    if (status != LN_OK) return status;
    if (op == LN_POW && y == 2 && !swapped && ln_dtype_is_float(x->dtype))
        return ln_unary(out, LN_SQUARE, x, 0, 0);
    int promoted;
    double element;
    ln_storage storage = {.device = LN_CPU, .data = &element};
    ln_tensor number = *x;
    memset(number.stride, 0, sizeof number.stride);
    number.storage = &storage;
    number.data = storage.data;
    number.dtype = number_dtype(op, x, y, &promoted);
    ln_element_set(number.dtype, &element, y);
    s.n = 2;
    s.in[swapped ? 1 : 0] = x;
    s.in[swapped ? 0 : 1] = &number;
    return binary(out, op, &s, promoted, ln_device(x));
}

ln_status ln_clamp_backward(ln_tensor **out, const ln_tensor *dy, const ln_tensor *x, double a,
                            double b) {
    const ln_tensor *given = *out;
    inputs s;
    ln_status status = take(&s, "clamp_backward", 2, dy, x, NULL);
    if (status != LN_OK) return status;
    status = prepare(&s, out, promote(dy, x), ln_device(x), "clamp_backward");
    if (status != LN_OK) return status;
    status = ln_backend_of(ln_device(x))->clamp_backward(*out, s.in[0], s.in[1], a, b);
    return finish(&s, out, given, status);
}

ln_status ln_where(ln_tensor **out, const ln_tensor *cond, const ln_tensor *x, const ln_tensor *y) {
    const ln_tensor *given = *out;
    inputs s;
    ln_status status = take(&s, "where", 3, cond, x, y);
    if (status != LN_OK) return status;
    if (cond->dtype != LN_BOOL)
        return ln_fail(LN_BAD_ARGUMENT, "where: the condition is %s; bool is taken",
                       ln_text_dtype(cond->dtype));
    status = prepare(&s, out, promote(x, y), ln_device(x), "where");
    if (status != LN_OK) return status;
    status = ln_backend_of(ln_device(x))->where(*out, s.in[0], s.in[1], s.in[2]);
    return finish(&s, out, given, status);
}

/* ---- Writing into a tensor that exists ---- */

/* Readies dst to be written, and x, where there is one, to be read in dst's shape. */
static ln_status prepare_into(inputs *s, ln_tensor *dst, const char *what) {
    int64_t shape[LN_MAX_DIMS];
    int ndim = 0;
    if (s->n > 0 && (!ln_broadcast_shape(&ndim, shape, s->in[0], dst) || ndim != dst->ndim ||
                     memcmp(shape, dst->shape, (size_t)ndim * sizeof *shape) != 0))
        return ln_fail(LN_BAD_ARGUMENT, "%s: shape %s does not broadcast to %s", what,
                       ln_text_shape(s->in[0]->ndim, s->in[0]->shape),
                       ln_text_shape(dst->ndim, dst->shape));
    ln_status status = ln_out(&dst, dst->dtype, ln_device(dst), dst->ndim, dst->shape, what);
    if (status == LN_OK) status = protect(s, dst);
    if (status != LN_OK) give_back(s);
    else broadcast(s, dst);
    return status;
}

ln_status ln_axpby(ln_tensor *dst, double a, const ln_tensor *x, double b) {
    inputs s;
    ln_status status = take(&s, "axpby", 2, x, dst, NULL);
    if (status != LN_OK) return status;
    bool whole = !ln_dtype_is_float(x->dtype) && a == floor(a) && b == floor(b);
    if (!ln_dtype_is_float(dst->dtype) && !whole)
        return ln_fail(LN_BAD_ARGUMENT,
                       "axpby: %g times %s plus %g times the destination does not fit in place "
                       "into %s",
                       a, ln_text_dtype(x->dtype), b, ln_text_dtype(dst->dtype));
    s.n = 1;
    status = prepare_into(&s, dst, "axpby");
    if (status != LN_OK) return status;
    status = ln_backend_of(ln_device(dst))->axpby(dst, a, s.in[0], b);
    give_back(&s);
    return status;
}

static ln_status copy_as(ln_tensor **out, const ln_tensor *x, int dtype, int device,
                         bool channels_last, const char *what);

/* dst = src, from another device: the elements are cast and packed where they lie, cross as one
 * block, and are spread out where they arrive. */
static ln_status copy_across(ln_tensor *dst, const ln_tensor *src) {
    ln_tensor *packed = NULL, *arrived = NULL, moved[2];
    if (ln_is_channels_last(dst) && ln_same_shape(dst, src)) {
        moved[0] = ln_channels_moved_last(dst);
        moved[1] = ln_channels_moved_last(src);
        dst = &moved[0];
        src = &moved[1];
    }
    bool direct = ln_is_contiguous(dst) && ln_same_shape(dst, src);
    ln_status status;
    LN_TRY(ln_capture_refuses("copy", "give the step what it reads as an argument, return what it "
                                      "gives, and copy outside of it"));
    if (src->dtype != dst->dtype || !ln_is_contiguous(src))
        LN_TRY(copy_as(&packed, src, dst->dtype, ln_device(src), false, "copy"));
    if (packed != NULL) src = packed;
    LN_TRY(ln_check_inputs("copy", 1, &src));
    ln_settle(dst->storage);
    if (!direct)
        LN_TRY(ln_out(&arrived, src->dtype, ln_device(dst), src->ndim, src->shape, "copy"));
    LN_TRY(ln_transfer(direct ? dst->data : arrived->data, ln_device(dst), src->data,
                       ln_device(src), (size_t)src->numel * ln_dtype_size(src->dtype)));
    if (direct) ln_wrote(dst);
    else status = ln_copy(dst, arrived);
fail:
    ln_tensor_release(packed);
    ln_tensor_release(arrived);
    return status;
}

ln_status ln_copy(ln_tensor *dst, const ln_tensor *src) {
    inputs s;
    if (dst != NULL && src != NULL && ln_device(dst) != ln_device(src))
        return copy_across(dst, src);
    ln_status status = take(&s, "copy", 2, src, dst, NULL);
    if (status != LN_OK) return status;
    s.n = 1;
    status = prepare_into(&s, dst, "copy");
    if (status != LN_OK) return status;
    status = ln_backend_of(ln_device(dst))->copy(dst, s.in[0]);
    give_back(&s);
    return status;
}

/* A copy of x of a dtype, on a device, in one of the two memory formats. */
static ln_status copy_as(ln_tensor **out, const ln_tensor *x, int dtype, int device,
                         bool channels_last, const char *what) {
    const ln_tensor *given = *out;
    ln_status status = ln_check_inputs(what, 1, &x);
    if (status == LN_OK) status = ln_device_check(device, what);
    if (status == LN_OK) status = ln_out(out, dtype, device, x->ndim, x->shape, what);
    if (status != LN_OK) return status;
    if (channels_last && given == NULL) ln_set_channels_last(*out);
    status = ln_copy(*out, x);
    if (status != LN_OK) ln_out_fail(out, given);
    return status;
}

ln_status ln_cast(ln_tensor **out, const ln_tensor *x, int dtype) {
    if (!ln_dtype_valid(dtype)) return ln_fail(LN_BAD_ARGUMENT, "cast: no dtype %d", dtype);
    bool channels_last = x != NULL && ln_is_channels_last(x);
    return copy_as(out, x, dtype, x == NULL ? LN_CPU : ln_device(x), channels_last, "cast");
}

ln_status ln_contiguous(ln_tensor **out, const ln_tensor *x) {
    return copy_as(out, x, x == NULL ? 0 : x->dtype, x == NULL ? LN_CPU : ln_device(x), false,
                   "contiguous");
}

ln_status ln_channels_last(ln_tensor **out, const ln_tensor *x) {
    if (x != NULL && x->ndim != 4)
        return ln_fail(LN_BAD_ARGUMENT, "channels_last: got %s; (N,C,H,W) is taken", ln_text(x));
    return copy_as(out, x, x == NULL ? 0 : x->dtype, x == NULL ? LN_CPU : ln_device(x), true,
                   "channels_last");
}

ln_status ln_to_device(ln_tensor **out, const ln_tensor *x, int device) {
    bool channels_last = x != NULL && ln_is_channels_last(x);
    return copy_as(out, x, x == NULL ? 0 : x->dtype, device, channels_last, "to_device");
}

ln_status ln_fill(ln_tensor *dst, double value) {
    inputs s;
    ln_status status = take(&s, "fill", 1, dst, NULL, NULL);
    s.n = 0;
    if (status == LN_OK) status = prepare_into(&s, dst, "fill");
    if (status != LN_OK) return status;
    return ln_backend_of(ln_device(dst))->fill(dst, value);
}

ln_status ln_arange(ln_tensor *dst, double start, double step) {
    inputs s;
    ln_status status = take(&s, "arange", 1, dst, NULL, NULL);
    if (status != LN_OK) return status;
    if (dst->ndim != 1)
        return ln_fail(LN_BAD_ARGUMENT, "arange: the destination is %s; one dimension is taken",
                       ln_text(dst));
    s.n = 0;
    status = prepare_into(&s, dst, "arange");
    if (status != LN_OK) return status;
    return ln_backend_of(ln_device(dst))->arange(dst, start, step);
}
