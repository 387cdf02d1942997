/* Matrix products: float32 and the halves by oneDNN, float64 by dgemm.c, integers here. Invariant:
 * transposed and broadcast operands are read where they lie; only strides that no product routine
 * takes are copied. */
#include "dense.h"
#include "dgemm.h"
#include "onednn.h"

#include <string.h>

/* ---- Operands ---- */

/* The last two dimensions of t as oneDNN takes them; stride 0 where it cannot. */
static ln_matrix matrix(const ln_tensor *t) {
    int64_t rows = t->shape[t->ndim - 2], columns = t->shape[t->ndim - 1];
    int64_t row = t->stride[t->ndim - 2], column = t->stride[t->ndim - 1];
    ln_matrix a = {(float *)t->data, 0, false};
    if (rows == 1) row = column == 1 ? columns : 1;
    if (columns == 1) column = 1;
    if (column == 1 && row >= columns) {
        a.stride = row;
    } else if (row == 1 && column >= rows) {
        a.stride = column;
        a.transposed = true;
    }
    return a;
}

/* Whether the product in dtype takes t as it lies. */
static bool taken(const ln_tensor *t, int dtype) {
    return t->dtype == dtype &&
           (dtype == LN_FLOAT64 || (dtype == LN_FLOAT32 && matrix(t).stride > 0));
}

/* t as the product in dtype takes it. Dimensions that t repeats are copied once. */
static ln_status prepare(ln_dense *d, const ln_tensor *t, int dtype) {
    *d = (ln_dense){.t = *t};
    if (taken(t, dtype)) return LN_OK;
    ln_tensor once = *t;
    for (int i = 0; i < t->ndim - 2; i++)
        if (t->stride[i] == 0 && t->shape[i] > 1) {
            once.shape[i] = 1;
            once.numel /= t->shape[i];
        }
    ln_status status = CPU(dense_input)(d, &once, dtype, "matmul");
    for (int i = 0; i < t->ndim - 2; i++)
        if (t->shape[i] != once.shape[i]) d->t.stride[i] = 0;
    memcpy(d->t.shape, t->shape, sizeof t->shape);
    return status;
}

/* Merges the last leading dimension of t into its rows, or drops it where t repeats along it. */
static void fold(ln_tensor *t, bool repeats) {
    int b = t->ndim-- - 3;
    if (!repeats) t->shape[b + 1] *= t->shape[b];
    for (int i = b; i < b + 2; i++) {
        t->shape[i] = t->shape[i + 1];
        t->stride[i] = t->stride[i + 1];
    }
}

/* True where rows of the last leading dimension follow each other in even steps. */
static bool even(const ln_tensor *t) {
    int b = t->ndim - 3;
    return t->shape[b] == 1 || t->stride[b] == t->shape[b + 1] * t->stride[b + 1];
}

/* The matrix at position b of the leading dimensions. */
static ln_tensor item(const ln_tensor *t, int64_t b) {
    ln_tensor v = *t;
    for (int i = t->ndim - 3; i >= 0; i--) {
        v.data += b % t->shape[i] * t->stride[i] * (int64_t)ln_dtype_size(t->dtype);
        b /= t->shape[i];
    }
    return v;
}

/* ---- Products: z += x y for every matrix of the leading dimensions ---- */

typedef struct {
    ln_tensor z, x, y;
    int64_t batches, n, m, k;
    bool add; /* false: z is not to be read (float32 only) */
} products;

static ln_status one_float(const products *p, int64_t b, int team) {
    ln_tensor z = item(&p->z, b), x = item(&p->x, b), y = item(&p->y, b);
    return ln_onednn_matmul(matrix(&z), matrix(&x), matrix(&y), p->n, p->m, p->k, p->add, team);
}

/* The team shares out the products, or each product where they are too few for that. */
static ln_status multiply_floats(const products *p) {
    int64_t work = p->n * p->m * p->k;
    int team = ln_team(p->batches * work), worst = LN_OK;
    if (team == 1 || (p->batches % team != 0 && p->batches < 4 * team)) {
        ln_status status = LN_OK;
        for (int64_t b = 0; b < p->batches && status == LN_OK; b++)
            status = one_float(p, b, ln_team(work));
        return status;
    }
#pragma omp parallel for schedule(static) num_threads(team) reduction(max : worst)
    for (int64_t b = 0; b < p->batches; b++) {
        int status = (int)one_float(p, b, 1);
        if (status > worst) worst = status;
    }
    return worst == LN_OK ? LN_OK : ln_fail((ln_status)worst, "matmul: oneDNN failed in a batch");
}

