/* Masks of the similarity matrix, for tiles and for rows. Internal to cpu/. */
#ifndef LN_CPU_MASK_H
#define LN_CPU_MASK_H
#include "machine.h"

typedef enum { MASK_EMPTY, MASK_MIXED, MASK_FULL } mask_class;

typedef struct {
    int64_t row0, row1, column0, column1;
} tile_range;

/* Whether the masks admit none, some or all of the entries; MIXED may also stand for the others. */
mask_class REAL(mask_classify)(int n_masks, const ln_mask *masks, tile_range r);
/* Sets x[t] to `excluded` where a mask does not admit the entry (row, column + t), t < n; where
 * flipped, the entry (column + t, row). */
void REAL(mask_apply)(real *x, real excluded, int n_masks, const ln_mask *masks, bool flipped,
                      int64_t row, int64_t column, int64_t n);

#endif
