/* The two passes of the similarity engine: a tile of the matrix at a time, made by a product, from
 * which the sums of its rows and columns and the weights of the gradients are taken, by kernels
 * that are compiled with the link. Of a symmetric matrix the tiles below the diagonal are the
 * transposes of those above. Builds the steps of reductions; computes no similarities. Invariant:
 * an anchor's sums are carried from tile to tile in a fixed order. */
#include "fused.h"
#include "source.h"
#include "tile.h"

static const char *const WHAT = "similarity";

/* ---- Totals of all anchors ---- */

typedef epilogue_total total;

static __global__ void totals_kernel(total *totals, int64_t n, double most) {
    for (int64_t i = grid_thread(); i < n; i += grid_threads()) totals[i] = {most, 0};
}

/* Adds the sums of the parts of a tile, (parts, n), to the totals of n anchors. */
template <typename T>
static __global__ void parts_kernel(total *totals, const T *sums, int64_t parts, int64_t n) {
    for (int64_t i = grid_thread(); i < n; i += grid_threads())
        for (int64_t p = 0; p < parts; p++) totals[i].sum += (double)sums[p * n + i];
}

/* ---- Results ---- */

/* The log-sum-exp, from totals of exponentials less the shift where there is one, or the sum. */
template <typename T>
static __global__ void results_kernel(T *y, const total *totals, const T *shift, int64_t n,
                                      bool is_lse) {
    for (int64_t i = grid_thread(); i < n; i += grid_threads()) {
        total t = totals[i];
        double c = shift != NULL ? (double)shift[i] : t.most;
        if (is_lse) y[i] = t.sum == 0 ? (T)-INFINITY : (T)(c + log(t.sum));
        else y[i] = (T)t.sum;
    }
}

/* One block: y[0] = the sum of all n. */
template <typename T> static __global__ void whole_kernel(T *y, const total *totals, int64_t n) {
    __shared__ double parts[THREADS];
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += THREADS) sum += totals[i].sum;
    parts[threadIdx.x] = sum;
    __syncthreads(); /* all parts are there */
    if (threadIdx.x > 0) return;
    for (int i = 1; i < THREADS; i++) sum += parts[i];
    y[0] = (T)sum;
}

/* An anchor without candidates has -inf; any finite number serves its empty sums. */
template <typename T> static __global__ void finite_kernel(T *out, const T *y, int64_t n) {
    for (int64_t i = grid_thread(); i < n; i += grid_threads())
        out[i] = y[i] == -INFINITY ? (T)0 : y[i];
}

/* dy e^(shift - y), 0 for an anchor without candidates. */
template <typename T>
static __global__ void gains_kernel(T *out, const T *y, const T *dy, const T *shift, int64_t n) {
    for (int64_t i = grid_thread(); i < n; i += grid_threads())
        out[i] = y[i] == -INFINITY ? (T)0 : dy[i] * exp(shift[i] - y[i]);
}

/* ---- A pass ---- */

/* What is done with each tile: a step's values summed, or stored as weights. */
typedef struct {
    epilogue arguments;
    const compiled *kernel;
    const compiled *both;  /* of sums: for tiles that are mirrored; NULL: the kernel, twice */
    const compiled *other; /* of fused gradients: for those of k, where it is not q */
} job;

enum {
    MOST_JOBS = LN_MAX_REDUCTIONS * (LN_LINK_PARAMETERS + 1),
    MOST_TILE = 7,    /* allocations of a tile */
    MOST_PARTS = 1024 /* blocks that share a tile's weights, where they look for the largest */
};

typedef struct {
    const ln_tensor *q, *k;
    bool cosine, symmetric;
    int tile_dtype;
    int64_t fused; /* the width of rows in halves, where the fused kernels take them; else 0 */
    int64_t n, m;
    ln_tensor *dq, *dk;
    int n_jobs, n_held;
    job *jobs;
    void *held[MOST_JOBS + LN_MAX_REDUCTIONS + MOST_TILE];
} pass;

/* The kernels count rows in 32 bits. */
static int64_t fused_width(const pass *p) {
    int dtype = side_dtype(p->q, p->cosine, p->tile_dtype);
    int64_t width = side_width(dtype, p->q->shape[1]);
    bool counted = p->n <= INT32_MAX / 2 && p->m <= INT32_MAX / 2;
    return dtype != p->q->dtype && width <= FUSED_WIDEST && counted ? width : 0;
}

