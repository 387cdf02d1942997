/* oneDNN: its engine, matrix products, and convolutions planned once per shape. Stands beside cpu/
 * and is compiled once, because the library chooses its own instructions and its plans are shared
 * by the three compilations there. Holds no kernels and no tensors. Invariants: nothing of oneDNN
 * runs before the first call; a plan runs under the team that it was made for; at most PLANS plans
 * are kept, and one in use outlives its place among them. */
#include "onednn.h"

#include <assert.h>
#include <dnnl.h>
#include <dnnl_debug.h>
#include <omp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"

static dnnl_engine_t engine;
static dnnl_stream_t stream; /* on the CPU it holds no state: threads may share it */
static dnnl_status_t started;

static ln_status check(dnnl_status_t s, const char *what) {
    if (s == dnnl_success) return LN_OK;
    return ln_fail(s == dnnl_out_of_memory ? LN_OUT_OF_MEMORY : LN_INTERNAL, "%s: oneDNN: %s", what,
                   dnnl_status2str(s));
}

/* oneDNN takes a limit to its instructions only before its first use, so the choice of then stays.
 * Its own cache of primitives is off: plans are kept here. */
static void start(void) {
    const char *isa = ln_isa();
    if (strcmp(isa, "baseline") == 0) dnnl_set_max_cpu_isa(dnnl_cpu_isa_sse41);
    if (strcmp(isa, "avx2") == 0) dnnl_set_max_cpu_isa(dnnl_cpu_isa_avx2);
    started = dnnl_set_primitive_cache_capacity(0);
    if (started == dnnl_success) started = dnnl_engine_create(&engine, dnnl_cpu, 0);
    if (started == dnnl_success)
        started = dnnl_stream_create(&stream, engine, dnnl_stream_default_flags);
}

/* Starts oneDNN and sets the team that it will find; inside a parallel region it works alone. */
static ln_status enter(int team, const char *what) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start);
    if (!omp_in_parallel()) omp_set_num_threads(team);
    return check(started, what);
}

ln_status ln_onednn_matmul(ln_matrix z, ln_matrix x, ln_matrix y, int64_t n, int64_t m, int64_t k,
                           bool add, int team) {
    ln_status status = enter(team, "matmul");
    if (status != LN_OK) return status;
    return check(dnnl_sgemm(x.transposed ? 'T' : 'N', y.transposed ? 'T' : 'N', n, m, k, 1, x.data,
                            x.stride, y.data, y.stride, add, z.data, z.stride),
                 "matmul");
}

/* ---- Plans: the steps of a convolution ------------------------------------------------------ */

/* oneDNN convolves fastest in blocked layouts of its own choice, by more than it costs to reorder
 * row-major arrays to them and back: a plan is that sequence of primitives. */

/* The caller's arrays; Y is also the gradient of the output. */
typedef enum { X, W, BIAS, Y, DX, DW, DB, OPERANDS } operand;

enum { MAX_SLOTS = 24, MAX_STEPS = 8, MAX_ARGS = 5, PLANS = 256 };

/* Compared as bytes: int64_t throughout, so that there is no padding. */
typedef struct {
    ln_conv_shape shape;
    int64_t backward, given, team; /* given: bits of the operands that the caller has */
} plan_key;

/* An array that steps read or write. The first OPERANDS are the caller's, in row-major order; the
 * rest lie in scratch: copies of those in another layout, and the library's own. */
typedef struct {
    dnnl_memory_desc_t desc;
    operand of; /* OPERANDS: the library's own */
    size_t offset;
} plan_slot;

typedef struct {
    dnnl_primitive_t run;
    int nargs;
    struct {
        int arg, slot;
    } args[MAX_ARGS];
} plan_step;

typedef struct plan {
    plan_key key;
    plan_slot slots[MAX_SLOTS];
    plan_step steps[MAX_STEPS];
    int nslots, nsteps;
    size_t scratch_bytes;
    dnnl_primitive_attr_t attr; /* scratch is the caller's to give */
    int users;                  /* the calls that run it, and one more while it is kept */
    struct plan *next;
} plan;

static bool given(const plan_key *key, operand of) {
    return key->given >> of & 1;
}

static const char *plan_name(const plan_key *key) {
    return key->backward ? "conv2d_backward" : "conv2d";
}

static void plan_free(plan *p) {
    for (int i = 0; i < p->nsteps; i++) dnnl_primitive_destroy(p->steps[i].run);
    dnnl_primitive_attr_destroy(p->attr);
    free(p);
}

