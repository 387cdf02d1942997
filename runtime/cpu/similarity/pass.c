/* The two passes of the similarity engine over a whole matrix: builds the jobs of tile.h from
 * reductions, has them scheduled, and turns what the pairs gathered into results. Runs nothing in
 * parallel. Compiled once for each element type and instruction set; similarity.c chooses. */
#include "pass.h"
#include "kept.h"
#include "schedule.h"
#include "unit.h"

#include <math.h>
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

static void *arena_room(arena *a, size_t bytes) {
    return arena_adopt(a, ln_scratch_new(bytes > 0 ? bytes : 1, "similarity"));
}

/* Zeros. */
static void *arena_new(arena *a, size_t bytes) {
    void *p = arena_room(a, bytes);
    if (p != NULL) memset(p, 0, bytes);
    return p;
}

static void arena_release(arena *a) {
    for (int i = 0; i < a->n; i++) ln_scratch_release(a->blocks[i]);
}

/* ---- Jobs ---- */

static int kind_in(int kind, bool flipped) {
    if (!flipped || kind == LN_PARAMETER_SCALAR) return kind;
    return kind == LN_PARAMETER_ROW ? LN_PARAMETER_COLUMN : LN_PARAMETER_ROW;
}

/* flipped: the link of the transposed matrix. */
static void copy_link(machine *m, const tile_job *job, bool flipped) {
    const ln_reduction *r = job->reduction;
    REAL(machine_link)(m, r->n_steps, r->steps);
    memcpy(m->inside, job->inside, (size_t)r->n_steps * sizeof *m->inside);
    m->n_parameters = r->n_parameters;
    for (int p = 0; p < r->n_parameters; p++)
        m->parameters[p] = (machine_parameter){(const real *)r->parameters[p].value->data,
                                               kind_in(r->parameters[p].kind, flipped)};
}

static int anchor_kind(const ln_reduction *r, bool flipped) {
    return kind_in(r->by_column ? LN_PARAMETER_COLUMN : LN_PARAMETER_ROW, flipped);
}

/* exp(f - shift) of the anchor; f = x - z as x - (z + shift): a sum with a number costs nothing. */
static int weight_step(machine *m, const tile_job *job, int kind, const real *shift) {
    int value = job->reduction->value, c = REAL(machine_parameter)(m, kind, shift);
    machine_step f = m->steps[value];
    if (f.op == LN_LINK_SUB) {
        value = f.operand[0];
        c = REAL(machine_step)(m, LN_LINK_ADD, f.operand[1], c);
    }
    int e = REAL(machine_step)(m, LN_LINK_EXP, REAL(machine_step)(m, LN_LINK_SUB, value, c), 0);
    m->inside[e] = job->inside_weight;
    return e;
}

static int forward_step(machine *m, const tile_job *job, int kind) {
    const ln_reduction *r = job->reduction;
    if (r->kind != LN_REDUCE_LSE || !job->fixed_shift) return r->value;
    return weight_step(m, job, job->one_link ? LN_PARAMETER_SCALAR : kind, job->shift);
}

static void forward_machine(machine *m, const tile_job *job, bool flipped) {
    copy_link(m, job, flipped);
    m->outputs[0] = forward_step(m, job, anchor_kind(job->reduction, flipped));
    m->n_outputs = 1;
    REAL(machine_prepare)(m);
}

/* Outputs: what the tile's rows sum, and what its columns sum. */
static void forward_both(machine *m, const tile_job *job) {
    copy_link(m, job, false);
    m->outputs[0] = forward_step(m, job, LN_PARAMETER_ROW);
    REAL(machine_mirror)(m, &m->outputs[1], &m->outputs[0], 1);
    m->n_outputs = 2;
    REAL(machine_prepare)(m);
}

/* Which steps depend on the similarity. */
static void find_dependent(const machine *m, bool *depends) {
    for (int i = 0; i < m->n_steps; i++) {
        const machine_step *s = &m->steps[i];
        depends[i] = s->op == LN_LINK_S;
        for (int j = 0; j < ln_link_operands(s->op); j++) depends[i] |= depends[s->operand[j]];
    }
}

