/* Rows of unit length: x / max(|x|, 1e-8), as factors of the rows, and the way back for gradients.
 * Compiled once for each element type and instruction set. */
#include "unit.h"

#include <math.h>

#define NORM_FLOOR 1e-8

/* sum over k of x[k] y[k], in as many partial sums as keep the processor's adders busy. */
static inline __attribute__((always_inline)) double dot(const real *x, const real *y, int64_t d) {
    enum { PARTS = 16 };
    double part[PARTS] = {0}, sum = 0;
    int64_t whole = d / PARTS * PARTS;
    for (int64_t k = 0; k < whole; k += PARTS)
        for (int p = 0; p < PARTS; p++) part[p] += (double)x[k + p] * (double)y[k + p];
    for (int64_t k = whole; k < d; k++) sum += (double)x[k] * (double)y[k];
    for (int p = 0; p < 4; p++) part[p] += part[p + 4] + (part[p + 8] + part[p + 12]);
    return sum + ((part[0] + part[1]) + (part[2] + part[3]));
}

void REAL(unit_share_scales)(real *scale, const ln_tensor *x) {
    int64_t n = x->shape[0], d = x->shape[1];
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const real *row = (const real *)x->data + i * d;
        double sum = dot(row, row, d);
        scale[i] = isfinite(sum) ? (real)(1 / fmax(sqrt(sum), NORM_FLOOR)) : NAN;
    }
}

real *REAL(unit_scratch)(const ln_tensor *x) {
    int64_t n = x->shape[0];
    return ln_scratch_new((size_t)(n > 0 ? n : 1) * sizeof(real), "similarity");
}

real *REAL(unit_scales)(const ln_tensor *x) {
    real *scale = REAL(unit_scratch)(x);
    if (scale == NULL) return NULL;
#pragma omp parallel num_threads(ln_team(2 * x->numel))
    REAL(unit_share_scales)(scale, x);
    return scale;
}

bool REAL(unit_is_clamped)(real scale) {
    return (double)scale >= 1 / NORM_FLOOR;
}

void REAL(unit_backward)(ln_tensor *dx, const ln_tensor *x, const real *scale) {
    int64_t n = x->shape[0], d = x->shape[1];
#pragma omp parallel for schedule(static) num_threads(ln_team(4 * n * d))
    for (int64_t i = 0; i < n; i++) {
        const real *row = (const real *)x->data + i * d;
        real *g = (real *)dx->data + i * d;
        double along = REAL(unit_is_clamped)(scale[i]) ? 0 : dot(g, row, d);
        real back = (real)(along * (double)scale[i] * (double)scale[i]);
        for (int64_t k = 0; k < d; k++) g[k] = scale[i] * (g[k] - back * row[k]);
    }
}
