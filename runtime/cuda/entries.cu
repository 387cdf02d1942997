/* Chosen entries of the similarity matrix, K columns for each row, and their gradients. Columns
 * count from 1. Invariant: a row's gradient receives its entries in order, from one thread. */
#include "tile.h"

static const char *const WHAT = "similarity";

/* The entries, and what they are made of. */
template <typename T> struct entries {
    row_list<T> q, k;
    const T *q_scale, *k_scale; /* NULL: dot products */
    const int64_t *columns;
    int64_t n, chosen, d, m; /* entries, those of a row, features, rows of k */
};

/* The row of k of entry i. One that is not there is told of later (index.h): any other serves. */
template <typename T> static __device__ int64_t column_of(const entries<T> &e, int64_t i) {
    int64_t column = e.columns[i] - 1;
    return column >= 0 && column < e.m ? column : 0;
}

template <typename T> static __device__ T scale_at(const T *scale, int64_t row) {
    return scale != NULL ? scale[row] : 1;
}

/* A warp an entry: s (n). */
template <typename T> static __global__ void entries_kernel(T *s, entries<T> e) {
    for (int64_t i = grid_warp(); i < e.n; i += grid_warps()) {
        int64_t row = i / e.chosen, column = column_of(e, i);
        const T *q = e.q.at(row), *k = e.k.at(column);
        double sum = 0;
        for (int64_t t = threadIdx.x % WARP; t < e.d; t += WARP) sum += (double)q[t] * (double)k[t];
        sum = warp_sum(sum);
        if (threadIdx.x % WARP > 0) continue;
        s[i] = (T)(sum * (double)scale_at(e.q_scale, row) * (double)scale_at(e.k_scale, column));
    }
}

/* g ds/dx at one feature: of a cosine scale_x (y scale_y - s x scale_x), where a norm of x below
 * the floor counts as a constant; of a dot product y, with scales of 1 and s of 0. */
template <typename T> static __device__ T slope_at(T g, T x, T y, T scale_x, T scale_y, T s) {
    if (g == 0) return 0;
    T along = unit_is_clamped(scale_x) ? 0 : g * scale_x * scale_x * s;
    return g * scale_x * scale_y * y - along * x;
}

/* A thread a feature of a row: dq += the slopes of its entries. */
template <typename T>
static __global__ void rows_kernel(T *dq, entries<T> e, const T *dy, const T *s) {
    int64_t rows = e.n / e.chosen;
    for (int64_t i = grid_thread(); i < rows * e.d; i += grid_threads()) {
        int64_t row = i / e.d, t = i % e.d;
        T sum = dq[i], q = e.q.at(row)[t];
        for (int64_t j = row * e.chosen; j < (row + 1) * e.chosen; j++) {
            int64_t column = column_of(e, j);
            sum += slope_at(dy[j], q, e.k.at(column)[t], scale_at(e.q_scale, row),
                            scale_at(e.k_scale, column), e.q_scale != NULL ? s[j] : 0);
        }
        dq[i] = sum;
    }
}

/* A thread a feature of an entry, of `count` from `first` on: its slope, into slopes (count,d). */
template <typename T>
static __global__ void columns_kernel(T *slopes, entries<T> e, const T *dy, const T *s,
                                      int64_t first, int64_t count) {
    for (int64_t i = grid_thread(); i < count * e.d; i += grid_threads()) {
        int64_t j = first + i / e.d, t = i % e.d, row = j / e.chosen, column = column_of(e, j);
        slopes[i] = slope_at(dy[j], e.k.at(column)[t], e.q.at(row)[t], scale_at(e.k_scale, column),
                             scale_at(e.q_scale, row), e.q_scale != NULL ? s[j] : 0);
    }
}

/* Who names a row of k: how many entries, and the last of them. */
typedef struct {
    unsigned count, last;
} named;

