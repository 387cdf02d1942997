/* Convolutions of dense operands: by cuDNN, where there is one, and by matrix products for
 * channels-last ones. Declarations only. */
#ifndef LN_CUDA_CONVOLVE_H
#define LN_CUDA_CONVOLVE_H
#include "cuda.h"

/* Which of x, w and y is computed from the two others: y, dx in the place of x, dw in that of w. */
typedef enum { CONVOLVE_FORWARD, CONVOLVE_DATA, CONVOLVE_FILTER } convolve_pass;

/* x (N,C,H,W), w (O,C/groups,kh,kw), y (N,O,oh,ow), all of one dtype but float64, and all without
 * gaps, row-major or all channels-last. Sums in float32. Sets *done to false, and does nothing,
 * where cuDNN is missing or not allowed, or has no deterministic algorithm for it that keeps the
 * dtype's precision (float32's too, unless TF32 is allowed). */
ln_status cuda_convolve(bool *done, convolve_pass pass, const ln_tensor *x, const ln_tensor *w,
                        const ln_tensor *y, bool channels_last, const ln_conv_params *p,
                        const char *what);

/* The same by matrix products, float64 too. All channels-last, and groups is 1. */
ln_status cuda_convolve_rows(convolve_pass pass, const ln_tensor *x, const ln_tensor *w,
                             const ln_tensor *y, const ln_conv_params *p, const char *what);

/* The version of the cuDNN that is used, 90100 for 9.1.0; 0 where none is: *why then says why. */
int cuda_cudnn_version(const char **why);

#endif
