/* The two passes of the similarity engine over a whole matrix: builds the jobs of tile.h from
 * reductions, schedules pairs of row blocks over the team, and turns what the pairs gathered into
 * results. Compiled once for each element type and instruction set; similarity.c chooses.
 *
 * Pairs run in rounds in which no two share rows or columns (a tournament for one set of rows, a
 * Latin square for two). Invariant: a block's pairs run in the order of the rounds, so the results
 * do not depend on the size of the team. */
#include "pass.h"
#include "tile.h"
#include "unit.h"

#include <math.h>
#include <omp.h>
#include <string.h>
#include <tgmath.h>

typedef ln_tensor *const *outputs;
typedef const ln_tensor *const *inputs;

/* ---- Memory of a pass ---- */

/* Everything that a pass allocates, given back together. */
typedef struct {
    void *blocks[4 * LN_MAX_REDUCTIONS + LN_MAX_REDUCTIONS * LN_LINK_PARAMETERS + 8];
    int n;
} arena;

static void *arena_adopt(arena *a, void *p) {
    if (p != NULL) a->blocks[a->n++] = p;
    return p;
}

/* Zeros. */
static void *arena_new(arena *a, size_t bytes) {
    void *p = arena_adopt(a, ln_scratch_new(bytes > 0 ? bytes : 1, "similarity"));
    if (p != NULL) memset(p, 0, bytes);
    return p;
}

static void arena_release(arena *a) {
    for (int i = 0; i < a->n; i++) ln_scratch_release(a->blocks[i]);
}

/* ---- Jobs ---- */

static void copy_link(machine *m, const ln_reduction *r, bool flipped) {
    m->flipped = flipped;
    m->n_steps = r->n_steps;
    memcpy(m->steps, r->steps, (size_t)r->n_steps * sizeof *r->steps);
    m->n_parameters = r->n_parameters;
    for (int p = 0; p < r->n_parameters; p++)
        m->parameters[p] =
            (machine_parameter){(const real *)r->parameters[p].value->data, r->parameters[p].kind};
}

static int anchor_kind(const ln_reduction *r) {
    return r->by_column ? LN_PARAMETER_COLUMN : LN_PARAMETER_ROW;
}

/* exp(f - shift) of the anchor. */
static int weight_step(machine *m, int value, int kind, const real *shift) {
    int c = REAL(machine_parameter)(m, kind, shift);
    return REAL(machine_step)(m, LN_LINK_EXP, REAL(machine_step)(m, LN_LINK_SUB, value, c), 0);
}

static void forward_machine(machine *m, const tile_job *job, bool flipped) {
    const ln_reduction *r = job->reduction;
    copy_link(m, r, flipped);
    m->outputs[0] = r->value;
    if (r->kind == LN_REDUCE_LSE && job->fixed_shift)
        m->outputs[0] = weight_step(m, r->value, anchor_kind(r), job->shift);
    m->n_outputs = 1;
    REAL(machine_prepare)(m);
}

/* weight * (gain * slope) for the similarity and every wanted parameter; weight < 0: none. The
 * product of gain and slope comes first because both are often fixed along a segment. */
static void gradient_outputs(machine *m, const ln_reduction *r, int weight, int gain) {
    int slopes[LN_LINK_PARAMETERS + 1], n = 0;
    slopes[n++] = r->slope;
    for (int p = 0; p < r->n_parameters; p++)
        if (r->parameters[p].slope >= 0) slopes[n++] = r->parameters[p].slope;
    for (int i = 0; i < n; i++) {
        int scaled = REAL(machine_step)(m, LN_LINK_MUL, slopes[i], gain);
        m->outputs[i] = weight < 0 ? scaled : REAL(machine_step)(m, LN_LINK_MUL, weight, scaled);
    }
    m->n_outputs = n;
    REAL(machine_prepare)(m);
}

static void backward_machine(machine *m, const ln_reduction *r, bool flipped, const real *lse,
                             const real *dy) {
    copy_link(m, r, flipped);
    int weight = lse != NULL ? weight_step(m, r->value, anchor_kind(r), lse) : -1;
    gradient_outputs(m, r, weight, REAL(machine_parameter)(m, anchor_kind(r), dy));
}

