/* Compares the numbers of cudnn_abi.h with cuDNN's own headers, where these are installed. Compiled
 * only: a number that differs does not compile. */
#if __has_include(<cudnn.h>)
#include <cudnn.h>

#include "cudnn_abi.h"

#define SAME(name, value) static_assert((int)CUDNN_##name == (value), #name);
DNN_CONSTANTS(SAME)
#endif
