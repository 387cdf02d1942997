/* What pooling asks of scattering. Declarations only. */
#ifndef LN_CUDA_SELECT_H
#define LN_CUDA_SELECT_H
#include "sort.h"

/* dst (planes, places) += src (planes, n) at index (planes, n), places from 0, in the order of the
 * index. */
ln_status cuda_scatter_planes(ln_tensor *dst, const ln_tensor *index, const ln_tensor *src,
                              const char *what);

#endif
