/* Looking at index tensors without waiting for the device. Declarations only. */
#ifndef LN_CUDA_INDEX_H
#define LN_CUDA_INDEX_H
#include "cuda.h"

/* Good values: low..high, and `also` where high is above 0. */
typedef struct {
    int64_t low, high, also;
} index_range;

/* Has the device look at an index. A value out of range fails the next wait for the device, by
 * whichever thread, as what(...): an operator that reads the index passes over such values. */
ln_status cuda_index_check(const ln_tensor *index, index_range range, const char *what);

/* After a wait for the device: the first bad index that was found since the last call, as a
 * failure. */
ln_status cuda_index_found(int device);

#endif
