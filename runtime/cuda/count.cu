/* Counts of candidates: a thread a row around count.h. Holds no rule of masks. */
#include "cuda.h"

#define LN_INLINE static inline __device__ __host__
#include "count.h"

/* out (n), `stride` apart */
static __global__ void count_kernel(int64_t *out, int64_t stride, ln_counter c, int64_t n) {
    for (int64_t row = grid_thread(); row < n; row += grid_threads())
        out[row * stride] = ln_count_row(&c, row);
}

ln_status CUDA(similarity_count)(ln_tensor *out, int64_t m, int n_masks, const ln_mask *masks,
                                 const ln_tensor *sorted) {
    ln_status status = cuda_enter(out, "similarity");
    if (status != LN_OK || out->numel == 0) return status;
    ln_counter c = ln_counter_of(m, n_masks, masks, sorted);
    return launch("similarity", count_kernel, blocks_for(out->numel), THREADS, (int64_t *)out->data,
                  out->stride[0], c, out->numel);
}
