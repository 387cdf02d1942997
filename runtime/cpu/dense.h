/* Row-major operands of a chosen dtype, for kernels that take no other: an operand that is one
 * already is used as it lies, any other through a copy in scratch. Invariant: a dense that is all
 * zeros, or was used, may be released. */
#ifndef LN_CPU_DENSE_H
#define LN_CPU_DENSE_H
#include "kernels.h"

/* A dense is released by ln_scratch_release(scratch). */
typedef struct {
    ln_tensor t;   /* data is NULL for a missing operand */
    void *scratch; /* the copy that t lies in, or NULL */
} ln_dense;

/* d->t: the elements of t, row-major, in dtype. t may be NULL. `what` names the operator. */
ln_status CPU(dense_input)(ln_dense *d, const ln_tensor *t, int dtype, const char *what);
/* d->t: room for the elements of t; dense_finish moves them to t once they are written. */
ln_status CPU(dense_output)(ln_dense *d, ln_tensor *t, int dtype, const char *what);
ln_status CPU(dense_finish)(const ln_dense *d, ln_tensor *t);

#endif
