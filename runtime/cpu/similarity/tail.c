/* The fits to the tails of all rows: the largest entries of every row, gathered by the tiles, or by
 * whole rows (rows.c) where their lists would take much memory, and where a row's threshold, which
 * comes from a sample of its entries, was too high. Compiled once for each element type and
 * instruction set; similarity.c chooses. Invariant: the result does not depend on the way. */
#include "tail.h"
#include "cpu/vector_math.h"
#include "mask.h"
#include "pack.h"
#include "pass.h"
#include "rank.h"
#include "rows.h"
#include "schedule.h"
#include "unit.h"

#include <omp.h>
#include <string.h>

/* ---- One tail ---- */

static ln_status lines_new(tail_lines *lines, int64_t points, int64_t burnt) {
    int64_t n = points - burnt;
    double *y = ln_scratch_new((size_t)(2 * n + 1) * sizeof *y, "similarity");
    if (y == NULL) return LN_OUT_OF_MEMORY;
    *lines = (tail_lines){points, burnt, {y, y + n}, {0, 0}};
    for (int64_t r = 0; r < n; r++) {
        y[r] = log((double)(burnt + r + 1) / (double)(points + 1));
        y[n + r] = log(-y[r]);
    }
    for (int i = 0; i < 2; i++) {
        double mean = 0;
        for (int64_t r = 0; r < n; r++) mean += lines->line[i][r] / (double)n;
        for (int64_t r = 0; r < n; r++) lines->line[i][r] -= mean;
        for (int64_t r = 0; r < n; r++) lines->square[i] += lines->line[i][r] * lines->line[i][r];
    }
    return LN_OK;
}

void REAL(tail_fit)(double *out, const tail_lines *lines, real *x) {
    int64_t n = lines->points - lines->burnt;
    const double *y = lines->line[0], *z = lines->line[1];
    double mean = 0, sxx = 0, sxy = 0, sxz = 0;
    memset(out, 0, 5 * sizeof *out);
    out[0] = 1 - (double)x[0] < TAIL_SHORTFALL ? TAIL_SHORTFALL : 1 - (double)x[0]; /* or NaN */
    if (n < 2) return;
    x += lines->burnt;
#pragma omp simd
    for (int64_t r = 0; r < n; r++) {
        real d = 1 - x[r];
        x[r] = log(d < (real)TAIL_SHORTFALL ? (real)TAIL_SHORTFALL : d);
    }
    double origin = (double)x[0]; /* equal points are at no distance from their mean */
#pragma omp simd reduction(+ : mean)
    for (int64_t r = 0; r < n; r++) mean += (double)x[r] - origin;
    mean = mean / (double)n + origin;
#pragma omp simd reduction(+ : sxx, sxy, sxz)
    for (int64_t r = 0; r < n; r++) {
        double e = (double)x[r] - mean;
        sxx += e * e;
        sxy += e * y[r];
        sxz += e * z[r];
    }
    const double products[] = {sxy, sxz};
    for (int i = 0; i < 2; i++) {
        double slope = products[i] / (sxx < TAIL_SUM ? TAIL_SUM : sxx);
        out[1 + 2 * i] = slope;
        double sse = lines->square[i] - slope * products[i];
        out[2 + 2 * i] = sse < 0 ? 0 : sse;
    }
}

/* ---- Thresholds from a sample ---- */

enum { SAMPLE = 512 };

/* The sampled columns as a matrix of their own. */
typedef struct {
    tile_pass pass;
    real *rows, *scale, *panels; /* (SAMPLE,d), (SAMPLE), packed */
    int64_t column[SAMPLE];
} sample;

static void sample_release(sample *s) {
    ln_scratch_release(s->rows);
    ln_scratch_release(s->scale);
    ln_scratch_release(s->panels);
}

