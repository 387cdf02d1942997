/* Order statistics of whole rows of the similarity matrix: the k largest candidates, the fits to a
 * row's tail, and the fit to the tail of all rows. A block of rows at a time, every thread its own.
 * Compiled once for each element type and instruction set; similarity.c chooses. Invariant: a row's
 * result depends on that row alone, so neither the team nor the blocks change it. */
#include "rows.h"
#include "kept.h"
#include "mask.h"
#include "pack.h"
#include "pass.h"
#include "rank.h"
#include "schedule.h"
#include "unit.h"

#include <math.h>
#include <omp.h>
#include <string.h>

/* Keys of all rows together: counted by their leading bits while keys is NULL, then those of the
 * bins first..end - 1 are collected, in any order. */
enum { POOL_BITS = 20, POOL_BINS = 1 << POOL_BITS };
typedef struct {
    int64_t *counts;
    candidate *keys, *spare;
    int64_t first, end;
    _Atomic int64_t n;
} key_pool;

typedef struct {
    tile_pass pass;
    kept_blocks blocks; /* of its kept tiles */
    const ln_mask *masks;
    int n_masks;
    int64_t k;
    ln_tensor *values, *columns; /* top-k, or NULL */
    const tail_lines *lines;     /* tail, or NULL */
    ln_tensor *fits;
    const int64_t *chosen; /* the rows that are looked at; NULL: all */
    int64_t n_chosen;
    key_pool *pool; /* pooled tail, or NULL */
} row_job;

/* Sums for two least-squares lines, x measured from the first point's. */
typedef struct {
    int64_t rank, n;
    double rho, origin, sx, sxx, sy[2], syy[2], sxy[2];
} moments;

/* ---- Keys of all rows ---- */

static int64_t bin_of(uint64_t key) {
    return (int64_t)(key >> (8 * (int)sizeof(real) - POOL_BITS));
}

/* own: room for m candidates. */
static void pool_row(key_pool *pool, candidate *own, const real *x, int64_t m) {
    int64_t n = 0;
    for (int64_t t = 0; t < m; t++) {
        uint64_t key = rank_key(x[t]);
        int64_t bin = bin_of(key);
        own[n] = (candidate){key, t};
        n += pool->keys == NULL || (bin >= pool->first && bin < pool->end);
    }
    if (pool->keys == NULL) {
        for (int64_t t = 0; t < n; t++)
            __atomic_fetch_add(&pool->counts[bin_of(own[t].key)], 1, __ATOMIC_RELAXED);
    } else {
        memcpy(pool->keys + atomic_fetch_add(&pool->n, n), own, (size_t)n * sizeof *own);
    }
}

/* ---- Rows ---- */

static void store_row(const row_job *job, int64_t row, const candidate *sorted) {
    real *values = (real *)job->values->data + row * job->k;
    int64_t *columns = (int64_t *)job->columns->data + row * job->k;
    for (int64_t r = 0; r < job->k; r++) {
        values[r] = rank_value(sorted[r].key);
        columns[r] = sorted[r].column + 1;
    }
}

static void fit_row(const row_job *job, int64_t row, real *sorted) {
    REAL(tail_fit)((double *)job->fits->data + row * 5, job->lines, sorted);
}

/* What one thread needs, in one piece of scratch: a tile, then two arrays of a row's candidates and
 * their columns or, for tails, of its values and what sorting them takes. */
typedef struct {
    size_t tile, rank, total;
} row_bytes;

static row_bytes bytes_needed(const row_job *job, int64_t tile_elements) {
    row_bytes b;
    size_t m = (size_t)job->pass.m;
    bool tails = job->lines != NULL;
    b.tile = ((size_t)tile_elements * sizeof(real) + 63) / 64 * 64;
    b.rank =
        tails ? ((m + APPEND_SPARE) * sizeof(real) + 63) / 64 * 64 : (m + 1) * sizeof(candidate);
    b.total = b.tile + 2 * b.rank;
    b.total += tails ? REAL(rank_scratch_bytes)(job->pass.m) : (m + 1) * sizeof(int32_t);
    b.total = (b.total + 4095) / 4096 * 4096;
    return b;
}