static ln_status pass_new(pass *p, const ln_tensor *q, const ln_tensor *k, bool cosine,
                          int tile_dtype, int n, const ln_reduction *r, int jobs) {
    *p = {};
    p->q = q;
    p->k = k != NULL ? k : q;
    p->cosine = cosine;
    p->tile_dtype = tile_dtype;
    p->symmetric = k == NULL;
    for (int i = 0; i < n; i++) p->symmetric &= !r[i].by_column;
    p->n = p->q->shape[0];
    p->m = p->k->shape[0];
    p->fused = fused_width(p);
    p->jobs = (job *)ln_scratch_new((size_t)jobs * sizeof *p->jobs, WHAT);
    return p->jobs != NULL ? LN_OK : LN_OUT_OF_MEMORY;
}

static void pass_release(pass *p) {
    for (int i = 0; i < p->n_held; i++) cuda_scratch_release(p->held[i]);
    ln_scratch_release(p->jobs);
}

static ln_status hold(pass *p, void **out, size_t bytes) {
    ln_status status = cuda_scratch(out, bytes, WHAT);
    if (status == LN_OK) p->held[p->n_held++] = *out;
    return status;
}

static ln_status compile_job(const compiled **out, const pass *p, job *j, int kernel,
                             const link_steps *l, int step, const ln_reduction *r,
                             bool flipped = false, bool mirrored = false) {
    char *source = NULL;
    source_kind kind = {kernel,        p->q->dtype, side_dtype(p->q, p->cosine, p->tile_dtype),
                        (int)p->fused, flipped,     mirrored};
    ln_status status = source_new(&source, &j->arguments, kind, l, step, r);
    if (status == LN_OK) status = cuda_compile(out, source, WHAT);
    ln_scratch_release(source);
    return status;
}

static job *job_new(pass *p) {
    job *made = &p->jobs[p->n_jobs++];
    *made = {};
    return made;
}

/* The weights. Of one set with itself, a row's are those of its column too. */
static ln_status add_weights(pass *p, const link_steps *l, int step, const ln_reduction *r) {
    job *made = job_new(p);
    bool one = p->dq != NULL && p->dq == p->dk;
    ln_status status = LN_OK;
    if (p->fused == 0) return compile_job(&made->kernel, p, made, EPILOGUE_WEIGHTS, l, step, r);
    if (p->dq != NULL)
        LN_TRY(
            compile_job(&made->kernel, p, made, EPILOGUE_FUSED_GRADIENT, l, step, r, false, one));
    if (p->dk != NULL && !one)
        LN_TRY(compile_job(&made->other, p, made, EPILOGUE_FUSED_GRADIENT, l, step, r, true));
fail:
    return status;
}

static int sums_kernel(const pass *p, bool running) {
    if (p->fused == 0) return EPILOGUE_SUMS;
    if (p->symmetric) return running ? EPILOGUE_FUSED_BOTH_RUNNING : EPILOGUE_FUSED_BOTH;
    return running ? EPILOGUE_FUSED_RUNNING : EPILOGUE_FUSED_SUMS;
}

static ln_status add_sums(pass *p, const link_steps *l, int step, const ln_reduction *r,
                          bool by_column, bool running) {
    void *totals = NULL;
    job *made;
    int64_t n = by_column ? p->m : p->n;
    ln_status status;
    LN_TRY(hold(p, &totals, (size_t)n * sizeof(total)));
    LN_TRY(launch(WHAT, totals_kernel, blocks_for(n), THREADS, (total *)totals, n,
                  running ? -INFINITY : 0.0));
    made = job_new(p);
    LN_TRY(compile_job(&made->kernel, p, made, sums_kernel(p, running), l, step, r,
                       p->fused > 0 && by_column));
    if (p->symmetric && p->fused == 0 && !running)
        LN_TRY(compile_job(&made->both, p, made, EPILOGUE_BOTH, l, step, r));
    made->arguments.totals = (total *)totals;
    made->arguments.by_column = by_column;
    made->arguments.running = running;
fail:
    return status;
}

/* ---- A tile ---- */

/* Where the tile lies and what it takes; its place in the matrix is in `at`. */
typedef struct {
    void *s, *w, *row_sums, *column_sums;
    void *half, *most, *factors; /* weights in a half dtype; or NULL. See tile_round */
    bool mirrored;
    epilogue at;
} tile;