static ln_status multiply_doubles(const products *p) {
    int i = p->z.ndim - 2, j = i + 1;
    ln_status status = LN_OK;
    for (int64_t b = 0; b < p->batches && status == LN_OK; b++) {
        ln_tensor z = item(&p->z, b), x = item(&p->x, b), y = item(&p->y, b);
        status =
            CPU(dgemm)((ln_dmatrix){(double *)z.data, z.stride[i], z.stride[j]},
                       (ln_dmatrix){(double *)x.data, x.stride[i], x.stride[j]},
                       (ln_dmatrix){(double *)y.data, y.stride[i], y.stride[j]}, p->n, p->m, p->k);
    }
    return status;
}

/* Row-major operands of int64; sums wrap, as unsigned ones may. */
static ln_status multiply_integers(const products *p) {
    int64_t n = p->n, m = p->m, k = p->k;
    int team = ln_team(p->batches * n * m * k);
#pragma omp parallel for schedule(static) num_threads(team) collapse(2)
    for (int64_t b = 0; b < p->batches; b++)
        for (int64_t i = 0; i < n; i++) {
            uint64_t *restrict z = (uint64_t *)item(&p->z, b).data + i * m;
            const uint64_t *x = (const uint64_t *)item(&p->x, b).data + i * k;
            const uint64_t *y = (const uint64_t *)item(&p->y, b).data;
            for (int64_t q = 0; q < k; q++)
                for (int64_t j = 0; j < m; j++) z[j] += x[q] * y[q * m + j];
        }
    return LN_OK;
}

static ln_status multiply(products *p) {
    int rows = p->z.ndim - 2, dtype = p->z.dtype;
    p->n = p->z.shape[rows];
    p->m = p->z.shape[rows + 1];
    p->k = p->x.shape[rows + 1];
    p->batches = p->z.numel / (p->n * p->m);
    if (p->k == 0) return LN_OK;
    if (dtype == LN_FLOAT32) return multiply_floats(p);
    return dtype == LN_FLOAT64 ? multiply_doubles(p) : multiply_integers(p);
}

/* What z holds before the products are added to it. */
static ln_status start(products *p, const ln_tensor *bias) {
    p->add = bias != NULL || p->z.dtype != LN_FLOAT32 || p->x.shape[p->x.ndim - 1] == 0;
    if (!p->add) return LN_OK;
    if (bias == NULL) return CPU(fill)(&p->z, 0);
    ln_tensor rows = ln_broadcast(bias, p->z.ndim, p->z.shape);
    return CPU(copy)(&p->z, &rows);
}

ln_status CPU(matmul)(ln_tensor *z, const ln_tensor *x, const ln_tensor *y, const ln_tensor *bias) {
    if (z->numel == 0) return LN_OK;
    int dtype = !ln_dtype_is_float(z->dtype) ? LN_INT64
                : z->dtype == LN_FLOAT64     ? LN_FLOAT64
                                             : LN_FLOAT32;
    ln_dense dz = {.t = *z}, dx = {0}, dy = {0};
    ln_status status;
    if (!taken(z, dtype) || (dtype == LN_FLOAT32 && matrix(z).transposed))
        LN_TRY(CPU(dense_output)(&dz, z, dtype, "matmul"));
    LN_TRY(prepare(&dx, x, dtype));
    LN_TRY(prepare(&dy, y, dtype));
    products p = {.z = dz.t, .x = dx.t, .y = dy.t};
    LN_TRY(start(&p, bias));
    for (int b = z->ndim - 3; b >= 0; b--) {
        if (!even(&p.z) || !even(&p.x) || (p.z.shape[b] > 1 && p.y.stride[b] != 0)) break;
        fold(&p.z, false);
        fold(&p.x, false);
        fold(&p.y, true);
    }
    LN_TRY(multiply(&p));
    LN_TRY(CPU(dense_finish)(&dz, z));
fail:
    ln_scratch_release(dz.scratch);
    ln_scratch_release(dx.scratch);
    ln_scratch_release(dy.scratch);
    return status;
}
