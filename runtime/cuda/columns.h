/* Batch normalisation where channels are the columns of a row-major matrix (rows, C): channels-last
 * images, and (N,C). Declarations only. Sums are kept in double and joined in a fixed order. */
#ifndef LN_CUDA_COLUMNS_H
#define LN_CUDA_COLUMNS_H
#include "cuda.h"

/* Whether all n tensors (NULL: none) are such matrices of one shape and a dtype but float64, which
 * may be read and written 16 bytes at a time. */
bool cuda_columns_fit(int n, const ln_tensor *const *t);

/* Float64 results (C): the mean, and the sum of squared deviations from it. */
ln_status cuda_columns_moments(ln_tensor *mean, ln_tensor *squares, const ln_tensor *x,
                               const char *what);

/* y = (x - mean) rstd weight + bias + residual, or where that is below 0 and relu, 0. mean and rstd
 * (C) are float64. NULL weight, bias, residual: 1, 0, 0. */
ln_status cuda_columns_normalise(ln_tensor *y, const ln_tensor *x, const ln_tensor *mean,
                                 const ln_tensor *rstd, const ln_tensor *weight,
                                 const ln_tensor *bias, const ln_tensor *residual, bool relu,
                                 const char *what);

/* With g = dy, or 0 where y is not above 0 (NULL y: no such place): sum = the sum of g, dot = that
 * of g (x - mean) rstd, both (C) and float64. NULL masked, or g. */
ln_status cuda_columns_sums(ln_tensor *sum, ln_tensor *dot, ln_tensor *masked, const ln_tensor *dy,
                            const ln_tensor *x, const ln_tensor *y, const ln_tensor *mean,
                            const ln_tensor *rstd, const char *what);

/* dx = (g - sum / rows - (x - mean) rstd dot / rows) rstd weight. NULL weight, sum, dot: 1, 0,
 * 0. */
ln_status cuda_columns_gradient(ln_tensor *dx, const ln_tensor *dy, const ln_tensor *x,
                                const ln_tensor *y, const ln_tensor *weight, const ln_tensor *mean,
                                const ln_tensor *rstd, const ln_tensor *sum, const ln_tensor *dot,
                                const char *what);

#endif
