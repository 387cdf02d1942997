/* One pair of row blocks of the similarity engine: the tile products, the masks, and the
 * accumulation of the jobs. Packs nothing, schedules nothing and allocates nothing.
 *
 * For tile S = Q K^T of unit rows: forward, each job turns S into sums over its anchors; backward,
 * the jobs' gradient weights W = dL/dS are summed, and dQ += W K, dK += W^T Q. */
#include "tile.h"
#include "cpu/vector_math.h"
#include "keep.h"
#include "kept.h"
#include "mask.h"
#include "pack.h"
#include "product.h"

#include <string.h>

/* ---- Jobs ---- */

/* What a thread works on: one tile and the buffers that its jobs share. */
typedef struct {
    const tile_pass *pass;
    tile_range r;
    real *s; /* the tile: rows `apart` elements apart */
    int64_t apart;
    real *own_s, *w; /* tiles of the worker's own, TILE_COLUMNS apart */
    real *f;         /* a tile of link values, for running maxima along the columns */
    real *made;      /* where a machine's output 0 is to go, as a tile, or NULL */
    int64_t made_apart;
    real *registers;
    real *line, *line2, *line3; /* (TILE_COLUMNS) */
    bool w_started;
    run_values *values;     /* of the machine that runs */
    int64_t run_row, ahead; /* its last run: the first row, and the first after it */
} worker;

static int64_t width(const worker *w) {
    return w->r.column1 - w->r.column0;
}

static const real *similarities(const worker *w, int64_t row) {
    return w->s + (row - w->r.row0) * w->apart;
}

/* An output as an array that may be written: the machine's own register, or `line` filled. */
static real *writable(operand o, real *line, int64_t n) {
    if (o.array == NULL)
        for (int64_t t = 0; t < n; t++) line[t] = o.offset;
    else memcpy(line, o.array, (size_t)n * sizeof *line);
    return line;
}

static void start(worker *w, const machine *m) {
    REAL(machine_start)(m, w->values, w->registers, w->r.column0, width(w));
    w->ahead = w->r.row0;
}

/* results[i]: output i in the row, which comes after the last one asked for since the start. */
static void run_row(worker *w, const machine *m, operand *results, int64_t row) {
    if (row == w->ahead) {
        int64_t rows = machine_rows_of(width(w)), left = w->r.row1 - row;
        w->run_row = row;
        w->ahead += rows < left ? rows : left;
        machine_rows run = {similarities(w, row), w->apart, row, w->ahead - row, width(w)};
        real *first = w->made != NULL ? w->made + (row - w->r.row0) * w->made_apart : NULL;
        REAL(machine_run)(m, w->values, w->registers, first, w->made_apart, run);
    }
    for (int i = 0; i < m->n_outputs; i++)
        results[i] = machine_output(m, w->values, i, row - w->run_row);
}

/* An output of a job's machine of one row, with `excluded` where it is masked. Only a masked or
 * constant output is copied. */
static const real *masked(const worker *w, const tile_job *job, operand o, real *line,
                          real excluded, mask_class mask, bool flipped, int64_t row) {
    if (mask == MASK_FULL && o.array != NULL) return o.array;
    real *x = writable(o, line, width(w));
    if (mask == MASK_MIXED) REAL(mask_apply)
    (x, excluded, job->reduction->n_masks, job->reduction->masks, flipped, row, w->r.column0,
     width(w));
    return x;
}

static real sum_of(const real *x, int64_t n) {
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t t = 0; t < n; t++) sum += x[t];
    return sum;
}

static real max_of(const real *x, int64_t n) {
    real max = -INFINITY;
#pragma omp simd reduction(max : max)
    for (int64_t t = 0; t < n; t++) max = x[t] > max ? x[t] : max;
    return max;
}

/* exp(x - shift) where shift is the maximum of all x that are no NaN: infinities are as large as
 * each other, and under a shift of -inf there are -inf, whose share is 0, and NaN alone. */
static inline real share(real x, real shift) {
    real safe = shift == -INFINITY ? 0 : shift;
    return x == safe ? 1 : exp(x - safe);
}

static real sum_shares(const real *x, real shift, int64_t n) {
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t t = 0; t < n; t++) sum += share(x[t], shift);
    return sum;
}

static void rescale(double *sum, real *shift, real max) {
    if (max <= *shift) return;
    if (*sum != 0) *sum *= exp((double)*shift - (double)max);
    *shift = max;
}