static ln_status run_kernel(const compiled *kernel, const epilogue *a, int64_t blocks) {
    unsigned grid = blocks_for(blocks, 1);
    return cuda_run(kernel, grid, EPILOGUE_THREADS, 0, a, sizeof *a, WHAT);
}

static ln_status run_sums(const job *j, epilogue a, bool by_column, bool flipped) {
    a.by_column = by_column;
    a.flipped = flipped;
    int64_t blocks = by_column ? ceil_div(a.columns, WARP) : ceil_div(a.rows, THREADS / WARP);
    return run_kernel(j->kernel, &a, blocks);
}

template <typename T> static ln_status add_parts(const epilogue *a) {
    int64_t across = ceil_div(a->columns, PART_COLUMNS), down = ceil_div(a->rows, PART_ROWS);
    ln_status status;
    LN_TRY(launch(WHAT, parts_kernel<T>, blocks_for(a->rows), THREADS, a->totals + a->row,
                  (const T *)a->row_sums, across, (int64_t)a->rows));
    status = launch(WHAT, parts_kernel<T>, blocks_for(a->columns), THREADS, a->totals + a->column,
                    (const T *)a->column_sums, down, (int64_t)a->columns);
fail:
    return status;
}

/* Of a mirrored tile: what rows sum of the tile, and what columns sum of its transpose; where the
 * anchors are columns, the other way round. */
static ln_status run_both(const pass *p, const job *j, epilogue a) {
    ln_status status;
    if (j->both == NULL) {
        LN_TRY(run_sums(j, a, false, a.by_column));
        return run_sums(j, a, true, !a.by_column);
    }
    a.flipped = a.by_column;
    LN_TRY(
        run_kernel(j->both, &a, ceil_div(a.columns, PART_COLUMNS) * ceil_div(a.rows, PART_ROWS)));
    status = p->q->dtype == LN_FLOAT64 ? add_parts<double>(&a) : add_parts<float>(&a);
fail:
    return status;
}

/* Where the largest weights are wanted, of few blocks. */
static int64_t weight_blocks(const tile *t) {
    int64_t blocks = blocks_for(t->at.rows * t->at.columns, EPILOGUE_THREADS);
    if (t->most != NULL && blocks > MOST_PARTS) blocks = MOST_PARTS;
    return blocks;
}

static ln_status run_jobs(const pass *p, const tile *t) {
    bool adds = false;
    ln_status status = LN_OK;
    for (int i = 0; i < p->n_jobs; i++) {
        const job *j = &p->jobs[i];
        epilogue a = j->arguments;
        a.row = t->at.row;
        a.rows = t->at.rows;
        a.column = t->at.column;
        a.columns = t->at.columns;
        a.s = t->s;
        a.w = t->w;
        a.row_sums = t->row_sums;
        a.column_sums = t->column_sums;
        a.mirrored = t->mirrored;
        a.adds = adds;
        if (a.totals == NULL) {
            a.most = (float *)t->most;
            LN_TRY(run_kernel(j->kernel, &a, weight_blocks(t)));
            adds = true;
        } else if (t->mirrored) {
            LN_TRY(run_both(p, j, a));
        } else {
            LN_TRY(run_sums(j, a, a.by_column, false));
        }
    }
fail:
    return status;
}

/* Two float32 tiles, of similarities and of weights, take up to half of the scratch. */
static int64_t tile_extent(int64_t size) {
#ifdef LN_TILE_EXTENT
    return LN_TILE_EXTENT;
#endif
    int64_t extent = 32;
    while (16 * extent * extent * size <= SCRATCH) extent *= 2;
    return extent;
}

static ln_status round_weights(const tile *t, int dtype) {
    if (t->half == NULL) return LN_OK;
    return tile_round(t->half, dtype, (float *)t->factors, (const float *)t->w,
                      t->at.rows * t->at.columns, (const float *)t->most, weight_blocks(t));
}

static ln_status run_tile(const pass *p, tile *t, const side *q, const side *k) {
    const void *w = t->half != NULL ? t->half : t->w;
    const float *factors = (const float *)t->factors;
    ln_status status;
    t->at.row = q->first;
    t->at.rows = q->count;
    t->at.column = k->first;
    t->at.columns = k->count;
    t->mirrored = p->symmetric && k->first != q->first;
    LN_TRY(tile_product(t->s, k->count, q, k));
    LN_TRY(run_jobs(p, t));
    LN_TRY(round_weights(t, q->dtype));
    if (p->dq != NULL) LN_TRY(tile_gradient(p->dq, w, factors, false, q, k));
    if (p->dk != NULL) LN_TRY(tile_gradient(p->dk, w, factors, true, k, q));
fail:
    return status;
}

