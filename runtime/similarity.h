/* The checks that the similarity operators share. Internal. */
#ifndef LN_SIMILARITY_H
#define LN_SIMILARITY_H
#include "backend.h"

/* q (N,d) and k (M,d) or NULL: float32 or float64, contiguous, alike; q joined where k is NULL. */
ln_status ln_similarity_check(const ln_tensor *q, const ln_tensor *k);
ln_status ln_tile_dtype_check(int tile_dtype);
/* x, which is read beside q, checked before: on q's device. */
ln_status ln_check_beside(const ln_tensor *q, const ln_tensor *x);
/* Kept tiles of a matrix of q, or NULL. */
ln_status ln_tiles_check(const ln_tiles *tiles, const ln_tensor *q);
/* Masks of an n x m matrix. looked: an operator before has looked at their indices, and what a
 * device's kernels read of others harms nobody. */
ln_status ln_masks_check(int n_masks, const ln_mask *masks, int device, int64_t n, int64_t m,
                         bool looked);
/* x as host code may read it: a copy where it lies on another device. The caller's to release. */
ln_status ln_on_host(ln_tensor **out, const ln_tensor *x);

#endif
