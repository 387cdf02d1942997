/* Chosen entries of the similarity matrix, K columns for each row, and their gradients. Compiled
 * once for each element type and instruction set; similarity.c chooses. Columns count from 1.
 * Invariant: gradients are added in the order of the rows, by features, so the team does not change
 * their bits. */
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

static real dot(const real *x, const real *y, int64_t d) {
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t t = 0; t < d; t++) sum += x[t] * y[t];
    return sum;
}

ln_status REAL(similarity_at)(ln_tensor *out, const ln_tensor *q, const ln_tensor *k, bool cosine,
                              const ln_tensor *columns) {
    entries e;
    real *owned[2] = {0};
    int64_t n = q->shape[0], d = q->shape[1];
    ln_status status = entries_new(&e, owned, q, k, cosine, columns);
    if (status != LN_OK) goto fail;
#pragma omp parallel for schedule(static) num_threads(ln_team(2 * n * e.chosen * d))
    for (int64_t row = 0; row < n; row++)
        for (int64_t c = 0; c < e.chosen; c++) {
            int64_t column = e.columns[row * e.chosen + c] - 1;
            const real *x = row_of(e.q, row), *y = row_of(e.k, column);
            ((real *)out->data)[row * e.chosen + c] = dot(x, y, d) * scale_of(&e, row, column);
        }
fail:
    ln_scratch_release(owned[0]);
    ln_scratch_release(owned[1]);
    return status;
}

/* to += g ds/dx: of a cosine scale_x (y scale_y - s x scale_x), where a norm of x below the floor
 * counts as a constant; of a dot product y. */
static void add_slope(real *to, real g, const real *x, const real *y, real scale_x, real scale_y,
                      real s, int64_t from, int64_t end) {
    real along = REAL(unit_is_clamped)(scale_x) ? 0 : g * scale_x * scale_x * s;
    g *= scale_x * scale_y;
    for (int64_t t = from; t < end; t++) to[t] += g * y[t] - along * x[t];
}

/* Adds features from..end of every row's gradient. s: the entries. */
static void spread(const entries *e, real *dq, real *dk, const real *dy, const real *s,
                   int64_t from, int64_t end) {
    int64_t d = e->q->shape[1];
    bool cosine = e->q_scale != NULL;
    for (int64_t i = 0; i < e->q->shape[0] * e->chosen; i++) {
        int64_t row = i / e->chosen, column = e->columns[i] - 1;
        const real *x = row_of(e->q, row), *y = row_of(e->k, column);
        real scale_x = cosine ? e->q_scale[row] : 1, scale_y = cosine ? e->k_scale[column] : 1;
        real entry = cosine ? s[i] : 0;
        if (dy[i] == 0) continue;
        if (dq != NULL) add_slope(dq + row * d, dy[i], x, y, scale_x, scale_y, entry, from, end);
        if (dk != NULL) add_slope(dk + column * d, dy[i], y, x, scale_y, scale_x, entry, from, end);
    }
}

ln_status REAL(similarity_at_backward)(ln_tensor *dq, ln_tensor *dk, const ln_tensor *dy,
                                       const ln_tensor *q, const ln_tensor *k, bool cosine,
                                       const ln_tensor *columns) {
    entries e;
    real *owned[2] = {0}, *s = NULL;
    int64_t d = q->shape[1], count = columns->numel;
    ln_status status = entries_new(&e, owned, q, k, cosine, columns);
    if (status != LN_OK) goto fail;
    s = ln_scratch_new((size_t)(count + 1) * sizeof *s, "similarity");
    status = s != NULL ? LN_OK : LN_OUT_OF_MEMORY;
    if (s == NULL) goto fail;
#pragma omp parallel for schedule(static) num_threads(ln_team(2 * count * d))
    for (int64_t i = 0; i < count; i++)
        s[i] = dot(row_of(e.q, i / e.chosen), row_of(e.k, e.columns[i] - 1), d) *
               scale_of(&e, i / e.chosen, e.columns[i] - 1);
    real *to_q = dq != NULL ? (real *)dq->data : NULL;
    real *to_k = k == NULL ? to_q : dk != NULL ? (real *)dk->data : NULL;
    int team = ln_team(4 * count * d);
    int64_t part = (d + 16 * team - 1) / (16 * team) * 16; /* whole cache lines */
#pragma omp parallel for schedule(static) num_threads(team)
    for (int64_t f = 0; f < d; f += part)
        spread(&e, to_q, to_k, (const real *)dy->data, s, f, f + part < d ? f + part : d);
fail:
    ln_scratch_release(owned[0]);
    ln_scratch_release(owned[1]);
    ln_scratch_release(s);
    return status;
}
