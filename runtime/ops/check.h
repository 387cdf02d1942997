/* Checks that several families of operators share. Messages only: no dispatch, no allocation. */
#ifndef LN_OPS_CHECK_H
#define LN_OPS_CHECK_H
#include "backend.h"

static inline ln_status check_dim(const char *what, const ln_tensor *x, int dim) {
    if (dim >= 0 && dim < x->ndim) return LN_OK;
    return ln_fail(LN_BAD_ARGUMENT, "%s: %s has no dimension %d", what, ln_text(x), dim + 1);
}

#endif