/* The operand of a product that does not depend on the similarity; -1: both do, or it is none. */
static int factor_of(const machine_step *s, const bool *depends) {
    if (s->op != LN_LINK_MUL) return -1;
    return !depends[s->operand[0]] ? 0 : !depends[s->operand[1]] ? 1 : -1;
}

/* gain * step, where the gain may go to the factor of a product. */
static int scaled_term(machine *m, const bool *depends, int step, int gain) {
    machine_step s = m->steps[step];
    int factor = depends[step] ? factor_of(&s, depends) : -1;
    if (factor < 0) return REAL(machine_step)(m, LN_LINK_MUL, step, gain);
    int scaled = REAL(machine_step)(m, LN_LINK_MUL, s.operand[factor], gain);
    return REAL(machine_step)(m, LN_LINK_MUL, scaled, s.operand[1 - factor]);
}

static bool is_term(const machine *m, const bool *depends, int step) {
    return !depends[step] || factor_of(&m->steps[step], depends) >= 0;
}

/* gain * slope, term by term where that leaves the gain to what is the same along a tile. */
static int scaled_step(machine *m, const bool *depends, int step, int gain) {
    machine_step s = m->steps[step];
    bool sum = s.op == LN_LINK_ADD || s.op == LN_LINK_SUB;
    if (!sum || !is_term(m, depends, s.operand[0]) || !is_term(m, depends, s.operand[1]))
        return scaled_term(m, depends, step, gain);
    int a = scaled_term(m, depends, s.operand[0], gain);
    int b = scaled_term(m, depends, s.operand[1], gain);
    return REAL(machine_step)(m, s.op, a, b);
}

/* made: weight * (gain * slope) for the similarity and every wanted parameter; weight < 0: none.
 * The product of gain and slope comes first because both are often fixed along a segment. Returns
 * how many. */
static int gradient_steps(machine *m, int *made, const ln_reduction *r, int weight, int gain) {
    int slopes[LN_LINK_PARAMETERS + 1], n = 0;
    bool depends[MACHINE_STEPS];
    find_dependent(m, depends);
    slopes[n++] = r->slope;
    for (int p = 0; p < r->n_parameters; p++)
        if (r->parameters[p].slope >= 0) slopes[n++] = r->parameters[p].slope;
    for (int i = 0; i < n; i++) {
        int scaled = scaled_step(m, depends, slopes[i], gain);
        made[i] = weight < 0 ? scaled : REAL(machine_step)(m, LN_LINK_MUL, weight, scaled);
    }
    return n;
}

static int backward_steps(machine *m, int *made, const tile_job *job, int kind, const real *lse,
                          const real *dy) {
    int weight = lse != NULL ? weight_step(m, job, kind, lse) : -1;
    return gradient_steps(m, made, job->reduction, weight, REAL(machine_parameter)(m, kind, dy));
}

static void backward_machine(machine *m, const tile_job *job, bool flipped, const real *lse,
                             const real *dy) {
    copy_link(m, job, flipped);
    int kind = anchor_kind(job->reduction, flipped);
    m->n_outputs = backward_steps(m, m->outputs, job, kind, lse, dy);
    REAL(machine_prepare)(m);
}

/* Both halves of a mirrored tile. Outputs: the weights of both together, then each wanted
 * parameter's gradient from the tile's rows and from its columns. */
static void backward_both(machine *m, const tile_job *job, const real *lse, const real *dy) {
    int straight[LN_LINK_PARAMETERS + 1], flipped[LN_LINK_PARAMETERS + 1];
    copy_link(m, job, false);
    int n = backward_steps(m, straight, job, LN_PARAMETER_ROW, lse, dy);
    REAL(machine_mirror)(m, flipped, straight, n);
    m->outputs[0] = REAL(machine_step)(m, LN_LINK_ADD, straight[0], flipped[0]);
    m->n_outputs = 1;
    for (int i = 1; i < n; i++) {
        m->outputs[m->n_outputs++] = straight[i];
        m->outputs[m->n_outputs++] = flipped[i];
    }
    REAL(machine_prepare)(m);
}