static void add_line(double *sums, const real *line, int64_t n) {
    for (int64_t t = 0; t < n; t++) sums[t] += (double)line[t];
}

/* Forward, anchors along the rows of the tile. */
static void forward_rows(worker *w, tile_job *job, mask_class mask) {
    int64_t n = width(w);
    bool running = job->reduction->kind == LN_REDUCE_LSE && !job->fixed_shift;
    start(w, &job->straight);
    for (int64_t row = w->r.row0; row < w->r.row1; row++) {
        operand o;
        run_row(w, &job->straight, &o, row);
        const real *x = masked(w, job, o, w->line, running ? -INFINITY : 0, mask, false, row);
        if (running) {
            rescale(&job->sum[row], &job->shift[row], max_of(x, n));
            job->sum[row] += (double)sum_shares(x, job->shift[row], n);
        } else {
            job->sum[row] += (double)sum_of(x, n);
        }
    }
}

/* Forward, anchors along the columns: sums of a tile gather in a line first. With a running maximum
 * the tile's link values are kept until its maxima are known. */
static void forward_columns(worker *w, tile_job *job, bool flipped, mask_class mask) {
    const machine *m = flipped ? &job->flipped : &job->straight;
    int64_t n = width(w);
    bool running = job->reduction->kind == LN_REDUCE_LSE && !job->fixed_shift;
    real *gathered = w->line2;
    for (int64_t t = 0; t < n; t++) gathered[t] = running ? -INFINITY : 0;
    start(w, m);
    for (int64_t row = w->r.row0; row < w->r.row1; row++) {
        operand o;
        run_row(w, m, &o, row);
        const real *x = masked(w, job, o, w->line, running ? -INFINITY : 0, mask, flipped, row);
        if (!running) {
            for (int64_t t = 0; t < n; t++) gathered[t] += x[t];
            continue;
        }
        for (int64_t t = 0; t < n; t++) gathered[t] = x[t] > gathered[t] ? x[t] : gathered[t];
        memcpy(w->f + (row - w->r.row0) * TILE_COLUMNS, x, (size_t)n * sizeof *x);
    }
    double *sum = job->sum + w->r.column0;
    real *shift = job->shift + w->r.column0;
    if (running) {
        for (int64_t t = 0; t < n; t++) rescale(&sum[t], &shift[t], gathered[t]);
        memset(gathered, 0, (size_t)n * sizeof *gathered);
        for (int64_t row = w->r.row0; row < w->r.row1; row++) {
            const real *x = w->f + (row - w->r.row0) * TILE_COLUMNS;
#pragma omp simd
            for (int64_t t = 0; t < n; t++) gathered[t] += share(x[t], shift[t]);
        }
    }
    add_line(sum, gathered, n);
}

/* Forward, both halves at once. */
static void forward_both(worker *w, tile_job *job, mask_class mask) {
    int64_t n = width(w);
    real *gathered = w->line2;
    memset(gathered, 0, (size_t)n * sizeof *gathered);
    start(w, &job->both);
    for (int64_t row = w->r.row0; row < w->r.row1; row++) {
        operand o[2];
        run_row(w, &job->both, o, row);
        const real *x = masked(w, job, o[0], w->line, 0, mask, false, row), *y = x;
        if (o[1].array != o[0].array) y = masked(w, job, o[1], w->line3, 0, mask, false, row);
        real sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t t = 0; t < n; t++) {
            sum += x[t];
            gathered[t] += y[t];
        }
        job->sum[row] += (double)sum;
    }
    add_line(job->sum + w->r.column0, gathered, n);
}

/* Adds the gradient of parameter p for one row. */
static void add_parameter(worker *w, tile_job *job, int p, operand gradient, bool flipped,
                          mask_class mask, int64_t row) {
    const real *x = masked(w, job, gradient, w->line2, 0, mask, flipped, row);
    double *sums = job->dparameters[p];
    int along = flipped ? LN_PARAMETER_ROW : LN_PARAMETER_COLUMN;
    if (job->reduction->parameters[p].kind == along) add_line(sums + w->r.column0, x, width(w));
    else sums[row] += (double)sum_of(x, width(w));
}

/* What a machine's outputs after the first are: gradients of the wanted parameters, each of the
 * tile's rows, of its columns, or of both in turn. */
typedef enum { OF_ROWS, OF_COLUMNS, OF_BOTH } gradient_order;