/* An operand's layout: row-major, or left to the library. */
static dnnl_memory_desc_t layout(operand of, const ln_conv_shape *s, bool any) {
    int64_t G = s->p.groups;
    dnnl_dims_t x = {s->N, s->C, s->H, s->W}, y = {s->N, s->O, s->oh, s->ow}, bias = {s->O};
    dnnl_dims_t w = {s->O, s->C, s->kh, s->kw}, grouped = {G, s->O / G, s->C / G, s->kh, s->kw};
    dnnl_memory_desc_t d;
    dnnl_format_tag_t tag = any ? dnnl_format_tag_any : dnnl_abcd;
    if (of == BIAS || of == DB) dnnl_memory_desc_init_by_tag(&d, 1, bias, dnnl_f32, dnnl_a);
    else if (of == X || of == DX) dnnl_memory_desc_init_by_tag(&d, 4, x, dnnl_f32, tag);
    else if (of == Y) dnnl_memory_desc_init_by_tag(&d, 4, y, dnnl_f32, tag);
    else if (G == 1) dnnl_memory_desc_init_by_tag(&d, 4, w, dnnl_f32, tag);
    else dnnl_memory_desc_init_by_tag(&d, 5, grouped, dnnl_f32, any ? tag : dnnl_abcde);
    return d;
}

static int slot_add(plan *p, operand of, const dnnl_memory_desc_t *desc) {
    assert(p->nslots < MAX_SLOTS);
    p->slots[p->nslots] = (plan_slot){*desc, of, p->scratch_bytes};
    p->scratch_bytes += (dnnl_memory_desc_get_size(desc) + 63) / 64 * 64;
    return p->nslots++;
}

static void step_bind(plan_step *s, int arg, int slot) {
    assert(s->nargs < MAX_ARGS);
    s->args[s->nargs].arg = arg;
    s->args[s->nargs++].slot = slot;
}

static ln_status step_add(plan *p, plan_step **out, const_dnnl_primitive_desc_t pd) {
    assert(p->nsteps < MAX_STEPS);
    plan_step *s = &p->steps[p->nsteps];
    ln_status status = check(dnnl_primitive_create(&s->run, pd), plan_name(&p->key));
    if (status != LN_OK) return status;
    p->nsteps++;
    const dnnl_memory_desc_t *pad = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    if (dnnl_memory_desc_get_size(pad) > 0)
        step_bind(s, DNNL_ARG_SCRATCHPAD, slot_add(p, OPERANDS, pad));
    *out = s;
    return LN_OK;
}

static ln_status reorder_add(plan *p, int from, int to) {
    const char *what = plan_name(&p->key);
    dnnl_primitive_desc_t pd = NULL;
    plan_step *step;
    ln_status status;
    LN_TRY(check(dnnl_reorder_primitive_desc_create(&pd, &p->slots[from].desc, engine,
                                                    &p->slots[to].desc, engine, p->attr),
                 what));
    LN_TRY(step_add(p, &step, pd));
    step_bind(step, DNNL_ARG_FROM, from);
    step_bind(step, DNNL_ARG_TO, to);
fail:
    dnnl_primitive_desc_destroy(pd);
    return status;
}

/* One argument of a convolution. */
typedef struct {
    int arg;
    operand of;
    bool written;
} binding;

/* The three convolutions and their arguments, a bias last. */
typedef enum { FORWARD, BACKWARD_DATA, BACKWARD_WEIGHTS } direction;
static const binding bindings[][4] = {
    [FORWARD] =
        {
            {DNNL_ARG_SRC, X, false},
            {DNNL_ARG_WEIGHTS, W, false},
            {DNNL_ARG_DST, Y, true},
            {DNNL_ARG_BIAS, BIAS, false},
        },
    [BACKWARD_DATA] =
        {
            {DNNL_ARG_DIFF_DST, Y, false},
            {DNNL_ARG_WEIGHTS, W, false},
            {DNNL_ARG_DIFF_SRC, DX, true},
        },
    [BACKWARD_WEIGHTS] =
        {
            {DNNL_ARG_SRC, X, false},
            {DNNL_ARG_DIFF_DST, Y, false},
            {DNNL_ARG_DIFF_WEIGHTS, DW, true},
            {DNNL_ARG_DIFF_BIAS, DB, true},
        },
};

/* The slot of an operand in the layout that a primitive asks for: the caller's own, or one that is
 * there already, or a new one to which an input is reordered. */
