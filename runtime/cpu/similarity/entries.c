/* Chosen entries of the similarity matrix, K columns for each row, and their gradients. Compiled
 * once for each element type and instruction set; similarity.c chooses. Columns count from 1.
 * Invariant: the gradient of k is gathered in the order of the rows, by features, so the team does
 * not change its bits. */
#include "pass.h"
#include "unit.h"

typedef struct {
    const ln_tensor *q, *k;
    const real *q_scale, *k_scale; /* NULL: dot products */
    const int64_t *columns;
    int64_t chosen; /* columns of a row */
} entries;

static const real *row_of(const ln_tensor *x, int64_t row) {
    return (const real *)x->data + row * x->shape[1];
}

static real scale_of(const entries *e, int64_t row, int64_t column) {
    return e->q_scale != NULL ? e->q_scale[row] * e->k_scale[column] : 1;
}

static ln_status entries_new(entries *e, real **owned, const ln_tensor *q, const ln_tensor *k,
                             bool cosine, const ln_tensor *columns) {
    *e = (entries){.q = q,
                   .k = k != NULL ? k : q,
                   .columns = (const int64_t *)columns->data,
                   .chosen = columns->shape[1]};
    if (!cosine) return LN_OK;
    e->q_scale = owned[0] = REAL(unit_scales)(q);
    e->k_scale = k == NULL ? e->q_scale : (owned[1] = REAL(unit_scales)(k));
    return e->q_scale != NULL && e->k_scale != NULL ? LN_OK : LN_OUT_OF_MEMORY;
}

ln_status REAL(similarity_at)(ln_tensor *out, const ln_tensor *q, const ln_tensor *k, bool cosine,
                              const ln_tensor *columns) {
    entries e;
    real *owned[2] = {0};
    int64_t n = q->shape[0], d = q->shape[1];
    ln_status status = entries_new(&e, owned, q, k, cosine, columns);
    if (status != LN_OK) goto fail;
#pragma omp parallel for schedule(static) num_threads(ln_team(n *e.chosen *d))
    for (int64_t row = 0; row < n; row++)
        for (int64_t c = 0; c < e.chosen; c++) {
            int64_t column = e.columns[row * e.chosen + c] - 1;
            const real *x = row_of(e.q, row), *y = row_of(e.k, column);
            real sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t t = 0; t < d; t++) sum += x[t] * y[t];
            ((real *)out->data)[row * e.chosen + c] = sum * scale_of(&e, row, column);
        }
fail:
    ln_scratch_release(owned[0]);
    ln_scratch_release(owned[1]);
    return status;
}

/* Features from..to of every row's gradient. The gradients are those of the unit rows. */
static void spread(const entries *e, real *dq, real *dk, const real *dy, int64_t from, int64_t to) {
    int64_t d = e->q->shape[1];
    for (int64_t row = 0; row < e->q->shape[0]; row++)
        for (int64_t c = 0; c < e->chosen; c++) {
            int64_t column = e->columns[row * e->chosen + c] - 1;
            real g = dy[row * e->chosen + c];
            const real *x = row_of(e->q, row), *y = row_of(e->k, column);
            real to_q = e->k_scale != NULL ? g * e->k_scale[column] : g;
            real to_k = e->q_scale != NULL ? g * e->q_scale[row] : g;
            if (g == 0) continue;
            for (int64_t t = from; dq != NULL && t < to; t++) dq[row * d + t] += to_q * y[t];
            for (int64_t t = from; dk != NULL && t < to; t++) dk[column * d + t] += to_k * x[t];
        }
}

ln_status REAL(similarity_at_backward)(ln_tensor *dq, ln_tensor *dk, const ln_tensor *dy,
                                       const ln_tensor *q, const ln_tensor *k, bool cosine,
                                       const ln_tensor *columns) {
    enum { FEATURES = 32 };
    entries e;
    real *owned[2] = {0};
    int64_t d = q->shape[1], work = q->shape[0] * columns->shape[1] * d;
    ln_status status = entries_new(&e, owned, q, k, cosine, columns);
    if (status != LN_OK) goto fail;
    real *to_q = dq != NULL ? (real *)dq->data : NULL;
    real *to_k = k == NULL ? to_q : dk != NULL ? (real *)dk->data : NULL;
    for (int64_t i = 0; dq != NULL && i < dq->numel; i++) ((real *)dq->data)[i] = 0;
    for (int64_t i = 0; dk != NULL && i < dk->numel; i++) ((real *)dk->data)[i] = 0;
#pragma omp parallel for schedule(static) num_threads(ln_team(work))
    for (int64_t f = 0; f < d; f += FEATURES)
        spread(&e, to_q, to_k, (const real *)dy->data, f, f + FEATURES < d ? f + FEATURES : d);
    if (cosine && dq != NULL) REAL(unit_backward)(dq, q, e.q_scale);
    if (cosine && dk != NULL) REAL(unit_backward)(dk, k, e.k_scale);
fail:
    ln_scratch_release(owned[0]);
    ln_scratch_release(owned[1]);
    return status;
}