static void add_parameters(worker *w, tile_job *job, const operand *gradients, gradient_order order,
                           mask_class mask, int64_t row) {
    for (int p = 0; p < job->reduction->n_parameters; p++) {
        if (job->reduction->parameters[p].slope < 0) continue;
        if (order != OF_COLUMNS) add_parameter(w, job, p, *gradients++, false, mask, row);
        if (order != OF_ROWS) add_parameter(w, job, p, *gradients++, true, mask, row);
    }
}

/* Backward through one machine: its first output is a share of dL/dS. */
static void backward_job(worker *w, tile_job *job, const machine *m, gradient_order order,
                         mask_class mask) {
    int64_t n = width(w);
    operand results[2 * (LN_LINK_PARAMETERS + 1)];
    w->made = !w->w_started && mask == MASK_FULL ? w->w : NULL;
    w->made_apart = TILE_COLUMNS;
    start(w, m);
    for (int64_t row = w->r.row0; row < w->r.row1; row++) {
        real *to = w->w + (row - w->r.row0) * TILE_COLUMNS;
        run_row(w, m, results, row);
        const real *x = masked(w, job, results[0], w->line, 0, mask, order == OF_COLUMNS, row);
        if (w->w_started)
            for (int64_t t = 0; t < n; t++) to[t] += x[t];
        else if (x != to) memcpy(to, x, (size_t)n * sizeof *to);
        if (m->n_outputs > 1) add_parameters(w, job, results + 1, order, mask, row);
    }
    w->w_started = true;
}

/* ---- Keeping the largest ---- */

static void keep_rows(worker *w, tile_job *job, mask_class mask) {
    for (int64_t row = w->r.row0; row < w->r.row1; row++) {
        operand o = {similarities(w, row), 1, 0, INFINITY};
        keep(job->keep, row, masked(w, job, o, w->line, -INFINITY, mask, false, row), width(w));
    }
}

static void keep_columns(worker *w, tile_job *job, mask_class mask) {
    real turned[KEEP_COLUMNS][TALL_ROWS];
    int64_t n = width(w), rows = w->r.row1 - w->r.row0, apart = w->apart;
    const real *tile = w->s;
    if (mask == MASK_MIXED) {
        for (int64_t i = 0; i < rows; i++) {
            operand o = {w->s + i * apart, 1, 0, INFINITY};
            masked(w, job, o, w->f + i * TILE_COLUMNS, -INFINITY, mask, true, w->r.row0 + i);
        }
        tile = w->f;
        apart = TILE_COLUMNS;
    }
    for (int64_t t = 0; t < n; t += KEEP_COLUMNS) {
        turn(turned[0], TALL_ROWS, tile + t, apart, rows);
        for (int64_t c = 0; c < KEEP_COLUMNS && t + c < n; c++)
            keep(job->keep, w->r.column0 + t + c, turned[c], rows);
    }
}

/* ---- The tile ---- */

static tile_range transposed(tile_range r) {
    return (tile_range){r.column0, r.column1, r.row0, r.row1};
}

static void run_orientation(worker *w, tile_job *job, bool flipped, mask_class mask) {
    if (mask == MASK_EMPTY) return;
    if (job->keep != NULL && flipped) keep_columns(w, job, mask);
    else if (job->keep != NULL) keep_rows(w, job, mask);
    else if (w->pass->backward)
        backward_job(w, job, flipped ? &job->flipped : &job->straight,
                     flipped ? OF_COLUMNS : OF_ROWS, mask);
    else if (flipped || job->reduction->by_column) forward_columns(w, job, flipped, mask);
    else forward_rows(w, job, mask);
}

/* What the tile holds for the job: its own entries, and those of its mirror image. */
static void classify_job(const tile_job *job, tile_mode mode, tile_range r, mask_class *straight,
                         mask_class *flipped) {
    const ln_reduction *reduction = job->reduction;
    *straight = REAL(mask_classify)(reduction->n_masks, reduction->masks, r);
    *flipped = MASK_EMPTY;
    if (mode != TILE_PLAIN)
        *flipped = REAL(mask_classify)(reduction->n_masks, reduction->masks, transposed(r));
}

