/* Tensors: shapes, strides and dtypes, and the views that share a storage. No arithmetic on
 * elements. Invariant: every element that shape and stride reach lies inside the storage. */
#include "backend.h"

#include <stdlib.h>
#include <string.h>

/* ORDER DTYPE. rank orders promotion inside a class. */
static const struct {
    const char *name;
    size_t size;
    bool is_float;
    int rank;
} dtypes[] = {
    {"float32", 4, true, 2}, {"float64", 8, true, 3}, {"bfloat16", 2, true, 1},
    {"float16", 2, true, 1}, {"int64", 8, false, 3},  {"int32", 4, false, 2},
    {"uint8", 1, false, 1},  {"bool", 1, false, 0},
};

static atomic_llong handles;

bool ln_dtype_valid(int dtype) {
    return dtype >= 0 && dtype < (int)(sizeof dtypes / sizeof *dtypes);
}

const char *ln_text_dtype(int dtype) {
    return ln_dtype_valid(dtype) ? dtypes[dtype].name : "no dtype";
}

size_t ln_dtype_size(int dtype) {
    return dtypes[dtype].size;
}

bool ln_dtype_is_float(int dtype) {
    return dtypes[dtype].is_float;
}

int ln_dtype_promote(int a, int b) {
    if (a == b) return a;
    if (dtypes[a].is_float != dtypes[b].is_float) return dtypes[a].is_float ? a : b;
    if (dtypes[a].rank == dtypes[b].rank) return LN_FLOAT32; /* bfloat16 with float16 */
    return dtypes[a].rank > dtypes[b].rank ? a : b;
}

bool ln_is_contiguous(const ln_tensor *t) {
    int64_t expected = 1;
    for (int i = t->ndim - 1; i >= 0; i--) {
        if (t->shape[i] != 1 && t->stride[i] != expected) return t->numel == 0;
        expected *= t->shape[i];
    }
    return true;
}

/* Strides, in elements, of a channels-last tensor of t's shape. */
static void channels_last_strides(int64_t stride[4], const ln_tensor *t) {
    stride[1] = 1;
    stride[3] = t->shape[1];
    stride[2] = t->shape[3] * stride[3];
    stride[0] = t->shape[2] * stride[2];
}

bool ln_is_channels_last(const ln_tensor *t) {
    int64_t stride[4];
    if (t->ndim != 4) return false;
    channels_last_strides(stride, t);
    if (t->shape[0] == 1) stride[0] = t->stride[0];
    return memcmp(stride, t->stride, sizeof stride) == 0 &&
           t->shape[1] * t->shape[2] * t->shape[3] > 1;
}

ln_tensor ln_channels_moved_last(const ln_tensor *t) {
    static const int order[] = {0, 2, 3, 1};
    ln_tensor v = *t;
    for (int i = 0; i < 4; i++) {
        v.shape[i] = t->shape[order[i]];
        v.stride[i] = t->stride[order[i]];
    }
    return v;
}

void ln_set_channels_last(ln_tensor *t) {
    channels_last_strides(t->stride, t);
}

bool ln_same_shape(const ln_tensor *a, const ln_tensor *b) {
    return a->ndim == b->ndim &&
           memcmp(a->shape, b->shape, (size_t)a->ndim * sizeof *a->shape) == 0;
}

int64_t ln_tensor_handles(void) {
    return atomic_load_explicit(&handles, memory_order_relaxed);
}

void ln_wrote(ln_tensor *t) {
    atomic_fetch_add_explicit(&t->storage->version, 1, memory_order_relaxed);
    ln_settle(t->storage);
    ln_graph_note(t->storage, true);
}

/* ---- Making and releasing ---- */

/* The number of elements of a shape, or -1 where it or its bytes overflow or an extent is
 * negative. */
static int64_t count_elements(int ndim, const int64_t *shape) {
    int64_t n = 1;
    bool empty = false;
    for (int i = 0; i < ndim; i++) {
        if (shape[i] < 0) return -1;
        if (shape[i] == 0) empty = true;
        else if (__builtin_mul_overflow(n, shape[i], &n)) return -1;
    }
    if (n > INT64_MAX / 16) return -1;
    return empty ? 0 : n;
}

static void set_row_major(ln_tensor *t) {
    int64_t stride = 1;
    for (int i = t->ndim - 1; i >= 0; i--) {
        t->stride[i] = stride;
        stride *= t->shape[i];
    }
}

