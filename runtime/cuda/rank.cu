/* Order statistics of the similarity matrix: the largest entries of whole rows, a strip of them at
 * a time, and the fits to their tails; or those of all rows together, for which the matrix is gone
 * through once for each digit of the least of them. Invariant: the result does not depend on the
 * strips. */
#include "radix_select.h"
#include "tile.h"

static const char *const WHAT = "similarity";

/* A strip is as small as gives every block that a large device holds a row of 32,768 entries: much
 * of it is still in the device's cache when it is read. */
static const int64_t STRIP_BYTES = SCRATCH / 4;
enum { TILE_ROWS = 128 }; /* of a product's tiles */

static const double LEAST_SHORTFALL = 1e-6, LEAST_SUM = 1e-12; /* a smaller sum is rounding */

/* ---- Strips ---- */

/* Rows of the masked matrix, all columns of them. */
typedef struct {
    side q, k;
    masks m;
    int64_t n, columns;
    int dtype;
} strips;

/* Strips of at most so many bytes, of one row at least; whole tiles of products, where they can.
 * Blocks of k, unless it is one, are made anew for each strip, and so are large. */
static ln_status strips_new(strips *t, const ln_tensor *q, const ln_tensor *k, bool cosine,
                            int tile_dtype, int n_masks, const ln_mask *given, int64_t bytes) {
    *t = {};
    t->m = masks_of(n_masks, given);
    t->n = q->shape[0];
    t->columns = (k != NULL ? k : q)->shape[0];
    t->dtype = q->dtype;
    bool split = cosine && side_dtype(q, cosine, tile_dtype) != q->dtype; /* a half is too rough */
    int64_t d = q->shape[1], size = (int64_t)ln_dtype_size(q->dtype);
    int64_t row_bytes = split ? side_width(LN_FLOAT16, SIDE_PARTS * d) * 2 : d * size;
    int64_t rows = t->columns > 0 ? bytes / (t->columns * size) : 1;
    int64_t columns = SCRATCH / 2 / (row_bytes + 1);
    if (rows > TILE_ROWS && rows < t->n) rows -= rows % TILE_ROWS;
    ln_status status = side_new(&t->q, q, cosine, rows < 1 ? 1 : rows, LN_TILE_FLOAT32,
                                split ? SIDE_SPLIT_Q : SIDE_WHOLE);
    if (status != LN_OK) return status;
    return side_new(&t->k, k != NULL ? k : q, cosine, columns < 32 ? 32 : columns, LN_TILE_FLOAT32,
                    split ? SIDE_SPLIT_K : SIDE_WHOLE, k != NULL ? NULL : &t->q);
}

static void strips_release(strips *t) {
    side_release(&t->k);
    side_release(&t->q);
}

static bool one_strip(const strips *t) {
    return t->q.most == t->n;
}

/* A block a row of s (rows, columns), the rows from `first` on. Of masks of a column a row, only
 * those are looked at. */
template <typename T>
static __global__ void mask_kernel(T *s, masks m, bool one_each, int64_t first, int64_t rows,
                                   int64_t columns) {
    for (int64_t i = blockIdx.x; i < rows; i += gridDim.x) {
        T *own = s + i * columns;
        int64_t row = first + i, count = one_each ? m.n : columns;
        for (int64_t j = threadIdx.x; j < count; j += blockDim.x) {
            int64_t column = !one_each                        ? j
                             : m.mask[j].kind == LN_MASK_SELF ? row
                                                              : m.mask[j].row[row] - 1;
            if (column >= 0 && column < columns && !admits(m, row, column)) own[column] = -INFINITY;
        }
    }
}

template <typename T> static ln_status mask_strip(const strips *t, void *s) {
    bool one_each = true;
    for (int i = 0; i < t->m.n; i++)
        one_each &= t->m.mask[i].kind == LN_MASK_SELF || t->m.mask[i].kind == LN_MASK_INDEX;
    return launch(WHAT, mask_kernel<T>, blocks_for(t->q.count, 1), one_each ? WARP : THREADS,
                  (T *)s, t->m, one_each, t->q.first, t->q.count, t->columns);
}

/* s (count, columns): the rows from `row` on, as many as a strip has. All columns, where they are
 * one block, are taken once. */
static ln_status take_strip(strips *t, void *s, int64_t row) {
    size_t size = ln_dtype_size(t->dtype);
    ln_status status;
    LN_TRY(side_take(&t->q, row));
    for (int64_t column = 0; column < t->columns; column += t->k.count) {
        if (t->k.count < t->columns) LN_TRY(side_take(&t->k, column));
        LN_TRY(tile_product((char *)s + (size_t)column * size, t->columns, &t->q, &t->k));
    }
    if (t->m.n > 0)
        status = t->dtype == LN_FLOAT64 ? mask_strip<double>(t, s) : mask_strip<float>(t, s);
fail:
    return status;
}

