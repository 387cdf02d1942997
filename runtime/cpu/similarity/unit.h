/* Rows of unit length. Internal to cpu/. */
#ifndef LN_CPU_UNIT_H
#define LN_CPU_UNIT_H
#include "machine.h"

/* 1 / max(|x|, 1e-8) of each row of x (n,d), NaN where |x|^2 is not finite, in scratch that the
 * caller releases. NULL: no memory. */
real *REAL(unit_scales)(const ln_tensor *x);
/* The same by the threads of a parallel region, which wait for each other, into such scratch. */
real *REAL(unit_scratch)(const ln_tensor *x);
void REAL(unit_share_scales)(real *scale, const ln_tensor *x);
/* Whether the norm behind a factor was below the floor, so that the factor is a constant. */
bool REAL(unit_is_clamped)(real scale);
/* From the gradient of the unit rows to that of x, in place. */
void REAL(unit_backward)(ln_tensor *dx, const ln_tensor *x, const real *scale);

#endif
