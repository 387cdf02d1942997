/* Layer normalisation and its gradient, a row at a time, in double whatever the dtype. Invariant:
 * the sums over rows that dweight and dbias are go by chunks of rows that depend on shapes only and
 * are joined in order, so every team gives the same bits. */
#include "row.h"

enum {
    CHUNK = 1 << 14, /* elements that one item of the team handles, at least */
    MOST_CHUNKS = 64 /* each has sums of its own */
};

typedef struct {
    const ln_tensor *x, *dy; /* dy: NULL in the forward pass */
    ln_tensor *out;
    const ln_tensor *mean_in, *rstd_in; /* backward */
    ln_tensor *mean, *rstd;             /* forward */
    int64_t rows, n;
    double eps;
    int64_t chunk_rows, chunks;
    double *weight, *bias;   /* n of each */
    double *row;             /* of each member: two rows */
    double *dweight, *dbias; /* chunks x n */
} layer;

static double sum_of(const void *x, int64_t n, bool single) {
    return single ? CPU(float_sum)(x, n) : CPU(row_sum)(x, n);
}

ROW_LOOP squares_of(double *squares, const void *x, double mean, int64_t n, bool single) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < n; k++) {
        double d = row_value(x, k, single) - mean;
        sum += d * d;
    }
    *squares = sum;
}

ROW_LOOP scale_row_of(void *restrict y, const void *restrict x, double mean, double rstd,
                      const double *restrict w, const double *restrict b, int64_t n, bool single) {
    for (int64_t k = 0; k < n; k++) {
        double v = (row_value(x, k, single) - mean) * rstd * w[k] + b[k];
        if (single) ((float *)y)[k] = (float)v;
        else ((double *)y)[k] = v;
    }
}

/* Where a row of results is computed: in place for float32 and float64, else in cells that
 * finish_row stores. */
static void *result_row(const layer *l, double *cells, int64_t i) {
    bool in_place = l->out->dtype == LN_FLOAT32 || l->out->dtype == LN_FLOAT64;
    return in_place ? (void *)element(l->out, i * l->n) : cells;
}

static void finish_row(const layer *l, const void *y, const double *cells, int64_t i) {
    if (y == cells) CPU(row_store)(element(l->out, i * l->n), cells, l->out->dtype, l->n, 1);
}

static void forward_row(const layer *l, double *cells, int64_t i) {
    const void *x = row_read(cells, l->x, i * l->n, l->n);
    void *y = result_row(l, cells, i);
    const double *w = l->weight, *b = l->bias;
    bool single = l->x->dtype == LN_FLOAT32;
    double squares, mean = sum_of(x, l->n, single) / (double)l->n;
    if (single) squares_of(&squares, x, mean, l->n, true);
    else squares_of(&squares, x, mean, l->n, false);
    double rstd = 1 / sqrt(squares / (double)l->n + l->eps);
    if (single) scale_row_of(y, x, mean, rstd, w, b, l->n, true);
    else scale_row_of(y, x, mean, rstd, w, b, l->n, false);
    finish_row(l, y, cells, i);
    ln_element_set(l->mean->dtype, element(l->mean, i), mean);
    ln_element_set(l->rstd->dtype, element(l->rstd, i), rstd);
}

/* With x_hat = (x - mean) rstd and g = dy weight: the row's part of dweight and dbias, and the sums
 * of g and of g x_hat, to sums. */
ROW_LOOP sums_of(double *sums, double *restrict dw, double *restrict db, const void *restrict x,
                 const void *restrict dy, const double *restrict w, double mean, double rstd,
                 int64_t n, bool single) {
    double sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
    for (int64_t k = 0; k < n; k++) {
        double x_hat = (row_value(x, k, single) - mean) * rstd, e = row_value(dy, k, single);
        dw[k] += e * x_hat;
        db[k] += e;
        sum += e * w[k];
        dot += e * w[k] * x_hat;
    }
    sums[0] = sum;
    sums[1] = dot;
}