/* The similarities of rows row0..row1 with all columns, -inf where masked, `stride` elements apart:
 * read where they are kept. */
static const real *whole_rows(const row_job *job, const real *panels, real *scratch, int64_t row0,
                              int64_t row1, int64_t stride) {
    if (!REAL(kept_all)(&job->pass, &job->blocks))
        return REAL(tile_rows)(&job->pass, panels, scratch, job->masks, job->n_masks, row0, row1);
    REAL(kept_rows)(&job->pass, &job->blocks, scratch, stride, row0, row1);
    for (int64_t row = row0; row < row1; row++) REAL(mask_apply)
    (scratch + (row - row0) * stride, -INFINITY, job->n_masks, job->masks, false, row, 0,
     job->pass.m);
    return scratch;
}

static void run_block(const row_job *job, const real *panels, char *own, row_bytes bytes,
                      int64_t row0, int64_t row1, int64_t stride) {
    char *first = own + bytes.tile, *second = first + bytes.rank, *rest = second + bytes.rank;
    rank_state state = {(candidate *)first, (candidate *)second, (int32_t *)rest, NAN};
    value_state values = {(real *)first, (real *)second, rest, NAN};
    const real *s = whole_rows(job, panels, (real *)own, row0, row1, stride);
    for (int64_t row = row0; row < row1; row++) {
        const real *x = s + (row - row0) * stride;
        int64_t m = job->pass.m, k = job->k;
        if (job->pool != NULL) pool_row(job->pool, state.kept, x, m);
        else if (job->lines == NULL) store_row(job, row, REAL(rank_largest)(&state, x, m, k));
        else fit_row(job, row, REAL(rank_largest_values)(&values, x, m, k));
    }
}

static ln_status run_rows(const row_job *job, const real *panels) {
    const tile_pass *pass = &job->pass;
    int64_t most = job->chosen != NULL ? 1 : pass->n; /* those chosen are looked at one by one */
    int64_t stride, elements, rows = REAL(tile_row_block)(pass, most, &stride, &elements);
    int64_t blocks = job->chosen != NULL ? job->n_chosen : (pass->n + rows - 1) / rows;
    row_bytes bytes = bytes_needed(job, elements);
    int team = ln_team(pass->n * pass->m);
    char *scratch = ln_scratch_new(bytes.total * (size_t)team, "similarity");
    if (scratch == NULL) return LN_OUT_OF_MEMORY;
#pragma omp parallel for schedule(dynamic) num_threads(team)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t row0 = job->chosen != NULL ? job->chosen[b] : b * rows;
        int64_t row1 = job->chosen != NULL     ? row0 + 1
                       : row0 + rows < pass->n ? row0 + rows
                                               : pass->n;
        if (ln_interrupted()) continue;
        run_block(job, panels, scratch + bytes.total * (size_t)omp_get_thread_num(), bytes, row0,
                  row1, stride);
    }
    ln_scratch_release(scratch);
    return ln_interrupted() ? ln_fail(LN_INTERRUPTED, "similarity: interrupted") : LN_OK;
}

/* What every pass over the rows of q and k shares, and gives back. */
typedef struct {
    real *q_scale, *k_scale, *panels;
} row_sides;

static void sides_release(row_sides *s) {
    ln_scratch_release(s->panels);
    ln_scratch_release(s->k_scale);
    ln_scratch_release(s->q_scale);
}

static ln_status sides_new(row_sides *s, row_job *job, const ln_tensor *q, const ln_tensor *k,
                           bool cosine) {
    job->pass = (tile_pass){.n = q->shape[0],
                            .m = k != NULL ? k->shape[0] : q->shape[0],
                            .d = q->shape[1],
                            .q = (const real *)q->data,
                            .k = (const real *)(k != NULL ? k : q)->data};
    if (cosine) {
        s->q_scale = REAL(unit_scales)(q);
        s->k_scale = k != NULL ? REAL(unit_scales)(k) : NULL;
        if (s->q_scale == NULL || (k != NULL && s->k_scale == NULL)) return LN_OUT_OF_MEMORY;
        job->pass.q_scale = s->q_scale;
        job->pass.k_scale = k != NULL ? s->k_scale : s->q_scale;
    }
    return LN_OK;
}