/* Scratch as a tensor on the device of `like`. */
static ln_tensor matrix_at(void *data, const ln_tensor *like, int dtype, int64_t rows,
                           int64_t columns) {
    ln_tensor t = {};
    t.storage = like->storage;
    t.data = (char *)data;
    t.dtype = dtype;
    t.ndim = 2;
    t.numel = rows * columns;
    t.shape[0] = rows;
    t.shape[1] = t.stride[0] = columns;
    t.stride[1] = 1;
    return t;
}

/* ---- The largest of each row ---- */

ln_status CUDA(similarity_topk)(ln_tensor *values, ln_tensor *columns, const ln_tensor *q,
                                const ln_tensor *k, bool cosine, int tile_dtype, int n_masks,
                                const ln_mask *given, ln_tiles *) {
    strips t = {};
    void *s = NULL;
    int64_t count = values->shape[1];
    size_t size = ln_dtype_size(q->dtype);
    ln_status status = cuda_enter(q, WHAT);
    if (status != LN_OK || values->numel == 0) return status;
    LN_TRY(strips_new(&t, q, k, cosine, tile_dtype, n_masks, given, STRIP_BYTES));
    LN_TRY(cuda_scratch(&s, (size_t)(t.q.most * t.columns) * size, WHAT));
    for (int64_t row = 0; row < t.n; row += t.q.count) {
        LN_TRY(take_strip(&t, s, row));
        ln_tensor x = matrix_at(s, q, q->dtype, t.q.count, t.columns);
        ln_tensor to =
            matrix_at(values->data + (size_t)(row * count) * size, q, q->dtype, t.q.count, count);
        ln_tensor at = matrix_at(columns->data + (size_t)(row * count) * sizeof(int64_t), q,
                                 LN_INT64, t.q.count, count);
        LN_TRY(CUDA(topk)(&to, &at, &x, count, 1, true));
    }
fail:
    cuda_scratch_release(s);
    strips_release(&t);
    return status;
}

/* ---- Fits ---- */

/* Sums for two least-squares lines, of y = log F and of z = log(-log F) on x = log d - log d_first.
 */
enum { SX, SXX, SY, SZ = SY + 1, SYY, SZZ = SYY + 1, SXY, SXZ = SXY + 1, SUMS };

/* What the lines are fitted to. */
typedef struct {
    int64_t points, burnt;
    const double *y, *z; /* (points), where there are tables of them */
} ranks;

static __device__ double rank_y(int64_t r, int64_t points) {
    return log((double)(r + 1) / (double)(points + 1));
}

static __global__ void ranks_kernel(double *y, double *z, int64_t points) {
    for (int64_t r = grid_thread(); r < points; r += grid_threads()) {
        y[r] = rank_y(r, points);
        z[r] = log(-y[r]);
    }
}

/* Sorted points, largest first: values; keys, complemented; and such keys of entries. */
template <typename T> struct sorted_values {
    const T *x;
    __device__ T at(int64_t r) const {
        return x[r];
    }
};

template <typename Key> struct sorted_keys {
    const Key *keys;
    __device__ auto at(int64_t r) const -> decltype(value_of(Key())) {
        return value_of((Key)~keys[r]);
    }
};

template <typename Key> struct sorted_entries {
    const entry *entries;
    __device__ auto at(int64_t r) const -> decltype(value_of(Key())) {
        return value_of((Key)~entries[r].key);
    }
};

static __device__ double shortfall(double s) {
    return 1 - s < LEAST_SHORTFALL ? LEAST_SHORTFALL : 1 - s; /* or NaN */
}

/* A logarithm of a similarity's precision. */
static __device__ double log_shortfall(double s) {
    return log(shortfall(s));
}

static __device__ double log_shortfall(float s) {
    return (double)logf((float)shortfall((double)s));
}

/* Slope and squared error of a line, 0 for y and 1 for z. */
static __device__ void store_line(double *fit, const double *sum, int line, int64_t n) {
    double count = (double)n, sxx = sum[SXX] - sum[SX] * sum[SX] / count;
    double sxy = sum[SXY + line] - sum[SX] * sum[SY + line] / count;
    double syy = sum[SYY + line] - sum[SY + line] * sum[SY + line] / count;
    double slope = sxy / (sxx < LEAST_SUM ? LEAST_SUM : sxx), sse = syy - slope * sxy;
    fit[1 + 2 * line] = n < 2 ? 0 : slope;
    fit[2 + 2 * line] = n < 2 || sse < 0 ? 0 : sse;
}

