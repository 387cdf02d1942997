/* Walks over the elements of several tensors of one shape, a thread an element: the dimensions
 * joined where one step serves all, and the way from an element's number to its place in each
 * tensor. Index arithmetic only. Invariant: a walk reaches every element once; in row-major order
 * where it was asked to, else in the order of one tensor's strides. */
#ifndef LN_CUDA_WALK_H
#define LN_CUDA_WALK_H
#include "cuda.h"

enum { WALK_TENSORS = 8 };

typedef struct {
    int ndim, tensors;
    int64_t numel;
    int64_t shape[LN_MAX_DIMS], stride[WALK_TENSORS][LN_MAX_DIMS];
    char *data[WALK_TENSORS]; /* NULL for a number, which lies here: */
    double number[WALK_TENSORS];
    int64_t integer[WALK_TENSORS];
    int dtype[WALK_TENSORS];
} walk;

/* ---- Making a walk ---- */

enum { ROW_MAJOR = -1 };

/* The dimensions of more than one element, the widest strides of tensor `by` first. */
static inline int walk_order(int *dims, const ln_tensor *const *t, int by) {
    int n = 0;
    for (int d = 0; d < t[0]->ndim; d++) {
        if (t[0]->shape[d] == 1) continue;
        int i = n++;
        for (; by != ROW_MAJOR && i > 0 && t[by]->stride[dims[i - 1]] < t[by]->stride[d]; i--)
            dims[i] = dims[i - 1];
        dims[i] = d;
    }
    return n;
}

static inline bool walk_joins(const walk *w, const ln_tensor *const *t, int inner) {
    if (w->ndim == 0) return false;
    for (int k = 0; k < w->tensors; k++) {
        int64_t step = t[k] == NULL ? 0 : t[k]->stride[inner];
        if (w->stride[k][w->ndim - 1] != step * t[0]->shape[inner]) return false;
    }
    return true;
}

/* A tensor in host memory is a number, as ops.def has it: it is read now. */
static inline void walk_operand(walk *w, int k, const ln_tensor *t) {
    w->data[k] = t->data;
    w->dtype[k] = t->dtype;
    if (ln_device(t) != LN_CPU) return;
    w->data[k] = NULL;
    w->number[k] = ln_element_get(t->dtype, t->data);
    w->integer[k] = t->dtype == LN_INT64 ? *(const int64_t *)t->data : 0;
}

/* Over n tensors of the first one's shape, in the order of tensor `by`. Where one is NULL it is the
 * number 0 until walk_number says otherwise. */
static inline walk walk_over(int n, const ln_tensor *const *t, int by) {
    int dims[LN_MAX_DIMS], count = walk_order(dims, t, by);
    walk w = {};
    w.tensors = n;
    w.numel = t[0]->numel;
    for (int k = 0; k < n; k++)
        if (t[k] != NULL) walk_operand(&w, k, t[k]);
    for (int i = 0; i < count; i++) {
        int64_t extent = t[0]->shape[dims[i]];
        if (walk_joins(&w, t, dims[i])) w.shape[w.ndim - 1] *= extent;
        else w.shape[w.ndim++] = extent;
        for (int k = 0; k < n; k++)
            w.stride[k][w.ndim - 1] = t[k] == NULL ? 0 : t[k]->stride[dims[i]];
    }
    return w;
}

/* Tensor k is this number, unless it is given. */
static inline void walk_number(walk *w, int k, double number) {
    if (w->data[k] != NULL) return;
    w->dtype[k] = LN_FLOAT64;
    w->number[k] = number;
}

/* ---- On the device ---- */

/* a / b for 0 <= a, 0 < b. A division of 64 bits takes several times as long as one of 32. */
static inline __device__ int64_t divide(int64_t a, int64_t b) {
    if ((a | b) >> 32 == 0) return (uint32_t)a / (uint32_t)b;
    return a / b;
}

/* The offsets of element i in the first N tensors. */
template <int N>
static inline __device__ void walk_offsets(const walk &w, int64_t i, int64_t *offset) {
    for (int k = 0; k < N; k++) offset[k] = 0;
    for (int d = w.ndim - 1; d >= 0; d--) {
        int64_t rest = d > 0 ? divide(i, w.shape[d]) : 0, at = i - rest * w.shape[d];
        for (int k = 0; k < N; k++) offset[k] += at * w.stride[k][d];
        i = rest;
    }
}

template <typename T> static inline __device__ T walk_load(const walk &w, int k, int64_t offset) {
    if (w.data[k] != NULL) return load<T>(w.data[k], w.dtype[k], offset);
    return w.dtype[k] == LN_INT64 ? (T)w.integer[k] : (T)w.number[k];
}

template <typename T>
static inline __device__ void walk_store(const walk &w, int k, int64_t offset, T v) {
    store<T>(w.data[k], w.dtype[k], offset, v);
}

#endif