static ln_status tile_new(pass *p, tile *t, const side *q, const side *k) {
    size_t size = ln_dtype_size(p->q->dtype), entries = (size_t)(q->most * k->most);
    bool weights = p->dq != NULL || p->dk != NULL;
    size_t row_sums = (size_t)(q->most * ceil_div(k->most, PART_COLUMNS)) * size;
    size_t column_sums = (size_t)(k->most * ceil_div(q->most, PART_ROWS)) * size;
    ln_status status;
    *t = {};
    LN_TRY(hold(p, &t->s, entries * size));
    if (weights) LN_TRY(hold(p, &t->w, entries * size));
    if (weights && q->dtype != p->q->dtype) {
        LN_TRY(hold(p, &t->half, entries * ln_dtype_size(q->dtype)));
        LN_TRY(hold(p, &t->most, MOST_PARTS * sizeof(float)));
        LN_TRY(hold(p, &t->factors, TILE_FACTORS * sizeof(float)));
    }
    if (!p->symmetric) return LN_OK;
    LN_TRY(hold(p, &t->row_sums, row_sums));
    LN_TRY(hold(p, &t->column_sums, column_sums));
fail:
    return status;
}

/* What rows or columns sum, for a block of each side; of a symmetric matrix, also what the blocks
 * the other way round would. */
static ln_status run_fused_sums(const job *j, const pass *p, const side *q, const side *k) {
    const epilogue &a = j->arguments;
    if (p->symmetric) return k->first < q->first ? LN_OK : fused_both(j->kernel, a, q, k);
    return a.by_column ? fused_sums(j->kernel, a, k, q) : fused_sums(j->kernel, a, q, k);
}

/* With the fused kernels, for a block of each side: the sums and the gradients. */
static ln_status run_fused(const pass *p, const side *q, const side *k) {
    ln_status status = LN_OK;
    for (int i = 0; i < p->n_jobs; i++) {
        const job *j = &p->jobs[i];
        const epilogue &a = j->arguments;
        if (a.totals != NULL) LN_TRY(run_fused_sums(j, p, q, k));
        if (j->kernel != NULL && a.totals == NULL)
            LN_TRY(fused_gradient(p->dq, j->kernel, a, q, k));
        if (j->other != NULL) LN_TRY(fused_gradient(p->dk, j->other, a, k, q));
    }
fail:
    return status;
}

static ln_status run_tiles(pass *p, side *q, side *k) {
    bool halved = p->symmetric && (p->fused == 0 || p->dq == NULL);
    tile t;
    ln_status status;
    if (p->fused == 0) LN_TRY(tile_new(p, &t, q, k));
    for (int64_t row = 0; row < p->n; row += q->count) {
        LN_TRY(side_take(q, row));
        for (int64_t column = halved ? row : 0; column < p->m; column += k->count) {
            LN_TRY(side_take(k, column));
            LN_TRY(p->fused > 0 ? run_fused(p, q, k) : run_tile(p, &t, q, k));
        }
    }
    if (p->dq != NULL) LN_TRY(side_backward(p->dq, q));
    if (p->dk != NULL && p->dk != p->dq) LN_TRY(side_backward(p->dk, k));
fail:
    return status;
}

static ln_status run_pass(pass *p) {
    int64_t extent =
        p->fused > 0 ? fused_extent(p->fused) : tile_extent((int64_t)ln_dtype_size(p->q->dtype));
    side q = {}, k = {};
    ln_status status = LN_OK;
    if (p->n == 0 || p->m == 0 || p->n_jobs == 0) return LN_OK;
    LN_TRY(side_new(&q, p->q, p->cosine, extent, p->tile_dtype));
    LN_TRY(
        side_new(&k, p->k, p->cosine, extent, p->tile_dtype, SIDE_WHOLE, p->k == p->q ? &q : NULL));
    status = run_tiles(p, &q, &k);
fail:
    side_release(&k);
    side_release(&q);
    return status;
}

/* ---- Forward ---- */

static int anchor_kind(const ln_reduction *r) {
    return r->by_column ? LN_PARAMETER_COLUMN : LN_PARAMETER_ROW;
}

