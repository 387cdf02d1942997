/* Reductions over any set of dimensions, extremes with their positions, and running sums. A group
 * of threads ("lanes") goes through the elements of one result, or of a chunk of them, and joins
 * what they found by halving. Invariants: chunks depend on shapes only and are joined in order;
 * floating elements are summed in double, integers in int64, which wraps. */
#include "reduce.h"

enum {
    CHUNK = 4096,       /* elements of one result that a group handles, at least */
    MOST_CHUNKS = 4096, /* that one result is cut into */
    FEW_RESULTS = 1024, /* below it results are cut into chunks */
    COLUMN_LANES = 8    /* where neighbouring threads take neighbouring results */
};

/* Beyond ORDER REDUCE: extremes with positions, and what reduce.h declares. */
enum { FIRST_MIN = LN_NORM + 1, FIRST_MAX, MOMENTS, SUMS };

/* The tensors of a walk. */
enum { IN, FACTOR, X, MEAN, RSTD, OUT, OTHER, TENSORS };

typedef struct {
    walk kept;    /* over the results; in OTHER positions, squares or dots */
    walk reduced; /* over the elements of one result */
    int op;
    double a;
    int64_t chunk, chunks; /* elements in one, and how many a result has */
    int lanes;
    bool columns; /* neighbouring threads are of neighbouring results, not of one */
} reduction;

/* What is known after some elements. other: of squared deviations (var), of exponentials under the
 * shift `value` (logsumexp), of the products (sums). at: the position of an extreme. */
template <typename T> struct state {
    T value;
    double other;
    int64_t at;
};

/* ---- States ---- */

static __device__ int64_t add(int64_t a, int64_t b) {
    return (int64_t)((uint64_t)a + (uint64_t)b);
}

static __device__ double add(double a, double b) {
    return a + b;
}

static __device__ int64_t multiply(int64_t a, int64_t b) {
    return (int64_t)((uint64_t)a * (uint64_t)b);
}

static __device__ double multiply(double a, double b) {
    return a * b;
}

static __device__ void infinite(double *v, bool positive) {
    *v = positive ? INFINITY : -INFINITY;
}

static __device__ void infinite(int64_t *v, bool positive) {
    *v = positive ? INT64_MAX : INT64_MIN;
}

template <typename T> static __device__ state<T> nothing(const reduction &r) {
    state<T> s = {0, 0, INT64_MAX};
    if (r.op == LN_PROD || r.op == LN_ALL) s.value = 1;
    if (r.op == LN_MIN || r.op == FIRST_MIN) infinite(&s.value, true);
    if (r.op == LN_MAX || r.op == FIRST_MAX || r.op == LN_LOGSUMEXP) infinite(&s.value, false);
    return s;
}

/* The shift under which exponentials are summed: the maximum, where that is finite. */
static __device__ double shift_of(double maximum) {
    return maximum - maximum == 0 ? maximum : 0;
}

template <typename T>
static __device__ bool comes_first(int op, const state<T> &a, const state<T> &b) {
    bool a_nan = a.value != a.value, b_nan = b.value != b.value;
    bool below = op == LN_MIN || op == FIRST_MIN;
    bool beyond = below ? a.value < b.value : a.value > b.value;
    return beyond || (a_nan && !b_nan) || ((a.value == b.value || (a_nan && b_nan)) && a.at < b.at);
}

template <typename T> static __device__ void join_logsumexp(state<T> &s, const state<T> &next) {
    double m1 = (double)s.value, m2 = (double)next.value;
    double most = m2 > m1 || m2 != m2 ? m2 : m1, shift = shift_of(most);
    double sum = 0; /* what holds only -inf has no term, whatever the shift */
    if (m1 != -INFINITY) sum += m1 == most ? s.other : s.other * exp(shift_of(m1) - shift);
    if (m2 != -INFINITY) sum += m2 == most ? next.other : next.other * exp(shift_of(m2) - shift);
    s.value = (T)most;
    s.other = sum;
}

