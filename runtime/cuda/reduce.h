/* Reductions that other files of the backend build on: moments and sums of products over the
 * dimensions that a result lacks. Declarations only. Invariant: as in reduce.cu, fixed chunks
 * joined in a fixed order. */
#ifndef LN_CUDA_REDUCE_H
#define LN_CUDA_REDUCE_H
#include "walk.h"

/* Every tensor here has x's number of dimensions; results have extent 1 where they are reduced
 * over. Results are written in their own dtype and may be NULL; sums are kept in double. */

/* mean, and the sum of squared deviations from it. */
ln_status cuda_moments(ln_tensor *mean, ln_tensor *squares, const ln_tensor *x, const char *what);

/* log(sum(exp(x))) */
ln_status cuda_logsumexp(ln_tensor *out, const ln_tensor *x, const char *what);

/* sum = sum of e, dot = sum of e (x - mean) rstd, where e = dy factor. factor, mean and rstd are of
 * dy's shape, broadcast (stride 0) where they have less; NULL for 1, 0 and 1. x NULL: no dot. */
ln_status cuda_sums(ln_tensor *sum, ln_tensor *dot, const ln_tensor *dy, const ln_tensor *factor,
                    const ln_tensor *x, const ln_tensor *mean, const ln_tensor *rstd,
                    const char *what);

#endif