/* Both halves of a mirrored tile at once, where the link's value and the shift are the same for all
 * anchors: exp(f - c) slope (g_i e^(c - lse_i) + g_j e^(c - lse_j)). */
static void backward_both(machine *m, const ln_reduction *r, const real *shift, const real *gains) {
    copy_link(m, r, false);
    int weight = shift != NULL ? weight_step(m, r->value, LN_PARAMETER_SCALAR, shift) : -1;
    int row = REAL(machine_parameter)(m, LN_PARAMETER_ROW, gains);
    int column = REAL(machine_parameter)(m, LN_PARAMETER_COLUMN, gains);
    gradient_outputs(m, r, weight, REAL(machine_step)(m, LN_LINK_ADD, row, column));
}

static bool same_for_all_anchors(const ln_reduction *r) {
    for (int p = 0; p < r->n_parameters; p++)
        if (r->parameters[p].kind != LN_PARAMETER_SCALAR) return false;
    return true;
}

static int64_t anchors(const tile_pass *pass, const ln_reduction *r) {
    return r->by_column ? pass->m : pass->n;
}

static ln_status job_new(tile_job *job, arena *a, const tile_pass *pass, const ln_reduction *r,
                         const ln_tensor *shift) {
    size_t n = (size_t)anchors(pass, r);
    memset(job, 0, sizeof *job);
    job->reduction = r;
    job->fixed_shift = shift != NULL;
    job->one_machine =
        pass->symmetric && same_for_all_anchors(r) && (r->kind == LN_REDUCE_SUM || shift != NULL);
    if (shift != NULL) {
        job->shift = (real *)shift->data;
        return LN_OK;
    }
    job->shift = arena_new(a, n * sizeof(real));
    if (job->shift == NULL) return LN_OUT_OF_MEMORY;
    for (size_t i = 0; i < n; i++) job->shift[i] = -INFINITY;
    return LN_OK;
}

static ln_status forward_job(tile_job *job, arena *a, const tile_pass *pass) {
    job->sum = arena_new(a, (size_t)anchors(pass, job->reduction) * sizeof(double));
    if (job->sum == NULL) return LN_OUT_OF_MEMORY;
    forward_machine(&job->straight, job, false);
    forward_machine(&job->flipped, job, true);
    if (job->one_machine) forward_machine(&job->both, job, false);
    return LN_OK;
}

/* For anchors without candidates the value is -inf; any finite shift serves their empty sums. */
static void backward_arrays(const tile_job *job, int64_t n, const real *y, const real *dy,
                            real *lse, real *gains) {
    for (int64_t i = 0; i < n; i++) {
        bool empty = y[i] == -INFINITY;
        if (job->reduction->kind == LN_REDUCE_SUM) {
            gains[i] = dy[i];
            continue;
        }
        lse[i] = empty ? 0 : y[i];
        if (job->one_machine) gains[i] = empty ? 0 : dy[i] * exp(job->shift[i] - y[i]);
    }
}

static ln_status backward_job(tile_job *job, arena *a, const tile_pass *pass, const ln_tensor *y,
                              const ln_tensor *dy) {
    const ln_reduction *r = job->reduction;
    int64_t n = anchors(pass, r);
    const real *g = (const real *)dy->data;
    real *lse = arena_new(a, (size_t)n * sizeof *lse);
    real *gains = arena_new(a, (size_t)n * sizeof *gains);
    if (lse == NULL || gains == NULL) return LN_OUT_OF_MEMORY;
    backward_arrays(job, n, (const real *)y->data, g, lse, gains);
    bool is_lse = r->kind == LN_REDUCE_LSE;
    backward_machine(&job->straight, r, false, is_lse ? lse : NULL, g);
    backward_machine(&job->flipped, r, true, is_lse ? lse : NULL, g);
    if (job->one_machine) backward_both(&job->both, r, is_lse ? job->shift : NULL, gains);
    for (int p = 0; p < r->n_parameters; p++) {
        if (r->parameters[p].slope < 0) continue;
        bool column = r->parameters[p].kind == LN_PARAMETER_COLUMN;
        size_t count = (size_t)(column ? pass->m : pass->n);
        job->dparameters[p] = arena_new(a, count * sizeof(double));
        if (job->dparameters[p] == NULL) return LN_OUT_OF_MEMORY;
    }
    return LN_OK;
}