/* Whether the link and its shift, which lies above all its values, are the same for all anchors:
 * then one exponential serves an entry and its mirror image. */
static bool one_link(const pass *p, const ln_reduction *r, const ln_tensor *shift) {
    if (!p->symmetric || (r->kind == LN_REDUCE_LSE && shift == NULL)) return false;
    for (int i = 0; i < r->n_parameters; i++)
        if (r->parameters[i].kind != LN_PARAMETER_SCALAR) return false;
    return true;
}

/* exp(f - shift) of the anchor, or of all. */
static int weight_step(link_steps *l, const ln_reduction *r, int kind, const void *shift) {
    int c = link_parameter(l, kind, shift);
    return link_step(l, LN_LINK_EXP, link_step(l, LN_LINK_SUB, r->value, c), 0);
}

template <typename T>
static ln_status store_result(ln_tensor *out, const job &j, const ln_reduction *r,
                              const ln_tensor *shift) {
    bool is_lse = r->kind == LN_REDUCE_LSE;
    const T *c = is_lse && shift != NULL ? (const T *)shift->data : NULL;
    if (out->numel == 0) return LN_OK;
    return launch(WHAT, results_kernel<T>, blocks_for(out->numel), THREADS, (T *)out->data,
                  j.arguments.totals, c, out->numel, is_lse);
}

/* The device computes a tile faster than it would read it. */
ln_status CUDA(similarity_tiles)(int64_t *elements, const ln_tensor *, const ln_tensor *) {
    *elements = 0;
    return LN_OK;
}

ln_status CUDA(similarity_forward)(ln_tensor *const *out, const ln_tensor *q, const ln_tensor *k,
                                   bool cosine, int tile_dtype, int n,
                                   const ln_reduction *reductions, const ln_tensor *const *shift,
                                   ln_tiles *) {
    pass p = {};
    ln_status status;
    LN_TRY(cuda_enter(q, WHAT));
    LN_TRY(pass_new(&p, q, k, cosine, tile_dtype, n, reductions, n));
    for (int i = 0; i < n; i++) {
        const ln_reduction *r = &reductions[i];
        link_steps l = link_steps_of(r);
        bool is_lse = r->kind == LN_REDUCE_LSE, fixed = shift[i] != NULL;
        int kind = one_link(&p, r, shift[i]) ? LN_PARAMETER_SCALAR : anchor_kind(r);
        int step = is_lse && fixed ? weight_step(&l, r, kind, shift[i]->data) : r->value;
        LN_TRY(add_sums(&p, &l, step, r, r->by_column, is_lse && !fixed));
    }
    LN_TRY(run_pass(&p));
    for (int i = 0; i < n; i++) {
        if (q->dtype == LN_FLOAT64)
            LN_TRY(store_result<double>(out[i], p.jobs[i], &reductions[i], shift[i]));
        else LN_TRY(store_result<float>(out[i], p.jobs[i], &reductions[i], shift[i]));
    }
fail:
    pass_release(&p);
    return status;
}

/* ---- Backward ---- */

template <typename T>
static ln_status make_values(void *out, const ln_tensor *y, const ln_tensor *dy,
                             const ln_tensor *shift, bool gains) {
    unsigned blocks = blocks_for(y->numel);
    if (!gains)
        return launch(WHAT, finite_kernel<T>, blocks, THREADS, (T *)out, (const T *)y->data,
                      y->numel);
    return launch(WHAT, gains_kernel<T>, blocks, THREADS, (T *)out, (const T *)y->data,
                  (const T *)dy->data, (const T *)shift->data, y->numel);
}

/* The factor of the slopes of a log-sum-exp: dy exp(f - y), or with one exponential for an entry
 * and its mirror image exp(f - shift) (dy e^(shift - y)). */
static ln_status lse_gain(int *step, pass *p, link_steps *l, const ln_reduction *r,
                          const ln_tensor *y, const ln_tensor *dy, const ln_tensor *shift) {
    bool one = one_link(p, r, shift);
    void *values = NULL;
    ln_status status;
    LN_TRY(hold(p, &values, (size_t)y->numel * ln_dtype_size(y->dtype)));
    if (y->dtype == LN_FLOAT64) LN_TRY(make_values<double>(values, y, dy, shift, one));
    else LN_TRY(make_values<float>(values, y, dy, shift, one));
    if (one) {
        int weight = weight_step(l, r, LN_PARAMETER_SCALAR, shift->data);
        *step = link_step(l, LN_LINK_MUL, weight, link_parameter(l, anchor_kind(r), values));
    } else {
        int weight = weight_step(l, r, anchor_kind(r), values);
        *step = link_step(l, LN_LINK_MUL, weight, link_parameter(l, anchor_kind(r), dy->data));
    }
fail:
    return status;
}

