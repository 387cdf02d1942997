/* Counts of candidates: the loop over rows around count.h. Holds no rule of masks. */
#include "count.h"
#include "kernels.h"

ln_status CPU(similarity_count)(ln_tensor *out, int64_t m, int n_masks, const ln_mask *masks,
                                const ln_tensor *sorted) {
    ln_counter c = ln_counter_of(m, n_masks, masks, sorted);
    int64_t n = out->numel;
#pragma omp parallel for num_threads(ln_team(c.n_wide > 1 ? n * m : n))
    for (int64_t i = 0; i < n; i++)
        ((int64_t *)out->data)[i * out->stride[0]] = ln_count_row(&c, i);
    return LN_OK;
}