ln_status ln_tensor_new(ln_tensor **out, int dtype, int device, ln_memory_kind kind, int ndim,
                        const int64_t *shape, const char *what) {
    if (!ln_dtype_valid(dtype)) return ln_fail(LN_BAD_ARGUMENT, "%s: no dtype %d", what, dtype);
    if (ndim < 0 || ndim > LN_MAX_DIMS)
        return ln_fail(LN_BAD_ARGUMENT, "%s: %d dimensions; 0 to %d are taken", what, ndim,
                       LN_MAX_DIMS);
    int64_t numel = count_elements(ndim, shape);
    if (numel < 0)
        return ln_fail(LN_BAD_ARGUMENT, "%s: shape %s has a negative extent or too many elements",
                       what, ln_text_shape(ndim, shape));
    ln_storage *storage;
    size_t bytes = (size_t)numel * dtypes[dtype].size;
    ln_status status = ln_storage_new(&storage, device, kind, bytes, what);
    if (status != LN_OK) return status;
    ln_tensor *t = &storage->whole;
    t->storage = storage;
    t->data = storage->data;
    t->dtype = dtype;
    t->ndim = ndim;
    t->numel = numel;
    t->second = NULL;
    memcpy(t->shape, shape, (size_t)ndim * sizeof *shape);
    set_row_major(t);
    atomic_fetch_add_explicit(&handles, 1, memory_order_relaxed);
    *out = t;
    return LN_OK;
}

ln_status ln_pin(ln_tensor **out, const ln_tensor *x) {
    ln_tensor *made = NULL;
    ln_status status;
    LN_TRY(ln_check_inputs("pin", 1, &x));
    LN_TRY(ln_capture_refuses("pin", "pin memory before the step"));
    if (*out != NULL) LN_TRY(ln_fail(LN_BAD_ARGUMENT, "pin: makes a tensor; *out must be NULL"));
    LN_TRY(ln_tensor_new(&made, x->dtype, LN_CPU, LN_PINNED, x->ndim, x->shape, "pin"));
    if (ln_is_channels_last(x)) ln_set_channels_last(made);
    LN_TRY(ln_copy(made, x));
    *out = made;
    return LN_OK;
fail:
    ln_tensor_release(made);
    return status;
}

bool ln_is_pinned(const ln_tensor *x) {
    return x != NULL && x->storage->pinned;
}

ln_status ln_tensor_empty(ln_tensor **out, int dtype, int device, int ndim, const int64_t *shape) {
    ln_status status = ln_device_check(device, "empty");
    if (status != LN_OK) return status;
    return ln_tensor_new(out, dtype, device, LN_USUAL, ndim, shape, "empty");
}

ln_status ln_empty_like(ln_tensor **out, const ln_tensor *x) {
    ln_status status = ln_check_handles("empty_like", 1, &x);
    if (status != LN_OK) return status;
    return ln_out_like(out, x->dtype, x, x->ndim, x->shape, "empty_like");
}

void ln_tensor_release(ln_tensor *t) {
    if (t == NULL) return;
    ln_storage *storage = t->storage;
    ln_tensor *second = t->second;
    atomic_fetch_sub_explicit(&handles, 1, memory_order_relaxed);
    if (t != &storage->whole) free(t);
    ln_storage_release(storage);
    ln_tensor_release(second);
}

ln_status ln_out(ln_tensor **out, int dtype, int device, int ndim, const int64_t *shape,
                 const char *what) {
    ln_tensor *t = *out;
    if (t == NULL) return ln_tensor_new(out, dtype, device, LN_USUAL, ndim, shape, what);
    if (t->dtype != dtype || ln_device(t) != device || t->ndim != ndim ||
        memcmp(t->shape, shape, (size_t)ndim * sizeof *shape) != 0)
        return ln_fail(LN_BAD_ARGUMENT, "%s: the result is %s %s; it does not fit in place into %s",
                       what, ln_text_shape(ndim, shape), ln_text_dtype(dtype), ln_text(t));
    for (int i = 0; i < ndim; i++)
        if (t->stride[i] == 0 && t->shape[i] > 1 && t->numel > 0)
            return ln_fail(LN_BAD_ARGUMENT, "%s: cannot write in place into an expanded tensor",
                           what);
    ln_wrote(t);
    return LN_OK;
}

ln_status ln_out_like(ln_tensor **out, int dtype, const ln_tensor *like, int ndim,
                      const int64_t *shape, const char *what) {
    bool made = *out == NULL;
    ln_status status = ln_out(out, dtype, ln_device(like), ndim, shape, what);
    if (status == LN_OK && made && ndim == 4 && ln_is_channels_last(like))
        ln_set_channels_last(*out);
    return status;
}

