/* Between the files of the shim: faults and the door to device memory. */
#ifndef LN_CUDA_HOST_HOST_H
#define LN_CUDA_HOST_HOST_H
#include "cuda_runtime.h"

/* The device is lost with this error and text from now on. Returns the error. */
cudaError_t cuda_host_fault(cudaError_t error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* What every launch begins with: the error of a lost device, or that of a fault to be simulated. */
cudaError_t cuda_host_begin(void);

/* Between these the calling thread may touch device memory. */
void cuda_host_open(void);
void cuda_host_close(void);

#endif
