/* The similarity slots of the CPU backend: each element type goes to its own compilation. Computes
 * nothing. */
#include "similarity/pass.h"

#define CHOOSE(q, name, ...)                                                                       \
    ((q)->dtype == LN_FLOAT64 ? CPU(name##_double)(__VA_ARGS__) : CPU(name##_float)(__VA_ARGS__))

ln_status CPU(similarity_tiles)(int64_t *elements, const ln_tensor *q, const ln_tensor *k) {
    return CHOOSE(q, similarity_tiles, elements, q, k);
}

ln_status CPU(similarity_forward)(ln_tensor *const *out, const ln_tensor *q, const ln_tensor *k,
                                  bool cosine, int tile_dtype, int n,
                                  const ln_reduction *reductions, const ln_tensor *const *shift,
                                  ln_tiles *tiles) {
    return CHOOSE(q, similarity_forward, out, q, k, cosine, tile_dtype, n, reductions, shift,
                  tiles);
}

ln_status CPU(similarity_backward)(ln_tensor *dq, ln_tensor *dk, ln_tensor *const *dparameters,
                                   const ln_tensor *const *dy, const ln_tensor *const *y,
                                   const ln_tensor *q, const ln_tensor *k, bool cosine,
                                   int tile_dtype, int n, const ln_reduction *reductions,
                                   const ln_tensor *const *shift, ln_tiles *tiles) {
    return CHOOSE(q, similarity_backward, dq, dk, dparameters, dy, y, q, k, cosine, tile_dtype, n,
                  reductions, shift, tiles);
}

ln_status CPU(similarity_topk)(ln_tensor *values, ln_tensor *columns, const ln_tensor *q,
                               const ln_tensor *k, bool cosine, int tile_dtype, int n_masks,
                               const ln_mask *masks, ln_tiles *tiles) {
    return CHOOSE(q, similarity_topk, values, columns, q, k, cosine, tile_dtype, n_masks, masks,
                  tiles);
}

ln_status CPU(similarity_tail)(ln_tensor *fits, const ln_tensor *q, const ln_tensor *k, bool cosine,
                               int tile_dtype, int n_masks, const ln_mask *masks, int64_t points,
                               int64_t burnt, ln_tiles *tiles) {
    return CHOOSE(q, similarity_tail, fits, q, k, cosine, tile_dtype, n_masks, masks, points, burnt,
                  tiles);
}

ln_status CPU(similarity_pooled_tail)(ln_tensor *fit, const ln_tensor *q, const ln_tensor *k,
                                      bool cosine, int tile_dtype, int n_masks,
                                      const ln_mask *masks, int64_t points, int64_t burnt) {
    return CHOOSE(q, similarity_pooled_tail, fit, q, k, cosine, tile_dtype, n_masks, masks, points,
                  burnt);
}

ln_status CPU(similarity_at)(ln_tensor *out, const ln_tensor *q, const ln_tensor *k, bool cosine,
                             const ln_tensor *columns) {
    return CHOOSE(q, similarity_at, out, q, k, cosine, columns);
}

ln_status CPU(similarity_at_backward)(ln_tensor *dq, ln_tensor *dk, const ln_tensor *dy,
                                      const ln_tensor *q, const ln_tensor *k, bool cosine,
                                      const ln_tensor *columns) {
    return CHOOSE(q, similarity_at_backward, dq, dk, dy, q, k, cosine, columns);
}