/* The same where the link's value and the shift c are the same for all anchors, with one
 * exponential: exp(f - c) slope (g_i e^(c - lse_i) + g_j e^(c - lse_j)), or of the two gains the
 * one of the anchors where they are of that kind alone. The tiles may hold exp(f - c) itself. A
 * parameter has one output. */
typedef enum { GAIN_OF_ROWS, GAIN_OF_COLUMNS, GAIN_OF_BOTH } gain_kind;
static void backward_shared(machine *m, const tile_job *job, const real *gains, gain_kind kind,
                            bool of_weights) {
    copy_link(m, job, false);
    int weight = -1, row = -1, column = -1;
    if (of_weights) weight = REAL(machine_step)(m, LN_LINK_S, 0, 0);
    else if (job->reduction->kind == LN_REDUCE_LSE)
        weight = weight_step(m, job, LN_PARAMETER_SCALAR, job->shift);
    if (kind != GAIN_OF_COLUMNS) row = REAL(machine_parameter)(m, LN_PARAMETER_ROW, gains);
    if (kind != GAIN_OF_ROWS) column = REAL(machine_parameter)(m, LN_PARAMETER_COLUMN, gains);
    int gain = row < 0 ? column : row;
    if (kind == GAIN_OF_BOTH) gain = REAL(machine_step)(m, LN_LINK_ADD, row, column);
    m->n_outputs = gradient_steps(m, m->outputs, job->reduction, weight, gain);
    REAL(machine_prepare)(m);
}

static bool same_for_all_anchors(const ln_reduction *r) {
    for (int p = 0; p < r->n_parameters; p++)
        if (r->parameters[p].kind != LN_PARAMETER_SCALAR) return false;
    return true;
}

/* Whether the row that each row leaves out leaves out that row. */
static bool in_pairs(const ln_tensor *index) {
    const int64_t *other = (const int64_t *)index->data;
    for (int64_t i = 0; i < index->numel; i++)
        if (other[other[i] - 1] != i + 1) return false;
    return true;
}

static bool mask_is_even(const ln_mask *mask) {
    switch (mask->kind) {
    case LN_MASK_SELF: return true;
    case LN_MASK_INDEX: return in_pairs(mask->row);
    case LN_MASK_TRIANGLE: return false;
    default: return mask->row->data == mask->column->data;
    }
}

static bool masks_are_even(const ln_reduction *r) {
    for (int i = 0; i < r->n_masks; i++)
        if (!mask_is_even(&r->masks[i])) return false;
    return true;
}

/* ---- What is known of the arguments of exp and log ---- */

enum { FAR = 100000 }; /* what is computed from no larger values is off by less than 1 % */

static bool parameter_range(ln_interval *range, const ln_tensor *t) {
    const real *x = (const real *)t->data;
    real low = INFINITY, high = -INFINITY, sum = 0;
    for (int64_t i = 0; i < t->numel; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
        sum += x[i] - x[i]; /* NaN where one is not finite */
    }
    *range = (ln_interval){(double)low, (double)high};
    return sum == 0;
}

/* Whether the operand of a step is inside, with room for what rounding does to values up to
 * `reach`. */
static bool is_inside(int op, ln_interval x, double reach) {
    switch (op) {
    case LN_LINK_EXP:
    case LN_LINK_SIGMOID:
    case LN_LINK_SOFTPLUS: return x.low > -86 && x.high < 86 && reach <= FAR;
    case LN_LINK_LOG: return x.low > 1e-6 && x.high < 1e6 && reach <= 2;
    case LN_LINK_LOG1P: return x.low > 5e-7 - 1 && x.high < 1e6 && reach <= 2;
    default: return false;
    }
}

