/* The two passes of the similarity engine: a tile of the matrix at a time, made by a product, from
 * which the sums of its rows and columns and the weights of the gradients are taken. Builds the
 * programs of reductions; computes no similarities. Invariants: an anchor's sums are carried from
 * tile to tile by one thread and taken in a fixed order; a masked entry is never evaluated. */
#include "machine.h"
#include "tile.h"

static const char *const WHAT = "similarity";

/* ---- Sums over a tile ---- */

/* exp(most) * sum; most stays 0 where no maximum is kept. */
typedef struct {
    double most, sum;
} total;

/* The tile's place in the matrix. */
typedef struct {
    int64_t row, rows, column, columns;
} area;

static __device__ void add(total *to, total t) {
    if (t.sum == 0) return; /* but not NaN */
    if (t.most > to->most) {
        if (to->sum != 0) to->sum *= exp(to->most - t.most);
        to->most = t.most;
    }
    to->sum += t.most == to->most ? t.sum : t.sum * exp(t.most - to->most);
}

/* exp(v) with a running maximum; -inf adds nothing. */
template <typename T> static __device__ void add_exp(total *to, T v) {
    if (v == -INFINITY) return;
    if (v > to->most) {
        if (to->sum != 0) to->sum *= exp(to->most - (double)v);
        to->most = (double)v;
    }
    to->sum += v == (T)to->most ? 1 : (double)exp(v - (T)to->most); /* also of infinities */
}

static __global__ void totals_kernel(total *totals, int64_t n, double most) {
    for (int64_t i = grid_thread(); i < n; i += grid_threads()) totals[i] = {most, 0};
}

/* Adds the program's values, or with `running` their exponentials, to the totals of the rows or of
 * the columns of s (rows, columns). A block takes 8 rows by 32 threads each, which read along the
 * row, or 32 columns by 8 threads each: neighbours read what lies together. */
template <typename T>
static __global__ void sums_kernel(total *totals, const program *p, masks m, const T *s, area a,
                                   bool by_column, bool running) {
    __shared__ total parts[THREADS];
    int across = by_column ? WARP : THREADS / WARP, lanes = THREADS / across;
    int mine = by_column ? threadIdx.x % across : threadIdx.x / lanes;
    int lane = by_column ? threadIdx.x / across : threadIdx.x % lanes;
    int64_t anchors = by_column ? a.columns : a.rows, others = by_column ? a.rows : a.columns;
    for (int64_t first = (int64_t)blockIdx.x * across; first < anchors;
         first += (int64_t)gridDim.x * across) {
        int64_t anchor = first + mine;
        total t = {running ? -INFINITY : 0.0, 0};
        for (int64_t other = lane; anchor < anchors && other < others; other += lanes) {
            int64_t i = by_column ? other : anchor, j = by_column ? anchor : other;
            if (!admits(m, a.row + i, a.column + j)) continue;
            T v = program_run(p, s[i * a.columns + j], a.row + i, a.column + j);
            if (running) add_exp(&t, v);
            else t.sum += (double)v;
        }
        parts[threadIdx.x] = t;
        __syncthreads(); /* all parts are there */
        if (lane == 0 && anchor < anchors) {
            int step = by_column ? across : 1;
            total *to = &totals[(by_column ? a.column : a.row) + anchor];
            for (int l = 0; l < lanes; l++) add(to, parts[threadIdx.x + l * step]);
        }
        __syncthreads(); /* they are read */
    }
}