void ln_out_fail(ln_tensor **out, const ln_tensor *given) {
    if (*out == given) return;
    ln_tensor_release(*out);
    *out = NULL;
}

ln_status ln_check_handles(const char *what, int n, const ln_tensor *const *inputs) {
    if (ln_interrupted()) return ln_fail(LN_INTERRUPTED, "%s: interrupted", what);
    for (int i = 0; i < n; i++)
        if (inputs[i] == NULL)
            return ln_fail(LN_BAD_ARGUMENT, "%s: tensor %d was freed or is missing", what, i + 1);
    for (int i = 0; i < n; i++)
        if (inputs[i]->second != NULL)
            return ln_fail(LN_BAD_ARGUMENT,
                           "%s: tensor %d is of joined rows, which similarity operators alone take",
                           what, i + 1);
    for (int i = 1; i < n; i++)
        if (ln_device(inputs[i]) != ln_device(inputs[0]))
            return ln_fail(LN_BAD_ARGUMENT, "%s: tensors 1 and %d are on different devices", what,
                           i + 1);
    if (ln_capturing() != NULL)
        for (int i = 0; i < n; i++) ln_graph_note(inputs[i]->storage, false);
    return LN_OK;
}

ln_status ln_check_inputs(const char *what, int n, const ln_tensor *const *inputs) {
    ln_status status = ln_check_handles(what, n, inputs);
    for (int i = 0; i < n && status == LN_OK; i++) {
        ln_settle(inputs[i]->storage);
        if (inputs[i]->storage->arrival == LN_LOST)
            status = ln_fail(LN_DEVICE_LOST,
                             "%s: tensor %d was on its way from a cuda device that was lost", what,
                             i + 1);
    }
    return status;
}

/* ---- Views ---- */

ln_status ln_view_new(ln_tensor **out, const ln_tensor *view) {
    ln_tensor *t = malloc(sizeof *t);
    if (t == NULL) return ln_fail(LN_OUT_OF_MEMORY, "view: out of memory for a handle");
    *t = *view;
    ln_storage_retain(t->storage);
    atomic_fetch_add_explicit(&handles, 1, memory_order_relaxed);
    *out = t;
    return LN_OK;
}

/* A view has no place to be written into, so *out must be NULL. */
static ln_status check_view(ln_tensor **out, const ln_tensor *t, const char *what) {
    if (*out != NULL) return ln_fail(LN_BAD_ARGUMENT, "%s: makes a view; *out must be NULL", what);
    return ln_check_handles(what, 1, &t);
}

ln_status ln_tensor_alias(ln_tensor **out, const ln_tensor *t) {
    ln_status status = check_view(out, t, "alias");
    return status != LN_OK ? status : ln_view_new(out, t);
}

/* Copies shape to `result` with an extent of -1 replaced by what numel asks for. */
static ln_status infer_shape(int64_t *result, const ln_tensor *t, int ndim, const int64_t *shape,
                             const char *what) {
    if (ndim < 0 || ndim > LN_MAX_DIMS)
        return ln_fail(LN_BAD_ARGUMENT, "%s: %d dimensions; 0 to %d are taken", what, ndim,
                       LN_MAX_DIMS);
    int unknown = -1;
    for (int i = 0; i < ndim; i++) {
        result[i] = shape[i];
        if (shape[i] == -1 && unknown < 0) {
            unknown = i;
            result[i] = 1;
        }
    }
    int64_t known = count_elements(ndim, result);
    bool fits = known == t->numel;
    if (unknown >= 0) {
        fits = known > 0 && t->numel % known == 0;
        if (fits) result[unknown] = t->numel / known;
    }
    if (!fits)
        return ln_fail(LN_BAD_ARGUMENT, "%s: %s has %lld elements; shape %s does not", what,
                       ln_text(t), (long long)t->numel, ln_text_shape(ndim, shape));
    return LN_OK;
}

/* Strides that read t's elements in row-major order under another shape, where there are such:
 * runs of t's dimensions that are contiguous among themselves are cut anew, from the last. */
