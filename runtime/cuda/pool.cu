/* Pooling: a thread an element of the result, which reads its window, or, backward, the windows
 * that it lies in, in order. Computes in double, as the CPU does. Invariant: no two threads write
 * one element. */
#include "select.h"

/* One side of a pool: (N,C,H,W) with any strides. */
typedef struct {
    char *data;
    int dtype;
    int64_t shape[4], stride[4];
} planes;

typedef struct {
    planes image, pooled, indices; /* indices: of max_pool2d */
    int64_t numel;                 /* of the result */
    bool channels_last;            /* neighbouring threads take neighbouring channels of it */
    ln_pool_params p;
} pool;

/* A place of the result. */
typedef struct {
    int64_t n, c, i, j;
} place;

static planes planes_of(const ln_tensor *t) {
    planes v = {t->data, t->dtype, {}, {}};
    for (int d = 0; d < 4; d++) {
        v.shape[d] = t->shape[d];
        v.stride[d] = t->stride[d];
    }
    return v;
}

/* Place i of v in row-major order, or, channels last, in that of (N,H,W,C). */
static __device__ place place_of(const planes &v, int64_t i, bool channels_last) {
    place at;
    if (channels_last) {
        int64_t pixel = divide(i, v.shape[1]), line = divide(pixel, v.shape[3]);
        at.c = i - pixel * v.shape[1];
        at.j = pixel - line * v.shape[3];
        at.n = divide(line, v.shape[2]);
        at.i = line - at.n * v.shape[2];
        return at;
    }
    int64_t row = divide(i, v.shape[3]), plane = divide(row, v.shape[2]);
    at.j = i - row * v.shape[3];
    at.i = row - plane * v.shape[2];
    at.n = divide(plane, v.shape[1]);
    at.c = plane - at.n * v.shape[1];
    return at;
}

static __device__ int64_t offset_of(const planes &v, const place &at, int64_t i, int64_t j) {
    return at.n * v.stride[0] + at.c * v.stride[1] + i * v.stride[2] + j * v.stride[3];
}

static __device__ double value_at(const planes &v, const place &at, int64_t i, int64_t j) {
    return load<double>(v.data, v.dtype, offset_of(v, at, i, j));
}

static __device__ int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static __device__ int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* [from, to) along one axis. */
typedef struct {
    int64_t from, to;
} span;

/* The window of pooled position i, inside the image. */
static __device__ span window_of(const pool &c, int axis, int64_t i) {
    int64_t start = i * c.p.stride[axis] - c.p.padding[axis];
    return {larger(start, 0), smaller(start + c.p.kernel[axis], c.image.shape[2 + axis])};
}

/* The pooled positions whose windows hold image position y. */
static __device__ span windows_with(const pool &c, int axis, int64_t y) {
    int64_t step = c.p.stride[axis], last = (y + c.p.padding[axis]) / step;
    int64_t before = y + c.p.padding[axis] - c.p.kernel[axis]; /* the end of windows too early */
    return {before < 0 ? 0 : before / step + 1, smaller(last + 1, c.pooled.shape[2 + axis])};
}

/* The same where windows divide the image evenly. */
static __device__ span adaptive_window(const pool &c, int axis, int64_t i) {
    int64_t extent = c.image.shape[2 + axis], count = c.pooled.shape[2 + axis];
    return {i * extent / count, ((i + 1) * extent + count - 1) / count};
}

static __device__ span adaptive_windows_with(const pool &c, int axis, int64_t y) {
    int64_t extent = c.image.shape[2 + axis], count = c.pooled.shape[2 + axis];
    return {y * count / extent, ((y + 1) * count + extent - 1) / extent};
}

/* ---- Kernels ---- */

static __global__ void max_kernel(pool c) {
    for (int64_t t = grid_thread(); t < c.numel; t += grid_threads()) {
        place at = place_of(c.pooled, t, c.channels_last);
        span rows = window_of(c, 0, at.i), columns = window_of(c, 1, at.j);
        double best = -INFINITY;
        int64_t where = rows.from * c.image.shape[3] + columns.from;
        for (int64_t i = rows.from; i < rows.to; i++)
            for (int64_t j = columns.from; j < columns.to; j++) {
                double v = value_at(c.image, at, i, j);
                if (!(v > best || v != v)) continue;
                best = v;
                where = i * c.image.shape[3] + j;
            }
        store(c.pooled.data, c.pooled.dtype, offset_of(c.pooled, at, at.i, at.j), best);
        store(c.indices.data, c.indices.dtype, offset_of(c.indices, at, at.i, at.j), where);
    }
}

static __global__ void average_kernel(pool c, bool adaptive) {
    for (int64_t t = grid_thread(); t < c.numel; t += grid_threads()) {
        place at = place_of(c.pooled, t, c.channels_last);
        span rows = adaptive ? adaptive_window(c, 0, at.i) : window_of(c, 0, at.i);
        span columns = adaptive ? adaptive_window(c, 1, at.j) : window_of(c, 1, at.j);
        int64_t count = (rows.to - rows.from) * (columns.to - columns.from);
        if (!adaptive) count = c.p.kernel[0] * c.p.kernel[1]; /* padding counts */
        double sum = 0;
        for (int64_t i = rows.from; i < rows.to; i++)
            for (int64_t j = columns.from; j < columns.to; j++) sum += value_at(c.image, at, i, j);
        store(c.pooled.data, c.pooled.dtype, offset_of(c.pooled, at, at.i, at.j),
              sum / (double)count);
    }
}