static ln_status sample_new(sample *s, const tile_pass *pass) {
    *s = (sample){.pass = *pass};
    s->pass.m = SAMPLE;
    s->rows = ln_scratch_new((size_t)(SAMPLE * pass->d + 1) * sizeof(real), "similarity");
    s->scale = ln_scratch_new(SAMPLE * sizeof(real), "similarity");
    if (s->rows == NULL || s->scale == NULL) return LN_OUT_OF_MEMORY;
    for (int64_t i = 0; i < SAMPLE; i++) {
        int64_t column = s->column[i] = (2 * i + 1) * pass->m / (2 * SAMPLE);
        memcpy(s->rows + i * pass->d, pass->k + column * pass->d,
               (size_t)pass->d * sizeof *s->rows);
        s->scale[i] = pass->k_scale != NULL ? pass->k_scale[column] : 1;
    }
    s->pass.k = s->rows;
    s->pass.k_scale = s->scale;
    int64_t elements, panels = REAL(pack_column_panels)(&s->pass, &elements);
    s->panels = ln_scratch_new((size_t)elements * sizeof(real), "similarity");
    if (s->panels == NULL) return LN_OUT_OF_MEMORY;
    for (int64_t p = 0; p < panels; p++) REAL(pack_column_panel)(&s->pass, s->panels, p);
    return LN_OK;
}

/* Masks that leave out many columns must be seen, or the threshold is too high. */
static bool leaves_out_many(int n_masks, const ln_mask *masks) {
    for (int i = 0; i < n_masks; i++)
        if (masks[i].kind != LN_MASK_SELF && masks[i].kind != LN_MASK_INDEX) return true;
    return false;
}

/* The threshold of a row of the sample: the entry at which k of all entries are expected above it,
 * and three deviations further. x is changed. */
static real threshold_of(const sample *s, real *x, int64_t row, int64_t m, int64_t k,
                         const ln_reduction *r, void *scratch) {
    double expected = (double)k * SAMPLE / (double)m;
    int64_t rank = (int64_t)(expected + 3 * sqrt(expected)) + 1;
    if (leaves_out_many(r->n_masks, r->masks))
        for (int64_t i = 0; i < SAMPLE; i++) REAL(mask_apply)
    (x + i, -INFINITY, r->n_masks, r->masks, false, row, s->column[i], 1);
    return REAL(rank_threshold)(x, SAMPLE, rank < SAMPLE ? rank : SAMPLE, scratch);
}

static ln_status sample_rows(tile_keep *keep, const sample *s, int64_t m, const ln_reduction *r) {
    int64_t n = s->pass.n, stride, elements,
            rows = REAL(tile_row_block)(&s->pass, n, &stride, &elements);
    size_t tile = ((size_t)elements * sizeof(real) + 63) / 64 * 64;
    size_t bytes = tile + REAL(rank_scratch_bytes)(SAMPLE);
    int team = ln_team(n * SAMPLE);
    char *scratch = ln_scratch_new(bytes * (size_t)team, "similarity");
    if (scratch == NULL) return LN_OUT_OF_MEMORY;
#pragma omp parallel for schedule(dynamic) num_threads(team)
    for (int64_t row0 = 0; row0 < n; row0 += rows) {
        int64_t row1 = row0 + rows < n ? row0 + rows : n;
        char *own = scratch + bytes * (size_t)omp_get_thread_num();
        real *x = REAL(tile_rows)(&s->pass, s->panels, (real *)own, NULL, 0, row0, row1);
        for (int64_t row = row0; row < row1; row++, x += stride)
            keep->threshold[row] = threshold_of(s, x, row, m, keep->k, r, own + tile);
    }
    ln_scratch_release(scratch);
    return LN_OK;
}

static ln_status find_thresholds(tile_keep *keep, const tile_pass *pass, const ln_reduction *r) {
    sample s;
    ln_status status = sample_new(&s, pass);
    if (status == LN_OK) status = sample_rows(keep, &s, pass->m, r);
    sample_release(&s);
    return status;
}

/* ---- All tails ---- */

/* Lists of all rows may take so much; past it, whole rows are looked at. */
#define LISTS_BYTES ((int64_t)64 << 20)
enum { FEWEST_COLUMNS = 4 * SAMPLE };

static int64_t capacity_of(int64_t k) {
    int64_t spare = k * 3 / 4; /* two deviations of what a threshold lets pass, at 8192 rows */
    return k + (spare > SEGMENT ? spare : SEGMENT);
}

static ln_status keep_new(tile_keep *keep, int64_t n, int64_t k) {
    *keep = (tile_keep){.k = k, .capacity = capacity_of(k)};
    keep->threshold = ln_scratch_new((size_t)n * sizeof(real), "similarity");
    keep->kept = ln_scratch_new((size_t)(n * keep->capacity) * sizeof(real), "similarity");
    keep->count = ln_scratch_new((size_t)n * sizeof(int32_t), "similarity");
    if (keep->threshold == NULL || keep->kept == NULL || keep->count == NULL)
        return LN_OUT_OF_MEMORY;
    memset(keep->count, 0, (size_t)n * sizeof(int32_t));
    return LN_OK;
}