/* dx = rstd (g - mean of g - x_hat mean of g x_hat). */
ROW_LOOP gradient_of(void *restrict dx, const double *sums, const void *restrict x,
                     const void *restrict dy, const double *restrict w, double mean, double rstd,
                     int64_t n, bool single) {
    double mean_g = sums[0] / (double)n, slope = sums[1] / (double)n;
    for (int64_t k = 0; k < n; k++) {
        double x_hat = (row_value(x, k, single) - mean) * rstd;
        double v = (row_value(dy, k, single) * w[k] - mean_g - x_hat * slope) * rstd;
        if (single) ((float *)dx)[k] = (float)v;
        else ((double *)dx)[k] = v;
    }
}

static void backward_row(const layer *l, double *cells, double *dw, double *db, int64_t i) {
    int64_t n = l->n;
    const void *x = row_read(cells, l->x, i * n, n), *dy = row_read(cells + n, l->dy, i * n, n);
    void *dx = result_row(l, cells, i);
    const double *w = l->weight;
    double mean = ln_element_get(l->mean_in->dtype, element(l->mean_in, i));
    double rstd = ln_element_get(l->rstd_in->dtype, element(l->rstd_in, i)), sums[2];
    if (l->x->dtype == LN_FLOAT32) {
        sums_of(sums, dw, db, x, dy, w, mean, rstd, n, true);
        gradient_of(dx, sums, x, dy, w, mean, rstd, n, true);
    } else {
        sums_of(sums, dw, db, x, dy, w, mean, rstd, n, false);
        gradient_of(dx, sums, x, dy, w, mean, rstd, n, false);
    }
    finish_row(l, dx, cells, i);
}

static void chunk_body(void *context, int64_t chunk, int member) {
    const layer *l = context;
    double *row = l->row + 2 * member * l->n;
    int64_t from = chunk * l->chunk_rows, to = smaller(from + l->chunk_rows, l->rows);
    if (l->dy == NULL) {
        for (int64_t i = from; i < to; i++) forward_row(l, row, i);
        return;
    }
    double *dw = l->dweight + chunk * l->n, *db = l->dbias + chunk * l->n;
    memset(dw, 0, (size_t)l->n * sizeof *dw);
    memset(db, 0, (size_t)l->n * sizeof *db);
    for (int64_t i = from; i < to; i++) backward_row(l, row, dw, db, i);
}

/* The chunks' sums, joined in order into the first and stored. */
static void join(const layer *l, double *chunks, ln_tensor *result) {
    for (int64_t c = 1; c < l->chunks; c++)
        for (int64_t k = 0; k < l->n; k++) chunks[k] += chunks[c * l->n + k];
    if (result != NULL) CPU(row_store)(result->data, chunks, result->dtype, l->n, 1);
}

/* Plans, and makes all arrays in one block of scratch, which starts at l->weight. */
static ln_status plan(layer *l, const ln_tensor *weight, const ln_tensor *bias, int ndim_normalised,
                      const char *what) {
    l->rows = l->n = 1;
    for (int i = 0; i < l->x->ndim; i++)
        *(i < l->x->ndim - ndim_normalised ? &l->rows : &l->n) *= l->x->shape[i];
    l->chunk_rows = larger(ceil_div(CHUNK, larger(l->n, 1)), ceil_div(l->rows, MOST_CHUNKS));
    l->chunks = larger(ceil_div(l->rows, l->chunk_rows), 1);
    int64_t team = larger(share_team(l->chunks, 2 * l->rows * l->n), 1);
    int64_t parts = 2 + 2 * team + (l->dy == NULL ? 0 : 2 * l->chunks);
    double *p = ln_scratch_new((size_t)(parts * l->n + 1) * sizeof *p, what);
    if (p == NULL) return LN_OUT_OF_MEMORY;
    l->weight = p;
    l->bias = l->weight + l->n;
    l->row = l->bias + l->n;
    l->dweight = l->row + 2 * team * l->n;
    l->dbias = l->dweight + l->chunks * l->n;
    for (int64_t i = 0; i < l->n; i++) {
        l->weight[i] = 1;
        l->bias[i] = 0;
    }
    if (weight != NULL) CPU(row_load)(l->weight, weight->data, weight->dtype, l->n, 1, false);
    if (bias != NULL) CPU(row_load)(l->bias, bias->data, bias->dtype, l->n, 1, false);
    return LN_OK;
}