/* The jobs of one reduction: the weights where a gradient of rows is wanted, then the sums for each
 * wanted parameter; each is a gain times a slope. */
static ln_status add_backward(pass *p, const ln_reduction *r, const ln_tensor *y,
                              const ln_tensor *dy, const ln_tensor *shift) {
    link_steps l = link_steps_of(r);
    int gain;
    ln_status status = LN_OK;
    if (r->kind == LN_REDUCE_LSE && y->numel > 0) LN_TRY(lse_gain(&gain, p, &l, r, y, dy, shift));
    else gain = link_parameter(&l, anchor_kind(r), dy->data);
    if (p->dq != NULL || p->dk != NULL) {
        link_steps own = l;
        int step = link_step(&own, LN_LINK_MUL, gain, r->slope);
        LN_TRY(add_weights(p, &own, step, r));
    }
    for (int i = 0; i < r->n_parameters; i++) {
        if (r->parameters[i].slope < 0) continue;
        link_steps own = l;
        int step = link_step(&own, LN_LINK_MUL, gain, r->parameters[i].slope);
        LN_TRY(add_sums(p, &own, step, r, r->parameters[i].kind == LN_PARAMETER_COLUMN, false));
    }
fail:
    return status;
}

template <typename T>
static ln_status store_parameter(ln_tensor *dp, const job &j, int kind, int64_t rows) {
    T *to = (T *)dp->data;
    const total *totals = j.arguments.totals;
    if (kind == LN_PARAMETER_SCALAR)
        return launch(WHAT, whole_kernel<T>, 1, THREADS, to, totals, rows);
    if (dp->numel == 0) return LN_OK;
    return launch(WHAT, results_kernel<T>, blocks_for(dp->numel), THREADS, to, totals,
                  (const T *)NULL, dp->numel, false);
}

/* Of all wanted parameters, in the order in which their jobs were made. */
static ln_status store_parameters(ln_tensor *const *dparameters, const pass *p, int n,
                                  const ln_reduction *reductions) {
    int next = 0;
    ln_status status = LN_OK;
    for (int i = 0; i < n; i++) {
        if (p->dq != NULL || p->dk != NULL) next++;
        for (int t = 0; t < reductions[i].n_parameters; t++, dparameters++) {
            int kind = reductions[i].parameters[t].kind;
            if (reductions[i].parameters[t].slope < 0) continue;
            if (p->q->dtype == LN_FLOAT64)
                LN_TRY(store_parameter<double>(*dparameters, p->jobs[next++], kind, p->n));
            else LN_TRY(store_parameter<float>(*dparameters, p->jobs[next++], kind, p->n));
        }
    }
fail:
    return status;
}

static ln_status clear(ln_tensor *t) {
    if (t == NULL || t->numel == 0) return LN_OK;
    size_t bytes = (size_t)t->numel * ln_dtype_size(t->dtype);
    return cuda_check(cudaMemsetAsync(t->data, 0, bytes, cudaStreamPerThread), WHAT);
}

ln_status CUDA(similarity_backward)(ln_tensor *dq, ln_tensor *dk, ln_tensor *const *dparameters,
                                    const ln_tensor *const *dy, const ln_tensor *const *y,
                                    const ln_tensor *q, const ln_tensor *k, bool cosine,
                                    int tile_dtype, int n, const ln_reduction *reductions,
                                    const ln_tensor *const *shift, ln_tiles *) {
    pass p = {};
    ln_status status;
    LN_TRY(cuda_enter(q, WHAT));
    LN_TRY(pass_new(&p, q, k, cosine, tile_dtype, n, reductions, n * (LN_LINK_PARAMETERS + 1)));
    p.dq = dq;
    p.dk = k == NULL ? dq : dk;
    for (int i = 0; i < n; i++) LN_TRY(add_backward(&p, &reductions[i], y[i], dy[i], shift[i]));
    LN_TRY(clear(dq));
    LN_TRY(clear(dk));
    LN_TRY(run_pass(&p));
    status = store_parameters(dparameters, &p, n, reductions);
fail:
    pass_release(&p);
    return status;
}