static ln_status slot_for(plan *p, int *slot, binding b, const dnnl_memory_desc_t *asked) {
    for (*slot = 0; *slot < p->nslots; ++*slot)
        if (p->slots[*slot].of == b.of && dnnl_memory_desc_equal(&p->slots[*slot].desc, asked) &&
            (*slot >= OPERANDS || given(&p->key, b.of)))
            return LN_OK;
    *slot = slot_add(p, b.of, asked);
    return b.written ? LN_OK : reorder_add(p, (int)b.of, *slot);
}

/* Adds a convolution with the reorders before and after it. */
static ln_status conv_add(plan *p, direction dir, const_dnnl_primitive_desc_t pd) {
    const binding *b = bindings[dir];
    int n = b[3].arg != 0 && given(&p->key, b[3].of) ? 4 : 3, slots[4];
    plan_step *step;
    ln_status status;
    for (int i = 0; i < n; i++)
        LN_TRY(slot_for(p, &slots[i], b[i],
                        dnnl_primitive_desc_query_md(pd, dnnl_query_exec_arg_md, b[i].arg)));
    LN_TRY(step_add(p, &step, pd));
    for (int i = 0; i < n; i++) step_bind(step, b[i].arg, slots[i]);
    for (int i = 0; i < n; i++)
        if (b[i].written && slots[i] >= OPERANDS && given(&p->key, b[i].of))
            LN_TRY(reorder_add(p, slots[i], (int)b[i].of));
fail:
    return status;
}

/* *pd: a convolution in layouts of the library's choice. Direct: Winograd's would round where
 * integer values need not. */
static ln_status conv_describe(dnnl_primitive_desc_t *pd, const plan *p, direction dir,
                               const_dnnl_primitive_desc_t forward) {
    const ln_conv_shape *s = &p->key.shape;
    dnnl_dims_t stride = {s->p.stride[0], s->p.stride[1]};
    dnnl_dims_t gaps = {s->p.dilation[0] - 1, s->p.dilation[1] - 1};
    dnnl_dims_t pad = {s->p.padding[0], s->p.padding[1]};
    dnnl_memory_desc_t x = layout(X, s, true), w = layout(W, s, true), y = layout(Y, s, true);
    dnnl_memory_desc_t vector = layout(BIAS, s, true);
    dnnl_memory_desc_t *bias = given(&p->key, bindings[dir][3].of) ? &vector : NULL;
    dnnl_alg_kind_t direct = dnnl_convolution_direct;
    dnnl_convolution_desc_t d;
    dnnl_status_t made;
    if (dir == FORWARD)
        made = dnnl_dilated_convolution_forward_desc_init(&d, dnnl_forward_training, direct, &x, &w,
                                                          bias, &y, stride, gaps, pad, pad);
    else if (dir == BACKWARD_DATA)
        made = dnnl_dilated_convolution_backward_data_desc_init(&d, direct, &x, &w, &y, stride,
                                                                gaps, pad, pad);
    else
        made = dnnl_dilated_convolution_backward_weights_desc_init(&d, direct, &x, &w, bias, &y,
                                                                   stride, gaps, pad, pad);
    if (made == dnnl_success) made = dnnl_primitive_desc_create(pd, &d, p->attr, engine, forward);
    return check(made, plan_name(&p->key));
}

static ln_status plan_fill(plan *p) {
    const plan_key *key = &p->key;
    dnnl_primitive_desc_t forward = NULL, data = NULL, weights = NULL;
    ln_status status;
    LN_TRY(check(dnnl_primitive_attr_create(&p->attr), plan_name(key)));
    LN_TRY(check(dnnl_primitive_attr_set_scratchpad_mode(p->attr, dnnl_scratchpad_mode_user),
                 plan_name(key)));
    for (operand i = X; i < OPERANDS; i++) p->slots[i].desc = layout(i, &key->shape, false);
    for (operand i = X; i < OPERANDS; i++) p->slots[i].of = i;
    p->nslots = OPERANDS;
    LN_TRY(conv_describe(&forward, p, FORWARD, NULL));
    if (!key->backward) LN_TRY(conv_add(p, FORWARD, forward));
    if (given(key, DX)) {
        LN_TRY(conv_describe(&data, p, BACKWARD_DATA, forward));
        LN_TRY(conv_add(p, BACKWARD_DATA, data));
    }
    if (given(key, DW) || given(key, DB)) {
        LN_TRY(conv_describe(&weights, p, BACKWARD_WEIGHTS, forward));
        LN_TRY(conv_add(p, BACKWARD_WEIGHTS, weights));
    }
fail:
    dnnl_primitive_desc_destroy(forward);
    dnnl_primitive_desc_destroy(data);
    dnnl_primitive_desc_destroy(weights);
    return status;
}