/* For cosines of finite rows and finite parameters; else nothing is known. */
static void find_inside(tile_job *job, const tile_pass *pass) {
    const ln_reduction *r = job->reduction;
    ln_interval bounds[LN_LINK_STEPS], parameters[LN_LINK_PARAMETERS], s = {-1 - 1e-6, 1 + 1e-6};
    double reach[LN_LINK_STEPS] = {0};
    if (!pass->finite) return;
    for (int p = 0; p < r->n_parameters; p++)
        if (!parameter_range(&parameters[p], r->parameters[p].value)) return;
    if (ln_link_bound(bounds, r->n_steps, r->steps, s, parameters) != LN_OK) return;
    for (int i = 0; i < r->n_steps; i++) {
        const ln_link_step *step = &r->steps[i];
        const int operands[] = {step->a, step->b, step->c};
        for (int j = 0; j < ln_link_operands(step->op); j++)
            reach[i] = fmax(reach[i], reach[operands[j]]);
        if (ln_link_operands(step->op) > 0)
            job->inside[i] = is_inside(step->op, bounds[step->a], reach[step->a]);
        reach[i] = fmax(reach[i], fmax(fabs(bounds[i].low), fabs(bounds[i].high)));
    }
    /* f - shift lies in [-spread, 0], and f - lse in [-spread - log(candidates), spread]. */
    double spread = bounds[r->value].high - bounds[r->value].low;
    double candidates = (double)(r->by_column ? pass->n : pass->m);
    job->inside_weight =
        job->fixed_shift && reach[r->value] <= FAR && spread + log(candidates) < 86;
}

static int64_t anchors(const tile_pass *pass, const ln_reduction *r) {
    return r->by_column ? pass->m : pass->n;
}

static ln_status job_new(tile_job *job, arena *a, const tile_pass *pass, const ln_reduction *r,
                         const ln_tensor *shift) {
    size_t n = (size_t)anchors(pass, r);
    memset(job, 0, offsetof(tile_job, straight)); /* machines are large */
    job->straight.n_registers = job->flipped.n_registers = job->both.n_registers = 0;
    job->reduction = r;
    job->fixed_shift = shift != NULL;
    bool steady = r->kind == LN_REDUCE_SUM || shift != NULL;
    job->one_link = pass->symmetric && steady && same_for_all_anchors(r);
    job->both_at_once = pass->symmetric && (steady || pass->backward);
    job->even = pass->symmetric && masks_are_even(r);
    find_inside(job, pass);
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
    if (job->both_at_once) forward_both(&job->both, job);
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
        if (job->one_link) gains[i] = empty ? 0 : dy[i] * exp(job->shift[i] - y[i]);
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
    if (job->one_link) {
        backward_shared(&job->straight, job, gains, GAIN_OF_ROWS, pass->keep_weights);
        backward_shared(&job->flipped, job, gains, GAIN_OF_COLUMNS, pass->keep_weights);
        backward_shared(&job->both, job, gains, GAIN_OF_BOTH, pass->keep_weights);
    } else {
        const real *shift = r->kind == LN_REDUCE_LSE ? lse : NULL;
        backward_machine(&job->straight, job, false, shift, g);
        backward_machine(&job->flipped, job, true, shift, g);
        if (job->both_at_once) backward_both(&job->both, job, shift, g);
    }
    for (int p = 0; p < r->n_parameters; p++) {
        if (r->parameters[p].slope < 0) continue;
        bool column = r->parameters[p].kind == LN_PARAMETER_COLUMN;
        size_t count = (size_t)(column ? pass->m : pass->n);
        job->dparameters[p] = arena_new(a, count * sizeof(double));
        if (job->dparameters[p] == NULL) return LN_OUT_OF_MEMORY;
    }
    return LN_OK;
}

/* ---- The passes ---- */

static bool are_finite(const real *scale, int64_t n) {
    real sum = 0;
    for (int64_t i = 0; i < n; i++) sum += scale[i] - scale[i];
    return sum == 0;
}

