/* softmax, its logarithm, and their gradients. A slice is what lies along dim. Slices of packed
 * float32 are computed where they lie; all others, several side by side, in a tile of cells that
 * stays in the caches. Invariant: how a slice is computed depends on shapes only. */
#include "row.h"

enum {
    TILE = 4096, /* cells of a tile, where slices are not longer than that */
    LANES = 16,  /* a slice that fills a tile alone is folded in so many lanes */
    SHORT = 32   /* slices of so few neighbours are computed side by side too */
};

/* Elements (slice, i) of a tile lie at offset + slice * column_step + i * step. */
typedef struct {
    const ln_tensor *x,
        *y; /* forward: x; backward: x is dy, and y the result of the forward pass */
    ln_tensor *out;
    bool logarithm, single; /* single: float32 is enough */
    int64_t extent, step;
    int64_t outer, outer_step, columns, column_step; /* outer groups of slices side by side */
    int64_t tile_columns, tiles;                     /* of one group */
    double *scratch;
    int64_t tile_cells; /* a member has two tiles */
} plan;

/* ---- Packed float32 ---- */

static void forward_floats(float *y, const float *x, int64_t n, bool logarithm) {
    float most = CPU(float_max)(x, n);
    double sum = CPU(float_exp)(logarithm ? NULL : y, x, most, n);
    double log_sum = log(sum);
    float scale = (float)(1 / sum);
    if (logarithm)
        for (int64_t i = 0; i < n; i++) y[i] = (float)((double)x[i] - most - log_sum);
    else
        for (int64_t i = 0; i < n; i++) y[i] *= scale;
}

static void backward_floats(float *dx, const float *dy, const float *y, int64_t n, bool logarithm) {
    double dot = 0;
    if (logarithm) {
        float sum = (float)CPU(float_sum)(dy, n);
        CPU(float_exp)(dx, y, 0, n);
        for (int64_t i = 0; i < n; i++) dx[i] = dy[i] - dx[i] * sum;
        return;
    }
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < n; i++) dot += (double)dy[i] * y[i];
    float total = (float)dot;
    for (int64_t i = 0; i < n; i++) dx[i] = y[i] * (dy[i] - total);
}

static bool in_place(const plan *p) {
    return p->x->dtype == LN_FLOAT32 && p->step == 1 && p->columns == 1;
}

static void run_floats(const plan *p, int64_t offset) {
    const float *x = (const float *)element(p->x, offset);
    float *out = (float *)element(p->out, offset);
    if (p->y == NULL) forward_floats(out, x, p->extent, p->logarithm);
    else backward_floats(out, x, (const float *)element(p->y, offset), p->extent, p->logarithm);
}

/* ---- Tiles ---- */

/* A tile in `rows` rows of `lanes` cells: a lane is a slice or, of a slice that is alone, every
 * LANES-th element, the last row filled up. */
typedef struct {
    int64_t columns, rows, lanes, offset;
} tile_shape;

static int64_t cells_of(const tile_shape *t) {
    return t->rows * t->lanes;
}

static void load_tile(const plan *p, double *tile, const ln_tensor *x, const tile_shape *t,
                      double filler) {
    if (t->columns == 1) {
        CPU(row_load)(tile, element(x, t->offset), x->dtype, p->extent, p->step, false);
        for (int64_t i = p->extent; i < cells_of(t); i++) tile[i] = filler;
        return;
    }
    for (int64_t i = 0; i < p->extent; i++)
        CPU(row_load)(tile + i * t->lanes, element(x, t->offset + i * p->step), x->dtype,
                      t->columns, p->column_step, false);
}

static void store_tile(const plan *p, const double *tile, const tile_shape *t) {
    if (t->columns == 1) {
        CPU(row_store)(element(p->out, t->offset), tile, p->out->dtype, p->extent, p->step);
        return;
    }
    for (int64_t i = 0; i < p->extent; i++)
        CPU(row_store)(element(p->out, t->offset + i * p->step), tile + i * t->lanes, p->out->dtype,
                       t->columns, p->column_step);
}

/* The largest of each lane, and of all lanes where they are of one slice. NaN is left to the sums,
 * which it reaches in any case. */
static void fold_max(double *restrict most, const double *restrict x, const tile_shape *t) {
    for (int64_t k = 0; k < t->lanes; k++) most[k] = -INFINITY;
    for (int64_t i = 0; i < t->rows; i++, x += t->lanes)
        for (int64_t k = 0; k < t->lanes; k++) most[k] = x[k] > most[k] ? x[k] : most[k];
    for (int64_t k = 1; t->columns == 1 && k < t->lanes; k++)
        most[0] = most[k] > most[0] ? most[k] : most[0];
    for (int64_t k = 1; t->columns == 1 && k < t->lanes; k++) most[k] = most[0];
}

static void add_rows(double *restrict sum, const double *restrict x, int64_t rows, int64_t lanes) {
    for (int64_t i = 0; i < rows; i++, x += lanes)
        for (int64_t k = 0; k < lanes; k++) sum[k] += x[k];
}

static void join_sums(double *sum, const tile_shape *t) {
    for (int64_t k = 1; t->columns == 1 && k < t->lanes; k++) sum[0] += sum[k];
    for (int64_t k = 1; t->columns == 1 && k < t->lanes; k++) sum[k] = sum[0];
}