/* A block's: fit (5), to sorted points. */
template <bool TABLES, typename Points>
static __device__ void fit_points(double *fit, const Points &own, const ranks &to) {
    __shared__ double parts[THREADS / WARP][SUMS], all[SUMS];
    double sum[SUMS] = {}, origin = to.burnt < to.points ? log_shortfall(own.at(to.burnt)) : 0;
    for (int64_t r = to.burnt + threadIdx.x; r < to.points; r += THREADS) {
        double log_d = log_shortfall(own.at(r)) - origin;
        double y = TABLES ? to.y[r] : rank_y(r, to.points);
        double z = TABLES ? to.z[r] : log(-y);
        const double terms[] = {log_d, log_d * log_d, y, z, y * y, z * z, log_d * y, log_d * z};
        for (int i = 0; i < SUMS; i++) sum[i] += terms[i];
    }
    for (int i = 0; i < SUMS; i++) {
        sum[i] = warp_sum(sum[i]);
        if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP][i] = sum[i];
    }
    __syncthreads(); /* all warps' sums are there */
    if (threadIdx.x < SUMS) {
        all[threadIdx.x] = 0;
        for (int warp = 0; warp < THREADS / WARP; warp++)
            all[threadIdx.x] += parts[warp][threadIdx.x];
    }
    __syncthreads(); /* they are added up */
    if (threadIdx.x < 2) store_line(fit, all, (int)threadIdx.x, to.points - to.burnt);
    if (threadIdx.x == 2) fit[0] = shortfall((double)own.at(0));
    __syncthreads(); /* they are read, and so are the points */
}

/* ---- The tail of each row ---- */

/* A block a row of x (rows, points), largest first. fits (rows,5) */
template <typename T>
static __global__ void fit_kernel(double *fits, const T *x, int64_t rows, ranks to) {
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x)
        fit_points<true>(fits + row * 5, sorted_values<T>{x + row * to.points}, to);
}

template <typename T> struct row_line {
    const T *x;
    __device__ auto key(uint32_t place) const -> decltype(key_of(T())) {
        return ~key_of(x[place]);
    }
};

/* A block a row of s (rows, columns): the fit to its largest entries, which never leave shared
 * memory: the bins, and two lists of `capacity`. fits (rows,5) */
template <typename T, typename Key>
static __global__ void __launch_bounds__(THREADS, 4)
    tail_kernel(double *fits, const T *s, int64_t rows, unsigned columns, ranks to,
                unsigned capacity) {
    __shared__ unsigned count;
    unsigned *bins = (unsigned *)shared_memory();
    Key *list = (Key *)(bins + BINS), *spare = list + capacity;
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        row_line<T> own = {s + row * columns};
        if (threadIdx.x == 0) count = 0;
        __syncthreads(); /* it is 0 */
        bound<Key> b = find_bound<Key>(bins, own, columns, (unsigned)to.points, capacity);
        collect(list, &count, b, own, columns);
        sort_keys(list, spare, bins, within_count(b));
        fit_points<true>(fits + row * 5, sorted_keys<Key>{list}, to);
    }
}

/* What a strip needs: itself, and the ranks' (2,points); or, of more points than a list takes, its
 * largest values and their places. */
typedef struct {
    void *s, *y, *values, *places;
    int64_t capacity;
} tail_scratch;

static ln_status tail_scratch_new(tail_scratch *c, const strips *t, int64_t points) {
    size_t size = ln_dtype_size(t->dtype), kept = (size_t)(t->q.most * points);
    ln_status status;
    c->capacity = t->columns <= INT32_MAX ? list_capacity(points, 2 * size) : 0;
    LN_TRY(cuda_scratch(&c->s, (size_t)(t->q.most * t->columns) * size, WHAT));
    LN_TRY(cuda_scratch(&c->y, (size_t)(2 * points) * sizeof(double), WHAT));
    if (c->capacity > 0) return status;
    LN_TRY(cuda_scratch(&c->values, kept * size, WHAT));
    status = cuda_scratch(&c->places, kept * sizeof(int64_t), WHAT);
fail:
    return status;
}

static void tail_scratch_release(tail_scratch *c) {
    cuda_scratch_release(c->s);
    cuda_scratch_release(c->y);
    cuda_scratch_release(c->values);
    cuda_scratch_release(c->places);
}

