/* The part of cuDNN 9's binary interface that cudnn.cu uses, so that building takes no cuDNN:
 * numbers and signatures, from NVIDIA's reference of the backend API. Holds no code. Invariant:
 * every number is cuDNN's of the name CUDNN_<name>, which tests/cuda-host/cudnn_check.cc compares
 * where cuDNN's headers are installed. */
#ifndef LN_CUDA_CUDNN_ABI_H
#define LN_CUDA_CUDNN_ABI_H
#include <stddef.h>
#include <stdint.h>

typedef struct dnn_context *dnn_handle;
typedef void *dnn_descriptor;

#define DNN_CONSTANTS(X)                                                                           \
    X(STATUS_SUCCESS, 0)                                                                           \
    X(STATUS_BAD_PARAM, 2000)                                                                      \
    X(STATUS_BAD_PARAM_NULL_POINTER, 2002)                                                         \
    X(STATUS_BAD_PARAM_MISALIGNED_POINTER, 2003)                                                   \
    X(STATUS_BAD_PARAM_NOT_FINALIZED, 2004)                                                        \
    X(STATUS_BAD_PARAM_SIZE_INSUFFICIENT, 2006)                                                    \
    X(STATUS_BAD_PARAM_SHAPE_MISMATCH, 2008)                                                       \
    X(STATUS_BAD_PARAM_ATTRIBUTE_TYPE, 2010)                                                       \
    X(STATUS_NOT_SUPPORTED, 3000)                                                                  \
    X(STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED, 4003)                                          \
    X(STATUS_EXECUTION_FAILED, 5000)                                                               \
    X(DATA_FLOAT, 0)                                                                               \
    X(DATA_HALF, 2)                                                                                \
    X(DATA_BFLOAT16, 9)                                                                            \
    X(CROSS_CORRELATION, 1)                                                                        \
    X(HEUR_MODE_FALLBACK, 2)                                                                       \
    X(HEUR_MODE_A, 3)                                                                              \
    X(NUMERICAL_NOTE_TENSOR_CORE, 0)                                                               \
    X(NUMERICAL_NOTE_DOWN_CONVERT_INPUTS, 1)                                                       \
    X(NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION, 2)                                               \
    X(NUMERICAL_NOTE_FFT, 3)                                                                       \
    X(NUMERICAL_NOTE_NONDETERMINISTIC, 4)                                                          \
    X(NUMERICAL_NOTE_WINOGRAD, 5)                                                                  \
    X(TYPE_HANDLE, 0)                                                                              \
    X(TYPE_DATA_TYPE, 1)                                                                           \
    X(TYPE_INT64, 3)                                                                               \
    X(TYPE_FLOAT, 4)                                                                               \
    X(TYPE_VOID_PTR, 6)                                                                            \
    X(TYPE_CONVOLUTION_MODE, 7)                                                                    \
    X(TYPE_HEUR_MODE, 8)                                                                           \
    X(TYPE_NUMERICAL_NOTE, 11)                                                                     \
    X(TYPE_BACKEND_DESCRIPTOR, 15)                                                                 \
    X(BACKEND_CONVOLUTION_DESCRIPTOR, 1)                                                           \
    X(BACKEND_ENGINE_DESCRIPTOR, 2)                                                                \
    X(BACKEND_ENGINECFG_DESCRIPTOR, 3)                                                             \
    X(BACKEND_ENGINEHEUR_DESCRIPTOR, 4)                                                            \
    X(BACKEND_EXECUTION_PLAN_DESCRIPTOR, 5)                                                        \
    X(BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR, 10)                                        \
    X(BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR, 11)                                \
    X(BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR, 12)                                  \
    X(BACKEND_OPERATIONGRAPH_DESCRIPTOR, 15)                                                       \
    X(BACKEND_VARIANT_PACK_DESCRIPTOR, 16)                                                         \
    X(BACKEND_TENSOR_DESCRIPTOR, 17)                                                               \
    X(ATTR_CONVOLUTION_COMP_TYPE, 100)                                                             \
    X(ATTR_CONVOLUTION_CONV_MODE, 101)                                                             \
    X(ATTR_CONVOLUTION_DILATIONS, 102)                                                             \
    X(ATTR_CONVOLUTION_FILTER_STRIDES, 103)                                                        \
    X(ATTR_CONVOLUTION_POST_PADDINGS, 104)                                                         \
    X(ATTR_CONVOLUTION_PRE_PADDINGS, 105)                                                          \
    X(ATTR_CONVOLUTION_SPATIAL_DIMS, 106)                                                          \
    X(ATTR_ENGINEHEUR_MODE, 200)                                                                   \
    X(ATTR_ENGINEHEUR_OPERATION_GRAPH, 201)                                                        \
    X(ATTR_ENGINEHEUR_RESULTS, 202)                                                                \
    X(ATTR_ENGINECFG_ENGINE, 300)                                                                  \
    X(ATTR_EXECUTION_PLAN_HANDLE, 400)                                                             \
    X(ATTR_EXECUTION_PLAN_ENGINE_CONFIG, 401)                                                      \
    X(ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, 402)                                                     \
    X(ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, 700)                                               \
    X(ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, 701)                                                \
    X(ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, 702)                                           \
    X(ATTR_OPERATION_CONVOLUTION_FORWARD_W, 703)                                                   \
    X(ATTR_OPERATION_CONVOLUTION_FORWARD_X, 704)                                                   \
    X(ATTR_OPERATION_CONVOLUTION_FORWARD_Y, 705)                                                   \
    X(ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA, 706)                                              \
    X(ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA, 707)                                               \
    X(ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC, 708)                                          \
    X(ATTR_OPERATION_CONVOLUTION_BWD_DATA_W, 709)                                                  \
    X(ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, 710)                                                 \
    X(ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, 711)                                                 \
    X(ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA, 712)                                            \
    X(ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA, 713)                                             \
    X(ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC, 714)                                        \
    X(ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW, 715)                                               \
    X(ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X, 716)                                                \
    X(ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY, 717)                                               \
    X(ATTR_OPERATIONGRAPH_HANDLE, 800)                                                             \
    X(ATTR_OPERATIONGRAPH_OPS, 801)                                                                \
    X(ATTR_TENSOR_BYTE_ALIGNMENT, 900)                                                             \
    X(ATTR_TENSOR_DATA_TYPE, 901)                                                                  \
    X(ATTR_TENSOR_DIMENSIONS, 902)                                                                 \
    X(ATTR_TENSOR_STRIDES, 903)                                                                    \
    X(ATTR_TENSOR_UNIQUE_ID, 906)                                                                  \
    X(ATTR_VARIANT_PACK_UNIQUE_IDS, 1000)                                                          \
    X(ATTR_VARIANT_PACK_DATA_POINTERS, 1001)                                                       \
    X(ATTR_VARIANT_PACK_WORKSPACE, 1003)                                                           \
    X(ATTR_ENGINE_NUMERICAL_NOTE, 1303)

