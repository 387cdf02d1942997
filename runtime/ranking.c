/* The similarity operators that look at single entries and at the order of whole rows: checks,
 * outputs, and the call of the backend. Loops over masks to count candidates, never over the
 * similarities. */
#include "similarity.h"

#include <stdlib.h>
#include <string.h>

static int64_t columns_of(const ln_tensor *q, const ln_tensor *k) {
    return k != NULL ? k->shape[0] : q->shape[0];
}

static ln_status check_rows(const ln_tensor *q, const ln_tensor *k, int n_masks,
                            const ln_mask *masks) {
    ln_status status = ln_similarity_check(q, k);
    if (status != LN_OK) return status;
    return ln_masks_check(n_masks, masks, ln_device(q), q->shape[0], columns_of(q, k));
}

ln_status ln_similarity_topk(ln_tensor **values, ln_tensor **columns, const ln_tensor *q,
                             const ln_tensor *k, bool cosine, int64_t count, int n_masks,
                             const ln_mask *masks, ln_tiles *tiles) {
    const ln_tensor *given[] = {*values, *columns};
    ln_status status;
    LN_TRY(check_rows(q, k, n_masks, masks));
    LN_TRY(ln_tiles_check(tiles, q));
    if (count < 0 || count > columns_of(q, k))
        LN_TRY(ln_fail(LN_BAD_ARGUMENT, "similarity: the %lld largest of %lld columns",
                       (long long)count, (long long)columns_of(q, k)));
    const int64_t shape[] = {q->shape[0], count};
    LN_TRY(ln_out(values, q->dtype, ln_device(q), 2, shape, "similarity"));
    LN_TRY(ln_out(columns, LN_INT64, ln_device(q), 2, shape, "similarity"));
    LN_TRY(ln_backend_of(ln_device(q))
               ->similarity_topk(*values, *columns, q, k, cosine, n_masks, masks, tiles));
    return LN_OK;
fail:
    ln_out_fail(values, given[0]);
    ln_out_fail(columns, given[1]);
    return status;
}

static ln_status check_tail(const ln_tensor *q, const ln_tensor *k, int64_t candidates,
                            int64_t points, int64_t burnt, int n_masks, const ln_mask *masks) {
    ln_status status = check_rows(q, k, n_masks, masks);
    if (status != LN_OK) return status;
    if (points < 1 || points > candidates || burnt < 0 || burnt > points)
        return ln_fail(LN_BAD_ARGUMENT,
                       "similarity: a tail of %lld points, %lld of them burnt, of %lld candidates",
                       (long long)points, (long long)burnt, (long long)candidates);
    return LN_OK;
}

ln_status ln_similarity_tail(ln_tensor **fits, const ln_tensor *q, const ln_tensor *k, bool cosine,
                             int64_t points, int64_t burnt, int n_masks, const ln_mask *masks,
                             ln_tiles *tiles) {
    const ln_tensor *given = *fits;
    ln_status status;
    LN_TRY(check_tail(q, k, q != NULL ? columns_of(q, k) : 0, points, burnt, n_masks, masks));
    LN_TRY(ln_tiles_check(tiles, q));
    const int64_t shape[] = {q->shape[0], 5};
    LN_TRY(ln_out(fits, LN_FLOAT64, ln_device(q), 2, shape, "similarity"));
    LN_TRY(ln_backend_of(ln_device(q))
               ->similarity_tail(*fits, q, k, cosine, n_masks, masks, points, burnt, tiles));
    return LN_OK;
fail:
    ln_out_fail(fits, given);
    return status;
}

