/* Rows of unit length: x / max(|x|, 1e-8), as factors of the rows, and the way back for gradients.
 * Compiled once for each element type and instruction set. */
#include "unit.h"

#include <math.h>

#define NORM_FLOOR 1e-8

real *REAL(unit_scales)(const ln_tensor *x) {
    int64_t n = x->shape[0], d = x->shape[1];
    real *scale = ln_scratch_new((size_t)(n > 0 ? n : 1) * sizeof *scale, "similarity");
    if (scale == NULL) return NULL;
#pragma omp parallel for schedule(static) num_threads(ln_team(n *d))
    for (int64_t i = 0; i < n; i++) {
        const real *row = (const real *)x->data + i * d;
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t k = 0; k < d; k++) sum += (double)row[k] * (double)row[k];
        scale[i] = isfinite(sum) ? (real)(1 / fmax(sqrt(sum), NORM_FLOOR)) : NAN;
    }
    return scale;
}

bool REAL(unit_is_clamped)(real scale) {
    return (double)scale >= 1 / NORM_FLOOR;
}

void REAL(unit_backward)(ln_tensor *dx, const ln_tensor *x, const real *scale) {
    int64_t n = x->shape[0], d = x->shape[1];
#pragma omp parallel for schedule(static) num_threads(ln_team(n *d))
    for (int64_t i = 0; i < n; i++) {
        const real *row = (const real *)x->data + i * d;
        real *g = (real *)dx->data + i * d;
        double along = 0;
        if (!REAL(unit_is_clamped)(scale[i]))
#pragma omp simd reduction(+ : along)
            for (int64_t k = 0; k < d; k++) along += (double)g[k] * (double)row[k];
        real back = (real)(along * (double)scale[i] * (double)scale[i]);
        for (int64_t k = 0; k < d; k++) g[k] = scale[i] * (g[k] - back * row[k]);
    }
}