template <typename T>
static __device__ void join(const reduction &r, state<T> &s, const state<T> &next) {
    switch (r.op) {
    case LN_PROD: s.value = multiply(s.value, next.value); break;
    case LN_MIN:
    case LN_MAX:
    case FIRST_MIN:
    case FIRST_MAX:
        if (comes_first(r.op, next, s)) s = next;
        break;
    case LN_ANY: s.value = s.value != 0 || next.value != 0; break;
    case LN_ALL: s.value = s.value != 0 && next.value != 0; break;
    case LN_LOGSUMEXP: join_logsumexp(s, next); break;
    case LN_NORM:
        if (r.a == INFINITY)
            s.value = next.value > s.value || next.value != next.value ? next.value : s.value;
        else s.value = add(s.value, next.value);
        break;
    default: s.value = add(s.value, next.value); s.other += next.other;
    }
}

/* The state of one element. Deviations are from `centre`, an element of the same result: sums of
 * plain squares would cancel. */
template <typename T>
static __device__ state<T> state_of(const reduction &r, T x, double centre, int64_t at) {
    state<T> s = {x, 0, at};
    double apart = (double)x - centre;
    switch (r.op) {
    case LN_VAR:
    case MOMENTS:
        s.value = (T)apart;
        s.other = apart * apart;
        break;
    case LN_LOGSUMEXP: s.other = exp((double)x - shift_of((double)x)); break;
    case LN_NORM: s.value = r.a == 2 ? multiply(x, x) : x < 0 ? -x : x; break;
    default: break;
    }
    return s;
}

/* ---- Elements and results ---- */

/* Adds up the elements [from, to) of the result whose offsets are `at`, `step` apart. */
template <typename T>
static __device__ state<T> scan(const reduction &r, const int64_t *at, int64_t from, int64_t to,
                                int64_t step) {
    state<T> s = nothing<T>(r);
    bool centred = r.op == LN_VAR || r.op == MOMENTS;
    double centre = centred && to > 0 ? walk_load<double>(r.reduced, IN, at[IN]) : 0;
    for (int64_t i = from; i < to; i += step) {
        int64_t offset[1];
        walk_offsets<1>(r.reduced, i, offset);
        T x = walk_load<T>(r.reduced, IN, at[IN] + offset[IN]);
        join(r, s, state_of(r, x, centre, i + 1));
    }
    return s;
}

/* The same for SUMS. */
static __device__ state<double> scan_sums(const reduction &r, const int64_t *at, int64_t from,
                                          int64_t to, int64_t step) {
    const walk &w = r.reduced;
    state<double> s = {0, 0, 0};
    for (int64_t i = from; i < to; i += step) {
        int64_t offset[OUT];
        double v[OUT];
        walk_offsets<OUT>(w, i, offset);
        for (int k = 0; k < OUT; k++) v[k] = walk_load<double>(w, k, at[k] + offset[k]);
        double e = v[IN] * v[FACTOR];
        s.value += e;
        s.other += e * ((v[X] - v[MEAN]) * v[RSTD]);
    }
    return s;
}

static __device__ void finish(const reduction &, state<int64_t> &, double) {
}

/* centre: as in scan. */
static __device__ void finish(const reduction &r, state<double> &s, double centre) {
    double count = (double)r.reduced.numel, freedom = count - r.a;
    double squares = s.other - s.value * s.value / count;
    if (squares < 0) squares = 0;
    switch (r.op) {
    case LN_MEAN: s.value /= count; break;
    case LN_VAR: s.value = squares / (freedom > 0 ? freedom : 0); break;
    case LN_LOGSUMEXP: s.value = shift_of(s.value) + log(s.other); break;
    case LN_NORM:
        if (r.a == 2) s.value = sqrt(s.value);
        break;
    case MOMENTS:
        s.value = centre + s.value / count;
        s.other = squares;
        break;
    default: break;
    }
}