ln_status ln_similarity_pooled_tail(ln_tensor **fit, const ln_tensor *q, const ln_tensor *k,
                                    bool cosine, int64_t points, int64_t burnt, int n_masks,
                                    const ln_mask *masks) {
    const ln_tensor *given = *fit;
    const int64_t shape[] = {5};
    int64_t candidates = q != NULL ? q->shape[0] * columns_of(q, k) : 0;
    ln_status status;
    LN_TRY(check_tail(q, k, candidates, points, burnt, n_masks, masks));
    LN_TRY(ln_out(fit, LN_FLOAT64, ln_device(q), 1, shape, "similarity"));
    LN_TRY(ln_backend_of(ln_device(q))
               ->similarity_pooled_tail(*fit, q, k, cosine, n_masks, masks, points, burnt));
    return LN_OK;
fail:
    ln_out_fail(fit, given);
    return status;
}

static ln_status check_columns(const ln_tensor *columns, const ln_tensor *q, const ln_tensor *k) {
    const ln_tensor *inputs[] = {q, columns};
    ln_status status = ln_similarity_check(q, k);
    if (status == LN_OK) status = ln_check_inputs("similarity", 2, inputs);
    if (status != LN_OK) return status;
    if (columns->ndim != 2 || columns->shape[0] != q->shape[0] || columns->dtype != LN_INT64 ||
        !ln_is_contiguous(columns))
        return ln_fail(LN_BAD_ARGUMENT,
                       "similarity: columns are %s; (%lld,K) contiguous int64 is taken",
                       ln_text(columns), (long long)q->shape[0]);
    return ln_index_check(columns, columns_of(q, k), "similarity");
}

