/* Copies between the host and devices, pinned memory, and the streams that uploads and downloads
 * run on. What the driver's table says of these functions is in backend.h. Holds no code. */
#ifndef LN_CUDA_COPIES_H
#define LN_CUDA_COPIES_H
#include "cuda.h"

ln_status cuda_pin(void **out, size_t bytes);
void cuda_unpin(void *p, size_t bytes, void *mark);
void cuda_unpin_kept(void); /* gives blocks that are kept for reuse back to the system */

ln_status cuda_transfer(void *dst, int dst_device, const void *src, int src_device, size_t bytes);

/* The calling thread's streams of copies to and from a device that it has entered. */
typedef enum { COPY_UP, COPY_DOWN, COPY_WAYS } copy_way;
ln_status cuda_copy_stream(cudaStream_t *out, int device, copy_way way);
ln_status cuda_upload(void **written, void **read, void *dst, int device, const void *src,
                      size_t bytes, void *after);
ln_status cuda_download(void **written, void **read, void *dst, const void *src, int device,
                        size_t bytes);
void cuda_follow(void *mark, int device);
bool cuda_wait(void *mark);
ln_status cuda_copies_end(int device); /* waits for the calling thread's */

#endif
