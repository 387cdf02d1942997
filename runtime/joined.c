/* The rows of two tensors as those of one matrix, without a copy. Invariant: such a handle goes to
 * nothing that has not asked for its second rows: ln_check_handles refuses it. */
#include "backend.h"

static ln_status check_rows(const ln_tensor *first, const ln_tensor *second) {
    const ln_tensor *inputs[] = {first, second};
    ln_status status = ln_check_inputs("join", 2, inputs);
    if (status != LN_OK) return status;
    for (int i = 0; i < 2; i++)
        if (inputs[i]->ndim != 2 || inputs[i]->shape[1] != first->shape[1] ||
            inputs[i]->dtype != first->dtype || !ln_is_contiguous(inputs[i]))
            return ln_fail(LN_BAD_ARGUMENT,
                           "join: rows %d are %s; contiguous (N,D), alike, are taken", i + 1,
                           ln_text(inputs[i]));
    if (ln_device(first) == LN_CPU)
        return ln_fail(LN_BAD_ARGUMENT, "join: the rows are on the CPU; a cuda device's are taken");
    return LN_OK;
}

ln_status ln_tensor_join(ln_tensor **out, const ln_tensor *first, const ln_tensor *second) {
    ln_tensor *made = NULL;
    ln_status status;
    if (*out != NULL) LN_TRY(ln_fail(LN_BAD_ARGUMENT, "join: makes a tensor; *out must be NULL"));
    LN_TRY(check_rows(first, second));
    LN_TRY(ln_view_new(&made, first));
    made->shape[0] += second->shape[0];
    made->numel += second->numel;
    LN_TRY(ln_view_new(&made->second, second));
    *out = made;
    return LN_OK;
fail:
    ln_tensor_release(made);
    return status;
}

ln_tensor ln_first_rows(const ln_tensor *t) {
    ln_tensor first = *t;
    if (t->second == NULL) return first;
    first.shape[0] -= t->second->shape[0];
    first.numel -= t->second->numel;
    first.second = NULL;
    return first;
}