static void forward_tile(const plan *p, double *tile, double *other, const tile_shape *t) {
    double most[ROW], sum[ROW] = {0};
    load_tile(p, tile, p->x, t, -INFINITY);
    fold_max(most, tile, t);
    double *x = tile;
    for (int64_t i = 0; i < t->rows; i++)
        for (int64_t k = 0; k < t->lanes; k++) x[i * t->lanes + k] -= most[k];
    if (p->logarithm) memcpy(other, tile, (size_t)cells_of(t) * sizeof *tile);
    double *e = p->logarithm ? other : tile;
    CPU(row_exp)(e, cells_of(t), p->single);
    add_rows(sum, e, t->rows, t->lanes);
    join_sums(sum, t);
    for (int64_t k = 0; k < t->lanes; k++) sum[k] = p->logarithm ? log(sum[k]) : 1 / sum[k];
    for (int64_t i = 0; i < t->rows; i++, x += t->lanes)
        for (int64_t k = 0; k < t->lanes; k++) x[k] = p->logarithm ? x[k] - sum[k] : x[k] * sum[k];
    store_tile(p, tile, t);
}

/* dx = y (dy - sum of dy y); of the logarithm: dx = dy - exp(y) sum of dy. */
static void backward_tile(const plan *p, double *tile, double *other, const tile_shape *t) {
    double sum[ROW] = {0}, *dy = tile, *y = other;
    load_tile(p, tile, p->x, t, 0);
    load_tile(p, other, p->y, t, 0);
    if (p->logarithm) CPU(row_exp)(other, cells_of(t), p->single);
    for (int64_t i = 0; i < cells_of(t) && !p->logarithm; i++) dy[i] *= y[i];
    add_rows(sum, dy, t->rows, t->lanes);
    join_sums(sum, t);
    for (int64_t i = 0; i < t->rows; i++, dy += t->lanes, y += t->lanes)
        for (int64_t k = 0; k < t->lanes; k++) dy[k] -= y[k] * sum[k];
    store_tile(p, tile, t);
}

/* ---- Slices ---- */

static void body(void *context, int64_t item, int member) {
    const plan *p = context;
    int64_t start = item % p->tiles * p->tile_columns;
    tile_shape t = {.columns = smaller(p->tile_columns, p->columns - start),
                    .offset = item / p->tiles * p->outer_step + start * p->column_step};
    bool alone = t.columns == 1;
    t.lanes = alone ? LANES : t.columns;
    t.rows = alone ? ceil_div(p->extent, LANES) : p->extent;
    double *tile = p->scratch + 2 * member * p->tile_cells;
    if (in_place(p)) run_floats(p, t.offset);
    else if (p->y == NULL) forward_tile(p, tile, tile + p->tile_cells, &t);
    else backward_tile(p, tile, tile + p->tile_cells, &t);
}

static void plan_slices(plan *p, int dim) {
    const ln_tensor *x = p->x; /* row-major */
    p->extent = x->shape[dim];
    p->step = 1;
    for (int i = dim + 1; i < x->ndim; i++) p->step *= x->shape[i];
    p->columns = p->step;
    p->column_step = 1;
    p->outer_step = p->extent * p->step;
    p->outer = x->numel / p->outer_step;
    if (p->step == 1 && p->extent <= SHORT) {
        p->columns = p->outer;
        p->column_step = p->extent;
        p->outer = 1;
    }
    int64_t most = larger(LANES, smaller(ROW, TILE / p->extent));
    p->tile_columns = smaller(p->columns, most);
    p->tiles = ceil_div(p->columns, p->tile_columns);
    p->tile_cells = ceil_div(p->extent * p->tile_columns, LANES) * LANES;
}

static ln_status run_slices(plan *p, int dim, const char *what) {
    plan_slices(p, dim);
    p->single = p->x->dtype != LN_FLOAT64;
    int64_t items = p->outer * p->tiles, work = 8 * p->x->numel;
    int64_t cells = in_place(p) ? 1 : share_team(items, work) * 2 * p->tile_cells;
    p->scratch = ln_scratch_new((size_t)cells * sizeof *p->scratch, what);
    if (p->scratch == NULL) return LN_OUT_OF_MEMORY;
    share(items, work, body, p);
    ln_scratch_release(p->scratch);
    return LN_OK;
}

/* Both passes, on row-major copies where tensors are not; y: NULL for the forward pass. */
static ln_status run(ln_tensor *out, const ln_tensor *x, const ln_tensor *y, int dim,
                     bool logarithm, const char *what) {
    ln_tensor *made_x = NULL, *made_y = NULL, *made_out = NULL;
    plan p = {.x = x, .y = y, .out = out, .logarithm = logarithm};
    ln_status status;
    if (x->numel == 0) return LN_OK;
    LN_TRY(CPU(row_major)(&made_x, &p.x, what));
    LN_TRY(CPU(row_major)(&made_y, &p.y, what));
    LN_TRY(CPU(row_major_out)(&made_out, &p.out, what));
    LN_TRY(run_slices(&p, dim, what));
    LN_TRY(CPU(row_major_end)(out, made_out));
fail:
    ln_tensor_release(made_x);
    ln_tensor_release(made_y);
    ln_tensor_release(made_out);
    return status;
}

ln_status CPU(softmax)(ln_tensor *y, const ln_tensor *x, int dim, bool logarithm) {
    return run(y, x, NULL, dim, logarithm, logarithm ? "log_softmax" : "softmax");
}

ln_status CPU(softmax_backward)(ln_tensor *dx, const ln_tensor *dy, const ln_tensor *y, int dim,
                                bool logarithm) {
    const char *what = logarithm ? "log_softmax_backward" : "softmax_backward";
    return run(dx, dy, y, dim, logarithm, what);
}
