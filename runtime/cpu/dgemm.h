/* The float64 matrix product, which oneDNN lacks. */
#ifndef LN_CPU_DGEMM_H
#define LN_CPU_DGEMM_H
#include "kernels.h"

/* Element (i, j) is data[i * row + j * column]. */
typedef struct {
    double *data;
    int64_t row, column;
} ln_dmatrix;

/* z (n,m) += x (n,k) y (k,m). The bits depend on n, m and k only, not on the team. */
ln_status CPU(dgemm)(ln_dmatrix z, ln_dmatrix x, ln_dmatrix y, int64_t n, int64_t m, int64_t k);

#endif
