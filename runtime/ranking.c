/* The similarity operators that look at single entries, at the order of whole rows and at masks
 * alone: checks, outputs, and the call of the backend. Holds no loop over elements. */
#include "count.h"
#include "similarity.h"

static int64_t columns_of(const ln_tensor *q, const ln_tensor *k) {
    return k != NULL ? k->shape[0] : q->shape[0];
}

static ln_status check_rows(const ln_tensor *q, const ln_tensor *k, int tile_dtype, int n_masks,
                            const ln_mask *masks) {
    ln_status status = ln_similarity_check(q, k);
    if (status == LN_OK) status = ln_tile_dtype_check(tile_dtype);
    if (status != LN_OK) return status;
    return ln_masks_check(n_masks, masks, ln_device(q), q->shape[0], columns_of(q, k), false);
}

ln_status ln_similarity_topk(ln_tensor **values, ln_tensor **columns, const ln_tensor *q,
                             const ln_tensor *k, bool cosine, int tile_dtype, int64_t count,
                             int n_masks, const ln_mask *masks, ln_tiles *tiles) {
    const ln_tensor *given[] = {*values, *columns};
    ln_status status;
    LN_TRY(check_rows(q, k, tile_dtype, n_masks, masks));
    LN_TRY(ln_tiles_check(tiles, q));
    if (count < 0 || count > columns_of(q, k))
        LN_TRY(ln_fail(LN_BAD_ARGUMENT, "similarity: the %lld largest of %lld columns",
                       (long long)count, (long long)columns_of(q, k)));
    const int64_t shape[] = {q->shape[0], count};
    LN_TRY(ln_out(values, q->dtype, ln_device(q), 2, shape, "similarity"));
    LN_TRY(ln_out(columns, LN_INT64, ln_device(q), 2, shape, "similarity"));
    LN_TRY(
        ln_backend_of(ln_device(q))
            ->similarity_topk(*values, *columns, q, k, cosine, tile_dtype, n_masks, masks, tiles));
    return LN_OK;
fail:
    ln_out_fail(values, given[0]);
    ln_out_fail(columns, given[1]);
    return status;
}

static ln_status check_tail(const ln_tensor *q, const ln_tensor *k, int tile_dtype,
                            int64_t candidates, int64_t points, int64_t burnt, int n_masks,
                            const ln_mask *masks) {
    ln_status status = check_rows(q, k, tile_dtype, n_masks, masks);
    if (status != LN_OK) return status;
    if (points < 1 || points > candidates || burnt < 0 || burnt > points)
        return ln_fail(LN_BAD_ARGUMENT,
                       "similarity: a tail of %lld points, %lld of them burnt, of %lld candidates",
                       (long long)points, (long long)burnt, (long long)candidates);
    return LN_OK;
}

ln_status ln_similarity_tail(ln_tensor **fits, const ln_tensor *q, const ln_tensor *k, bool cosine,
                             int tile_dtype, int64_t points, int64_t burnt, int n_masks,
                             const ln_mask *masks, ln_tiles *tiles) {
    const ln_tensor *given = *fits;
    int64_t candidates = q != NULL ? columns_of(q, k) : 0;
    ln_status status;
    LN_TRY(check_tail(q, k, tile_dtype, candidates, points, burnt, n_masks, masks));
    LN_TRY(ln_tiles_check(tiles, q));
    const int64_t shape[] = {q->shape[0], 5};
    LN_TRY(ln_out(fits, LN_FLOAT64, ln_device(q), 2, shape, "similarity"));
    LN_TRY(ln_backend_of(ln_device(q))
               ->similarity_tail(*fits, q, k, cosine, tile_dtype, n_masks, masks, points, burnt,
                                 tiles));
    return LN_OK;
fail:
    ln_out_fail(fits, given);
    return status;
}

ln_status ln_similarity_pooled_tail(ln_tensor **fit, const ln_tensor *q, const ln_tensor *k,
                                    bool cosine, int tile_dtype, int64_t points, int64_t burnt,
                                    int n_masks, const ln_mask *masks) {
    const ln_tensor *given = *fit;
    const int64_t shape[] = {5};
    int64_t candidates = q != NULL ? q->shape[0] * columns_of(q, k) : 0;
    ln_status status;
    LN_TRY(check_tail(q, k, tile_dtype, candidates, points, burnt, n_masks, masks));
    LN_TRY(ln_out(fit, LN_FLOAT64, ln_device(q), 1, shape, "similarity"));
    LN_TRY(ln_backend_of(ln_device(q))
               ->similarity_pooled_tail(*fit, q, k, cosine, tile_dtype, n_masks, masks, points,
                                        burnt));
    return LN_OK;
fail:
    ln_out_fail(fit, given);
    return status;
}