/* A thread an entry: w (rows, columns) = or += the program's value; 0 where it is masked. */
template <typename T>
static __global__ void weights_kernel(T *w, const program *p, masks m, const T *s, area a,
                                      bool adds) {
    for (int64_t i = grid_thread(); i < a.rows * a.columns; i += grid_threads()) {
        int64_t row = a.row + i / a.columns, column = a.column + i % a.columns;
        T v = admits(m, row, column) ? program_run(p, s[i], row, column) : 0;
        w[i] = adds ? w[i] + v : v;
    }
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

/* ---- A pass ---- */

/* What is done with each tile: a program's values summed, or stored as weights. */
typedef struct {
    masks m;
    total *totals; /* NULL: weights */
    bool by_column, running;
} job;

enum { MOST_JOBS = LN_MAX_REDUCTIONS * (LN_LINK_PARAMETERS + 1) };

typedef struct {
    const ln_tensor *q, *k;
    bool cosine;
    int64_t n, m;
    ln_tensor *dq, *dk;
    int n_jobs, n_held;
    job jobs[MOST_JOBS];
    program *made, *programs; /* on the host, and on the device */
    void *held[MOST_JOBS + LN_MAX_REDUCTIONS];
} pass;

static ln_status pass_new(pass *p, const ln_tensor *q, const ln_tensor *k, bool cosine, int jobs) {
    *p = {};
    p->q = q;
    p->k = k != NULL ? k : q;
    p->cosine = cosine;
    p->n = p->q->shape[0];
    p->m = p->k->shape[0];
    p->made = (program *)ln_scratch_new((size_t)jobs * sizeof *p->made, WHAT);
    return p->made != NULL ? LN_OK : LN_OUT_OF_MEMORY;
}

static void pass_release(pass *p) {
    for (int i = 0; i < p->n_held; i++) cuda_scratch_release(p->held[i]);
    cuda_scratch_release(p->programs);
    ln_scratch_release(p->made);
}

static ln_status hold(pass *p, void **out, size_t bytes) {
    ln_status status = cuda_scratch(out, bytes, WHAT);
    if (status == LN_OK) p->held[p->n_held++] = *out;
    return status;
}

static ln_status add_job(pass *p, const link_steps *l, int step, const ln_reduction *r) {
    job *made = &p->jobs[p->n_jobs];
    *made = {};
    made->m = masks_of(r->n_masks, r->masks);
    return program_new(&p->made[p->n_jobs++], l, step);
}

static ln_status add_sums(pass *p, const link_steps *l, int step, const ln_reduction *r,
                          bool by_column, bool running) {
    void *totals = NULL;
    int64_t n = by_column ? p->m : p->n;
    ln_status status;
    LN_TRY(hold(p, &totals, (size_t)n * sizeof(total)));
    LN_TRY(launch(WHAT, totals_kernel, blocks_for(n), THREADS, (total *)totals, n,
                  running ? -INFINITY : 0.0));
    LN_TRY(add_job(p, l, step, r));
    p->jobs[p->n_jobs - 1].totals = (total *)totals;
    p->jobs[p->n_jobs - 1].by_column = by_column;
    p->jobs[p->n_jobs - 1].running = running;
fail:
    return status;
}

template <typename T> static ln_status run_jobs(const pass *p, const T *s, T *w, area a) {
    bool adds = false;
    ln_status status = LN_OK;
    for (int i = 0; i < p->n_jobs; i++) {
        const job &j = p->jobs[i];
        const program *code = p->programs + i;
        if (j.totals != NULL) {
            unsigned blocks =
                j.by_column ? blocks_for(a.columns, WARP) : blocks_for(a.rows, THREADS / WARP);
            LN_TRY(launch(WHAT, sums_kernel<T>, blocks, THREADS, j.totals, code, j.m, s, a,
                          j.by_column, j.running));
            continue;
        }
        LN_TRY(launch(WHAT, weights_kernel<T>, blocks_for(a.rows * a.columns), THREADS, w, code,
                      j.m, s, a, adds));
        adds = true;
    }
fail:
    return status;
}

/* Two tiles, of similarities and of weights, take up to half of the scratch. */
static int64_t tile_extent(int64_t size) {
    int64_t extent = 32;
    while (16 * extent * extent * size <= SCRATCH) extent *= 2;
    return extent;
}

static ln_status run_tile(const pass *p, void *s, void *w, const side *q, const side *k) {
    area a = {q->first, q->count, k->first, k->count};
    ln_status status;
    LN_TRY(tile_product(s, a.columns, q, k));
    if (p->q->dtype == LN_FLOAT64) LN_TRY(run_jobs(p, (const double *)s, (double *)w, a));
    else LN_TRY(run_jobs(p, (const float *)s, (float *)w, a));
    if (p->dq != NULL) LN_TRY(tile_gradient(p->dq, w, false, q, k));
    if (p->dk != NULL) LN_TRY(tile_gradient(p->dk, w, true, k, q));
fail:
    return status;
}

static ln_status run_tiles(const pass *p, side *q, side *k) {
    void *s = NULL, *w = NULL;
    size_t bytes = (size_t)(q->most * k->most) * ln_dtype_size(p->q->dtype);
    ln_status status;
    LN_TRY(cuda_scratch(&s, bytes, WHAT));
    if (p->dq != NULL || p->dk != NULL) LN_TRY(cuda_scratch(&w, bytes, WHAT));
    for (int64_t row = 0; row < p->n; row += q->count) {
        LN_TRY(side_take(q, row));
        for (int64_t column = 0; column < p->m; column += k->count) {
            LN_TRY(side_take(k, column));
            LN_TRY(run_tile(p, s, w, q, k));
        }
    }
    if (p->dq != NULL) LN_TRY(side_backward(p->dq, q));
    if (p->dk != NULL && p->dk != p->dq) LN_TRY(side_backward(p->dk, k));
fail:
    cuda_scratch_release(s);
    cuda_scratch_release(w);
    return status;
}

static ln_status run_pass(pass *p) {
    int64_t extent = tile_extent((int64_t)ln_dtype_size(p->q->dtype));
    size_t bytes = (size_t)p->n_jobs * sizeof *p->made;
    side q = {}, k = {};
    ln_status status = LN_OK;
    if (p->n == 0 || p->m == 0 || p->n_jobs == 0) return LN_OK;
    LN_TRY(cuda_scratch((void **)&p->programs, bytes, WHAT));
    LN_TRY(ln_transfer(p->programs, ln_device(p->q), p->made, LN_CPU, bytes));
    LN_TRY(side_new(&q, p->q, p->cosine, extent));
    LN_TRY(side_new(&k, p->k, p->cosine, extent));
    status = run_tiles(p, &q, &k);
fail:
    side_release(&q);
    side_release(&k);
    return status;
}

/* ---- Forward ---- */

static int anchor_kind(const ln_reduction *r) {
    return r->by_column ? LN_PARAMETER_COLUMN : LN_PARAMETER_ROW;
}

/* exp(f - shift) of the anchor. */
static int weight_step(link_steps *l, const ln_reduction *r, const ln_tensor *shift) {
    int c = link_parameter(l, anchor_kind(r), shift);
    return link_step(l, LN_LINK_EXP, link_step(l, LN_LINK_SUB, r->value, c), 0);
}

template <typename T>
static ln_status store_result(ln_tensor *out, const job &j, const ln_reduction *r,
                              const ln_tensor *shift) {
    bool is_lse = r->kind == LN_REDUCE_LSE;
    const T *c = is_lse && shift != NULL ? (const T *)shift->data : NULL;
    if (out->numel == 0) return LN_OK;
    return launch(WHAT, results_kernel<T>, blocks_for(out->numel), THREADS, (T *)out->data,
                  j.totals, c, out->numel, is_lse);
}

/* The device computes a tile faster than it would read it. */
ln_status CUDA(similarity_tiles)(int64_t *elements, const ln_tensor *, const ln_tensor *) {
    *elements = 0;
    return LN_OK;
}

ln_status CUDA(similarity_forward)(ln_tensor *const *out, const ln_tensor *q, const ln_tensor *k,
                                   bool cosine, int n, const ln_reduction *reductions,
                                   const ln_tensor *const *shift, ln_tiles *) {
    pass p = {};
    ln_status status;
    LN_TRY(cuda_enter(q, WHAT));
    LN_TRY(pass_new(&p, q, k, cosine, n));
    for (int i = 0; i < n; i++) {
        const ln_reduction *r = &reductions[i];
        link_steps l = link_steps_of(r);
        bool is_lse = r->kind == LN_REDUCE_LSE, fixed = shift[i] != NULL;
        int step = is_lse && fixed ? weight_step(&l, r, shift[i]) : r->value;
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

template <typename T> static ln_status make_finite(void *out, const ln_tensor *y) {
    return launch(WHAT, finite_kernel<T>, blocks_for(y->numel), THREADS, (T *)out,
                  (const T *)y->data, y->numel);
}

/* The jobs of one reduction: the weights where a gradient of rows is wanted, then the sums for each
 * wanted parameter; each is dy (exp(f - y) of a log-sum-exp) slope. */
static ln_status add_backward(pass *p, const ln_reduction *r, const ln_tensor *y,
                              const ln_tensor *dy) {
    link_steps l = link_steps_of(r);
    ln_tensor finite = *y;
    void *values = NULL;
    ln_status status = LN_OK;
    int gain = link_parameter(&l, anchor_kind(r), dy);
    if (r->kind == LN_REDUCE_LSE && y->numel > 0) {
        LN_TRY(hold(p, &values, (size_t)y->numel * ln_dtype_size(y->dtype)));
        status =
            y->dtype == LN_FLOAT64 ? make_finite<double>(values, y) : make_finite<float>(values, y);
        if (status != LN_OK) return status;
        finite.data = (char *)values;
        gain = link_step(&l, LN_LINK_MUL, weight_step(&l, r, &finite), gain);
    }
    if (p->dq != NULL || p->dk != NULL) {
        link_steps own = l;
        LN_TRY(add_job(p, &own, link_step(&own, LN_LINK_MUL, gain, r->slope), r));
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
    if (kind == LN_PARAMETER_SCALAR)
        return launch(WHAT, whole_kernel<T>, 1, THREADS, to, j.totals, rows);
    if (dp->numel == 0) return LN_OK;
    return launch(WHAT, results_kernel<T>, blocks_for(dp->numel), THREADS, to, j.totals,
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
                                    const ln_tensor *q, const ln_tensor *k, bool cosine, int n,
                                    const ln_reduction *reductions, const ln_tensor *const *,
                                    ln_tiles *) {
    pass p = {};
    ln_status status;
    LN_TRY(cuda_enter(q, WHAT));
    LN_TRY(pass_new(&p, q, k, cosine, n * (LN_LINK_PARAMETERS + 1)));
    p.dq = dq;
    p.dk = k == NULL ? dq : dk;
    for (int i = 0; i < n; i++) LN_TRY(add_backward(&p, &reductions[i], y[i], dy[i]));
    LN_TRY(clear(dq));
    LN_TRY(clear(dk));
    LN_TRY(run_pass(&p));
    status = store_parameters(dparameters, &p, n, reductions);
fail:
    pass_release(&p);
    return status;
}