template <typename T>
static __device__ void store_result(const reduction &r, state<T> s, const int64_t *at) {
    const walk &w = r.kept;
    bool centred = r.op == MOMENTS && r.reduced.numel > 0;
    finish(r, s, centred ? walk_load<double>(w, IN, at[IN]) : 0);
    if (w.data[OUT] != NULL) walk_store(w, OUT, at[OUT], s.value);
    if (w.data[OTHER] == NULL) return;
    if (r.op == FIRST_MIN || r.op == FIRST_MAX) walk_store(w, OTHER, at[OTHER], s.at);
    else walk_store(w, OTHER, at[OTHER], s.other);
}

/* ---- Kernels: a block has THREADS / lanes groups ---- */

/* Joins the states of each group into its first, in a tree that depends on their number only. */
template <typename T>
static __device__ void join_lanes(const reduction &r, state<T> *states, int place, int lane) {
    for (int half = r.lanes / 2; half > 0; half /= 2) {
        __syncthreads(); /* all states of the last round are written */
        if (lane < half) join(r, states[place], states[place + half]);
    }
}

/* A group takes a chunk of a result. Writes results, or the states of chunks where a result has
 * several: chunk c of result i at partials[c * results + i]. */
template <typename T, bool sums>
static __global__ void reduce_kernel(reduction r, state<T> *partials) {
    __shared__ state<T> states[THREADS];
    int groups = THREADS / r.lanes, thread = (int)threadIdx.x;
    int group = r.columns ? thread % groups : thread / r.lanes;
    int lane = r.columns ? thread / groups : thread % r.lanes, place = group * r.lanes + lane;
    int64_t items = r.kept.numel * r.chunks;
    for (int64_t first = (int64_t)blockIdx.x * groups; first < items;
         first += (int64_t)gridDim.x * groups) {
        int64_t item = first + group, chunk = divide(item, r.kept.numel), at[TENSORS];
        int64_t from = chunk * r.chunk, to = from + r.chunk;
        if (to > r.reduced.numel) to = r.reduced.numel;
        if (item < items) {
            walk_offsets<TENSORS>(r.kept, item - chunk * r.kept.numel, at);
            if constexpr (sums) states[place] = scan_sums(r, at, from + lane, to, r.lanes);
            else states[place] = scan<T>(r, at, from + lane, to, r.lanes);
        }
        join_lanes(r, states, place, item < items ? lane : r.lanes); /* no item: nothing to join */
        if (item < items && lane == 0) {
            if (r.chunks > 1) partials[item] = states[place];
            else store_result(r, states[place], at);
        }
        __syncthreads(); /* the states are read before the next round writes them */
    }
}

/* A block a result: its chunks' states joined. r.lanes is THREADS. */
template <typename T> static __global__ void join_kernel(reduction r, const state<T> *partials) {
    __shared__ state<T> states[THREADS];
    int thread = (int)threadIdx.x;
    for (int64_t i = blockIdx.x; i < r.kept.numel; i += gridDim.x) {
        state<T> s = nothing<T>(r);
        for (int64_t c = thread; c < r.chunks; c += THREADS)
            join(r, s, partials[c * r.kept.numel + i]);
        states[thread] = s;
        join_lanes(r, states, thread, thread);
        if (thread == 0) {
            int64_t at[TENSORS];
            walk_offsets<TENSORS>(r.kept, i, at);
            store_result(r, states[0], at);
        }
        __syncthreads(); /* as above */
    }
}

/* ---- Plans ---- */