/* ---- Scheduling ---- */

typedef struct {
    const tile_pass *pass;
    int64_t block_rows, row_blocks, column_blocks;
    char *scratch; /* scratch_bytes for each thread */
    size_t scratch_bytes;
    bool square; /* one set of rows: pairs are unordered */
} schedule;

static void run_blocks(const schedule *s, char *scratch, tile_mode mode, int64_t i, int64_t j) {
    int64_t size = s->block_rows, n = s->pass->n, m = s->pass->m;
    REAL(tile_pair)
    (s->pass, scratch, mode, i * size, (i + 1) * size < n ? (i + 1) * size : n, j * size,
     (j + 1) * size < m ? (j + 1) * size : m);
}

/* The blocks that meet as number `at` of a round. Square: the circle method, where the last of an
 * even number of players stays; round -1 is each block with itself. */
static void meeting(const schedule *s, int64_t round, int64_t at, int64_t *i, int64_t *j) {
    if (!s->square) {
        int64_t size = s->row_blocks > s->column_blocks ? s->row_blocks : s->column_blocks;
        *i = at;
        *j = (at + round) % size;
        return;
    }
    int64_t others = s->row_blocks - 1 + s->row_blocks % 2;
    *i = round < 0 ? at : at == 0 ? others : (round + at) % others;
    *j = round < 0 ? at : (round - at + others) % others;
}

static void run_meeting(const schedule *s, int64_t round, int64_t at) {
    int64_t i, j;
    meeting(s, round, at, &i, &j);
    if (i >= s->row_blocks || j >= s->column_blocks) return;
    char *scratch = s->scratch + (size_t)omp_get_thread_num() * s->scratch_bytes;
    if (s->pass->symmetric && i != j) {
        run_blocks(s, scratch, TILE_MIRRORED, i, j);
        return;
    }
    run_blocks(s, scratch, TILE_PLAIN, i, j);
    if (s->square && i != j) run_blocks(s, scratch, TILE_PLAIN, j, i);
}

static ln_status run_rounds(const schedule *s, int team) {
    int64_t blocks = s->row_blocks > s->column_blocks ? s->row_blocks : s->column_blocks;
    int64_t players = s->row_blocks + s->row_blocks % 2;
    int64_t last = s->square ? players - 1 : blocks;
    for (int64_t round = s->square ? -1 : 0; round < last; round++) {
        int64_t meetings = !s->square || round < 0 ? blocks : players / 2;
        if (ln_interrupted()) return ln_fail(LN_INTERRUPTED, "similarity: interrupted");
#pragma omp parallel for schedule(dynamic) num_threads(team)
        for (int64_t at = 0; at < meetings; at++) run_meeting(s, round, at);
    }
    return LN_OK;
}

static ln_status run_pass(const tile_pass *pass, arena *a, bool square) {
    int64_t larger = pass->n > pass->m ? pass->n : pass->m;
    if (pass->n == 0 || pass->m == 0) return LN_OK;
    schedule s = {.pass = pass, .square = square};
    s.block_rows = REAL(tile_block_rows)(larger, pass->d);
    s.row_blocks = (pass->n + s.block_rows - 1) / s.block_rows;
    s.column_blocks = (pass->m + s.block_rows - 1) / s.block_rows;
    s.scratch_bytes = REAL(tile_scratch_bytes)(pass, s.block_rows);
    s.scratch_bytes = (s.scratch_bytes + 4095) / 4096 * 4096;
    int team = ln_team(pass->n * pass->m);
    s.scratch = arena_new(a, s.scratch_bytes * (size_t)team);
    if (s.scratch == NULL) return LN_OUT_OF_MEMORY;
    return run_rounds(&s, team);
}

/* ---- The passes ---- */