static void run_job(worker *w, tile_job *job, tile_mode mode) {
    mask_class straight, flipped;
    classify_job(job, mode, w->r, &straight, &flipped);
    bool full = straight == MASK_FULL && flipped == MASK_FULL, empty = straight == MASK_EMPTY;
    if (job->both_at_once && mode != TILE_PLAIN && (full || (job->even && !empty))) {
        if (w->pass->backward)
            backward_job(w, job, &job->both, job->one_link ? OF_ROWS : OF_BOTH, straight);
        else forward_both(w, job, straight);
        return;
    }
    run_orientation(w, job, false, straight);
    run_orientation(w, job, true, flipped);
}

/* ---- The pair ---- */

static bool tile_is_empty(const tile_pass *pass, tile_mode mode, tile_range r) {
    for (int i = 0; i < pass->n_jobs; i++) {
        mask_class straight, flipped;
        classify_job(&pass->jobs[i], mode, r, &straight, &flipped);
        if (straight != MASK_EMPTY || flipped != MASK_EMPTY) return false;
    }
    return true;
}

static void run_tile(worker *w, real *kept, tile_mode mode, const row_block *q,
                     const row_block *k) {
    const tile_pass *pass = w->pass;
    int64_t padded = padded_features(pass->d);
    bool have = kept != NULL && pass->have_kept, keeps = kept != NULL && !have;
    bool weighs = keeps && pass->keep_weights;
    if ((!keeps || weighs) && tile_is_empty(pass, mode, w->r)) return;
    int64_t i = w->r.row0 - q->first, j = w->r.column0 - k->first;
    int64_t rows = round_up(w->r.row1 - w->r.row0, MICRO_ROWS);
    int64_t columns = round_up(width(w), MICRO_COLUMNS);
    real *place = kept != NULL ? REAL(kept_tile)(kept, q->count, i, j, columns) : NULL;
    w->made = weighs ? place : NULL;
    w->made_apart = columns;
    w->apart = place != NULL && !weighs ? columns : TILE_COLUMNS;
    w->s = place != NULL && !weighs ? place : w->own_s;
    if (!have)
        similarity_product(w->s, w->apart, q->rows + i * padded, k->columns + j * padded, rows,
                           columns, padded);
    w->w_started = false;
    for (int t = 0; t < pass->n_jobs; t++) run_job(w, &pass->jobs[t], mode);
    if (!pass->backward) return;
    int64_t d = pass->d, height = w->r.row1 - w->r.row0;
    if (pass->dq != NULL)
        gradient_product(pass->dq + w->r.row0 * d, w->w, TILE_COLUMNS, 1,
                         k->panels + j * MICRO_COLUMNS, k->stride, height, width(w), d);
    if (pass->dk != NULL && mode != TILE_FOLDED)
        gradient_product(pass->dk + w->r.column0 * d, w->w, 1, TILE_COLUMNS,
                         q->panels + i * MICRO_COLUMNS, q->stride, width(w), height, d);
}

/* What two threads take for blocks of this size, in entries of the matrix: the blocks by
 * themselves, then rounds of meetings, and some entries' worth for each row of a pair. */
static int64_t cost_of(int64_t rows, int64_t size) {
    int64_t blocks = (rows + size - 1) / size, meetings = blocks / 2;
    int64_t rounds = blocks - 1 + blocks % 2;
    return ((blocks + 1) / 2 + rounds * ((meetings + 1) / 2)) * (size * size + 20 * size);
}

/* About 24 blocks at least, but none too small for a tile, nor too large for the cache: of those,
 * the whole vectors that two threads share out best. */
int64_t REAL(tile_block_rows)(int64_t rows, int64_t d) {
    int64_t most = (1 << 19) / ((int64_t)sizeof(real) * padded_features(d));
    int64_t least = round_up(TILE_ROWS, MICRO_COLUMNS), largest = rows / 24;
    if (largest > most) largest = most;
    if (largest < 4 * least / 3) largest = 4 * least / 3;
    int64_t best = least;
    for (int64_t size = least; size <= largest; size += MICRO_COLUMNS)
        if (cost_of(rows, size) < cost_of(rows, best)) best = size;
    return best;
}

size_t REAL(tile_scratch_bytes)(const tile_pass *pass, int64_t rows) {
    int64_t registers = 0;
    for (int i = 0; i < pass->n_jobs; i++) {
        const tile_job *j = &pass->jobs[i];
        const int counts[] = {j->straight.n_registers, j->flipped.n_registers, j->both.n_registers};
        for (int c = 0; c < 3; c++)
            if (counts[c] > registers) registers = counts[c];
    }
    int64_t lines = (3 * (TALL_ROWS + MICRO_ROWS) + 3) * TILE_COLUMNS + registers * REGISTER;
    return (size_t)(REAL(pack_own_elements)(pass, rows) + lines) * sizeof(real) +
           MACHINE_STEPS * sizeof(run_values);
}