static ln_status pack_columns(row_sides *s, const tile_pass *pass) {
    int64_t elements, panels = REAL(pack_column_panels)(pass, &elements);
    s->panels = ln_scratch_new((size_t)elements * sizeof(real), "similarity");
    if (s->panels == NULL) return LN_OUT_OF_MEMORY;
#pragma omp parallel for schedule(static) num_threads(ln_team(elements))
    for (int64_t p = 0; p < panels; p++) REAL(pack_column_panel)(pass, s->panels, p);
    return LN_OK;
}

/* Has the job's rows read from tiles that hold all of the matrix, which are filled if need be: that
 * takes no longer than the rows, and half as long for one set of rows. */
static ln_status use_tiles(row_job *job, bool square, ln_tiles *tiles) {
    job->blocks = REAL(kept_blocks_of)(&job->pass, square);
    if (tiles == NULL || tiles->values->numel < REAL(kept_elements)(&job->blocks)) return LN_OK;
    job->pass.symmetric = square;
    ln_status status = LN_OK;
    if (tiles->holds != LN_TILES_SIMILARITIES)
        status = REAL(schedule_run)(&job->pass, square, tiles);
    REAL(kept_use)(&job->pass, tiles);
    return status;
}

static ln_status rank_rows(row_job *job, const ln_tensor *q, const ln_tensor *k, bool cosine,
                           ln_tiles *tiles) {
    row_sides sides = {0};
    ln_status status = sides_new(&sides, job, q, k, cosine);
    if (status == LN_OK) status = use_tiles(job, k == NULL, tiles);
    if (status == LN_OK && !REAL(kept_all)(&job->pass, &job->blocks))
        status = pack_columns(&sides, &job->pass);
    if (status == LN_OK) status = run_rows(job, sides.panels);
    sides_release(&sides);
    return status;
}

ln_status REAL(similarity_topk)(ln_tensor *values, ln_tensor *columns, const ln_tensor *q,
                                const ln_tensor *k, bool cosine, int tile_dtype, int n_masks,
                                const ln_mask *masks, ln_tiles *tiles) {
    (void)tile_dtype; /* of CUDA devices; here and below */
    row_job job = {.masks = masks,
                   .n_masks = n_masks,
                   .k = values->shape[1],
                   .values = values,
                   .columns = columns};
    return rank_rows(&job, q, k, cosine, tiles);
}

ln_status REAL(rows_tail)(ln_tensor *fits, const ln_tensor *q, const ln_tensor *k, bool cosine,
                          int n_masks, const ln_mask *masks, const tail_lines *lines,
                          const int64_t *chosen, int64_t n_chosen, ln_tiles *tiles) {
    row_job job = {.masks = masks,
                   .n_masks = n_masks,
                   .k = lines->points,
                   .lines = lines,
                   .fits = fits,
                   .chosen = chosen,
                   .n_chosen = n_chosen};
    return rank_rows(&job, q, k, cosine, tiles);
}

/* ---- The pooled tail ---- */

/* The points of one range of keys, sorted, in the order of their ranks. */
static void add_points(moments *m, const candidate *sorted, int64_t n, int64_t points,
                       int64_t burnt) {
    for (int64_t i = 0; i < n && m->rank < points; i++) {
        double d = fmax(1 - (double)rank_value(sorted[i].key), TAIL_SHORTFALL);
        double log_f = log((double)++m->rank / (double)(points + 1));
        if (m->rank == 1) m->rho = d;
        if (m->rank <= burnt) continue;
        if (m->n == 0) m->origin = log(d);
        double x = log(d) - m->origin, y[2] = {log_f, log(-log_f)};
        m->n++;
        m->sx += x;
        m->sxx += x * x;
        for (int line = 0; line < 2; line++) {
            m->sy[line] += y[line];
            m->syy[line] += y[line] * y[line];
            m->sxy[line] += x * y[line];
        }
    }
}

