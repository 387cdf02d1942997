/* Order statistics of the similarity matrix: whole rows of it, a strip that fits scratch at a time,
 * sorted, and the fits to their tails. Invariants: the result does not depend on the strips; where
 * all rows are taken together, the largest entries of the strips so far are kept. */
#include "sort.h"
#include "tile.h"

static const char *const WHAT = "similarity";
static const double LEAST_SHORTFALL = 1e-6, LEAST_SUM = 1e-12; /* a smaller sum is rounding */

/* ---- Strips ---- */

/* Rows of the masked matrix, all columns of them. */
typedef struct {
    side q, k;
    masks m;
    int64_t n, columns;
    int dtype;
} strips;

static ln_status strips_new(strips *t, const ln_tensor *q, const ln_tensor *k, bool cosine,
                            int n_masks, const ln_mask *given) {
    *t = {};
    t->m = masks_of(n_masks, given);
    t->n = q->shape[0];
    t->columns = (k != NULL ? k : q)->shape[0];
    t->dtype = q->dtype;
    int64_t line = 2 * t->columns * (int64_t)sizeof(entry); /* as it is sorted */
    int64_t rows = line < SCRATCH ? SCRATCH / (line + 1) : 1, columns = SCRATCH >> 16;
    ln_status status = side_new(&t->q, q, cosine, rows < 1 ? 1 : rows);
    if (status != LN_OK) return status;
    return side_new(&t->k, k != NULL ? k : q, cosine, columns < 32 ? 32 : columns);
}

static void strips_release(strips *t) {
    side_release(&t->q);
    side_release(&t->k);
}

/* A thread an entry of s (rows, columns), the rows from `first` on. */
template <typename T>
static __global__ void mask_kernel(T *s, masks m, int64_t first, int64_t rows, int64_t columns) {
    for (int64_t i = grid_thread(); i < rows * columns; i += grid_threads())
        if (!admits(m, first + i / columns, i % columns)) s[i] = -INFINITY;
}

template <typename T> static ln_status mask_strip(const strips *t, void *s) {
    return launch(WHAT, mask_kernel<T>, blocks_for(t->q.count * t->columns), THREADS, (T *)s, t->m,
                  t->q.first, t->q.count, t->columns);
}

/* s (count, columns): the rows from `row` on, as many as a strip has. */
static ln_status take_strip(strips *t, void *s, int64_t row) {
    size_t size = ln_dtype_size(t->dtype);
    ln_status status;
    LN_TRY(side_take(&t->q, row));
    for (int64_t column = 0; column < t->columns; column += t->k.count) {
        LN_TRY(side_take(&t->k, column));
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
                                const ln_tensor *k, bool cosine, int n_masks, const ln_mask *given,
                                ln_tiles *) {
    strips t = {};
    void *s = NULL;
    int64_t count = values->shape[1];
    size_t size = ln_dtype_size(q->dtype);
    ln_status status = cuda_enter(q, WHAT);
    if (status != LN_OK || values->numel == 0) return status;
    LN_TRY(strips_new(&t, q, k, cosine, n_masks, given));
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

/* Sums for two least-squares lines, of log F and of log(-log F) on x = log d - log d_first. */
enum { SX, SXX, SY, SZ = SY + 1, SYY, SZZ = SYY + 1, SXY, SXZ = SXY + 1, SUMS };

static __device__ double shortfall(double s) {
    return 1 - s < LEAST_SHORTFALL ? LEAST_SHORTFALL : 1 - s; /* or NaN */
}

static __device__ void store_fit(double *fit, const double *sum, double rho, int64_t n) {
    double count = (double)n, sxx = sum[SXX] - sum[SX] * sum[SX] / count;
    fit[0] = rho;
    for (int i = 0; i < 2; i++) {
        double sxy = sum[SXY + i] - sum[SX] * sum[SY + i] / count;
        double syy = sum[SYY + i] - sum[SY + i] * sum[SY + i] / count;
        double slope = sxy / (sxx < LEAST_SUM ? LEAST_SUM : sxx), sse = syy - slope * sxy;
        fit[1 + 2 * i] = n < 2 ? 0 : slope;
        fit[2 + 2 * i] = n < 2 || sse < 0 ? 0 : sse;
    }
}

/* A block a row of x (rows, points), largest first. fits (rows,5) */
template <typename T>
static __global__ void fit_kernel(double *fits, const T *x, int64_t rows, int64_t points,
                                  int64_t burnt) {
    __shared__ double parts[THREADS / WARP][SUMS];
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const T *own = x + row * points;
        double sum[SUMS] = {}, origin = burnt < points ? log(shortfall((double)own[burnt])) : 0;
        for (int64_t r = burnt + threadIdx.x; r < points; r += THREADS) {
            double log_d = log(shortfall((double)own[r])) - origin;
            double y = log((double)(r + 1) / (double)(points + 1)), z = log(-y);
            const double terms[] = {log_d, log_d * log_d, y, z, y * y, z * z, log_d * y, log_d * z};
            for (int i = 0; i < SUMS; i++) sum[i] += terms[i];
        }
        for (int i = 0; i < SUMS; i++) {
            sum[i] = warp_sum(sum[i]);
            if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP][i] = sum[i];
        }
        __syncthreads(); /* all warps' sums are there */
        if (threadIdx.x == 0) {
            for (int warp = 1; warp < THREADS / WARP; warp++)
                for (int i = 0; i < SUMS; i++) sum[i] += parts[warp][i];
            store_fit(fits + row * 5, sum, shortfall((double)own[0]), points - burnt);
        }
        __syncthreads(); /* they are read */
    }
}

