/* Rows of unit length, tiles of the similarity matrix by the library's products, and the way back
 * for gradients. Invariant: sums are in a fixed order. */
#include "products.h"
#include "tile.h"

/* ---- Rows ---- */

static const char *const WHAT = "similarity";
static const double NORM_FLOOR = 1e-8;

/* A warp a row of x (n,d). */
template <typename T> static __global__ void scale_kernel(T *scale, row_list<T> x, int64_t n) {
    for (int64_t row = grid_warp(); row < n; row += grid_warps()) {
        const T *own = x.at(row);
        double sum = 0;
        for (int64_t k = threadIdx.x % WARP; k < x.d; k += WARP)
            sum += (double)own[k] * (double)own[k];
        sum = warp_sum(sum);
        if (threadIdx.x % WARP == 0) scale[row] = (T)(1 / fmax(sqrt(sum), NORM_FLOOR));
    }
}

/* A thread an element of rows (n, width), those of x (.., d) from `first` on, scaled where there is
 * a scale, in any dtype. */
template <typename T>
static __global__ void rows_kernel(void *rows, int dtype, int64_t width, row_list<T> x,
                                   const T *scale, int64_t first, int64_t n) {
    for (int64_t i = grid_thread(); i < n * width; i += grid_threads()) {
        int64_t row = first + i / width, k = i % width;
        T v = k < x.d ? x.at(row)[k] : 0;
        store(rows, dtype, i, scale != NULL ? v * scale[row] : v);
    }
}

/* A thread an element of n rows of x from `first` on, which scaled are u: its parts in rows
 * (n, width), and the zeros that fill these. */
static __global__ void split_kernel(__half *rows, int64_t width, row_list<float> x,
                                    const float *scale, bool of_q, int64_t first, int64_t n) {
    int64_t d = x.d;
    for (int64_t i = grid_thread(); i < n * d; i += grid_threads()) {
        int64_t row = i / d, k = i % d;
        __half *own = rows + row * width;
        float u = x.at(first + row)[k] * scale[first + row];
        __half high = __float2half_rn(u);
        own[k + (of_q ? 0 : d)] = __float2half_rn(__half2float(high) / 32);
        own[k + (of_q ? d : 0)] = __float2half_rn((u - __half2float(high)) * 32);
        own[k + 2 * d] = high;
        for (int64_t j = k + SIDE_PARTS * d; j < width; j += d) own[j] = __float2half_rn(0);
    }
}

/* A warp a row: dx = scale (g - (g x) scale^2 x). */
template <typename T>
static __global__ void unit_backward_kernel(T *dx, row_list<T> x, const T *scale, int64_t n) {
    for (int64_t row = grid_warp(); row < n; row += grid_warps()) {
        const T *y = x.at(row);
        double along = 0;
        T own = scale[row], *dy = dx + row * x.d;
        for (int64_t k = threadIdx.x % WARP; k < x.d; k += WARP)
            along += (double)dy[k] * (double)y[k];
        along = unit_is_clamped(own) ? 0 : warp_sum(along);
        T back = (T)(along * (double)own * (double)own);
        for (int64_t k = threadIdx.x % WARP; k < x.d; k += WARP)
            dy[k] = own * (dy[k] - back * y[k]);
    }
}

template <typename T> static ln_status find_scales(side *s) {
    int64_t n = s->x->shape[0];
    if (n == 0) return LN_OK;
    return launch(WHAT, scale_kernel<T>, blocks_for(n * WARP), THREADS, (T *)s->scale,
                  row_list_of<T>(s->x), n);
}

/* Unit rows fit float16; others may leave its range, and take TF32, which has its precision. */
int side_dtype(const ln_tensor *x, bool cosine, int tile_dtype) {
    if (x->dtype == LN_FLOAT64) return x->dtype;
    if (tile_dtype == LN_TILE_BFLOAT16) return LN_BFLOAT16;
    return tile_dtype == LN_TILE_FLOAT16 && cosine ? LN_FLOAT16 : x->dtype;
}

/* Whether the block is that of the side that it is like. */
static bool has_their_block(const side *s) {
    const side *other = s->like;
    return other != NULL && other->made != NULL && other->dtype == s->dtype &&
           other->form == s->form && other->most == s->x->shape[0] && other->most == s->most;
}

ln_status side_new(side *s, const ln_tensor *x, bool cosine, int64_t most, int tile_dtype,
                   side_form form, const side *like) {
    bool split = form != SIDE_WHOLE;
    ln_status status;
    *s = {};
    s->x = x;
    s->like = like;
    s->most = most < x->shape[0] ? most : x->shape[0];
    s->dtype = split ? (int)LN_FLOAT16 : side_dtype(x, cosine, tile_dtype);
    s->form = form;
    s->rough = tile_dtype != LN_TILE_FLOAT32;
    s->width = side_width(s->dtype, split ? SIDE_PARTS * x->shape[1] : x->shape[1]);
    size_t bytes = (size_t)(s->most * s->width) * ln_dtype_size(s->dtype);
    if ((cosine || s->dtype != x->dtype || x->second != NULL) && !has_their_block(s))
        LN_TRY(cuda_scratch(&s->made, bytes, WHAT));
    if (!cosine) return LN_OK;
    if (like != NULL) {
        s->scale = like->scale;
        return LN_OK;
    }
    LN_TRY(cuda_scratch(&s->scale, (size_t)x->shape[0] * ln_dtype_size(x->dtype), WHAT));
    status = x->dtype == LN_FLOAT64 ? find_scales<double>(s) : find_scales<float>(s);
fail:
    return status;
}