static bool view_strides(ln_tensor *v, const ln_tensor *t) {
    if (t->numel == 0) {
        set_row_major(v);
        return true;
    }
    int d = v->ndim - 1;
    int64_t run = 1, cut = 1, base = t->ndim > 0 ? t->stride[t->ndim - 1] : 1;
    for (int i = t->ndim - 1; i >= 0; i--) {
        run *= t->shape[i];
        bool last = i == 0;
        if (!last && (t->shape[i - 1] == 1 || t->stride[i - 1] == run * base)) continue;
        while (d >= 0 && (cut < run || v->shape[d] == 1)) {
            v->stride[d] = cut * base;
            cut *= v->shape[d--];
        }
        if (cut != run) return false;
        run = cut = 1;
        if (!last) base = t->stride[i - 1];
    }
    while (d >= 0) v->stride[d--] = 1;
    return true;
}

static ln_status reshape(ln_tensor **out, const ln_tensor *t, int ndim, const int64_t *shape,
                         bool may_copy, const char *what) {
    ln_status status = check_view(out, t, what);
    if (status != LN_OK) return status;
    ln_tensor v = *t;
    status = infer_shape(v.shape, t, ndim, shape, what);
    if (status != LN_OK) return status;
    v.ndim = ndim;
    if (view_strides(&v, t)) return ln_view_new(out, &v);
    if (!may_copy)
        return ln_fail(LN_BAD_ARGUMENT, "%s: %s cannot be seen as %s without a copy; use reshape",
                       what, ln_text(t), ln_text_shape(ndim, v.shape));
    ln_tensor *copy = NULL;
    status = ln_contiguous(&copy, t);
    if (status != LN_OK) return status;
    copy->ndim = ndim;
    memcpy(copy->shape, v.shape, sizeof v.shape);
    set_row_major(copy);
    *out = copy;
    return LN_OK;
}

ln_status ln_view(ln_tensor **out, const ln_tensor *t, int ndim, const int64_t *shape) {
    return reshape(out, t, ndim, shape, false, "view");
}

ln_status ln_reshape(ln_tensor **out, const ln_tensor *t, int ndim, const int64_t *shape) {
    return reshape(out, t, ndim, shape, true, "reshape");
}

static ln_status check_dim(const ln_tensor *t, int dim, const char *what) {
    if (dim >= 0 && dim < t->ndim) return LN_OK;
    return ln_fail(LN_BAD_ARGUMENT, "%s: %s has no dimension %d", what, ln_text(t), dim + 1);
}

ln_status ln_permute(ln_tensor **out, const ln_tensor *t, int ndim, const int *dims) {
    ln_status status = check_view(out, t, "permute");
    if (status != LN_OK) return status;
    ln_tensor v = *t;
    unsigned seen = 0;
    bool valid = ndim == t->ndim;
    for (int i = 0; valid && i < ndim; i++) {
        valid = dims[i] >= 0 && dims[i] < ndim && !(seen >> dims[i] & 1);
        if (!valid) break;
        seen |= 1u << dims[i];
        v.shape[i] = t->shape[dims[i]];
        v.stride[i] = t->stride[dims[i]];
    }
    if (!valid)
        return ln_fail(LN_BAD_ARGUMENT, "permute: %s takes each of its %d dimensions once",
                       ln_text(t), t->ndim);
    return ln_view_new(out, &v);
}

ln_status ln_slice(ln_tensor **out, const ln_tensor *t, int dim, int64_t start, int64_t count,
                   int64_t step) {
    ln_status status = check_view(out, t, "slice");
    if (status == LN_OK) status = check_dim(t, dim, "slice");
    if (status != LN_OK) return status;
    int64_t extent = t->shape[dim];
    bool inside = step >= 1 && count >= 0 && start >= 0 && start <= extent &&
                  (count == 0 || (start < extent && count - 1 <= (extent - 1 - start) / step));
    if (!inside)
        return ln_fail(LN_BAD_ARGUMENT,
                       "slice: %lld elements from position %lld by steps of %lld do not lie in "
                       "dimension %d of %s",
                       (long long)count, (long long)start + 1, (long long)step, dim + 1,
                       ln_text(t));
    ln_tensor v = *t;
    if (count > 0) v.data += (size_t)(start * t->stride[dim]) * ln_dtype_size(t->dtype);
    v.shape[dim] = count;
    v.stride[dim] *= step;
    v.numel = count_elements(v.ndim, v.shape);
    return ln_view_new(out, &v);
}

