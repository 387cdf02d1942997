/* Matrix products: operands readied for the library (products.h), and a plain kernel for integers.
 * Invariant: transposed and broadcast operands are read where they lie; only strides that no
 * product routine takes are copied. */
#include "products.h"
#include "walk.h"

/* ---- Operands ---- */

/* The last two dimensions of t as the library takes them; stride 0 where it cannot. */
static matrix matrix_of(const ln_tensor *t) {
    int64_t rows = t->shape[t->ndim - 2], columns = t->shape[t->ndim - 1];
    int64_t row = t->stride[t->ndim - 2], column = t->stride[t->ndim - 1];
    matrix a = {t->data, 0, 0, false};
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

/* The same for every matrix of the leading dimensions, which must follow each other in even steps;
 * stride 0 where they do not. */
static matrix batch_of(const ln_tensor *t) {
    matrix a = matrix_of(t);
    int64_t count = 1;
    for (int d = t->ndim - 3; d >= 0; d--) {
        if (t->shape[d] == 1) continue;
        if (count == 1) a.step = t->stride[d];
        else if (t->stride[d] != a.step * count) a.stride = 0;
        count *= t->shape[d];
    }
    return a;
}

/* t itself where it can be read, else a row-major copy in *made. */
static ln_status operand(matrix *a, ln_tensor **made, const ln_tensor *t) {
    *a = batch_of(t);
    if (a->stride > 0) return LN_OK;
    ln_status status = ln_contiguous(made, t);
    if (status == LN_OK) *a = batch_of(*made);
    return status;
}

/* ---- Integers: a thread an element, sums wrap ---- */

static __global__ void integer_kernel(walk w, int64_t k, int64_t x_step, int64_t y_step) {
    enum { Z, X, Y, BIAS, TENSORS };
    for (int64_t i = grid_thread(); i < w.numel; i += grid_threads()) {
        int64_t at[TENSORS];
        walk_offsets<TENSORS>(w, i, at);
        uint64_t sum = (uint64_t)walk_load<int64_t>(w, BIAS, at[BIAS]);
        for (int64_t q = 0; q < k; q++)
            sum += (uint64_t)walk_load<int64_t>(w, X, at[X] + q * x_step) *
                   (uint64_t)walk_load<int64_t>(w, Y, at[Y] + q * y_step);
        walk_store(w, Z, at[Z], (int64_t)sum);
    }
}

static ln_status multiply_integers(ln_tensor *z, const ln_tensor *x, const ln_tensor *y,
                                   const ln_tensor *bias) {
    int row = z->ndim - 2, column = z->ndim - 1;
    ln_tensor rows = *x, columns = *y, biases;
    rows.shape[column] = z->shape[column];
    rows.stride[column] = 0;
    columns.shape[row] = z->shape[row];
    columns.stride[row] = 0;
    if (bias != NULL) biases = ln_broadcast(bias, z->ndim, z->shape);
    const ln_tensor *t[] = {z, &rows, &columns, bias == NULL ? NULL : &biases};
    walk w = walk_over(4, t, 0);
    return launch("matmul", integer_kernel, blocks_for(w.numel), THREADS, w, x->shape[column],
                  x->stride[column], y->stride[row]);
}

/* ---- The slot ---- */

/* What z holds before the products are added to it; nothing where they need not be. */
static ln_status start(ln_tensor *z, const ln_tensor *bias, bool needed) {
    if (bias == NULL) return needed ? CUDA(fill)(z, 0) : LN_OK;
    ln_tensor rows = ln_broadcast(bias, z->ndim, z->shape);
    return CUDA(copy)(z, &rows);
}

ln_status CUDA(matmul)(ln_tensor *z, const ln_tensor *x, const ln_tensor *y,
                       const ln_tensor *bias) {
    ln_status status = cuda_enter(z, "matmul");
    if (status != LN_OK || z->numel == 0) return status;
    if (!ln_dtype_is_float(z->dtype)) return multiply_integers(z, x, y, bias);
    ln_tensor *made[3] = {}, *out = z;
    matrix a[3];
    int64_t n = z->shape[z->ndim - 2], m = z->shape[z->ndim - 1], k = x->shape[x->ndim - 1];
    a[0] = batch_of(z);
    if (a[0].stride == 0 || a[0].transposed) {
        LN_TRY(ln_out(&made[0], z->dtype, ln_device(z), z->ndim, z->shape, "matmul"));
        out = made[0];
        a[0] = batch_of(out);
    }
    LN_TRY(start(out, bias, k == 0));
    if (k > 0) {
        LN_TRY(operand(&a[1], &made[1], x));
        LN_TRY(operand(&a[2], &made[2], y));
        LN_TRY(cuda_product(product_of(z->dtype), a[0], a[1], a[2], n, m, k, z->numel / (n * m),
                            bias != NULL, "matmul"));
    }
    if (out != z) status = CUDA(copy)(z, out);
fail:
    for (int i = 0; i < 3; i++) ln_tensor_release(made[i]);
    return status;
}
