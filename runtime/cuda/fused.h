/* Launching the kernels of fused_epilogue.h, on blocks of rows of two sides of a matrix. Knows no
 * links. Invariant: blocks are shared out by the sizes alone, so that a device repeats its bits. */
#ifndef LN_CUDA_FUSED_H
#define LN_CUDA_FUSED_H
#include "compile.h"
#include "epilogue.h"
#include "tile.h"

/* The most rows of a side's block. */
int64_t fused_extent(int64_t width);
/* Adds the sums of x's rows, over y's, to the totals of x's anchors. a: the kernel's arguments;
 * where x is the matrix's k, the kernel is flipped. */
ln_status fused_sums(const compiled *kernel, epilogue a, const side *x, const side *y);
/* Of a symmetric matrix, for a block of x on or above the diagonal: adds the sums of x's rows, over
 * y's, to the totals of x's anchors and, right of the diagonal, those of the transposed matrix's
 * rows to y's. Where the anchors are columns, the kernel is flipped. */
ln_status fused_both(const compiled *kernel, const epilogue &a, const side *x, const side *y);
/* Adds the weights times y's rows to the rows of dx that x has its block of. */
ln_status fused_gradient(ln_tensor *dx, const compiled *kernel, epilogue a, const side *x,
                         const side *y);

#endif
