/* What the reduce, select and norm kernels share: rows of elements of any dtype and stride turned
 * into 8-byte cells, which they compute on in the first-level cache, and back; row-major copies of
 * tensors; and the sharing of items among the team. Invariant: what an item computes depends on
 * shapes only, never on the team, so every team gives the same bits. */
#ifndef LN_CPU_ROW_H
#define LN_CPU_ROW_H
#include "kernels.h"

#include <omp.h>
#include <string.h>

/* A cell: floating elements of any size as f, integers and bool as i where exactness asks for it.
 * A row of cells is also an array of double, or of int64_t. */
typedef union {
    double f;
    int64_t i;
    uint64_t u;
} ln_cell;

enum {
    ROW = 512,        /* cells in a block: 4 KiB, of which a kernel holds a few at once */
    ROW_MULTIPLE = 16 /* the floats of the widest vector */
};

/* Loads n elements, stride elements apart, as int64_t where `integer`, otherwise as double. */
void CPU(row_load)(void *row, const void *x, int dtype, int64_t n, int64_t stride, bool integer);
/* Stores a row of int64_t to an integer or bool dtype, of double to a floating one. */
void CPU(row_store)(void *y, const void *row, int dtype, int64_t n, int64_t stride);
double CPU(row_sum)(const double *row, int64_t n);
/* Exponentials in place, in float32 where `single`. The row has room for n rounded up to
 * ROW_MULTIPLE: whole vectors are computed, so that a value does not depend on its place. */
void CPU(row_exp)(double *row, int64_t n, bool single);

/* Packed float32, the bulk of what programs compute on, without the detour through cells: the sum,
 * the sum of squares, the largest (NaN if there is one); y[i] = exp(x[i] - shift), or no y where it
 * is NULL, and the sum of that. */
double CPU(float_sum)(const float *x, int64_t n);
double CPU(float_squares)(const float *x, int64_t n);
float CPU(float_max)(const float *x, int64_t n);
double CPU(float_exp)(float *y, const float *x, float shift, int64_t n);

/* One element of `size` bytes. */
static inline void copy_element(void *to, const void *from, size_t size) {
    switch (size) {
    case 8: memcpy(to, from, 8); break;
    case 4: memcpy(to, from, 4); break;
    case 2: memcpy(to, from, 2); break;
    default: memcpy(to, from, 1);
    }
}

/* Makes *x, if not NULL, row-major: where it is not, a copy goes to *made, which the caller
 * releases, and *x becomes it. `what` names the operator. */
ln_status CPU(row_major)(ln_tensor **made, const ln_tensor **x, const char *what);
/* The same for a result: where *y is not row-major, *made is to be written in its place;
 * row_major_end copies it to y when it has been. */
ln_status CPU(row_major_out)(ln_tensor **made, ln_tensor **y, const char *what);
ln_status CPU(row_major_end)(ln_tensor *y, ln_tensor *made);

/* The element of a tensor at an offset in elements. */
static inline char *element(const ln_tensor *t, int64_t offset) {
    return t->data + offset * (int64_t)ln_dtype_size(t->dtype);
}

/* Loops that read packed float32 as well as double are written once and inlined for each: single
 * says which, and is a constant where they are called. */
#define ROW_LOOP static inline __attribute__((always_inline)) void

static inline __attribute__((always_inline)) double row_value(const void *x, int64_t i,
                                                              bool single) {
    return single ? ((const float *)x)[i] : ((const double *)x)[i];
}

/* A row-major row for such a loop: where it lies, or in cells if it is of another dtype. */
static inline const void *row_read(void *cells, const ln_tensor *x, int64_t offset, int64_t n) {
    if (x->dtype == LN_FLOAT32 || x->dtype == LN_FLOAT64) return element(x, offset);
    CPU(row_load)(cells, element(x, offset), x->dtype, n, 1, false);
    return cells;
}

/* The team that shares `items`, which are `work` elementary steps in all. */
static inline int share_team(int64_t items, int64_t work) {
    int team = ln_team(work);
    return team > items ? (int)items : team;
}

/* Calls body for each item; members of the team take runs of neighbouring items. */
typedef void share_body(void *context, int64_t item, int member);
static inline void share(int64_t items, int64_t work, share_body *body, void *context) {
    int team = share_team(items, work);
    if (team <= 1) {
        for (int64_t i = 0; i < items; i++) body(context, i, 0);
        return;
    }
#pragma omp parallel num_threads(team)
    {
        ln_take_place();
#pragma omp for schedule(static)
        for (int64_t i = 0; i < items; i++) body(context, i, omp_get_thread_num());
    }
}

static inline int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

static inline int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static inline int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

#endif