template <typename T, typename Key>
static ln_status fit_strip(double *fits, const tail_scratch *c, const strips *t, const ranks &to) {
    int64_t rows = t->q.count;
    unsigned blocks = blocks_for(rows, 1);
    if (c->capacity == 0)
        return launch(WHAT, fit_kernel<T>, blocks, THREADS, fits, (const T *)c->values, rows, to);
    size_t bytes = BINS_BYTES + 2 * (size_t)c->capacity * sizeof(Key);
    return launch_shared(WHAT, tail_kernel<T, Key>, blocks, THREADS, bytes, fits, (const T *)c->s,
                         rows, t->columns, to, c->capacity);
}

ln_status CUDA(similarity_tail)(ln_tensor *fits, const ln_tensor *q, const ln_tensor *k,
                                bool cosine, int tile_dtype, int n_masks, const ln_mask *given,
                                int64_t points, int64_t burnt, ln_tiles *) {
    strips t = {};
    tail_scratch c = {};
    ln_status status = cuda_enter(q, WHAT);
    if (status != LN_OK || fits->numel == 0) return status;
    LN_TRY(strips_new(&t, q, k, cosine, tile_dtype, n_masks, given, STRIP_BYTES));
    LN_TRY(tail_scratch_new(&c, &t, points));
    {
        double *y = (double *)c.y, *out = (double *)fits->data;
        ranks to = {points, burnt, y, y + points};
        LN_TRY(launch(WHAT, ranks_kernel, blocks_for(points), THREADS, y, y + points, points));
        for (int64_t row = 0; row < t.n; row += t.q.count, out += t.q.count * 5) {
            LN_TRY(take_strip(&t, c.s, row));
            ln_tensor x = matrix_at(c.s, q, q->dtype, t.q.count, t.columns);
            ln_tensor values = matrix_at(c.values, q, q->dtype, t.q.count, points);
            ln_tensor places = matrix_at(c.places, q, LN_INT64, t.q.count, points);
            if (c.capacity == 0) LN_TRY(CUDA(topk)(&values, &places, &x, points, 1, true));
            if (t.dtype == LN_FLOAT64) LN_TRY((fit_strip<double, uint64_t>(out, &c, &t, to)));
            else LN_TRY((fit_strip<float, uint32_t>(out, &c, &t, to)));
        }
    }
fail:
    tail_scratch_release(&c);
    strips_release(&t);
    return status;
}

/* ---- The tail of all rows ---- */

/* The points of all rows, found a digit at a time: of the least of them, once every digit is known,
 * `left` are wanted. */
template <typename Key> struct pool {
    bound<Key> least;
    int64_t left;
    unsigned count;                  /* of collected entries */
    unsigned long long bins[DIGITS]; /* of the next digit */
};

static const int64_t POOL_CHUNK = 32 * THREADS; /* entries that a block handles at once */

template <typename Key> static __global__ void pool_kernel(pool<Key> *p, int64_t points) {
    for (int i = threadIdx.x; i < DIGITS; i += THREADS) p->bins[i] = 0;
    if (threadIdx.x > 0) return;
    p->least = bound_of<Key>(0, 0);
    p->left = points;
    p->count = 0;
}

/* A block a chunk of the n entries s. */
template <typename T, typename Key>
static __global__ void pool_count_kernel(pool<Key> *p, const T *s, int64_t n) {
    unsigned *bins = (unsigned *)shared_memory();
    bound<Key> b = p->least;
    clear_bins(bins);
    __syncthreads(); /* they are empty */
    for (int64_t i = blockIdx.x * POOL_CHUNK; i < n; i += gridDim.x * POOL_CHUNK)
        count_digits(bins, b, row_line<T>{s + i},
                     (uint32_t)(n - i < POOL_CHUNK ? n - i : POOL_CHUNK));
    __syncthreads(); /* all are counted */
    for (unsigned i = threadIdx.x; i < DIGITS; i += THREADS)
        if (bins[bin_of(i)] > 0) atomicAdd(&p->bins[i], (unsigned long long)bins[bin_of(i)]);
}

/* One block. */
template <typename Key> static __global__ void pool_narrow_kernel(pool<Key> *p) {
    __shared__ int64_t parts[THREADS];
    unsigned long long *own = p->bins + threadIdx.x * DIGITS_EACH;
    parts[threadIdx.x] = 0;
    for (int i = 0; i < DIGITS_EACH; i++) parts[threadIdx.x] += (int64_t)own[i];
    __syncthreads(); /* all parts are there */
    if (threadIdx.x == 0) {
        unsigned digit = 0;
        for (; parts[digit] < p->left; digit++) p->left -= parts[digit];
        for (digit *= DIGITS_EACH; (int64_t)p->bins[digit] < p->left; digit++)
            p->left -= (int64_t)p->bins[digit];
        narrow(&p->least, digit, 0, 0, 1);
    }
    __syncthreads(); /* the bins are read */
    for (int i = 0; i < DIGITS_EACH; i++) own[i] = 0;
}