ln_status ln_select(ln_tensor **out, const ln_tensor *t, int dim, int64_t position) {
    ln_status status = check_view(out, t, "select");
    if (status == LN_OK) status = check_dim(t, dim, "select");
    if (status != LN_OK) return status;
    if (position < 0 || position >= t->shape[dim])
        return ln_fail(LN_BAD_ARGUMENT,
                       "select: position %lld is outside 1..%lld, dimension %d of "
                       "%s",
                       (long long)position + 1, (long long)t->shape[dim], dim + 1, ln_text(t));
    ln_tensor v = *t;
    v.data += (size_t)(position * t->stride[dim]) * ln_dtype_size(t->dtype);
    v.ndim--;
    for (int i = dim; i < v.ndim; i++) {
        v.shape[i] = t->shape[i + 1];
        v.stride[i] = t->stride[i + 1];
    }
    v.numel = count_elements(v.ndim, v.shape);
    return ln_view_new(out, &v);
}

ln_tensor ln_broadcast(const ln_tensor *t, int ndim, const int64_t *shape) {
    ln_tensor v = *t;
    v.ndim = ndim;
    v.numel = count_elements(ndim, shape);
    for (int i = ndim - 1, j = t->ndim - 1; i >= 0; i--, j--) {
        v.shape[i] = shape[i];
        v.stride[i] = j >= 0 && t->shape[j] == shape[i] ? t->stride[j] : 0;
    }
    return v;
}

bool ln_broadcast_shape(int *ndim, int64_t *shape, const ln_tensor *a, const ln_tensor *b) {
    *ndim = a->ndim > b->ndim ? a->ndim : b->ndim;
    for (int k = 1; k <= *ndim; k++) {
        int64_t x = k <= a->ndim ? a->shape[a->ndim - k] : 1;
        int64_t y = k <= b->ndim ? b->shape[b->ndim - k] : 1;
        if (x != y && x != 1 && y != 1) return false;
        shape[*ndim - k] = x == 1 ? y : x;
    }
    return true;
}

ln_status ln_expand(ln_tensor **out, const ln_tensor *t, int ndim, const int64_t *shape) {
    ln_status status = check_view(out, t, "expand");
    if (status != LN_OK) return status;
    bool fits = ndim >= t->ndim && ndim <= LN_MAX_DIMS;
    int64_t full[LN_MAX_DIMS];
    for (int i = ndim - 1, j = t->ndim - 1; fits && i >= 0; i--, j--) {
        full[i] = shape[i] == -1 && j >= 0 ? t->shape[j] : shape[i];
        fits = full[i] >= 0 && (j < 0 || t->shape[j] == 1 || t->shape[j] == full[i]);
    }
    if (!fits || count_elements(ndim, full) < 0)
        return ln_fail(LN_BAD_ARGUMENT, "expand: %s does not expand to %s", ln_text(t),
                       ln_text_shape(ndim, shape));
    ln_tensor v = ln_broadcast(t, ndim, full);
    return ln_view_new(out, &v);
}

ln_status ln_diagonal(ln_tensor **out, const ln_tensor *t, int64_t offset, int dim1, int dim2) {
    ln_status status = check_view(out, t, "diagonal");
    if (status == LN_OK) status = check_dim(t, dim1, "diagonal");
    if (status == LN_OK) status = check_dim(t, dim2, "diagonal");
    if (status != LN_OK) return status;
    if (dim1 == dim2)
        return ln_fail(LN_BAD_ARGUMENT, "diagonal: takes two dimensions; got %d twice", dim1 + 1);
    int64_t rows = t->shape[dim1], columns = t->shape[dim2];
    if (offset < -rows) offset = -rows;
    if (offset > columns) offset = columns;
    int64_t row = offset < 0 ? -offset : 0, column = offset > 0 ? offset : 0;
    int64_t count = rows - row < columns - column ? rows - row : columns - column;
    ln_tensor v = *t;
    if (count > 0)
        v.data +=
            (size_t)(row * t->stride[dim1] + column * t->stride[dim2]) * ln_dtype_size(t->dtype);
    int n = 0;
    for (int i = 0; i < t->ndim; i++) {
        if (i == dim1 || i == dim2) continue;
        v.shape[n] = t->shape[i];
        v.stride[n++] = t->stride[i];
    }
    v.shape[n] = count;
    v.stride[n] = t->stride[dim1] + t->stride[dim2];
    v.ndim = n + 1;
    v.numel = count_elements(v.ndim, v.shape);
    return ln_view_new(out, &v);
}

/* ---- Looking at a tensor ---- */