static __global__ void average_backward_kernel(pool c, bool adaptive) {
    for (int64_t t = grid_thread(); t < c.numel; t += grid_threads()) {
        place at = place_of(c.image, t, c.channels_last);
        span rows = adaptive ? adaptive_windows_with(c, 0, at.i) : windows_with(c, 0, at.i);
        span columns = adaptive ? adaptive_windows_with(c, 1, at.j) : windows_with(c, 1, at.j);
        double sum = 0;
        for (int64_t i = rows.from; i < rows.to; i++)
            for (int64_t j = columns.from; j < columns.to; j++) {
                int64_t count = c.p.kernel[0] * c.p.kernel[1];
                if (adaptive) {
                    span h = adaptive_window(c, 0, i), w = adaptive_window(c, 1, j);
                    count = (h.to - h.from) * (w.to - w.from);
                }
                sum += value_at(c.pooled, at, i, j) / (double)count;
            }
        store(c.image.data, c.image.dtype, offset_of(c.image, at, at.i, at.j), sum);
    }
}

/* ---- The operators ---- */

/* out: image or pooled, whose elements the threads take. */
static ln_status prepare(pool *c, const ln_tensor *out, const ln_tensor *image,
                         const ln_tensor *pooled, const ln_pool_params *p, const char *what) {
    *c = {};
    c->image = planes_of(image);
    c->pooled = planes_of(pooled);
    c->numel = out->numel;
    c->channels_last = ln_is_channels_last(out);
    if (p != NULL) c->p = *p;
    return cuda_enter(out, what);
}

ln_status CUDA(max_pool2d)(ln_tensor *y, ln_tensor *indices, const ln_tensor *x,
                           const ln_pool_params *p) {
    pool c;
    ln_status status = prepare(&c, y, x, y, p, "max_pool2d");
    if (status != LN_OK || c.numel == 0) return status;
    c.indices = planes_of(indices);
    return launch("max_pool2d", max_kernel, blocks_for(c.numel), THREADS, c);
}

/* A row-major (planes, places) view of t, or of a copy of it in *made. */
static ln_status flat(ln_tensor *view, ln_tensor **made, const ln_tensor *t) {
    ln_status status = LN_OK;
    if (!ln_is_contiguous(t)) status = ln_contiguous(made, t);
    if (status != LN_OK) return status;
    *view = *made != NULL ? **made : *t;
    view->ndim = 2;
    view->shape[0] = t->shape[0] * t->shape[1];
    view->stride[0] = view->shape[1] = t->shape[2] * t->shape[3];
    view->stride[1] = 1;
    return LN_OK;
}

ln_status CUDA(max_pool2d_backward)(ln_tensor *dx, const ln_tensor *dy, const ln_tensor *indices) {
    const char *what = "max_pool2d_backward";
    ln_tensor *made[3] = {}, to, from, where;
    ln_status status = cuda_enter(dx, what);
    if (status == LN_OK) status = CUDA(fill)(dx, 0);
    if (status != LN_OK) return status;
    LN_TRY(flat(&to, &made[0], dx));
    LN_TRY(flat(&from, &made[1], dy));
    LN_TRY(flat(&where, &made[2], indices));
    LN_TRY(cuda_scatter_planes(&to, &where, &from, what));
    if (made[0] != NULL) status = CUDA(copy)(dx, made[0]);
fail:
    for (int i = 0; i < 3; i++) ln_tensor_release(made[i]);
    return status;
}

static ln_status average(ln_tensor *y, const ln_tensor *x, const ln_pool_params *p,
                         const char *what) {
    pool c;
    ln_status status = prepare(&c, y, x, y, p, what);
    if (status != LN_OK || c.numel == 0) return status;
    return launch(what, average_kernel, blocks_for(c.numel), THREADS, c, p == NULL);
}

static ln_status average_backward(ln_tensor *dx, const ln_tensor *dy, const ln_pool_params *p,
                                  const char *what) {
    pool c;
    ln_status status = prepare(&c, dx, dx, dy, p, what);
    if (status != LN_OK || c.numel == 0) return status;
    return launch(what, average_backward_kernel, blocks_for(c.numel), THREADS, c, p == NULL);
}

ln_status CUDA(avg_pool2d)(ln_tensor *y, const ln_tensor *x, const ln_pool_params *p) {
    return average(y, x, p, "avg_pool2d");
}

ln_status CUDA(avg_pool2d_backward)(ln_tensor *dx, const ln_tensor *dy, const ln_pool_params *p) {
    return average_backward(dx, dy, p, "avg_pool2d_backward");
}

ln_status CUDA(adaptive_avg_pool2d)(ln_tensor *y, const ln_tensor *x) {
    return average(y, x, NULL, "adaptive_avg_pool2d");
}

ln_status CUDA(adaptive_avg_pool2d_backward)(ln_tensor *dx, const ln_tensor *dy) {
    return average_backward(dx, dy, NULL, "adaptive_avg_pool2d_backward");
}