void side_release(side *s) {
    if (s->like == NULL) cuda_scratch_release(s->scale);
    cuda_scratch_release(s->made);
}

template <typename T> static ln_status make_block(const side *s) {
    return launch(WHAT, rows_kernel<T>, blocks_for(s->count * s->width), THREADS, s->made, s->dtype,
                  s->width, row_list_of<T>(s->x), (const T *)s->scale, s->first, s->count);
}

static ln_status split_block(const side *s) {
    return launch(WHAT, split_kernel, blocks_for(s->count * s->x->shape[1]), THREADS,
                  (__half *)s->made, s->width, row_list_of<float>(s->x), (const float *)s->scale,
                  s->form == SIDE_SPLIT_Q, s->first, s->count);
}

ln_status side_take(side *s, int64_t first) {
    int64_t n = s->x->shape[0], d = s->x->shape[1];
    if (ln_interrupted()) return ln_fail(LN_INTERRUPTED, "%s: interrupted", WHAT);
    s->first = first;
    s->count = n - first < s->most ? n - first : s->most;
    s->block = s->x->data + (size_t)(first * d) * ln_dtype_size(s->x->dtype);
    if (has_their_block(s)) s->block = s->like->made;
    if (s->made == NULL) return LN_OK;
    s->block = s->made;
    if (s->form != SIDE_WHOLE) return split_block(s);
    return s->x->dtype == LN_FLOAT64 ? make_block<double>(s) : make_block<float>(s);
}

template <typename T> static ln_status unit_backward(ln_tensor *dx, const side *s) {
    int64_t n = dx->shape[0];
    return launch(WHAT, unit_backward_kernel<T>, blocks_for(n * WARP), THREADS, (T *)dx->data,
                  row_list_of<T>(s->x), (const T *)s->scale, n);
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
    size_t size = ln_dtype_size(q->x->dtype);
    if (q->width == 0) /* what lies between the rows is 0 too */
        return cuda_check(cudaMemsetAsync(s, 0, (size_t)((q->count - 1) * stride + k->count) * size,
                                          cudaStreamPerThread),
                          WHAT);
    product_kind kind = {q->x->dtype, q->dtype, q->rough, NULL};
    return cuda_product(kind, rows_of(s, stride, false), rows_of(q->block, q->width, false),
                        rows_of(k->block, k->width, true), q->count, k->count, q->width, 1, false,
                        WHAT);
}

ln_status tile_gradient(ln_tensor *dx, const void *w, const float *factors, bool transposed,
                        const side *to, const side *from) {
    int64_t d = dx->shape[1];
    if (d == 0) return LN_OK;
    char *rows = dx->data + (size_t)(to->first * d) * ln_dtype_size(dx->dtype);
    matrix weights = {(void *)w, transposed ? to->count : from->count, 0, transposed};
    product_kind kind = {dx->dtype, from->dtype, from->rough, factors};
    return cuda_product(kind, rows_of(rows, d, false), weights,
                        rows_of(from->block, from->width, false), to->count, d, from->count, 1,
                        true, WHAT);
}

/* ---- Weights in halves ---- */

/* One block. */
static __global__ void factors_kernel(float *factors, const float *most, int64_t n) {
    __shared__ float parts[THREADS];
    float largest = 0;
    for (int64_t i = threadIdx.x; i < n; i += THREADS) largest = fmaxf(largest, most[i]);
    parts[threadIdx.x] = largest;
    __syncthreads(); /* all parts are there */
    if (threadIdx.x > 0) return;
    for (int i = 1; i < THREADS; i++) largest = fmaxf(largest, parts[i]);
    int exponent = 0; /* largest < 2^exponent; both powers are normal numbers */
    if (largest > 0 && largest < INFINITY) frexpf(largest, &exponent);
    if (exponent < -100) exponent = -100;
    factors[0] = ldexpf(1, exponent - 15);
    factors[1] = 1;
    factors[2] = ldexpf(1, 15 - exponent);
}

/* A thread an element. */
static __global__ void round_kernel(void *to, int dtype, const float *w, const float *power,
                                    int64_t n) {
    for (int64_t i = grid_thread(); i < n; i += grid_threads()) store(to, dtype, i, w[i] * *power);
}

ln_status tile_round(void *to, int dtype, float *factors, const float *w, int64_t n,
                     const float *most, int64_t n_most) {
    ln_status status = launch(WHAT, factors_kernel, 1, THREADS, factors, most, n_most);
    if (status != LN_OK) return status;
    return launch(WHAT, round_kernel, blocks_for(n), THREADS, to, dtype, w, factors + 2, n);
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
