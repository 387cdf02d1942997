/* Copies between the host and devices, pinned memory, and the streams that uploads run on. What the
 * driver's table says of these functions is in backend.h. Holds no code. */
#ifndef LN_CUDA_COPIES_H
#define LN_CUDA_COPIES_H
#include "cuda.h"

ln_status cuda_pin(void **out, size_t bytes);
void cuda_unpin(void *p, size_t bytes, void *read);
void cuda_unpin_kept(void); /* gives blocks that are kept for reuse back to the system */

ln_status cuda_transfer(void *dst, int dst_device, const void *src, int src_device, size_t bytes);

/* The calling thread's stream of uploads to a device that it has entered. */
ln_status cuda_copy_stream(cudaStream_t *out, int device);
ln_status cuda_upload(void **written, void **read, void *dst, int device, const void *src,
                      size_t bytes, void *after);
void cuda_follow(void *written, int device);
void cuda_wait(void *read);
ln_status cuda_uploads_end(int device); /* waits for the calling thread's */

#endif