/* ---- The plans that are kept ---------------------------------------------------------------- */

static struct {
    pthread_mutex_t lock;
    plan *newest; /* in the order of their last use */
} plans = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void plan_release_locked(plan *p) {
    if (--p->users == 0) plan_free(p);
}

static void plan_release(plan *p) {
    pthread_mutex_lock(&plans.lock);
    plan_release_locked(p);
    pthread_mutex_unlock(&plans.lock);
}

/* Takes the plan of this key off the list; where there is none, the oldest if the list is full. */
static plan *plan_take_locked(const plan_key *key) {
    int n = 1;
    for (plan **at = &plans.newest; *at != NULL; at = &(*at)->next, n++) {
        plan *p = *at;
        bool found = memcmp(&p->key, key, sizeof *key) == 0;
        if (!found && n < PLANS) continue;
        *at = p->next;
        if (found) return p;
        plan_release_locked(p);
        break;
    }
    return NULL;
}

/* The plan of this key, made if need be: the caller gives it back to plan_release. */
static ln_status plan_get(plan **out, const plan_key *key) {
    ln_status status = LN_OK;
    pthread_mutex_lock(&plans.lock);
    plan *p = plan_take_locked(key);
    if (p == NULL) {
        p = calloc(1, sizeof *p);
        if (p == NULL) {
            status = ln_fail(LN_OUT_OF_MEMORY, "%s: out of memory for a plan", plan_name(key));
        } else {
            p->key = *key;
            p->users = 1;
            status = plan_fill(p);
        }
    }
    if (status == LN_OK) {
        p->users++;
        p->next = plans.newest;
        plans.newest = *out = p;
    } else if (p != NULL) {
        plan_free(p);
    }
    pthread_mutex_unlock(&plans.lock);
    return status;
}

/* ---- Running -------------------------------------------------------------------------------- */

static ln_status plan_run(const plan *p, void *const arrays[OPERANDS]) {
    const char *what = plan_name(&p->key);
    dnnl_memory_t memory[MAX_SLOTS] = {NULL};
    ln_status status = LN_OK;
    char *scratch = ln_scratch_new(p->scratch_bytes, what);
    if (scratch == NULL) return LN_OUT_OF_MEMORY;
    for (int i = 0; i < p->nslots; i++) {
        void *data = i < OPERANDS ? arrays[i] : scratch + p->slots[i].offset;
        if (data != NULL)
            LN_TRY(check(dnnl_memory_create(&memory[i], &p->slots[i].desc, engine, data), what));
    }
    for (int i = 0; i < p->nsteps; i++) {
        const plan_step *s = &p->steps[i];
        dnnl_exec_arg_t args[MAX_ARGS];
        for (int j = 0; j < s->nargs; j++)
            args[j] = (dnnl_exec_arg_t){s->args[j].arg, memory[s->args[j].slot]};
        LN_TRY(check(dnnl_primitive_execute(s->run, stream, s->nargs, args), what));
    }
fail:
    for (int i = 0; i < p->nslots; i++) dnnl_memory_destroy(memory[i]);
    ln_scratch_release(scratch);
    return status;
}

static ln_status convolve(void *const arrays[OPERANDS], const ln_conv_shape *s, bool backward) {
    int team = ln_team(s->N * s->O * s->oh * s->ow * (s->C / s->p.groups) * s->kh * s->kw);
    plan_key key = {.shape = *s, .backward = backward, .team = team};
    for (int i = 0; i < OPERANDS; i++) key.given |= (int64_t)(arrays[i] != NULL) << i;
    plan *p;
    ln_status status = enter(team, plan_name(&key));
    if (status == LN_OK) status = plan_get(&p, &key);
    if (status != LN_OK) return status;
    status = plan_run(p, arrays);
    plan_release(p);
    return status;
}

ln_status ln_onednn_conv2d(float *y, const float *x, const float *w, const float *bias,
                           const ln_conv_shape *shape) {
    void *arrays[OPERANDS] = {[X] = (void *)x, [W] = (void *)w, [BIAS] = (void *)bias, [Y] = y};
    return convolve(arrays, shape, false);
}

ln_status ln_onednn_conv2d_backward(float *dx, float *dw, float *db, const float *dy,
                                    const float *x, const float *w, const ln_conv_shape *shape) {
    void *arrays[OPERANDS] = {
        [X] = (void *)x, [W] = (void *)w, [Y] = (void *)dy, [DX] = dx, [DW] = dw, [DB] = db};
    return convolve(arrays, shape, true);
}