enum {
#define DNN_CONSTANT(name, value) DNN_##name = value,
    DNN_CONSTANTS(DNN_CONSTANT)
#undef DNN_CONSTANT
};

/* F(name, result, arguments) of the function cudnn<name>; enumerations are ints. */
#define DNN_FUNCTIONS(F)                                                                           \
    F(GetVersion, size_t, (void))                                                                  \
    F(GetErrorString, const char *, (int status))                                                  \
    F(Create, int, (dnn_handle * handle))                                                          \
    F(SetStream, int, (dnn_handle handle, cudaStream_t stream))                                    \
    F(BackendCreateDescriptor, int, (int type, dnn_descriptor *descriptor))                        \
    F(BackendDestroyDescriptor, int, (dnn_descriptor descriptor))                                  \
    F(BackendSetAttribute, int,                                                                    \
      (dnn_descriptor descriptor, int name, int type, int64_t count, const void *elements))        \
    F(BackendGetAttribute, int,                                                                    \
      (dnn_descriptor descriptor, int name, int type, int64_t asked, int64_t *count,               \
       void *elements))                                                                            \
    F(BackendFinalize, int, (dnn_descriptor descriptor))                                           \
    F(BackendExecute, int, (dnn_handle handle, dnn_descriptor plan, dnn_descriptor pack))

#endif