/* The walks over results (extents of 1 where reduced) and over the elements of one. */
static void plan_walks(reduction *r, const ln_tensor *const *t) {
    const ln_tensor *result = t[OUT] != NULL ? t[OUT] : t[OTHER];
    ln_tensor kept[TENSORS], inner[TENSORS];
    const ln_tensor *kept_views[TENSORS], *inner_views[OUT];
    for (int k = 0; k < TENSORS; k++) {
        kept_views[k] = t[k] == NULL ? NULL : &kept[k];
        if (k < OUT) inner_views[k] = t[k] == NULL ? NULL : &inner[k];
        if (t[k] == NULL) continue;
        kept[k] = inner[k] = *t[k];
        kept[k].numel = inner[k].numel = 1;
        for (int d = 0; d < t[IN]->ndim; d++) {
            bool reduced = result->shape[d] == 1;
            kept[k].shape[d] = reduced ? 1 : t[IN]->shape[d];
            inner[k].shape[d] = reduced ? t[IN]->shape[d] : 1;
            kept[k].numel *= kept[k].shape[d];
            inner[k].numel *= inner[k].shape[d];
        }
    }
    r->kept = walk_over(TENSORS, kept_views, IN);
    r->reduced = walk_over(OUT, inner_views, IN);
    walk_number(&r->reduced, FACTOR, 1);
    walk_number(&r->reduced, RSTD, 1);
}

static void plan_groups(reduction *r) {
    const walk *k = &r->kept, *e = &r->reduced;
    bool cut = k->numel < FEW_RESULTS && e->numel > CHUNK;
    r->chunk = cut ? ceil_div(e->numel, MOST_CHUNKS) : e->numel;
    if (cut && r->chunk < CHUNK) r->chunk = CHUNK;
    r->chunks = cut ? ceil_div(e->numel, r->chunk) : 1;
    r->columns =
        k->ndim > 0 && (e->ndim == 0 || k->stride[IN][k->ndim - 1] < e->stride[IN][e->ndim - 1]);
    r->lanes = THREADS;
    if (r->columns) r->lanes = COLUMN_LANES;
    while (r->lanes > 1 && r->lanes / 2 >= r->chunk) r->lanes /= 2;
}

template <typename T, bool sums> static ln_status run_in(reduction r, const char *what) {
    int64_t items = r.kept.numel * r.chunks;
    unsigned blocks = blocks_for(items, THREADS / r.lanes);
    void *partials = NULL;
    ln_status status;
    if (r.chunks > 1) LN_TRY(cuda_scratch(&partials, (size_t)items * sizeof(state<T>), what));
    LN_TRY(launch(what, reduce_kernel<T, sums>, blocks, THREADS, r, (state<T> *)partials));
    r.lanes = THREADS;
    if (r.chunks > 1)
        status = launch(what, join_kernel<T>, blocks_for(r.kept.numel, 1), THREADS, r,
                        (const state<T> *)partials);
fail:
    cuda_scratch_release(partials);
    return status;
}

/* t: by the walk's numbers; NULL where there is none. */
static ln_status run(int op, double a, const ln_tensor *const *t, const char *what) {
    reduction r = {};
    ln_status status = cuda_enter(t[IN], what);
    if (status != LN_OK) return status;
    r.op = op;
    r.a = a;
    plan_walks(&r, t);
    plan_groups(&r);
    if (r.kept.numel == 0) return LN_OK;
    bool exact = op <= LN_MAX && op != LN_MEAN;
    bool integer =
        (exact || op == FIRST_MIN || op == FIRST_MAX) && !ln_dtype_is_float(t[IN]->dtype);
    if (op == SUMS) return run_in<double, true>(r, what);
    return integer ? run_in<int64_t, false>(r, what) : run_in<double, false>(r, what);
}

/* ---- The operators ---- */

ln_status CUDA(reduce)(ln_tensor *out, int op, const ln_tensor *x, double a) {
    const ln_tensor *t[TENSORS] = {x};
    t[OUT] = out;
    return run(op, a, t, "reduce");
}

ln_status CUDA(extreme)(ln_tensor *values, ln_tensor *indices, const ln_tensor *x, int dim,
                        bool largest) {
    (void)dim; /* values has extent 1 there, and wherever x has */
    const ln_tensor *t[TENSORS] = {x};
    t[OUT] = values;
    t[OTHER] = indices;
    return run(largest ? FIRST_MAX : FIRST_MIN, 0, t, largest ? "max" : "min");
}

