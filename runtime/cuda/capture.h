/* Capture of the calling thread's stream, and the memory of graphs. What the driver's table says of
 * these functions is in backend.h. Holds no code. */
#ifndef LN_CUDA_CAPTURE_H
#define LN_CUDA_CAPTURE_H
#include "cuda.h"

ln_status cuda_capture_begin(int device);
ln_status cuda_capture_end(void **made, int device);
ln_status cuda_graph_launch(void *made, int device);
void cuda_graph_destroy(void *made, int device);
ln_status cuda_reserve(void **out, int device, size_t bytes);
void cuda_unreserve(void *p, int device);

#endif