static __global__ void named_kernel(named *of, const int64_t *columns, int64_t n, int64_t m) {
    for (int64_t i = grid_thread(); i < n; i += grid_threads()) {
        int64_t column = columns[i] - 1;
        if (column < 0 || column >= m) continue; /* told of later */
        atomicAdd(&of[column].count, 1u);
        atomicMax(&of[column].last, (unsigned)i);
    }
}

template <typename T>
static __device__ void add_slopes(T *dk, const entries<T> &e, const T *dy, const T *s,
                                  int64_t column, int64_t j) {
    int64_t row = j / e.chosen;
    const T *q = e.q.at(row), *k = e.k.at(column);
    T of_q = scale_at(e.q_scale, row), of_k = scale_at(e.k_scale, column);
    for (int64_t t = threadIdx.x % WARP; t < e.d; t += WARP)
        dk[column * e.d + t] +=
            slope_at(dy[j], k[t], q[t], of_k, of_q, e.q_scale != NULL ? s[j] : 0);
}

/* A warp a row of k: dk += the slopes of its entries, in their order. One, as of positives, is
 * known; more are looked for. */
template <typename T>
static __global__ void named_rows_kernel(T *dk, entries<T> e, const T *dy, const T *s,
                                         const named *of) {
    for (int64_t column = grid_warp(); column < e.m; column += grid_warps()) {
        unsigned left = of[column].count;
        if (left == 1) add_slopes(dk, e, dy, s, column, of[column].last);
        for (int64_t first = 0; left > 1 && first < e.n; first += WARP) {
            int64_t own = first + threadIdx.x % WARP;
            bool names = own < e.n && e.columns[own] - 1 == column;
            for (unsigned found = __ballot_sync(0xffffffffu, names); found != 0; found &= found - 1)
                add_slopes(dk, e, dy, s, column, first + __ffs((int)found) - 1);
        }
    }
}

/* ---- The operators ---- */

template <typename T>
static entries<T> entries_of(const side *q, const side *k, const ln_tensor *columns) {
    return {row_list_of<T>(q->x),
            row_list_of<T>(k->x),
            (const T *)q->scale,
            (const T *)k->scale,
            (const int64_t *)columns->data,
            columns->numel,
            columns->shape[1],
            q->x->shape[1],
            k->x->shape[0]};
}

/* Of k or, where that is NULL, of q's rows too. */
static ln_status other_side(side *s, const ln_tensor *k, const side *q, bool cosine) {
    if (k != NULL) return side_new(s, k, cosine, 0);
    return side_new(s, q->x, cosine, 0, LN_TILE_FLOAT32, SIDE_WHOLE, q);
}

template <typename T> static ln_status find_entries(void *s, const entries<T> &e) {
    return launch(WHAT, entries_kernel<T>, blocks_for(e.n * WARP), THREADS, (T *)s, e);
}

ln_status CUDA(similarity_at)(ln_tensor *out, const ln_tensor *q, const ln_tensor *k, bool cosine,
                              const ln_tensor *columns) {
    side of_q = {}, of_k = {};
    ln_status status = cuda_enter(q, WHAT);
    if (status != LN_OK || out->numel == 0) return status;
    LN_TRY(side_new(&of_q, q, cosine, 0));
    LN_TRY(other_side(&of_k, k, &of_q, cosine));
    status = q->dtype == LN_FLOAT64
                 ? find_entries(out->data, entries_of<double>(&of_q, &of_k, columns))
                 : find_entries(out->data, entries_of<float>(&of_q, &of_k, columns));
fail:
    side_release(&of_k);
    side_release(&of_q);
    return status;
}

/* Memory beside that of `like` as a tensor: (count,d), or (count) where d is 0. */
static ln_tensor piece_of(const ln_tensor *like, void *data, int dtype, int64_t count, int64_t d) {
    ln_tensor t = *like;
    t.data = (char *)data;
    t.dtype = dtype;
    t.ndim = d > 0 ? 2 : 1;
    t.numel = count * (d > 0 ? d : 1);
    t.shape[0] = count;
    t.shape[1] = t.stride[0] = d;
    t.stride[t.ndim - 1] = 1;
    return t;
}

