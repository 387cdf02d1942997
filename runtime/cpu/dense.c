/* Row-major operands of a chosen dtype: see dense.h. */
#include "dense.h"

ln_status CPU(dense_output)(ln_dense *d, ln_tensor *t, int dtype, const char *what) {
    *d = (ln_dense){0};
    if (t == NULL) return LN_OK;
    d->t = *t;
    if (t->dtype == dtype && ln_is_contiguous(t)) return LN_OK;
    d->t.dtype = dtype;
    int64_t stride = 1;
    for (int i = t->ndim - 1; i >= 0; i--) {
        d->t.stride[i] = stride;
        stride *= t->shape[i];
    }
    d->scratch = ln_scratch_new((size_t)t->numel * ln_dtype_size(dtype), what);
    d->t.data = d->scratch;
    return d->scratch == NULL ? LN_OUT_OF_MEMORY : LN_OK;
}

ln_status CPU(dense_input)(ln_dense *d, const ln_tensor *t, int dtype, const char *what) {
    ln_status status = CPU(dense_output)(d, (ln_tensor *)t, dtype, what);
    if (status != LN_OK || d->scratch == NULL) return status;
    return CPU(copy)(&d->t, t);
}

ln_status CPU(dense_finish)(const ln_dense *d, ln_tensor *t) {
    return d->scratch == NULL ? LN_OK : CPU(copy)(t, &d->t);
}