static real *take(real **next, int64_t n) {
    real *p = *next;
    *next += n;
    return p;
}

/* ---- A pair ---- */

/* Whether tiles on the diagonal may be TILE_FOLDED: not where a job sums what both halves give a
 * parameter, for the tile has both already. */
static bool folds_diagonal(const tile_pass *pass) {
    bool folds = pass->backward;
    for (int t = 0; t < pass->n_jobs; t++) {
        const tile_job *job = &pass->jobs[t];
        folds &= job->both_at_once && job->even && job->both.n_outputs == 1;
    }
    return folds;
}

void REAL(tile_pair)(const tile_pass *pass, void *scratch, real *kept, tile_mode mode, int64_t row0,
                     int64_t row1, int64_t column0, int64_t column1) {
    worker w = {.pass = pass, .values = scratch};
    real *next = (real *)(w.values + MACHINE_STEPS);
    row_block q, k;
    next = REAL(pack_pair)(pass, next, &q, &k, (tile_range){row0, row1, column0, column1});
    w.own_s = take(&next, (TALL_ROWS + MICRO_ROWS) * TILE_COLUMNS);
    w.w = take(&next, (TALL_ROWS + MICRO_ROWS) * TILE_COLUMNS);
    w.f = take(&next, (TALL_ROWS + MICRO_ROWS) * TILE_COLUMNS);
    w.line = take(&next, TILE_COLUMNS);
    w.line2 = take(&next, TILE_COLUMNS);
    w.line3 = take(&next, TILE_COLUMNS);
    w.registers = next;
    bool square = mode == TILE_SQUARE;
    tile_mode diagonal = folds_diagonal(pass) ? TILE_FOLDED : TILE_PLAIN;
    int64_t height = row1 - row0 <= TALL_ROWS ? TALL_ROWS : TILE_ROWS, across = TILE_COLUMNS;
    if (square) height = across = SQUARE;
    for (int64_t j = column0; j < column1; j += across)
        for (int64_t i = row0; i < row1 && !(square && i > j); i += height) {
            w.r = (tile_range){i, i + height < row1 ? i + height : row1, j,
                               j + across < column1 ? j + across : column1};
            tile_mode of_tile = !square ? mode : i == j ? diagonal : TILE_MIRRORED;
            run_tile(&w, kept, of_tile, &q, &k);
        }
}

/* ---- Whole rows ---- */

int64_t REAL(tile_row_block)(const tile_pass *pass, int64_t most, int64_t *stride,
                             int64_t *elements) {
    int64_t padded = padded_features(pass->d);
    *stride = round_up(pass->m, MICRO_COLUMNS);
    int64_t rows = (4 << 20) / (*stride * (int64_t)sizeof(real)) / MICRO_ROWS * MICRO_ROWS;
    most = most < TILE_ROWS ? round_up(most, MICRO_ROWS) : TILE_ROWS;
    rows = rows > most ? most : rows;
    rows = rows < MICRO_ROWS ? MICRO_ROWS : rows;
    *elements = rows * (padded + *stride);
    return rows;
}

real *REAL(tile_rows)(const tile_pass *pass, const real *panels, real *scratch,
                      const ln_mask *masks, int n_masks, int64_t row0, int64_t row1) {
    int64_t padded = padded_features(pass->d), stride = round_up(pass->m, MICRO_COLUMNS);
    int64_t rows = round_up(row1 - row0, MICRO_ROWS);
    real *s = scratch + rows * padded;
    REAL(pack_rows)(pass, scratch, row0, row1, rows);
    for (int64_t j = 0; j < stride; j += TILE_COLUMNS) {
        int64_t columns = stride - j < TILE_COLUMNS ? stride - j : TILE_COLUMNS;
        similarity_product(s + j, stride, scratch, panels + j * padded, rows, columns, padded);
    }
    for (int64_t row = row0; row < row1; row++) REAL(mask_apply)
    (s + (row - row0) * stride, -INFINITY, n_masks, masks, false, row, 0, pass->m);
    return s;
}
