/* The augment slot of the CPU backend: the team's members make their shares of the views. Holds no
 * arithmetic of pixels: that is data/'s, as in a loader's threads. */
#include "kernels.h"

#include <omp.h>

enum { WORK_PER_VALUE = 64 }; /* about what a chain of five steps spends on one */

static ln_status make_views(ln_tensor *out, const ln_tensor *images, const ln_drawn_batch *batch) {
    bool made = true;
#pragma omp parallel num_threads(ln_team(out->numel *WORK_PER_VALUE)) reduction(&& : made)
    {
        int64_t team = omp_get_num_threads(), mine = omp_get_thread_num();
        made = ln_augment_views(out, images, batch, batch->n * mine / team,
                                batch->n * (mine + 1) / team) == LN_OK;
    }
    /* The message is in the thread that failed. */
    return made ? LN_OK
                : ln_fail(LN_OUT_OF_MEMORY, "augment: out of memory for images in the making");
}

ln_status CPU(augment)(ln_tensor *out, const ln_tensor *images, const ln_drawn_batch *batch) {
    ln_tensor *floats = NULL;
    if (out->dtype == LN_FLOAT32) return make_views(out, images, batch);
    ln_status status;
    LN_TRY(ln_tensor_empty(&floats, LN_FLOAT32, LN_CPU, out->ndim, out->shape));
    LN_TRY(make_views(floats, images, batch));
    status = CPU(copy)(out, floats);
fail:
    ln_tensor_release(floats);
    return status;
}