static void fit_moments(double *out, const moments *m) {
    double n = (double)m->n, sxx = m->sxx - m->sx * m->sx / n;
    out[0] = m->rho;
    for (int line = 0; line < 2 && m->n >= 2; line++) {
        double sxy = m->sxy[line] - m->sx * m->sy[line] / n;
        double syy = m->syy[line] - m->sy[line] * m->sy[line] / n;
        double slope = sxy / fmax(sxx, TAIL_SUM);
        out[1 + 2 * line] = slope;
        out[2 + 2 * line] = syy - slope * sxy;
    }
}

/* The next range of bins, from *bin on, whose keys fit `capacity` (one bin at least). */
static int64_t next_range(const int64_t *counts, int64_t *bin, int64_t wanted, int64_t capacity) {
    int64_t held = 0;
    while (*bin < POOL_BINS && held < wanted && (held == 0 || held + counts[*bin] <= capacity))
        held += counts[(*bin)++];
    return held;
}

static int64_t largest_range(const int64_t *counts, int64_t points, int64_t capacity) {
    int64_t bin = 0, most = 0, left = points;
    while (left > 0 && bin < POOL_BINS) {
        int64_t held = next_range(counts, &bin, left, capacity);
        most = held > most ? held : most;
        left -= held;
    }
    return most;
}

/* Counts keys by their leading bits, then collects and sorts them range by range. */
static ln_status pool_points(double *out, row_job *job, const real *panels, int64_t points,
                             int64_t burnt) {
    enum { CAPACITY = 1 << 20 };
    key_pool pool = {.counts = ln_scratch_new(POOL_BINS * sizeof(int64_t), "similarity")};
    moments m = {0};
    ln_status status = LN_OUT_OF_MEMORY;
    if (pool.counts == NULL) goto fail;
    memset(pool.counts, 0, POOL_BINS * sizeof(int64_t));
    job->pool = &pool;
    LN_TRY(run_rows(job, panels));
    size_t room = (size_t)largest_range(pool.counts, points, CAPACITY);
    pool.keys = ln_scratch_new((room + 1) * sizeof(candidate), "similarity");
    pool.spare = ln_scratch_new((room + 1) * sizeof(candidate), "similarity");
    status = LN_OUT_OF_MEMORY;
    if (pool.keys == NULL || pool.spare == NULL) goto fail;
    for (int64_t bin = 0; m.rank < points && bin < POOL_BINS;) {
        pool.first = bin;
        int64_t held = next_range(pool.counts, &bin, points - m.rank, CAPACITY);
        pool.end = bin;
        pool.n = 0;
        LN_TRY(run_rows(job, panels));
        add_points(&m, REAL(rank_sort)(pool.keys, pool.spare, held), held, points, burnt);
    }
    fit_moments(out, &m);
    status = LN_OK;
fail:
    ln_scratch_release(pool.counts);
    ln_scratch_release(pool.keys);
    ln_scratch_release(pool.spare);
    return status;
}

ln_status REAL(similarity_pooled_tail)(ln_tensor *fit, const ln_tensor *q, const ln_tensor *k,
                                       bool cosine, int tile_dtype, int n_masks,
                                       const ln_mask *masks, int64_t points, int64_t burnt) {
    (void)tile_dtype;
    row_job job = {.masks = masks, .n_masks = n_masks};
    row_sides sides = {0};
    memset(fit->data, 0, 5 * sizeof(double));
    ln_status status = sides_new(&sides, &job, q, k, cosine);
    if (status == LN_OK) status = pack_columns(&sides, &job.pass);
    if (status == LN_OK)
        status = pool_points((double *)fit->data, &job, sides.panels, points, burnt);
    sides_release(&sides);
    return status;
}
