/* Masks of the similarity matrix as index predicates: what they leave of a tile, and setting what
 * they exclude from a row. Compiled once for each element type and instruction set. */
#include "mask.h"

static const int64_t *labels(const ln_tensor *t) {
    return (const int64_t *)t->data;
}

static void label_range(const int64_t *x, int64_t from, int64_t to, int64_t *low, int64_t *high) {
    *low = INT64_MAX;
    *high = INT64_MIN;
    for (int64_t i = from; i < to; i++) {
        if (x[i] < *low) *low = x[i];
        if (x[i] > *high) *high = x[i];
    }
}

static mask_class classify_labels(const ln_mask *mask, tile_range r) {
    int64_t row_low, row_high, column_low, column_high;
    label_range(labels(mask->row), r.row0, r.row1, &row_low, &row_high);
    label_range(labels(mask->column), r.column0, r.column1, &column_low, &column_high);
    bool apart = row_high < column_low || column_high < row_low;
    bool one = row_low == row_high && column_low == column_high && row_low == column_low;
    if (!apart && !one) return MASK_MIXED;
    return apart == (mask->kind == LN_MASK_SAME) ? MASK_EMPTY : MASK_FULL;
}

static mask_class classify(const ln_mask *mask, tile_range r) {
    switch (mask->kind) {
    case LN_MASK_SELF: return r.row1 <= r.column0 || r.column1 <= r.row0 ? MASK_FULL : MASK_MIXED;
    case LN_MASK_TRIANGLE:
        if (r.column0 > r.row1 - 1) return MASK_FULL;
        return r.column1 - 1 <= r.row0 ? MASK_EMPTY : MASK_MIXED;
    case LN_MASK_INDEX:
        for (int64_t i = r.row0; i < r.row1; i++) {
            int64_t column = labels(mask->row)[i] - 1;
            if (column >= r.column0 && column < r.column1) return MASK_MIXED;
        }
        return MASK_FULL;
    default: return classify_labels(mask, r);
    }
}

mask_class REAL(mask_classify)(int n_masks, const ln_mask *masks, tile_range r) {
    mask_class all = MASK_FULL;
    for (int i = 0; i < n_masks && all != MASK_EMPTY; i++) {
        mask_class one = classify(&masks[i], r);
        if (one < all) all = one;
    }
    return all;
}

static void exclude_one(real *x, real excluded, int64_t t, int64_t n) {
    if (t >= 0 && t < n) x[t] = excluded;
}

static void exclude_range(real *x, real excluded, int64_t from, int64_t to, int64_t n) {
    for (int64_t t = from < 0 ? 0 : from; t < to && t < n; t++) x[t] = excluded;
}

static void exclude_labels(real *x, real excluded, const int64_t *others, int64_t own, bool same,
                           int64_t n) {
    if (same)
        for (int64_t t = 0; t < n; t++) x[t] = others[t] == own ? x[t] : excluded;
    else
        for (int64_t t = 0; t < n; t++) x[t] = others[t] != own ? x[t] : excluded;
}

/* Sets x to `excluded` where a mask does not admit the entries (row, column + t), t < n; those of
 * the transposed matrix, (column + t, row), when flipped. */
static void apply_mask(real *x, real excluded, const ln_mask *mask, bool flipped, int64_t row,
                       int64_t column, int64_t n) {
    switch (mask->kind) {
    case LN_MASK_SELF: exclude_one(x, excluded, row - column, n); break;
    case LN_MASK_TRIANGLE:
        if (flipped) exclude_range(x, excluded, row - column, n, n);
        else exclude_range(x, excluded, 0, row - column + 1, n);
        break;
    case LN_MASK_INDEX:
        if (flipped) exclude_labels(x, excluded, labels(mask->row) + column, row + 1, false, n);
        else exclude_one(x, excluded, labels(mask->row)[row] - 1 - column, n);
        break;
    default:
        exclude_labels(x, excluded, labels(flipped ? mask->row : mask->column) + column,
                       labels(flipped ? mask->column : mask->row)[row], mask->kind == LN_MASK_SAME,
                       n);
    }
}

void REAL(mask_apply)(real *x, real excluded, int n_masks, const ln_mask *masks, bool flipped,
                      int64_t row, int64_t column, int64_t n) {
    for (int i = 0; i < n_masks; i++) apply_mask(x, excluded, &masks[i], flipped, row, column, n);
}