/* looked: an operator before has looked at the columns, and kernels of a device look again. */
static ln_status check_columns(const ln_tensor *columns, const ln_tensor *q, const ln_tensor *k,
                               bool looked) {
    ln_status status = ln_similarity_check(q, k);
    if (status == LN_OK) status = ln_check_beside(q, columns);
    if (status != LN_OK) return status;
    if (columns->ndim != 2 || columns->shape[0] != q->shape[0] || columns->dtype != LN_INT64 ||
        !ln_is_contiguous(columns))
        return ln_fail(LN_BAD_ARGUMENT,
                       "similarity: columns are %s; (%lld,K) contiguous int64 is taken",
                       ln_text(columns), (long long)q->shape[0]);
    if (looked && ln_device(q) != LN_CPU) return LN_OK;
    return ln_index_check(columns, columns_of(q, k), "similarity");
}

ln_status ln_similarity_at(ln_tensor **out, const ln_tensor *q, const ln_tensor *k, bool cosine,
                           const ln_tensor *columns) {
    const ln_tensor *given = *out;
    ln_status status;
    LN_TRY(check_columns(columns, q, k, false));
    LN_TRY(ln_out(out, q->dtype, ln_device(q), 2, columns->shape, "similarity"));
    LN_TRY(ln_backend_of(ln_device(q))->similarity_at(*out, q, k, cosine, columns));
    return LN_OK;
fail:
    ln_out_fail(out, given);
    return status;
}

/* What a gradient is added to: what is given, or zeros. */
static ln_status gradient_of(ln_tensor **made, ln_tensor *given, const ln_tensor *x) {
    if (given == NULL) {
        ln_status status = ln_out(made, x->dtype, ln_device(x), 2, x->shape, "similarity");
        return status == LN_OK ? ln_backend_of(ln_device(x))->fill(*made, 0) : status;
    }
    if (!ln_same_shape(given, x) || given->dtype != x->dtype || !ln_is_contiguous(given))
        return ln_fail(LN_BAD_ARGUMENT, "similarity: a gradient of %s cannot be added to %s",
                       ln_text(x), ln_text(given));
    *made = given;
    ln_wrote(given);
    return LN_OK;
}

ln_status ln_similarity_at_backward(ln_tensor **dq, ln_tensor **dk, const ln_tensor *dy,
                                    const ln_tensor *q, const ln_tensor *k, bool cosine,
                                    const ln_tensor *columns) {
    ln_tensor *to_q = NULL, *to_k = NULL;
    ln_status status;
    LN_TRY(check_columns(columns, q, k, true));
    LN_TRY(ln_check_beside(q, dy));
    if (!ln_same_shape(dy, columns) || dy->dtype != q->dtype || !ln_is_contiguous(dy) ||
        (k == NULL && dk != NULL))
        LN_TRY(ln_fail(LN_BAD_ARGUMENT, "similarity: the gradient of entries %s is %s",
                       ln_text(columns), ln_text(dy)));
    if (dq != NULL) LN_TRY(gradient_of(&to_q, *dq, q));
    if (dk != NULL) LN_TRY(gradient_of(&to_k, *dk, k));
    LN_TRY(
        ln_backend_of(ln_device(q))->similarity_at_backward(to_q, to_k, dy, q, k, cosine, columns));
    if (dq != NULL) *dq = to_q;
    if (dk != NULL) *dk = to_k;
    return LN_OK;
fail:
    if (dq != NULL && to_q != *dq) ln_tensor_release(to_q);
    if (dk != NULL && to_k != *dk) ln_tensor_release(to_k);
    return status;
}

/* ---- Counting candidates ---- */

/* The labels of the columns in order, where just one mask compares with labels and no other looks
 * at all columns. */
static ln_status sort_labels(ln_tensor **sorted, int n_masks, const ln_mask *masks) {
    const ln_mask *wide = NULL;
    ln_tensor *places = NULL;
    int n_wide = 0;
    for (int i = 0; i < n_masks; i++)
        if (!ln_mask_is_single(&masks[i])) {
            wide = &masks[i];
            n_wide++;
        }
    if (n_wide != 1 || wide->kind == LN_MASK_TRIANGLE) return LN_OK;
    ln_status status = ln_sort(sorted, &places, wide->column, 0, false);
    ln_tensor_release(places);
    return status;
}

ln_status ln_similarity_count(ln_tensor **out, int device, int64_t n, int64_t m, int n_masks,
                              const ln_mask *masks) {
    ln_status status;
    const ln_tensor *given = *out;
    ln_tensor *sorted = NULL;
    LN_TRY(ln_device_check(device, "similarity"));
    LN_TRY(ln_masks_check(n_masks, masks, device, n, m, false));
    LN_TRY(sort_labels(&sorted, n_masks, masks));
    LN_TRY(ln_out(out, LN_INT64, device, 1, &n, "similarity"));
    LN_TRY(ln_backend_of(device)->similarity_count(*out, m, n_masks, masks, sorted));
fail:
    ln_tensor_release(sorted);
    if (status != LN_OK) ln_out_fail(out, given);
    return status;
}
