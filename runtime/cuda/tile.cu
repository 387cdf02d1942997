/* Rows of unit length, tiles of the similarity matrix by the library's products, and the way back
 * for gradients. Invariant: sums are in a fixed order. */
#include "products.h"
#include "tile.h"

/* ---- Rows ---- */

static const char *const WHAT = "similarity";
static const double NORM_FLOOR = 1e-8;

/* A warp a row of x (n,d). */
template <typename T>
static __global__ void scale_kernel(T *scale, const T *x, int64_t n, int64_t d) {
    for (int64_t row = grid_warp(); row < n; row += grid_warps()) {
        double sum = 0;
        for (int64_t k = threadIdx.x % WARP; k < d; k += WARP)
            sum += (double)x[row * d + k] * (double)x[row * d + k];
        sum = warp_sum(sum);
        if (threadIdx.x % WARP == 0) scale[row] = (T)(1 / fmax(sqrt(sum), NORM_FLOOR));
    }
}

/* A thread an element of the rows from `first` on. */
template <typename T>
static __global__ void unit_kernel(T *unit, const T *x, const T *scale, int64_t first, int64_t n,
                                   int64_t d) {
    for (int64_t i = grid_thread(); i < n * d; i += grid_threads())
        unit[i] = x[first * d + i] * scale[first + i / d];
}

/* A warp a row: dx = scale (g - (g x) scale^2 x). */
template <typename T>
static __global__ void unit_backward_kernel(T *dx, const T *x, const T *scale, int64_t n,
                                            int64_t d) {
    for (int64_t row = grid_warp(); row < n; row += grid_warps()) {
        double along = 0;
        T own = scale[row];
        for (int64_t k = threadIdx.x % WARP; k < d; k += WARP)
            along += (double)dx[row * d + k] * (double)x[row * d + k];
        along = unit_is_clamped(own) ? 0 : warp_sum(along);
        T back = (T)(along * (double)own * (double)own);
        for (int64_t k = threadIdx.x % WARP; k < d; k += WARP)
            dx[row * d + k] = own * (dx[row * d + k] - back * x[row * d + k]);
    }
}

template <typename T> static ln_status find_scales(side *s) {
    int64_t n = s->x->shape[0], d = s->x->shape[1];
    if (n == 0) return LN_OK;
    return launch(WHAT, scale_kernel<T>, blocks_for(n * WARP), THREADS, (T *)s->scale,
                  (const T *)s->x->data, n, d);
}

ln_status side_new(side *s, const ln_tensor *x, bool cosine, int64_t most) {
    size_t size = ln_dtype_size(x->dtype);
    ln_status status;
    *s = {};
    s->x = x;
    s->most = most < x->shape[0] ? most : x->shape[0];
    if (!cosine) return LN_OK;
    LN_TRY(cuda_scratch(&s->scale, (size_t)x->shape[0] * size, WHAT));
    LN_TRY(cuda_scratch(&s->unit, (size_t)(s->most * x->shape[1]) * size, WHAT));
    status = x->dtype == LN_FLOAT64 ? find_scales<double>(s) : find_scales<float>(s);
fail:
    return status;
}

void side_release(side *s) {
    cuda_scratch_release(s->scale);
    cuda_scratch_release(s->unit);
}

template <typename T> static ln_status scale_block(const side *s) {
    int64_t d = s->x->shape[1];
    return launch(WHAT, unit_kernel<T>, blocks_for(s->count * d), THREADS, (T *)s->unit,
                  (const T *)s->x->data, (const T *)s->scale, s->first, s->count, d);
}

ln_status side_take(side *s, int64_t first) {
    int64_t n = s->x->shape[0], d = s->x->shape[1];
    if (ln_interrupted()) return ln_fail(LN_INTERRUPTED, "%s: interrupted", WHAT);
    s->first = first;
    s->count = n - first < s->most ? n - first : s->most;
    s->block = s->x->data + (size_t)(first * d) * ln_dtype_size(s->x->dtype);
    if (s->scale == NULL) return LN_OK;
    s->block = s->unit;
    return s->x->dtype == LN_FLOAT64 ? scale_block<double>(s) : scale_block<float>(s);
}

template <typename T> static ln_status unit_backward(ln_tensor *dx, const side *s) {
    int64_t n = dx->shape[0], d = dx->shape[1];
    return launch(WHAT, unit_backward_kernel<T>, blocks_for(n * WARP), THREADS, (T *)dx->data,
                  (const T *)s->x->data, (const T *)s->scale, n, d);
}

ln_status side_backward(ln_tensor *dx, const side *s) {
    if (s->scale == NULL || dx->numel == 0) return LN_OK;
    return dx->dtype == LN_FLOAT64 ? unit_backward<double>(dx, s) : unit_backward<float>(dx, s);
}

/* ---- Products ---- */

static matrix rows_of(const void *data, int64_t d, bool transposed) {
    return {(void *)data, d, 0, transposed};
}

ln_status tile_product(void *s, int64_t stride, const side *q, const side *k) {
    int64_t d = q->x->shape[1];
    size_t size = ln_dtype_size(q->x->dtype);
    if (d == 0) /* what lies between the rows is 0 too */
        return cuda_check(cudaMemsetAsync(s, 0, (size_t)((q->count - 1) * stride + k->count) * size,
                                          cudaStreamPerThread),
                          WHAT);
    return cuda_product(q->x->dtype, rows_of(s, stride, false), rows_of(q->block, d, false),
                        rows_of(k->block, d, true), q->count, k->count, d, 1, false, WHAT);
}

ln_status tile_gradient(ln_tensor *dx, const void *w, bool transposed, const side *to,
                        const side *from) {
    int64_t d = dx->shape[1];
    if (d == 0) return LN_OK;
    char *rows = dx->data + (size_t)(to->first * d) * ln_dtype_size(dx->dtype);
    matrix weights = {(void *)w, transposed ? to->count : from->count, 0, transposed};
    return cuda_product(dx->dtype, rows_of(rows, d, false), weights, rows_of(from->block, d, false),
                        to->count, d, from->count, 1, true, WHAT);
}

/* ---- Masks ---- */

masks masks_of(int n, const ln_mask *given) {
    masks m = {};
    m.n = n;
    for (int i = 0; i < n; i++) {
        const ln_mask &g = given[i];
        m.mask[i].kind = g.kind;
        m.mask[i].row = g.row != NULL ? (const int64_t *)g.row->data : NULL;
        m.mask[i].column = g.column != NULL ? (const int64_t *)g.column->data : NULL;
    }
    return m;
}