ln_status ln_tensor_describe(ln_tensor_info *out, const ln_tensor *t) {
    if (t == NULL) return ln_fail(LN_BAD_ARGUMENT, "describe: the tensor was freed");
    *out = (ln_tensor_info){
        .dtype = t->dtype,
        .device = ln_device(t),
        .ndim = t->ndim,
        .contiguous = ln_is_contiguous(t),
        .channels_last = ln_is_channels_last(t),
        .version = ln_tensor_version(t),
        .holders = atomic_load_explicit(&t->storage->refs, memory_order_relaxed),
        .numel = t->numel,
        .storage = (int64_t)(intptr_t)t->storage,
    };
    memcpy(out->shape, t->shape, (size_t)t->ndim * sizeof *t->shape);
    memcpy(out->stride, t->stride, (size_t)t->ndim * sizeof *t->stride);
    return LN_OK;
}

uint32_t ln_tensor_version(const ln_tensor *t) {
    if (t == NULL) return 0;
    return atomic_load_explicit(&t->storage->version, memory_order_relaxed) +
           ln_tensor_version(t->second);
}

/* Steps a cursor in row-major order: from the element at p and its positions, which start at 0, to
 * the next one. */
static char *next_element(const ln_tensor *t, char *p, int64_t *position) {
    int64_t size = (int64_t)ln_dtype_size(t->dtype);
    for (int d = t->ndim - 1; d >= 0; d--) {
        p += t->stride[d] * size;
        if (++position[d] < t->shape[d]) return p;
        p -= t->stride[d] * t->shape[d] * size;
        position[d] = 0;
    }
    return p;
}

static ln_status check_host(const ln_tensor *t, int64_t n, const char *what) {
    ln_status status = ln_check_inputs(what, 1, &t);
    if (status != LN_OK) return status;
    if (n != t->numel)
        return ln_fail(LN_BAD_ARGUMENT, "%s: %lld values for %s", what, (long long)n, ln_text(t));
    return LN_OK;
}

/* Values of a tensor on another device go by way of one on the CPU. */
static ln_status write_across(ln_tensor *t, const double *values, int64_t n) {
    ln_tensor *host = NULL;
    ln_status status =
        ln_capture_refuses("write", "make tensors of Lua's values before it, or fill them there");
    if (status != LN_OK) return status;
    status = ln_tensor_new(&host, t->dtype, LN_CPU, LN_USUAL, t->ndim, t->shape, "write");
    if (status == LN_OK) status = ln_tensor_write(host, values, n);
    if (status == LN_OK) status = ln_copy(t, host);
    ln_tensor_release(host);
    return status;
}

static ln_status read_across(double *values, const ln_tensor *t, int64_t n) {
    ln_tensor *host = NULL;
    ln_status status =
        ln_capture_refuses("read", "return the tensor, and look at its values after the step");
    if (status != LN_OK) return status;
    status = ln_to_device(&host, t, LN_CPU);
    if (status == LN_OK) status = ln_tensor_read(values, host, n);
    ln_tensor_release(host);
    return status;
}

ln_status ln_tensor_write(ln_tensor *t, const double *values, int64_t n) {
    ln_status status = check_host(t, n, "write");
    if (status != LN_OK) return status;
    if (ln_device(t) != LN_CPU) return write_across(t, values, n);
    ln_wrote(t);
    int64_t position[LN_MAX_DIMS] = {0};
    char *p = t->data;
    for (int64_t i = 0; i < n; i++, p = next_element(t, p, position))
        ln_element_set(t->dtype, p, values[i]);
    return LN_OK;
}

ln_status ln_tensor_read(double *values, const ln_tensor *t, int64_t n) {
    ln_status status = check_host(t, n, "read");
    if (status != LN_OK) return status;
    if (ln_device(t) != LN_CPU) return read_across(values, t, n);
    int64_t position[LN_MAX_DIMS] = {0};
    char *p = t->data;
    for (int64_t i = 0; i < n; i++, p = next_element(t, p, position))
        values[i] = ln_element_get(t->dtype, p);
    return LN_OK;
}

ln_status ln_tensor_element(double *value, int64_t *positions, const ln_tensor *t, int64_t i) {
    ln_tensor one = *t;
    one.ndim = 0;
    one.numel = 1;
    for (int d = t->ndim - 1; d >= 0; d--) {
        positions[d] = i % t->shape[d] + 1;
        i /= t->shape[d];
        one.data += (positions[d] - 1) * t->stride[d] * (int64_t)ln_dtype_size(t->dtype);
    }
    return ln_tensor_read(value, &one, 1);
}