/* A block a chunk: the entries above the least, in any order. */
template <typename T, typename Key>
static __global__ void pool_collect_kernel(pool<Key> *p, entry *entries, const T *s, int64_t n) {
    bound<Key> b = p->least;
    if (b.key-- == 0) return;
    for (int64_t i = blockIdx.x * POOL_CHUNK; i < n; i += gridDim.x * POOL_CHUNK)
        collect(entries, &p->count, b, row_line<T>{s + i},
                (uint32_t)(n - i < POOL_CHUNK ? n - i : POOL_CHUNK));
}

/* Equal ones to the number of points, and what only fills the length. */
template <typename Key>
static __global__ void pool_fill_kernel(const pool<Key> *p, entry *entries, int64_t points,
                                        int64_t length) {
    for (int64_t i = points - p->left + grid_thread(); i < length; i += grid_threads()) {
        if (i < points) entries[i] = {p->least.key, 0};
        else fill(&entries[i]);
    }
}

template <typename Key>
static __global__ void pool_fit_kernel(double *fit, const entry *entries, ranks to) {
    fit_points<false>(fit, sorted_entries<Key>{entries}, to);
}

/* The points of all rows, sorted. s: room for a strip. */
template <typename T, typename Key>
static ln_status pool_points(pool<Key> *p, entry *entries, T *s, strips *t, int64_t points) {
    int64_t length = cuda_sort_length(points);
    ln_status status = launch(WHAT, pool_kernel<Key>, 1, THREADS, p, points);
    const int passes = (8 * (int)sizeof(Key) + DIGIT_BITS - 1) / DIGIT_BITS;
    for (int pass = 0; status == LN_OK && pass <= passes; pass++) {
        for (int64_t row = 0; row < t->n; row += t->q.count) {
            if (pass == 0 || !one_strip(t)) LN_TRY(take_strip(t, s, row));
            int64_t n = t->q.count * t->columns;
            unsigned blocks = blocks_for(n, POOL_CHUNK);
            if (pass < passes)
                LN_TRY(launch_shared(WHAT, pool_count_kernel<T, Key>, blocks, THREADS, BINS_BYTES,
                                     p, s, n));
            else
                LN_TRY(
                    launch(WHAT, pool_collect_kernel<T, Key>, blocks, THREADS, p, entries, s, n));
        }
        if (pass < passes) LN_TRY(launch(WHAT, pool_narrow_kernel<Key>, 1, THREADS, p));
    }
    LN_TRY(launch(WHAT, pool_fill_kernel<Key>, blocks_for(length), THREADS, p, entries, points,
                  length));
    status = cuda_sort(entries, 1, length, WHAT);
fail:
    return status;
}

template <typename T, typename Key>
static ln_status pooled_fit(double *fit, strips *t, const ranks &to) {
    void *s = NULL, *p = NULL, *entries = NULL;
    ln_status status;
    LN_TRY(cuda_scratch(&s, (size_t)(t->q.most * t->columns) * sizeof(T), WHAT));
    LN_TRY(cuda_scratch(&p, sizeof(pool<Key>), WHAT));
    LN_TRY(cuda_scratch(&entries, (size_t)cuda_sort_length(to.points) * sizeof(entry), WHAT));
    LN_TRY(pool_points((pool<Key> *)p, (entry *)entries, (T *)s, t, to.points));
    status = launch(WHAT, pool_fit_kernel<Key>, 1, THREADS, fit, (const entry *)entries, to);
fail:
    cuda_scratch_release(entries);
    cuda_scratch_release(p);
    cuda_scratch_release(s);
    return status;
}

ln_status CUDA(similarity_pooled_tail)(ln_tensor *fit, const ln_tensor *q, const ln_tensor *k,
                                       bool cosine, int tile_dtype, int n_masks,
                                       const ln_mask *given, int64_t points, int64_t burnt) {
    strips t = {};
    ranks to = {points, burnt, NULL, NULL};
    double *out = (double *)fit->data;
    ln_status status = cuda_enter(q, WHAT);
    if (status != LN_OK) return status;
    status = strips_new(&t, q, k, cosine, tile_dtype, n_masks, given, SCRATCH);
    if (status == LN_OK)
        status = q->dtype == LN_FLOAT64 ? pooled_fit<double, uint64_t>(out, &t, to)
                                        : pooled_fit<float, uint32_t>(out, &t, to);
    strips_release(&t);
    return status;
}
