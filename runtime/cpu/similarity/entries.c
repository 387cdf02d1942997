/* Chosen entries of the similarity matrix, K columns for each row, and their gradients. Compiled
 * once for each element type and instruction set; similarity.c chooses. Columns count from 1.
 * Invariant: a row's gradients are added by one thread, in the order of the entries, so the team
 * does not change their bits. */
#include "pass.h"
#include "unit.h"

typedef struct {
    const ln_tensor *q, *k;
    real *q_scale, *k_scale; /* NULL: dot products */
    const int64_t *columns;
    int64_t chosen; /* columns of a row */
} entries;

static const real *row_of(const ln_tensor *x, int64_t row) {
    return (const real *)x->data + row * x->shape[1];
}

static real scale_of(const entries *e, int64_t row, int64_t column) {
    return e->q_scale != NULL ? e->q_scale[row] * e->k_scale[column] : 1;
}

/* The factors of the rows are room that share_scales fills. */
static ln_status entries_new(entries *e, const ln_tensor *q, const ln_tensor *k, bool cosine,
                             const ln_tensor *columns) {
    *e = (entries){.q = q,
                   .k = k != NULL ? k : q,
                   .columns = (const int64_t *)columns->data,
                   .chosen = columns->shape[1]};
    if (!cosine) return LN_OK;
    e->q_scale = REAL(unit_scratch)(q);
    e->k_scale = k == NULL ? e->q_scale : REAL(unit_scratch)(k);
    return e->q_scale != NULL && e->k_scale != NULL ? LN_OK : LN_OUT_OF_MEMORY;
}

static void entries_release(entries *e) {
    if (e->k_scale != e->q_scale) ln_scratch_release(e->k_scale);
    ln_scratch_release(e->q_scale);
}

/* By the threads of a region. */
static void share_scales(const entries *e) {
    if (e->q_scale == NULL) return;
    REAL(unit_share_scales)(e->q_scale, e->q);
    if (e->k_scale != e->q_scale) REAL(unit_share_scales)(e->k_scale, e->k);
}

static real dot(const real *x, const real *y, int64_t d) {
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t t = 0; t < d; t++) sum += x[t] * y[t];
    return sum;
}

static real entry(const entries *e, int64_t row, int64_t column) {
    return dot(row_of(e->q, row), row_of(e->k, column), e->q->shape[1]) * scale_of(e, row, column);
}

ln_status REAL(similarity_at)(ln_tensor *out, const ln_tensor *q, const ln_tensor *k, bool cosine,
                              const ln_tensor *columns) {
    entries e;
    real *y = (real *)out->data;
    int64_t count = columns->numel;
    ln_status status = entries_new(&e, q, k, cosine, columns);
    if (status == LN_OK)
#pragma omp parallel num_threads(ln_team(2 * (count + q->shape[0]) * q->shape[1]))
    {
        ln_take_place();
        share_scales(&e);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < count; i++) y[i] = entry(&e, i / e.chosen, e.columns[i] - 1);
    }
    entries_release(&e);
    return status;
}

/* to += g ds/dx: of a cosine scale_x (y scale_y - s x scale_x), where a norm of x below the floor
 * counts as a constant; of a dot product y. */
static void add_slope(real *to, real g, const real *x, const real *y, real scale_x, real scale_y,
                      real s, int64_t d) {
    real along = REAL(unit_is_clamped)(scale_x) ? 0 : g * scale_x * scale_x * s;
    g *= scale_x * scale_y;
    for (int64_t t = 0; t < d; t++) to[t] += g * y[t] - along * x[t];
}

/* The rows of a gradient that one thread adds to: they stay near its processor. */
typedef struct {
    real *to; /* the gradient's first row */
    int64_t first, end;
} rows_of_one;

static rows_of_one share_of(real *to, int64_t rows, int64_t part, int64_t parts) {
    int64_t size = to != NULL ? (rows + parts - 1) / parts : 0;
    int64_t first = part * size, end = first + size;
    return (rows_of_one){to, first, end < rows ? end : rows};
}

static bool has(const rows_of_one *r, int64_t row) {
    return row >= r->first && row < r->end;
}

/* Adds what all entries, of gradients dy, give the rows of one thread. An entry is computed by both
 * threads where its row and its column are of two. */
static void spread(const entries *e, const rows_of_one *dq, const rows_of_one *dk, const real *dy) {
    int64_t d = e->q->shape[1];
    bool cosine = e->q_scale != NULL;
    for (int64_t row = 0, i = 0; row < e->q->shape[0]; row++)
        for (int64_t end = i + e->chosen; i < end; i++) {
            int64_t column = e->columns[i] - 1;
            bool of_row = has(dq, row), of_column = has(dk, column);
            if (dy[i] == 0 || !(of_row || of_column)) continue;
            const real *x = row_of(e->q, row), *y = row_of(e->k, column);
            real of_x = cosine ? e->q_scale[row] : 1, of_y = cosine ? e->k_scale[column] : 1;
            real s = cosine ? entry(e, row, column) : 0;
            if (of_row) add_slope(dq->to + row * d, dy[i], x, y, of_x, of_y, s, d);
            if (of_column) add_slope(dk->to + column * d, dy[i], y, x, of_y, of_x, s, d);
        }
}

ln_status REAL(similarity_at_backward)(ln_tensor *dq, ln_tensor *dk, const ln_tensor *dy,
                                       const ln_tensor *q, const ln_tensor *k, bool cosine,
                                       const ln_tensor *columns) {
    entries e;
    ln_status status = entries_new(&e, q, k, cosine, columns);
    if (status != LN_OK) goto fail;
    real *to_q = dq != NULL ? (real *)dq->data : NULL;
    real *to_k = k == NULL ? to_q : dk != NULL ? (real *)dk->data : NULL;
    int team = ln_team(6 * columns->numel * q->shape[1]);
#pragma omp parallel num_threads(team)
    {
        ln_take_place();
        share_scales(&e);
#pragma omp for schedule(static)
        for (int t = 0; t < team; t++) {
            rows_of_one of_q = share_of(to_q, q->shape[0], t, team);
            rows_of_one of_k = share_of(to_k, e.k->shape[0], t, team);
            spread(&e, &of_q, &of_k, (const real *)dy->data);
        }
    }
fail:
    entries_release(&e);
    return status;
}