/* Where there are no more entries than columns, as of positives: none is sorted. */
template <typename T>
static ln_status add_named(ln_tensor *dk, const entries<T> &e, const T *dy, const T *s) {
    void *of = NULL;
    size_t bytes = (size_t)e.m * sizeof(named);
    ln_status status;
    LN_TRY(cuda_scratch(&of, bytes, WHAT));
    LN_TRY(cuda_check(cudaMemsetAsync(of, 0, bytes, cudaStreamPerThread), WHAT));
    LN_TRY(launch(WHAT, named_kernel, blocks_for(e.n), THREADS, (named *)of, e.columns, e.n, e.m));
    status = launch(WHAT, named_rows_kernel<T>, blocks_for(e.m * WARP), THREADS, (T *)dk->data, e,
                    dy, s, (const named *)of);
fail:
    cuda_scratch_release(of);
    return status;
}

/* dk gets the entries' slopes by their columns, a piece that fits scratch at a time, beside which
 * all rows' gradients may lie. */
template <typename T>
static ln_status add_columns(ln_tensor *dk, const entries<T> &e, const T *dy, const T *s,
                             const ln_tensor *columns) {
    int64_t most = SCRATCH / 8 / (e.d * (int64_t)sizeof(T));
    void *slopes = NULL;
    ln_status status;
    if (most < 1) most = 1;
    if (most > e.n) most = e.n;
    LN_TRY(cuda_scratch(&slopes, (size_t)(most * e.d) * sizeof(T), WHAT));
    for (int64_t first = 0; first < e.n; first += most) {
        int64_t count = e.n - first < most ? e.n - first : most;
        LN_TRY(launch(WHAT, columns_kernel<T>, blocks_for(count * e.d), THREADS, (T *)slopes, e, dy,
                      s, first, count));
        ln_tensor index = piece_of(columns, (int64_t *)columns->data + first, LN_INT64, count, 0);
        ln_tensor src = piece_of(columns, slopes, dk->dtype, count, e.d);
        LN_TRY(CUDA(index_add)(dk, 0, &index, &src));
    }
fail:
    cuda_scratch_release(slopes);
    return status;
}

template <typename T>
static ln_status at_backward(ln_tensor *dq, ln_tensor *dk, const ln_tensor *dy, const side *q,
                             const side *k, const ln_tensor *columns) {
    entries<T> e = entries_of<T>(q, k, columns);
    const T *g = (const T *)dy->data;
    void *s = NULL;
    ln_status status;
    LN_TRY(cuda_scratch(&s, (size_t)e.n * sizeof(T), WHAT));
    LN_TRY(find_entries(s, e));
    if (dq != NULL)
        LN_TRY(launch(WHAT, rows_kernel<T>, blocks_for(dq->numel), THREADS, (T *)dq->data, e, g,
                      (const T *)s));
    if (dk != NULL && e.n <= e.m && e.n <= UINT32_MAX) status = add_named(dk, e, g, (const T *)s);
    else if (dk != NULL) status = add_columns(dk, e, g, (const T *)s, columns);
fail:
    cuda_scratch_release(s);
    return status;
}

ln_status CUDA(similarity_at_backward)(ln_tensor *dq, ln_tensor *dk, const ln_tensor *dy,
                                       const ln_tensor *q, const ln_tensor *k, bool cosine,
                                       const ln_tensor *columns) {
    side of_q = {}, of_k = {};
    ln_status status = cuda_enter(q, WHAT);
    if (status != LN_OK || columns->numel == 0 || q->shape[1] == 0) return status;
    LN_TRY(side_new(&of_q, q, cosine, 0));
    LN_TRY(other_side(&of_k, k, &of_q, cosine));
    if (k == NULL) dk = dq;
    status = q->dtype == LN_FLOAT64 ? at_backward<double>(dq, dk, dy, &of_q, &of_k, columns)
                                    : at_backward<float>(dq, dk, dy, &of_q, &of_k, columns);
fail:
    side_release(&of_k);
    side_release(&of_q);
    return status;
}