static ln_status fit_rows(double *fits, const ln_tensor *x, int64_t burnt) {
    int64_t rows = x->shape[0], points = x->shape[1];
    if (x->dtype == LN_FLOAT64)
        return launch(WHAT, fit_kernel<double>, blocks_for(rows, 1), THREADS, fits,
                      (const double *)x->data, rows, points, burnt);
    return launch(WHAT, fit_kernel<float>, blocks_for(rows, 1), THREADS, fits,
                  (const float *)x->data, rows, points, burnt);
}

/* What is chosen of a strip, with room for it. */
typedef struct {
    void *s, *values, *places;
} chosen;

static ln_status chosen_new(chosen *c, int dtype, int64_t entries, int64_t kept) {
    size_t size = ln_dtype_size(dtype);
    ln_status status;
    LN_TRY(cuda_scratch(&c->s, (size_t)entries * size, WHAT));
    LN_TRY(cuda_scratch(&c->values, (size_t)kept * size, WHAT));
    status = cuda_scratch(&c->places, (size_t)kept * sizeof(int64_t), WHAT);
fail:
    return status;
}

static void chosen_release(chosen *c) {
    cuda_scratch_release(c->s);
    cuda_scratch_release(c->values);
    cuda_scratch_release(c->places);
}

ln_status CUDA(similarity_tail)(ln_tensor *fits, const ln_tensor *q, const ln_tensor *k,
                                bool cosine, int n_masks, const ln_mask *given, int64_t points,
                                int64_t burnt, ln_tiles *) {
    strips t = {};
    chosen c = {};
    ln_status status = cuda_enter(q, WHAT);
    if (status != LN_OK || fits->numel == 0) return status;
    LN_TRY(strips_new(&t, q, k, cosine, n_masks, given));
    LN_TRY(chosen_new(&c, q->dtype, t.q.most * t.columns, t.q.most * points));
    for (int64_t row = 0; row < t.n; row += t.q.count) {
        LN_TRY(take_strip(&t, c.s, row));
        ln_tensor x = matrix_at(c.s, q, q->dtype, t.q.count, t.columns);
        ln_tensor to = matrix_at(c.values, q, q->dtype, t.q.count, points);
        ln_tensor at = matrix_at(c.places, q, LN_INT64, t.q.count, points);
        LN_TRY(CUDA(topk)(&to, &at, &x, points, 1, true));
        LN_TRY(fit_rows((double *)fits->data + row * 5, &to, burnt));
    }
fail:
    chosen_release(&c);
    strips_release(&t);
    return status;
}

/* The largest of all strips so far lie before the next strip, with which they are sorted. */
ln_status CUDA(similarity_pooled_tail)(ln_tensor *fit, const ln_tensor *q, const ln_tensor *k,
                                       bool cosine, int n_masks, const ln_mask *given,
                                       int64_t points, int64_t burnt) {
    strips t = {};
    chosen c = {};
    int64_t kept = 0;
    size_t size = ln_dtype_size(q->dtype);
    ln_status status = cuda_enter(q, WHAT);
    if (status != LN_OK) return status;
    LN_TRY(strips_new(&t, q, k, cosine, n_masks, given));
    LN_TRY(chosen_new(&c, q->dtype, points + t.q.most * t.columns, points));
    for (int64_t row = 0; row < t.n; row += t.q.count) {
        LN_TRY(take_strip(&t, (char *)c.s + (size_t)kept * size, row));
        int64_t all = kept + t.q.count * t.columns;
        kept = all < points ? all : points;
        ln_tensor x = matrix_at(c.s, q, q->dtype, 1, all);
        ln_tensor to = matrix_at(c.values, q, q->dtype, 1, kept);
        ln_tensor at = matrix_at(c.places, q, LN_INT64, 1, kept);
        LN_TRY(CUDA(topk)(&to, &at, &x, kept, 1, true));
        LN_TRY(cuda_check(cudaMemcpyAsync(c.s, c.values, (size_t)kept * size,
                                          cudaMemcpyDeviceToDevice, cudaStreamPerThread),
                          WHAT));
    }
    {
        ln_tensor sorted = matrix_at(c.values, q, q->dtype, 1, points);
        status = fit_rows((double *)fit->data, &sorted, burnt);
    }
fail:
    chosen_release(&c);
    strips_release(&t);
    return status;
}