static ln_status pass_new(tile_pass *pass, bool backward, arena *a, const ln_tensor *q,
                          const ln_tensor *k, bool cosine, int n, const ln_reduction *reductions,
                          inputs shift) {
    *pass = (tile_pass){.backward = backward,
                        .n = q->shape[0],
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
        pass->finite = are_finite(pass->q_scale, pass->n) && are_finite(pass->k_scale, pass->m);
    }
    pass->jobs = arena_room(a, (size_t)n * sizeof *pass->jobs);
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

/* ---- Tiles kept between passes ---- */

/* Whether the gradient of the job reads the similarity in its weight alone. */
static bool needs_weights_alone(const tile_job *job) {
    const ln_reduction *r = job->reduction;
    if (r->kind != LN_REDUCE_LSE || !job->one_link || !job->even) return false;
    machine m;
    bool depends[MACHINE_STEPS];
    copy_link(&m, job, false);
    find_dependent(&m, depends);
    for (int p = 0; p < r->n_parameters; p++)
        if (r->parameters[p].slope >= 0 && depends[r->parameters[p].slope]) return false;
    return r->slope >= 0 && !depends[r->slope];
}

static bool keeps_weights(const tile_pass *pass, const ln_tiles *tiles) {
    if (tiles == NULL || pass->n_jobs != 1 || !needs_weights_alone(&pass->jobs[0])) return false;
    if (pass->backward) return tiles->holds == LN_TILES_WEIGHTS;
    kept_blocks blocks = REAL(kept_blocks_of)(pass, true);
    return tiles->alone && tiles->holds == LN_TILES_NOTHING &&
           REAL(kept_elements)(&blocks) <= tiles->values->numel;
}

ln_status REAL(similarity_tiles)(int64_t *elements, const ln_tensor *q, const ln_tensor *k) {
    tile_pass pass = {.n = q->shape[0], .m = (k != NULL ? k : q)->shape[0], .d = q->shape[1]};
    kept_blocks blocks = REAL(kept_blocks_of)(&pass, k == NULL);
    *elements = REAL(kept_elements)(&blocks);
    return LN_OK;
}

ln_status REAL(similarity_forward)(outputs out, const ln_tensor *q, const ln_tensor *k, bool cosine,
                                   int tile_dtype, int n, const ln_reduction *reductions,
                                   inputs shift, ln_tiles *tiles) {
    (void)tile_dtype; /* of CUDA devices; here and below */
    ln_status status;
    arena a = {.n = 0};
    tile_pass pass;
    LN_TRY(pass_new(&pass, false, &a, q, k, cosine, n, reductions, shift));
    pass.keep_weights = keeps_weights(&pass, tiles);
    for (int i = 0; i < n; i++) LN_TRY(forward_job(&pass.jobs[i], &a, &pass));
    LN_TRY(REAL(schedule_run)(&pass, k == NULL, tiles));
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
                                    int tile_dtype, int n, const ln_reduction *reductions,
                                    inputs shift, ln_tiles *tiles) {
    (void)tile_dtype;
    ln_status status;
    arena a = {.n = 0};
    tile_pass pass;
    LN_TRY(pass_new(&pass, true, &a, q, k, cosine, n, reductions, shift));
    if (dq != NULL) memset(dq->data, 0, (size_t)dq->numel * sizeof(real));
    if (dk != NULL) memset(dk->data, 0, (size_t)dk->numel * sizeof(real));
    pass.dq = dq != NULL ? (real *)dq->data : NULL;
    pass.dk = k == NULL ? pass.dq : dk != NULL ? (real *)dk->data : NULL;
    pass.keep_weights = keeps_weights(&pass, tiles);
    for (int i = 0; i < n; i++) LN_TRY(backward_job(&pass.jobs[i], &a, &pass, y[i], dy[i]));
    LN_TRY(REAL(schedule_run)(&pass, k == NULL, tiles));
    if (cosine && dq != NULL) REAL(unit_backward)(dq, q, pass.q_scale);
    if (cosine && dk != NULL) REAL(unit_backward)(dk, k, pass.k_scale);
    for (int i = 0; i < n; i++) store_parameters(&dparameters, &pass.jobs[i], pass.n);
fail:
    arena_release(&a);
    return status;
}