ln_status ln_similarity_at(ln_tensor **out, const ln_tensor *q, const ln_tensor *k, bool cosine,
                           const ln_tensor *columns) {
    const ln_tensor *given = *out;
    ln_status status;
    LN_TRY(check_columns(columns, q, k));
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
    const ln_tensor *inputs[] = {q, dy};
    ln_status status;
    LN_TRY(check_columns(columns, q, k));
    LN_TRY(ln_check_inputs("similarity", 2, inputs));
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

static bool admits(const ln_mask *mask, int64_t row, int64_t column) {
    const int64_t *rows = mask->row != NULL ? (const int64_t *)mask->row->data : NULL;
    const int64_t *columns = mask->column != NULL ? (const int64_t *)mask->column->data : NULL;
    switch (mask->kind) {
    case LN_MASK_SELF: return row != column;
    case LN_MASK_TRIANGLE: return column > row;
    case LN_MASK_INDEX: return rows[row] - 1 != column;
    case LN_MASK_SAME: return rows[row] == columns[column];
    default: return rows[row] != columns[column];
    }
}

static bool all_admit(int n_masks, const ln_mask *masks, int64_t row, int64_t column) {
    for (int i = 0; i < n_masks; i++)
        if (!admits(&masks[i], row, column)) return false;
    return true;
}

static int compare_labels(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* How many of the sorted labels are below `label`. */
static int64_t labels_below(const int64_t *sorted, int64_t n, int64_t label) {
    int64_t low = 0, high = n;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (sorted[middle] < label) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* The masks in two kinds: those that drop at most one column of a row, and the wide ones. */
typedef struct {
    int64_t m;
    ln_mask single[LN_MAX_MASKS], wide[LN_MAX_MASKS];
    int n_single, n_wide;
    int64_t *sorted; /* the only wide mask's column labels */
} counter;

static ln_status counter_new(counter *c, int64_t m, int n_masks, const ln_mask *masks) {
    *c = (counter){.m = m};
    for (int i = 0; i < n_masks; i++) {
        bool single = masks[i].kind == LN_MASK_SELF || masks[i].kind == LN_MASK_INDEX;
        if (single) c->single[c->n_single++] = masks[i];
        else c->wide[c->n_wide++] = masks[i];
    }
    if (c->n_wide != 1 || c->wide[0].kind == LN_MASK_TRIANGLE) return LN_OK;
    size_t bytes = (size_t)m * sizeof *c->sorted;
    c->sorted = ln_scratch_new(bytes + 1, "similarity");
    if (c->sorted == NULL) return LN_OUT_OF_MEMORY;
    memcpy(c->sorted, c->wide[0].column->data, bytes);
    qsort(c->sorted, (size_t)m, sizeof *c->sorted, compare_labels);
    return LN_OK;
}

/* What the wide masks admit of a row. Looks at each column only where there are several. */
static int64_t count_wide(const counter *c, int64_t row) {
    if (c->n_wide == 0) return c->m;
    if (c->n_wide == 1 && c->wide[0].kind == LN_MASK_TRIANGLE)
        return row + 1 < c->m ? c->m - row - 1 : 0;
    if (c->n_wide == 1) {
        int64_t label = ((const int64_t *)c->wide[0].row->data)[row];
        int64_t below = labels_below(c->sorted, c->m, label);
        int64_t same =
            label == INT64_MAX ? c->m - below : labels_below(c->sorted, c->m, label + 1) - below;
        return c->wide[0].kind == LN_MASK_SAME ? same : c->m - same;
    }
    int64_t count = 0;
    for (int64_t column = 0; column < c->m; column++)
        count += all_admit(c->n_wide, c->wide, row, column);
    return count;
}

static int64_t count_row(const counter *c, int64_t row) {
    int64_t dropped[LN_MAX_MASKS], n = 0;
    for (int i = 0; i < c->n_single; i++) {
        const ln_mask *mask = &c->single[i];
        int64_t column =
            mask->kind == LN_MASK_SELF ? row : ((const int64_t *)mask->row->data)[row] - 1;
        bool known = column >= c->m || !all_admit(c->n_wide, c->wide, row, column);
        for (int64_t j = 0; j < n; j++) known |= dropped[j] == column;
        if (!known) dropped[n++] = column;
    }
    return count_wide(c, row) - n;
}

/* Copies of the masks with labels in host memory, which `held` (2 LN_MAX_MASKS) owns. */
static ln_status fetch_masks(ln_mask *out, ln_tensor **held, int n_masks, const ln_mask *masks) {
    for (int i = 0; i < n_masks; i++) {
        out[i] = masks[i];
        const ln_tensor **side[] = {&out[i].row, &out[i].column};
        for (int j = 0; j < 2; j++) {
            if (*side[j] == NULL) continue;
            ln_status status = ln_on_host(&held[2 * i + j], *side[j]);
            if (status != LN_OK) return status;
            *side[j] = held[2 * i + j];
        }
    }
    return LN_OK;
}

/* Where the masks' labels lie. */
static int device_of(int n_masks, const ln_mask *masks) {
    for (int i = 0; i < n_masks && i < LN_MAX_MASKS; i++)
        if (masks[i].row != NULL) return ln_device(masks[i].row);
    return LN_CPU;
}

ln_status ln_similarity_count(ln_tensor **out, int64_t n, int64_t m, int n_masks,
                              const ln_mask *masks) {
    ln_status status;
    const ln_tensor *given = *out;
    ln_mask here[LN_MAX_MASKS];
    ln_tensor *held[2 * LN_MAX_MASKS] = {0};
    counter c = {0};
    LN_TRY(ln_masks_check(n_masks, masks, device_of(n_masks, masks), n, m));
    LN_TRY(fetch_masks(here, held, n_masks, masks));
    LN_TRY(counter_new(&c, m, n_masks, here));
    LN_TRY(ln_out(out, LN_INT64, LN_CPU, 1, &n, "similarity"));
#pragma omp parallel for num_threads(ln_team(c.n_wide > 1 ? n * m : n))
    for (int64_t i = 0; i < n; i++)
        ((int64_t *)(*out)->data)[i * (*out)->stride[0]] = count_row(&c, i);
fail:
    for (int i = 0; i < 2 * LN_MAX_MASKS; i++) ln_tensor_release(held[i]);
    ln_scratch_release(c.sorted);
    if (status != LN_OK) ln_out_fail(out, given);
    return status;
}
