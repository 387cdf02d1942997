/* Sorting, choosing and scattering: checks, results' shapes, dispatch. No element loops. Invariant:
 * what reaches a backend has been checked as ops.def promises; the values inside index tensors are
 * the backend's to check. */
#include <stdio.h>

#include "check.h"

static ln_status choose(ln_tensor **values, ln_tensor **indices, const ln_tensor *x, int64_t k,
                        int dim, bool largest, const char *what) {
    ln_tensor *const given_values = *values, *const given_indices = *indices;
    int64_t shape[LN_MAX_DIMS];
    for (int i = 0; i < x->ndim; i++) shape[i] = i == dim ? k : x->shape[i];
    ln_status status;
    LN_TRY(ln_out(values, x->dtype, ln_device(x), x->ndim, shape, what));
    LN_TRY(ln_out(indices, LN_INT64, ln_device(x), x->ndim, shape, what));
    LN_TRY(ln_backend_of(ln_device(x))->topk(*values, *indices, x, k, dim, largest));
    return LN_OK;
fail:
    ln_out_fail(values, given_values);
    ln_out_fail(indices, given_indices);
    return status;
}

ln_status ln_sort(ln_tensor **values, ln_tensor **indices, const ln_tensor *x, int dim,
                  bool descending) {
    ln_status status = ln_check_inputs("sort", 1, &x);
    if (status == LN_OK) status = check_dim("sort", x, dim);
    if (status != LN_OK) return status;
    return choose(values, indices, x, x->shape[dim], dim, descending, "sort");
}

ln_status ln_topk(ln_tensor **values, ln_tensor **indices, const ln_tensor *x, int64_t k, int dim,
                  bool largest) {
    ln_status status = ln_check_inputs("topk", 1, &x);
    if (status == LN_OK) status = check_dim("topk", x, dim);
    if (status != LN_OK) return status;
    if (k < 0 || k > x->shape[dim])
        return ln_fail(LN_BAD_ARGUMENT, "topk: k %lld is outside 0..%lld, dimension %d of %s",
                       (long long)k, (long long)x->shape[dim], dim + 1, ln_text(x));
    return choose(values, indices, x, k, dim, largest, "topk");
}

/* ndim: the dimensions that index must have. */
static ln_status check_index(const char *what, const ln_tensor *x, int dim, const ln_tensor *index,
                             int ndim) {
    ln_status status = check_dim(what, x, dim);
    if (status != LN_OK) return status;
    if (index->dtype != LN_INT64 && index->dtype != LN_INT32)
        return ln_fail(LN_BAD_ARGUMENT, "%s: the index is %s; int64 and int32 are taken", what,
                       ln_text_dtype(index->dtype));
    if (index->ndim != ndim)
        return ln_fail(LN_BAD_ARGUMENT, "%s: index %s has %d dimensions; %d are taken", what,
                       ln_text(index), index->ndim, ndim);
    return LN_OK;
}

ln_status ln_index_check(const ln_tensor *index, int64_t extent, const char *what) {
    int64_t first, at[LN_MAX_DIMS];
    double value;
    char position[24];
    ln_status status = ln_check_inputs(what, 1, &index);
    if (status != LN_OK) return status;
    if (index->dtype != LN_INT64 && index->dtype != LN_INT32)
        return ln_fail(LN_BAD_ARGUMENT, "%s: the index is %s; int64 and int32 are taken", what,
                       ln_text_dtype(index->dtype));
    status = ln_backend_of(ln_device(index))->index_check(&first, index, extent, what);
    if (status != LN_OK || first < 0) return status;
    status = ln_tensor_element(&value, at, index, first);
    if (status != LN_OK) return status;
    snprintf(position, sizeof position, "%lld", (long long)first + 1);
    return ln_fail(LN_BAD_ARGUMENT, "%s: index %lld at position %s is outside 1..%lld", what,
                   (long long)value, index->ndim == 1 ? position : ln_text_shape(index->ndim, at),
                   (long long)extent);
}

ln_status ln_index_select(ln_tensor **out, const ln_tensor *x, int dim, const ln_tensor *index) {
    ln_tensor *const given = *out;
    ln_status status = ln_check_inputs("index_select", 2, (const ln_tensor *[]){x, index});
    if (status == LN_OK) status = check_index("index_select", x, dim, index, 1);
    if (status != LN_OK) return status;
    int64_t shape[LN_MAX_DIMS];
    for (int i = 0; i < x->ndim; i++) shape[i] = i == dim ? index->shape[0] : x->shape[i];
    LN_TRY(ln_out(out, x->dtype, ln_device(x), x->ndim, shape, "index_select"));
    LN_TRY(ln_backend_of(ln_device(x))->index_select(*out, x, dim, index));
    return LN_OK;
fail:
    ln_out_fail(out, given);
    return status;
}