ln_status cuda_moments(ln_tensor *mean, ln_tensor *squares, const ln_tensor *x, const char *what) {
    const ln_tensor *t[TENSORS] = {x};
    t[OUT] = mean;
    t[OTHER] = squares;
    return run(MOMENTS, 0, t, what);
}

ln_status cuda_logsumexp(ln_tensor *out, const ln_tensor *x, const char *what) {
    const ln_tensor *t[TENSORS] = {x};
    t[OUT] = out;
    return run(LN_LOGSUMEXP, 0, t, what);
}

ln_status cuda_sums(ln_tensor *sum, ln_tensor *dot, const ln_tensor *dy, const ln_tensor *factor,
                    const ln_tensor *x, const ln_tensor *mean, const ln_tensor *rstd,
                    const char *what) {
    const ln_tensor *t[TENSORS] = {dy, factor, x, mean, rstd, sum, dot};
    return sum == NULL && dot == NULL ? LN_OK : run(SUMS, 0, t, what);
}

/* ---- Running sums ---- */

typedef struct {
    walk lines; /* tensors: from, to */
    int64_t extent, in_step, out_step;
    int lanes; /* threads that share a line, whose elements they take so many at a time */
    bool reverse;
} running;

/* Each round's sums by doubling distances. */
template <typename T> static __global__ void cumsum_kernel(running r) {
    __shared__ T sums[THREADS];
    int thread = (int)threadIdx.x, lane = thread % r.lanes, groups = THREADS / r.lanes;
    for (int64_t first = (int64_t)blockIdx.x * groups; first < r.lines.numel;
         first += (int64_t)gridDim.x * groups) {
        int64_t line = first + thread / r.lanes, offset[2] = {};
        int64_t extent = line < r.lines.numel ? r.extent : 0;
        T carried = 0;
        if (extent > 0) walk_offsets<2>(r.lines, line, offset);
        for (int64_t start = 0; start < r.extent; start += r.lanes) {
            int64_t i = start + lane, at = r.reverse ? extent - 1 - i : i;
            T sum = i < extent ? walk_load<T>(r.lines, 0, offset[0] + at * r.in_step) : 0;
            for (int distance = 1; distance < r.lanes; distance *= 2) {
                sums[thread] = sum;
                __syncthreads(); /* all sums of this distance are there */
                if (lane >= distance) sum = add(sums[thread - distance], sum);
                __syncthreads(); /* and read */
            }
            sum = add(carried, sum);
            if (i < extent) walk_store(r.lines, 1, offset[1] + at * r.out_step, sum);
            carried = sum;
            if (r.lanes == 1) continue;
            sums[thread] = sum;
            __syncthreads(); /* the last sum is there */
            carried = sums[thread - lane + r.lanes - 1];
            __syncthreads(); /* and read */
        }
    }
}

/* So many lines keep the device busy with a thread each. */
enum { MANY_LINES = 1 << 14 };

ln_status CUDA(cumsum)(ln_tensor *y, const ln_tensor *x, int dim, bool reverse) {
    ln_status status = cuda_enter(x, "cumsum");
    if (status != LN_OK || x->numel == 0) return status;
    ln_tensor from = *x, to = *y;
    from.shape[dim] = to.shape[dim] = 1;
    from.numel = x->numel / x->shape[dim];
    const ln_tensor *t[] = {&from, &to};
    running r = {walk_over(2, t, 0), x->shape[dim], x->stride[dim], y->stride[dim], 1, reverse};
    while (r.lines.numel < MANY_LINES && r.lanes < THREADS && r.lanes < r.extent) r.lanes *= 2;
    unsigned blocks = blocks_for(r.lines.numel, THREADS / r.lanes);
    if (ln_dtype_is_float(x->dtype))
        return launch("cumsum", cumsum_kernel<double>, blocks, THREADS, r);
    return launch("cumsum", cumsum_kernel<int64_t>, blocks, THREADS, r);
}
