/* The tails of whole rows. Internal to cpu/. */
#ifndef LN_CPU_ROWS_H
#define LN_CPU_ROWS_H
#include "tail.h"

/* fits (n,5): similarity_tail's, of n_chosen rows; chosen NULL: of all. */
ln_status REAL(rows_tail)(ln_tensor *fits, const ln_tensor *q, const ln_tensor *k, bool cosine,
                          int n_masks, const ln_mask *masks, const tail_lines *lines,
                          const int64_t *chosen, int64_t n_chosen, ln_tiles *tiles);

#endif