static ln_status pass_new(tile_pass *pass, arena *a, const ln_tensor *q, const ln_tensor *k,
                          bool cosine, int n, const ln_reduction *reductions, inputs shift) {
    *pass = (tile_pass){.n = q->shape[0],
                        .m = k != NULL ? k->shape[0] : q->shape[0],
                        .d = q->shape[1],
                        .q = (const real *)q->data,
                        .k = (const real *)(k != NULL ? k : q)->data,
                        .symmetric = k == NULL,
                        .n_jobs = n};
    for (int i = 0; i < n; i++) pass->symmetric &= !reductions[i].by_column;
    if (cosine) {
        pass->q_scale = arena_adopt(a, REAL(unit_scales)(q));
        pass->k_scale = k != NULL ? arena_adopt(a, REAL(unit_scales)(k)) : pass->q_scale;
        if (pass->q_scale == NULL || pass->k_scale == NULL) return LN_OUT_OF_MEMORY;
    }
    pass->jobs = arena_new(a, (size_t)n * sizeof *pass->jobs);
    if (pass->jobs == NULL) return LN_OUT_OF_MEMORY;
    for (int i = 0; i < n; i++) {
        ln_status status = job_new(&pass->jobs[i], a, pass, &reductions[i], shift[i]);
        if (status != LN_OK) return status;
    }
    return LN_OK;
}

static void store_sums(ln_tensor *out, const tile_job *job) {
    real *y = (real *)out->data;
    for (int64_t i = 0; i < out->numel; i++) {
        double sum = job->sum[i];
        if (job->reduction->kind == LN_REDUCE_SUM) y[i] = (real)sum;
        else y[i] = sum == 0 ? -INFINITY : (real)((double)job->shift[i] + log(sum));
    }
}

ln_status REAL(similarity_forward)(outputs out, const ln_tensor *q, const ln_tensor *k, bool cosine,
                                   int n, const ln_reduction *reductions, inputs shift) {
    ln_status status;
    arena a = {.n = 0};
    tile_pass pass;
    LN_TRY(pass_new(&pass, &a, q, k, cosine, n, reductions, shift));
    for (int i = 0; i < n; i++) LN_TRY(forward_job(&pass.jobs[i], &a, &pass));
    LN_TRY(run_pass(&pass, &a, k == NULL));
    for (int i = 0; i < n; i++) store_sums(out[i], &pass.jobs[i]);
fail:
    arena_release(&a);
    return status;
}

/* next: the places of the parameters' gradients, one for each parameter of each job in order. */
static void store_parameters(outputs *next, const tile_job *job, int64_t rows) {
    for (int p = 0; p < job->reduction->n_parameters; p++, (*next)++) {
        const double *sums = job->dparameters[p];
        if (sums == NULL) continue;
        real *dp = (real *)(**next)->data;
        if (job->reduction->parameters[p].kind == LN_PARAMETER_SCALAR) {
            double total = 0;
            for (int64_t i = 0; i < rows; i++) total += sums[i];
            dp[0] = (real)total;
        } else {
            for (int64_t i = 0; i < (**next)->numel; i++) dp[i] = (real)sums[i];
        }
    }
}

ln_status REAL(similarity_backward)(ln_tensor *dq, ln_tensor *dk, outputs dparameters, inputs dy,
                                    inputs y, const ln_tensor *q, const ln_tensor *k, bool cosine,
                                    int n, const ln_reduction *reductions, inputs shift) {
    ln_status status;
    arena a = {.n = 0};
    tile_pass pass;
    LN_TRY(pass_new(&pass, &a, q, k, cosine, n, reductions, shift));
    pass.backward = true;
    if (dq != NULL) memset(dq->data, 0, (size_t)dq->numel * sizeof(real));
    if (dk != NULL) memset(dk->data, 0, (size_t)dk->numel * sizeof(real));
    pass.dq = dq != NULL ? (real *)dq->data : NULL;
    pass.dk = k == NULL ? pass.dq : dk != NULL ? (real *)dk->data : NULL;
    for (int i = 0; i < n; i++) LN_TRY(backward_job(&pass.jobs[i], &a, &pass, y[i], dy[i]));
    LN_TRY(run_pass(&pass, &a, k == NULL));
    if (cosine && dq != NULL) REAL(unit_backward)(dq, q, pass.q_scale);
    if (cosine && dk != NULL) REAL(unit_backward)(dk, k, pass.k_scale);
    for (int i = 0; i < n; i++) store_parameters(&dparameters, &pass.jobs[i], pass.n);
fail:
    arena_release(&a);
    return status;
}