static ln_status check_written(const char *what, const ln_tensor *dst, const ln_tensor *src) {
    if (dst->dtype != src->dtype)
        return ln_fail(LN_BAD_ARGUMENT, "%s: %s into %s; dtypes must be equal", what, ln_text(src),
                       ln_text(dst));
    if (dst->ndim != src->ndim)
        return ln_fail(LN_BAD_ARGUMENT, "%s: %s into %s; dimensions must be as many", what,
                       ln_text(src), ln_text(dst));
    for (int i = 0; i < dst->ndim; i++)
        if (dst->numel > 0 && dst->stride[i] == 0 && dst->shape[i] > 1)
            return ln_fail(LN_BAD_ARGUMENT, "%s: cannot write in place into an expanded tensor",
                           what);
    return LN_OK;
}

/* index: one position along dim for each of src's. */
static ln_status check_lines(const char *what, const ln_tensor *dst, int dim,
                             const ln_tensor *index, const ln_tensor *src) {
    ln_status status = ln_check_inputs(what, 3, (const ln_tensor *[]){dst, index, src});
    if (status == LN_OK) status = check_index(what, dst, dim, index, 1);
    if (status == LN_OK) status = check_written(what, dst, src);
    if (status != LN_OK) return status;
    for (int i = 0; i < dst->ndim; i++)
        if (src->shape[i] != (i == dim ? index->shape[0] : dst->shape[i]))
            return ln_fail(LN_BAD_ARGUMENT, "%s: %s along dimension %d into %s at an index of %lld",
                           what, ln_text(src), dim + 1, ln_text(dst), (long long)index->shape[0]);
    return LN_OK;
}

ln_status ln_index_add(ln_tensor *dst, int dim, const ln_tensor *index, const ln_tensor *src) {
    ln_status status = check_lines("index_add", dst, dim, index, src);
    if (status == LN_OK) status = ln_backend_of(ln_device(dst))->index_add(dst, dim, index, src);
    if (status == LN_OK) ln_wrote(dst);
    return status;
}

ln_status ln_index_copy(ln_tensor *dst, int dim, const ln_tensor *index, const ln_tensor *src) {
    ln_status status = check_lines("index_copy_", dst, dim, index, src);
    if (status == LN_OK && dst->storage == src->storage)
        status = ln_fail(LN_BAD_ARGUMENT,
                         "index_copy_: the source is a view of what is written to; clone it");
    if (status == LN_OK) status = ln_backend_of(ln_device(dst))->index_copy(dst, dim, index, src);
    if (status == LN_OK) ln_wrote(dst);
    return status;
}

/* index may be smaller than x along every dimension but dim, as PyTorch has it. */
static ln_status check_within(const char *what, const ln_tensor *index, const ln_tensor *x,
                              int dim) {
    for (int i = 0; i < index->ndim; i++)
        if (i != dim && index->shape[i] > x->shape[i])
            return ln_fail(LN_BAD_ARGUMENT, "%s: index %s is larger than %s in dimension %d", what,
                           ln_text(index), ln_text(x), i + 1);
    return LN_OK;
}

ln_status ln_gather(ln_tensor **out, const ln_tensor *x, int dim, const ln_tensor *index) {
    ln_tensor *const given = *out;
    ln_status status = ln_check_inputs("gather", 2, (const ln_tensor *[]){x, index});
    if (status == LN_OK) status = check_index("gather", x, dim, index, x->ndim);
    if (status == LN_OK) status = check_within("gather", index, x, dim);
    if (status != LN_OK) return status;
    LN_TRY(ln_out(out, x->dtype, ln_device(x), x->ndim, index->shape, "gather"));
    LN_TRY(ln_backend_of(ln_device(x))->gather(*out, x, dim, index));
    return LN_OK;
fail:
    ln_out_fail(out, given);
    return status;
}

ln_status ln_scatter_add(ln_tensor *dst, int dim, const ln_tensor *index, const ln_tensor *src) {
    const char *what = "scatter_add";
    ln_status status = ln_check_inputs(what, 3, (const ln_tensor *[]){dst, index, src});
    if (status == LN_OK) status = check_index(what, dst, dim, index, dst->ndim);
    if (status == LN_OK) status = check_written(what, dst, src);
    if (status == LN_OK) status = check_within(what, index, dst, dim);
    if (status == LN_OK) status = check_within(what, index, src, -1);
    if (status != LN_OK) return status;
    status = ln_backend_of(ln_device(dst))->scatter_add(dst, dim, index, src);
    if (status == LN_OK) ln_wrote(dst);
    return status;
}