static void keep_release(tile_keep *keep) {
    ln_scratch_release(keep->threshold);
    ln_scratch_release(keep->kept);
    ln_scratch_release(keep->count);
}

/* Fits every row that has its k entries, and gathers the others. */
static ln_status fit_lists(ln_tensor *fits, const tile_keep *keep, const tail_lines *lines,
                           int64_t *missing, int64_t *n_missing) {
    int64_t n = fits->shape[0];
    size_t points = ((size_t)keep->capacity * sizeof(real) + 63) / 64 * 64;
    size_t bytes = points + REAL(rank_scratch_bytes)(keep->capacity);
    int team = ln_team(n * keep->capacity);
    char *scratch = ln_scratch_new(bytes * (size_t)team, "similarity");
    if (scratch == NULL) return LN_OUT_OF_MEMORY;
#pragma omp parallel for schedule(static) num_threads(team)
    for (int64_t row = 0; row < n; row++) {
        char *own = scratch + bytes * (size_t)omp_get_thread_num();
        if (keep->count[row] < keep->k) continue;
        REAL(rank_values)
        ((real *)own, keep->kept + row * keep->capacity, keep->count[row], keep->k, own + points);
        REAL(tail_fit)((double *)fits->data + row * 5, lines, (real *)own);
    }
    ln_scratch_release(scratch);
    *n_missing = 0;
    for (int64_t row = 0; row < n; row++)
        if (keep->count[row] < keep->k) missing[(*n_missing)++] = row;
    return LN_OK;
}

static ln_status run_lists(ln_tensor *fits, const ln_tensor *q, bool cosine, const ln_reduction *r,
                           const tail_lines *lines, ln_tiles *tiles, int64_t *missing,
                           int64_t *n_missing) {
    tile_keep keep = {0};
    tile_job job = {.reduction = r, .keep = &keep};
    tile_pass pass = {.symmetric = true,
                      .n = q->shape[0],
                      .m = q->shape[0],
                      .d = q->shape[1],
                      .q = (const real *)q->data,
                      .k = (const real *)q->data,
                      .n_jobs = 1,
                      .jobs = &job};
    ln_status status = LN_OUT_OF_MEMORY;
    real *scale = cosine ? REAL(unit_scales)(q) : NULL;
    pass.q_scale = pass.k_scale = scale;
    if (cosine && scale == NULL) goto fail;
    LN_TRY(keep_new(&keep, pass.n, lines->points));
    LN_TRY(find_thresholds(&keep, &pass, r));
    LN_TRY(REAL(schedule_run)(&pass, true, tiles));
    status = fit_lists(fits, &keep, lines, missing, n_missing);
fail:
    keep_release(&keep);
    ln_scratch_release(scale);
    return status;
}

static bool lists_serve(const ln_tensor *q, const ln_tensor *k, int64_t points) {
    int64_t n = q->shape[0];
    return k == NULL && n >= FEWEST_COLUMNS && points <= n / 4 &&
           n * capacity_of(points) * (int64_t)sizeof(real) <= LISTS_BYTES;
}

ln_status REAL(similarity_tail)(ln_tensor *fits, const ln_tensor *q, const ln_tensor *k,
                                bool cosine, int tile_dtype, int n_masks, const ln_mask *masks,
                                int64_t points, int64_t burnt, ln_tiles *tiles) {
    (void)tile_dtype; /* of CUDA devices */
    ln_reduction r = {.n_masks = n_masks, .masks = masks};
    tail_lines lines = {0};
    int64_t *missing = NULL, n_missing = 0;
    ln_status status;
    LN_TRY(lines_new(&lines, points, burnt));
    if (lists_serve(q, k, points)) {
        missing = ln_scratch_new((size_t)q->shape[0] * sizeof *missing, "similarity");
        status = LN_OUT_OF_MEMORY;
        if (missing == NULL) goto fail;
        LN_TRY(run_lists(fits, q, cosine, &r, &lines, tiles, missing, &n_missing));
    }
    if (missing == NULL || n_missing > 0)
        LN_TRY(
            REAL(rows_tail)(fits, q, k, cosine, n_masks, masks, &lines, missing, n_missing, tiles));
fail:
    ln_scratch_release(missing);
    ln_scratch_release(lines.line[0]);
    return status;
}