ln_status CPU(layer_norm)(ln_tensor *y, ln_tensor *mean, ln_tensor *rstd, const ln_tensor *x,
                          const ln_tensor *weight, const ln_tensor *bias, int ndim_normalised,
                          double eps) {
    const char *what = "layer_norm";
    layer l = {.x = x, .out = y, .mean = mean, .rstd = rstd, .eps = eps};
    ln_tensor *made[6] = {NULL};
    ln_status status;
    LN_TRY(CPU(row_major)(&made[0], &l.x, what));
    LN_TRY(CPU(row_major)(&made[1], &weight, what));
    LN_TRY(CPU(row_major)(&made[2], &bias, what));
    LN_TRY(CPU(row_major_out)(&made[3], &l.out, what));
    LN_TRY(CPU(row_major_out)(&made[4], &l.mean, what));
    LN_TRY(CPU(row_major_out)(&made[5], &l.rstd, what));
    LN_TRY(plan(&l, weight, bias, ndim_normalised, what));
    share(l.chunks, 2 * l.rows * l.n, chunk_body, &l);
    LN_TRY(CPU(row_major_end)(y, made[3]));
    LN_TRY(CPU(row_major_end)(mean, made[4]));
    LN_TRY(CPU(row_major_end)(rstd, made[5]));
fail:
    ln_scratch_release(l.weight);
    for (int i = 0; i < 6; i++) ln_tensor_release(made[i]);
    return status;
}

ln_status CPU(layer_norm_backward)(ln_tensor *dx, ln_tensor *dweight, ln_tensor *dbias,
                                   const ln_tensor *dy, const ln_tensor *x, const ln_tensor *weight,
                                   const ln_tensor *mean, const ln_tensor *rstd,
                                   int ndim_normalised) {
    const char *what = "layer_norm_backward";
    layer l = {.x = x, .dy = dy, .out = dx, .mean_in = mean, .rstd_in = rstd};
    ln_tensor *made[8] = {NULL}, *dw = dweight, *db = dbias;
    ln_status status;
    LN_TRY(CPU(row_major)(&made[0], &l.x, what));
    LN_TRY(CPU(row_major)(&made[1], &l.dy, what));
    LN_TRY(CPU(row_major)(&made[2], &weight, what));
    LN_TRY(CPU(row_major)(&made[3], &l.mean_in, what));
    LN_TRY(CPU(row_major)(&made[4], &l.rstd_in, what));
    LN_TRY(CPU(row_major_out)(&made[5], &l.out, what));
    LN_TRY(CPU(row_major_out)(&made[6], &dw, what));
    LN_TRY(CPU(row_major_out)(&made[7], &db, what));
    LN_TRY(plan(&l, weight, NULL, ndim_normalised, what));
    share(l.chunks, 2 * l.rows * l.n, chunk_body, &l);
    join(&l, l.dweight, dw);
    join(&l, l.dbias, db);
    LN_TRY(CPU(row_major_end)(dx, made[5]));
    LN_TRY(CPU(row_major_end)(dweight, made[6]));
    LN_TRY(CPU(row_major_end)(dbias, made[7]));
fail:
    ln_scratch_release(l.weight);
    for (int i = 0; i < 8; i++) ln_tensor_release(made[i]);
    return status;
}
