/* Counting the candidates of a row of a masked matrix: inline functions for CPU kernels and, with
 * LN_INLINE defined before inclusion, device code. Holds no loop over rows. Invariant: a row takes
 * time that does not grow with the columns, or with their logarithm, unless several masks compare
 * columns. */
#ifndef LN_COUNT_H
#define LN_COUNT_H
#include "backend.h"

#ifndef LN_INLINE
#define LN_INLINE static inline
#endif

/* A mask; the pointers of labels or indices are NULL where it has none. */
typedef struct {
    int kind;
    const int64_t *row, *column;
} ln_count_mask;

/* The masks of m columns in two kinds: those that drop at most one column of a row, and the wide
 * ones. */
typedef struct {
    int64_t m;
    ln_count_mask single[LN_MAX_MASKS], wide[LN_MAX_MASKS];
    int n_single, n_wide;
    const int64_t *sorted; /* the only wide mask's column labels; else NULL */
} ln_counter;

static inline bool ln_mask_is_single(const ln_mask *mask) {
    return mask->kind == LN_MASK_SELF || mask->kind == LN_MASK_INDEX;
}

static inline ln_counter ln_counter_of(int64_t m, int n_masks, const ln_mask *masks,
                                       const ln_tensor *sorted) {
    ln_counter c = {};
    c.m = m;
    c.sorted = sorted != NULL ? (const int64_t *)sorted->data : NULL;
    for (int i = 0; i < n_masks; i++) {
        ln_count_mask one = {masks[i].kind, NULL, NULL};
        if (masks[i].row != NULL) one.row = (const int64_t *)masks[i].row->data;
        if (masks[i].column != NULL) one.column = (const int64_t *)masks[i].column->data;
        if (ln_mask_is_single(&masks[i])) c.single[c.n_single++] = one;
        else c.wide[c.n_wide++] = one;
    }
    return c;
}

/* Whether the wide masks admit an entry. */
LN_INLINE bool ln_wide_admit(const ln_counter *c, int64_t row, int64_t column) {
    for (int i = 0; i < c->n_wide; i++) {
        const ln_count_mask *mask = &c->wide[i];
        bool kept = column > row; /* LN_MASK_TRIANGLE */
        if (mask->kind == LN_MASK_SAME) kept = mask->row[row] == mask->column[column];
        if (mask->kind == LN_MASK_DIFFERENT) kept = mask->row[row] != mask->column[column];
        if (!kept) return false;
    }
    return true;
}

/* How many of the sorted labels are below `label`. */
LN_INLINE int64_t ln_labels_below(const int64_t *sorted, int64_t n, int64_t label) {
    int64_t low = 0, high = n;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (sorted[middle] < label) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* What the wide masks admit of a row. Looks at each column only where there are several. */
LN_INLINE int64_t ln_count_wide(const ln_counter *c, int64_t row) {
    if (c->n_wide == 0) return c->m;
    if (c->n_wide == 1 && c->sorted == NULL) return row + 1 < c->m ? c->m - row - 1 : 0;
    if (c->n_wide == 1) {
        int64_t label = c->wide[0].row[row];
        int64_t below = ln_labels_below(c->sorted, c->m, label);
        int64_t same =
            label == INT64_MAX ? c->m - below : ln_labels_below(c->sorted, c->m, label + 1) - below;
        return c->wide[0].kind == LN_MASK_SAME ? same : c->m - same;
    }
    int64_t count = 0;
    for (int64_t column = 0; column < c->m; column++) count += ln_wide_admit(c, row, column);
    return count;
}

/* An index out of range, which a device tells of later, drops nothing. */
LN_INLINE int64_t ln_count_row(const ln_counter *c, int64_t row) {
    int64_t dropped[LN_MAX_MASKS], n = 0;
    for (int i = 0; i < c->n_single; i++) {
        const ln_count_mask *mask = &c->single[i];
        int64_t column = mask->kind == LN_MASK_SELF ? row : mask->row[row] - 1;
        bool known = column < 0 || column >= c->m || !ln_wide_admit(c, row, column);
        for (int64_t j = 0; j < n; j++) known |= dropped[j] == column;
        if (!known) dropped[n++] = column;
    }
    return ln_count_wide(c, row) - n;
}

#endif
