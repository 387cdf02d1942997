/* The C ABI of liblunce, whole with the headers it includes. Stripped of their preprocessor lines
 * they are also the text that lualib/lunce/ffi.lua hands to ffi.cdef, so they hold only plain C
 * declarations: no macros in types, no function pointers, no inline functions.
 *
 * Conventions, for every function unless its comment says otherwise:
 * - A fallible function returns a status. On failure its outputs are untouched and ln_error()
 *   says what was given and what is taken.
 * - `ln_tensor **out`: where *out is NULL a new tensor is stored there, owned by the caller, who
 *   gives it back to ln_tensor_release; otherwise the result is written into the tensor *out,
 *   whose shape, dtype and device must be the result's. It may be an input of an elementwise
 *   operator; it may not otherwise overlap an input.
 * - Dimensions and scalar positions count from 0. Values *inside* index tensors (int64) are what
 *   a Lua user sees and count from 1; there -1 is the last.
 * - No function prints, exits, aborts or longjmps, and none keeps a pointer it was given.
 * - Functions may be called from several threads; one tensor may not be written from two at once.
 */
#ifndef LN_H
#define LN_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#pragma GCC visibility push(default)

enum { LN_ABI_VERSION = 1, LN_MAX_DIMS = 8 };

typedef enum {
    LN_OK = 0,
    LN_BAD_ARGUMENT = 1, /* the caller's mistake: shape, dtype, device, index, value */
    LN_OUT_OF_MEMORY = 2,
    LN_INTERRUPTED = 3, /* ln_interrupt was called */
    LN_NOT_FOUND = 4,   /* an expected absence: no such file */
    LN_IO = 5,          /* reading or writing failed */
    LN_BAD_DATA = 6,    /* a file's content breaks its format */
    LN_NO_DEVICE = 7,   /* the device does not exist or was not built in */
    LN_INTERNAL = 8,    /* a library under us failed */
    LN_DEVICE_LOST = 9  /* a CUDA device failed for good: this process can only end */
} ln_status;

/* ORDER DTYPE: names, sizes and classes in tensor.c follow it. */
typedef enum {
    LN_FLOAT32, LN_FLOAT64, LN_BFLOAT16, LN_FLOAT16, LN_INT64, LN_INT32, LN_UINT8, LN_BOOL
} ln_dtype;

/* Devices are numbers: the CPU, then one for each CUDA device. */
enum { LN_CPU = 0, LN_CUDA = 1 };
typedef struct ln_tensor ln_tensor;

/* ---- Errors, threads, interrupts ------------------------------------------------------------ */
/* The calling thread's last failure, one line. Valid until its next failing call. */
const char *ln_error(void);
int ln_abi_version(void);
/* The instruction set the CPU kernels run on: "baseline", "avx2" or "avx512". Results differ
 * between them in the last bits. ln_isa_set takes one that the processor has. */
const char *ln_isa(void);
ln_status ln_isa_set(const char *name);
/* The size of the team that carries CPU kernels, 1 to 256 (initially the cores this process may
 * run on). The same size gives the same bits however many cores carry it. */
int ln_threads(void);
ln_status ln_threads_set(int n);
/* ln_interrupt (safe in a signal handler) makes every operator and loader fail with
 * LN_INTERRUPTED until ln_interrupt_clear; ln_interrupted tells whether it is set. */
void ln_interrupt(void);
void ln_interrupt_clear(void);
bool ln_interrupted(void);

/* ---- Devices -------------------------------------------------------------------------------- */
/* The number of CUDA devices, 1 or more; loads their backend first. Fails with LN_NO_DEVICE, and
 * says why, where there is none: no driver, no device, or built without CUDA. */
ln_status ln_cuda_devices(int *out);
/* Devices with numbers below this are ready for use: 1 until a CUDA device has been asked for. */
int ln_devices(void);
/* The model of a CUDA device, "NVIDIA H200"; valid until the thread's next call. */
ln_status ln_cuda_name(const char **out, int device);
/* Whether float32 products on CUDA devices may round their operands to TF32, which has 10 bits of
 * fraction and several times the rate. Initially not. */
bool ln_cuda_tf32(void);
void ln_cuda_tf32_set(bool allowed);
/* The cuDNN that convolves on CUDA devices, but in float64: 90100 is 9.1.0; 0 where it is missing
 * or not allowed (initially it is): *why says why, and matrix products serve. */
ln_status ln_cuda_cudnn(int *version, const char **why);
void ln_cuda_cudnn_set(bool allowed);
ln_status ln_synchronize(int device); /* waits for all that the calling thread asked of it */
/* Whether a CUDA device has failed for good: a program that ends for it says so by its status. */
bool ln_device_lost(void);

/* ---- Captured steps ------------------------------------------------------------------------- */
/* What a thread asked of a CUDA device, to be done again: see graph.c. Tensors that were made while
 * it was recorded lie in its own memory: live bytes until neither it nor one of them lives. From
 * begin to end, or abandon, nothing is done; what waits for the device or copies from or to the
 * host fails. Where end fails nothing is recorded any more. A launch counts as a write. */
typedef struct ln_graph ln_graph;
ln_status ln_graph_begin(int device);
ln_status ln_graph_end(ln_graph **out);
void ln_graph_abandon(void);
ln_status ln_graph_launch(ln_graph *g);
void ln_graph_release(ln_graph *g); /* NULL is allowed */

/* ---- Memory --------------------------------------------------------------------------------- */
typedef struct {
    int64_t live_bytes;   /* held by tensors, in blocks of 64 bytes and more, on CUDA of 512 */
    int64_t peak_bytes;   /* the most live_bytes has been since ln_memory_reset_peak */
    int64_t cached_bytes; /* released and kept for reuse; never raises the footprint above the most
                             that tensors and kernels have needed at once */
    int64_t soft_bytes;   /* growth of live_bytes between two collections that raises pressure */
    int64_t hard_bytes;   /* live_bytes never exceeds it */
    int64_t tensors;      /* handles not yet released, on all devices */
    int64_t storages;     /* blocks they share */
    int64_t allocations;  /* storages made since the start */
} ln_memory;

ln_status ln_memory_info(ln_memory *out, int device);
void ln_memory_reset_peak(int device);
/* Sets soft_bytes and hard_bytes; 0 leaves one as it is. Initially 256 MiB, or 1/64 of a CUDA
 * device's memory where that is more; and 80 % of the memory that was available at start-up, or
 * 95 % of what a CUDA device had when it was first used. */
ln_status ln_memory_limit(int device, int64_t soft_bytes, int64_t hard_bytes);
/* True when a device's live bytes have grown by its soft_bytes since ln_memory_collected was last
 * called: time for the host language to run its collector and then call ln_memory_collected. */
bool ln_memory_pressure(void);
void ln_memory_collected(void);
ln_status ln_memory_flush(int device); /* gives cached blocks back to the system */
/* For tests: the n-th storage allocation from now fails once with LN_OUT_OF_MEMORY; 0 disarms. */
void ln_memory_fail_after(int64_t n);

/* ---- Tensors -------------------------------------------------------------------------------- */
typedef struct {
    int dtype, device, ndim;
    bool contiguous, channels_last;   /* row-major without gaps; see ln_channels_last */
    uint32_t version;                 /* counts in-place writes to the storage */
    int holders;                      /* handles that share the storage, this one included */
    int64_t numel;
    int64_t storage;                  /* an address-like number: equal for tensors that share */
    int64_t shape[8], stride[8];      /* in elements; LN_MAX_DIMS */
} ln_tensor_info;

/* A new row-major tensor of 0 to LN_MAX_DIMS dimensions, contents undefined. */
ln_status ln_tensor_empty(ln_tensor **out, int dtype, int device, int ndim, const int64_t *shape);
ln_status ln_empty_like(ln_tensor **out, const ln_tensor *x); /* in x's memory format too */
/* Gives back a handle. NULL is allowed. Cannot fail. The storage goes with its last handle. */
void ln_tensor_release(ln_tensor *t);
ln_status ln_tensor_alias(ln_tensor **out, const ln_tensor *t); /* of the same elements */
/* The rows of first (N,D) and after them those of second (M,D), both contiguous and on one CUDA
 * device, as a matrix (N+M,D) that keeps both and copies neither. The similarity operators alone
 * take it, as q where k is NULL. Its version changes with either's. */
ln_status ln_tensor_join(ln_tensor **out, const ln_tensor *first, const ln_tensor *second);
ln_status ln_tensor_describe(ln_tensor_info *out, const ln_tensor *t);
uint32_t ln_tensor_version(const ln_tensor *t); /* 0 for NULL */
/* Host values in row-major order: n must be the number of elements. int64 values beyond 2^53 are
 * rounded. Out-of-range values saturate for integers; NaN becomes 0 there. */
ln_status ln_tensor_write(ln_tensor *t, const double *values, int64_t n);
ln_status ln_tensor_read(double *values, const ln_tensor *t, int64_t n);

/* Views share the storage of t. One extent of -1 in shape is inferred; ln_reshape copies only
 * where no view exists, ln_view fails there. */
ln_status ln_view(ln_tensor **out, const ln_tensor *t, int ndim, const int64_t *shape);
ln_status ln_reshape(ln_tensor **out, const ln_tensor *t, int ndim, const int64_t *shape);
ln_status ln_permute(ln_tensor **out, const ln_tensor *t, int ndim, const int *dims);
/* Elements start, start + step, ... (count of them, step >= 1) of dimension dim. */
ln_status ln_slice(ln_tensor **out, const ln_tensor *t, int dim, int64_t start, int64_t count,
                   int64_t step);
ln_status ln_select(ln_tensor **out, const ln_tensor *t, int dim, int64_t position);
ln_status ln_expand(ln_tensor **out, const ln_tensor *t, int ndim, const int64_t *shape);
/* The diagonal of dimensions dim1, dim2, as the last dimension (torch.diagonal). */
ln_status ln_diagonal(ln_tensor **out, const ln_tensor *t, int64_t offset, int dim1, int dim2);

/* ---- Filling and copying -------------------------------------------------------------------- */
/* dst = src, broadcast, cast and moved between devices as needed. */
ln_status ln_copy(ln_tensor *dst, const ln_tensor *src);
ln_status ln_cast(ln_tensor **out, const ln_tensor *x, int dtype);
ln_status ln_contiguous(ln_tensor **out, const ln_tensor *x); /* always a copy, row-major */
/* A copy of x (N,C,H,W) in the order of a row-major (N,H,W,C): channels-last. Casts, moves,
 * elementwise operators, convolutions (where x or w is), pools and batch_norm keep this format. */
ln_status ln_channels_last(ln_tensor **out, const ln_tensor *x);
ln_status ln_to_device(ln_tensor **out, const ln_tensor *x, int device);
/* The same, beside other work where it can be: see upload.c */
ln_status ln_upload(ln_tensor **out, const ln_tensor *x, int device);
/* A row-major copy on the CPU, in memory that the system never moves: CUDA devices copy from and to
 * it at full speed. Takes a CUDA device to be there. */
ln_status ln_pin(ln_tensor **out, const ln_tensor *x);
bool ln_is_pinned(const ln_tensor *x); /* false for NULL */
ln_status ln_fill(ln_tensor *dst, double value);
/* dst[i] = start + i * step for the 1-D dst. */
ln_status ln_arange(ln_tensor *dst, double start, double step);

/* Random numbers are Philox4x32-10 at an address: element i of dst (row-major) is drawn from the
 * 64 bits at index offset + i of the stream under the key `seed`, whatever the dtype, the device,
 * the instruction set or the team. Those bits are half of a block: see ln_philox. */
typedef enum {
    LN_UNIFORM,   /* [a, b) */
    LN_NORMAL,    /* mean a, standard deviation b; Box-Muller */
    LN_BERNOULLI, /* 1 with probability a, else 0 */
    LN_INTEGERS   /* integers a <= x < b */
} ln_distribution;
/* address: NULL, or (2) int64 on dst's CUDA device: the seed, and what stream counts from. */
ln_status ln_random(ln_tensor *dst, int distribution, double a, double b, uint64_t seed,
                    uint64_t stream, uint64_t offset, const ln_tensor *address);
/* dst (n) int64: a permutation of 1..n. */
ln_status ln_randperm(ln_tensor *dst, uint64_t seed, uint64_t stream);
/* The four words at the counter (block, stream) under the key `seed`. Index i owns words 0
 * and 1 (low word first) of block i / 2 where i is even, 2 and 3 where it is odd. */
void ln_philox(uint32_t out[4], uint64_t seed, uint64_t stream, uint64_t block);

/* ---- Elementwise ---------------------------------------------------------------------------- */
/* ORDER UNARY: elementwise.def follows it. Results keep x's dtype, but integer and bool x give
 * float32 from the operators marked f, and those marked b give bool. a and b are parameters. */
typedef enum {
    LN_NEG, LN_ABS, LN_SQUARE, LN_SIGN,
    LN_EXP /*f*/, LN_EXPM1 /*f*/, LN_LOG /*f*/, LN_LOG1P /*f*/, LN_SQRT /*f*/, LN_RSQRT /*f*/,
    LN_RECIPROCAL /*f*/, LN_SIN /*f*/, LN_COS /*f*/, LN_TANH /*f*/, LN_SIGMOID /*f*/,
    LN_SOFTPLUS /*f*/, LN_GELU /*f, by erf*/, LN_ERF /*f*/,
    LN_RELU, LN_FLOOR, LN_CEIL, LN_ROUND /*half to even*/, LN_CLAMP /*to [a,b]; NaN stays*/,
    LN_ISFINITE /*b*/, LN_ISNAN /*b*/, LN_LOGICAL_NOT /*b*/
} ln_unary_op;
ln_status ln_unary(ln_tensor **out, int op, const ln_tensor *x, double a, double b);

/* ORDER BINARY. Shapes broadcast as NumPy's; dtypes promote as PyTorch's (float over integer,
 * wider over narrower, bfloat16 with float16 to float32). Integer DIV and POW compute in float32;
 * comparisons and logic give bool. The *_BACKWARD forms give the gradient of a unary operator's
 * input: first argument dy, second as named. */
typedef enum {
    LN_ADD, LN_SUB, LN_MUL, LN_DIV, LN_POW, LN_MINIMUM, LN_MAXIMUM,
    LN_EQ, LN_NE, LN_LT, LN_LE, LN_GT, LN_GE, LN_LOGICAL_AND, LN_LOGICAL_OR, LN_LOGICAL_XOR,
    LN_RELU_BACKWARD /*y*/, LN_SIGMOID_BACKWARD /*y*/, LN_TANH_BACKWARD /*y*/,
    LN_SOFTPLUS_BACKWARD /*x*/, LN_GELU_BACKWARD /*x*/, LN_ERF_BACKWARD /*x*/,
    LN_SQRT_BACKWARD /*y*/, LN_RSQRT_BACKWARD /*y*/, LN_RECIPROCAL_BACKWARD /*y*/,
    LN_LOG_BACKWARD /*x*/, LN_LOG1P_BACKWARD /*x*/, LN_ABS_BACKWARD /*x*/,
    LN_SQUARE_BACKWARD /*x*/, LN_SIN_BACKWARD /*x*/, LN_COS_BACKWARD /*x*/
} ln_binary_op;
ln_status ln_binary(ln_tensor **out, int op, const ln_tensor *x, const ln_tensor *y);
/* The same with a number, which takes x's dtype when it can (an integer tensor and a fractional
 * number give float32); swapped: number op x. */
ln_status ln_binary_scalar(ln_tensor **out, int op, const ln_tensor *x, double y, bool swapped);
/* dx of clamp: dy where a <= x <= b, else 0. */
ln_status ln_clamp_backward(ln_tensor **out, const ln_tensor *dy, const ln_tensor *x, double a,
                            double b);
/* cond ? x : y; cond is bool, all three broadcast. */
ln_status ln_where(ln_tensor **out, const ln_tensor *cond, const ln_tensor *x, const ln_tensor *y);
/* dst = a x + b dst; shapes equal, x may broadcast to dst. b = 0 does not read dst. */
ln_status ln_axpby(ln_tensor *dst, double a, const ln_tensor *x, double b);

/* ---- Reductions ----------------------------------------------------------------------------- */
/* ORDER REDUCE. Over the dimensions in the bit set dims (0: all of them). Fixed chunks combined in
 * a fixed order. Integer SUM and PROD give int64, MEAN and the rest of integers float32. Empty:
 * sum 0, prod 1, all true, any false, logsumexp -inf, mean and var NaN, min and max an error. */
typedef enum {
    LN_SUM, LN_MEAN, LN_PROD, LN_MIN, LN_MAX, LN_ANY, LN_ALL,
    LN_VAR,       /* a: the correction, 1 for the unbiased estimate */
    LN_LOGSUMEXP, /* a row of -inf gives -inf */
    LN_NORM       /* a: the order: 1, 2 or infinity */
} ln_reduce_op;
ln_status ln_reduce(ln_tensor **out, int op, const ln_tensor *x, uint32_t dims, bool keepdim,
                    double a);
/* The largest or smallest along dim and its position (int64); the first of equals, a NaN wins. */
ln_status ln_extreme(ln_tensor **values, ln_tensor **indices, const ln_tensor *x, int dim,
                     bool keepdim, bool largest);
ln_status ln_cumsum(ln_tensor **out, const ln_tensor *x, int dim, bool reverse);

/* ---- Selecting ------------------------------------------------------------------------------ */

ln_status ln_sort(ln_tensor **values, ln_tensor **indices, const ln_tensor *x, int dim,
                  bool descending); /* stable; NaN counts as larger than all */
/* The k largest (or smallest) along dim, in that order; ties by position. 0 <= k <= extent. */
ln_status ln_topk(ln_tensor **values, ln_tensor **indices, const ln_tensor *x, int64_t k, int dim,
                  bool largest);
/* Fails, as `what`, where an int64 or int32 index leaves 1..extent. On a CUDA device the next wait
 * for it fails, here and in the operators below, and what such an index selects or adds is 0. */
ln_status ln_index_check(const ln_tensor *index, int64_t extent, const char *what);
/* index: 1-D. An index out of range is an error that names it. */
ln_status ln_index_select(ln_tensor **out, const ln_tensor *x, int dim, const ln_tensor *index);
/* dst at index along dim += src, in the order of index (deterministic). */
ln_status ln_index_add(ln_tensor *dst, int dim, const ln_tensor *index, const ln_tensor *src);
/* dst at index along dim = src, of another storage; of what goes to one place the last stays. */
ln_status ln_index_copy(ln_tensor *dst, int dim, const ln_tensor *index, const ln_tensor *src);
/* torch.gather and torch.Tensor.scatter_add_. index has x's (src's) number of dimensions. */
ln_status ln_gather(ln_tensor **out, const ln_tensor *x, int dim, const ln_tensor *index);
ln_status ln_scatter_add(ln_tensor *dst, int dim, const ln_tensor *index, const ln_tensor *src);

/* ---- Products ------------------------------------------------------------------------------- */
/* (..., n, k) x (..., k, m) -> (..., n, m); leading dimensions broadcast; any strides. Dtypes must
 * be equal. bias: NULL or (m), added to every row. */
ln_status ln_matmul(ln_tensor **out, const ln_tensor *x, const ln_tensor *y, const ln_tensor *bias);

typedef struct {
    int64_t stride[2], padding[2], dilation[2], groups; /* height, width */
} ln_conv_params;
/* x (N,C,H,W), w (O,C/groups,kh,kw), bias NULL or (O) -> (N,O,H',W'). */
ln_status ln_conv2d(ln_tensor **out, const ln_tensor *x, const ln_tensor *w, const ln_tensor *bias,
                    const ln_conv_params *p);
/* Any of dx, dw, db may be NULL: not wanted. */
ln_status ln_conv2d_backward(ln_tensor **dx, ln_tensor **dw, ln_tensor **db, const ln_tensor *dy,
                             const ln_tensor *x, const ln_tensor *w, const ln_conv_params *p);

typedef struct {
    int64_t kernel[2], stride[2], padding[2];
} ln_pool_params;
/* Padding counts as -inf. indices (int32, for the backward pass only): the winner's offset in its
 * H x W plane. */
ln_status ln_max_pool2d(ln_tensor **out, ln_tensor **indices, const ln_tensor *x,
                        const ln_pool_params *p);
ln_status ln_max_pool2d_backward(ln_tensor **dx, const ln_tensor *dy, const ln_tensor *indices,
                                 int64_t height, int64_t width);
/* Padding counts as zeros and in the divisor (PyTorch's default). */
ln_status ln_avg_pool2d(ln_tensor **out, const ln_tensor *x, const ln_pool_params *p);
ln_status ln_avg_pool2d_backward(ln_tensor **dx, const ln_tensor *dy, int64_t height, int64_t width,
                                 const ln_pool_params *p, bool channels_last); /* dx */
ln_status ln_adaptive_avg_pool2d(ln_tensor **out, const ln_tensor *x, int64_t height,
                                 int64_t width);
ln_status ln_adaptive_avg_pool2d_backward(ln_tensor **dx, const ln_tensor *dy, int64_t height,
                                          int64_t width, bool channels_last);

/* ---- Normalisation -------------------------------------------------------------------------- */
/* softmax, or its logarithm, along dim; a slice of -inf gives NaN as in PyTorch. */
ln_status ln_softmax(ln_tensor **out, const ln_tensor *x, int dim, bool logarithm);
ln_status ln_softmax_backward(ln_tensor **dx, const ln_tensor *dy, const ln_tensor *y, int dim,
                              bool logarithm);

/* x (N,C,...). weight and bias: (C), both or neither NULL. Training: normalises by the batch's own
 * statistics, stored in mean and rstd (C), and moves running_mean and running_var (C; NULL: none)
 * by momentum (the variance unbiased). Otherwise: by the running statistics; mean and rstd receive
 * what was used. Then adds residual (like x; NULL: none), and takes what is above 0 when relu. */
ln_status ln_batch_norm(ln_tensor **out, ln_tensor **mean, ln_tensor **rstd, const ln_tensor *x,
                        const ln_tensor *weight, const ln_tensor *bias, const ln_tensor *residual,
                        ln_tensor *running_mean, ln_tensor *running_var, bool training, bool relu,
                        double momentum, double eps);
/* y: the output, with relu; else NULL, and so is dresidual: it is dy. All but dx may be NULL. */
ln_status ln_batch_norm_backward(ln_tensor **dx, ln_tensor **dweight, ln_tensor **dbias,
    ln_tensor **dresidual, const ln_tensor *dy, const ln_tensor *x, const ln_tensor *y,
    const ln_tensor *weight, const ln_tensor *mean, const ln_tensor *rstd, bool training);
/* Over the last ndim_normalised dimensions; weight and bias have their shape, or are NULL. mean and
 * rstd have the leading dimensions. */
ln_status ln_layer_norm(ln_tensor **out, ln_tensor **mean, ln_tensor **rstd, const ln_tensor *x,
                        const ln_tensor *weight, const ln_tensor *bias, int ndim_normalised,
                        double eps);
ln_status ln_layer_norm_backward(ln_tensor **dx, ln_tensor **dweight, ln_tensor **dbias,
                                 const ln_tensor *dy, const ln_tensor *x, const ln_tensor *weight,
                                 const ln_tensor *mean, const ln_tensor *rstd, int ndim_normalised);

#include "ln_similarity.h"

/* ---- Update rules --------------------------------------------------------------------------- */
/* numbers: NULL, or float64 on p's CUDA device, read as the step is made: (2), of which the first
 * takes the place of lr; (4), the first three of what ln_adam_numbers makes of lr and step: p's
 * factor, and lr and v's factor, corrected. Where the last of them is 0 nothing is changed.
 * torch.optim.SGD: g += weight_decay p; buf = momentum buf + (1 - dampening) g (buf = g when
 * first); g = nesterov ? g + momentum buf : buf; p -= lr g. buf may be NULL when momentum is 0. */
ln_status ln_sgd_step(ln_tensor *p, const ln_tensor *g, ln_tensor *buf, double lr, double momentum,
                      double dampening, double weight_decay, bool nesterov, bool first,
                      const ln_tensor *numbers);
/* torch.optim.Adam, or AdamW when decoupled; step counts from 1. */
ln_status ln_adam_step(ln_tensor *p, const ln_tensor *g, ln_tensor *m, ln_tensor *v, double lr,
                       double beta1, double beta2, double eps, double weight_decay, int64_t step,
                       bool decoupled, const ln_tensor *numbers);
void ln_adam_numbers(double numbers[3], double lr, double beta1, double beta2, double weight_decay,
                     int64_t step, bool decoupled);

/* ---- Files ---------------------------------------------------------------------------------- */
typedef struct ln_file ln_file;

/* Opens a regular file to read it; LN_NOT_FOUND where there is none. */
ln_status ln_file_open(ln_file **out, const char *path);
/* A file to write in the place of path. Until ln_file_commit the bytes lie under a temporary name
 * in the same directory; commit flushes them, renames the file to path and flushes the directory:
 * killed at any moment, this leaves what path held before, whole. */
ln_status ln_file_create(ln_file **out, const char *path);
/* Closes and frees; a created file that was not committed is removed. NULL is allowed. */
void ln_file_close(ln_file *f);
int64_t ln_file_size(const ln_file *f); /* of an opened file, in bytes, when it was opened */
/* n bytes from offset on; LN_BAD_DATA where the file ends before. */
ln_status ln_file_read(void *dst, ln_file *f, int64_t offset, int64_t n);
/* Tensors are row-major and little-endian in files; dst and t are contiguous and on the CPU. A
 * byte of a bool that is neither 0 nor 1 is LN_BAD_DATA. */
ln_status ln_file_read_tensor(ln_tensor *dst, ln_file *f, int64_t offset);
ln_status ln_file_write(ln_file *f, const void *bytes, int64_t n);
ln_status ln_file_write_tensor(ln_file *f, const ln_tensor *t);
ln_status ln_file_commit(ln_file *f);

/* Reads an IDX file of unsigned bytes, plain or gzip'd, into a new uint8 tensor of the shape that
 * the file states. Whatever a plain file states, no more memory is taken than its size. */
ln_status ln_idx_read(ln_tensor **out, const char *path);

/* ---- Images and their loading --------------------------------------------------------------- */
/* Decodes the n bytes of a JPEG, PNG or BMP file into a new uint8 tensor (channels,H,W); channels
 * is 1 (grey) or 3 (RGB; alpha is dropped). More than 64 megapixels, a JPEG without its end, a PNG
 * with a wrong checksum and a BMP cut short are LN_BAD_DATA. */
ln_status ln_image_decode(ln_tensor **out, const void *bytes, int64_t n, int channels);

/* ORDER TRANSFORM: steps on an image (C,H,W) of 1 or 3 channels with values 0 to 1. `a` holds a
 * step's numbers, named here in order; p is the probability that the step is taken at all. Colours
 * follow torchvision's formulas for float images, resampling its antialiased one. On one channel
 * saturation, hue and greyscale change nothing. */
typedef enum {
    LN_CROP,   /* top, left, height, width: cut; then resample to: height, width; filter */
    LN_HFLIP,
    LN_BRIGHTNESS, LN_CONTRAST, LN_SATURATION, /* factor >= 0 */
    LN_HUE,       /* part of a turn, -0.5 to 0.5 */
    LN_GRAYSCALE,
    LN_SOLARIZE,  /* threshold */
    LN_BLUR,      /* size of the kernel, odd; lowest and highest sigma to draw between */
    LN_NORMALIZE, /* mean of channels 1, 2, 3; standard deviation of channels 1, 2, 3 */
    LN_RANDOM_RESIZED_CROP, /* height, width; part of the area from, to; ratio from, to; filter */
    LN_RESIZE,       /* the shorter side's length, or 0 and: height, width; filter */
    LN_CENTER_CROP,  /* height, width */
    LN_COLOR_JITTER  /* factors of brightness, contrast, saturation: from, to; hue: from, to. The
                        four are taken in an order that is drawn too */
} ln_transform_op;
typedef enum { LN_BILINEAR, LN_BICUBIC } ln_filter;
typedef struct {
    int op;
    double p, a[8];
} ln_transform;

/* The draws of a view of a sample (below 2^31) have an address: draw d is at index 2^33 sample + d
 * of the stream 2^63 + 2^32 view + epoch (random.h). Step i of a chain has the draws from 256 i on,
 * the first of which decides whether it is taken. */
typedef struct {
    uint64_t seed;
    uint32_t epoch, sample, view;
} ln_draw_address;

/* A uint8 (0..255 becomes 0..1) or float32 image (C,H,W), taken through the n steps, as float32. */
ln_status ln_image_transform(ln_tensor **out, const ln_tensor *image, const ln_transform *steps,
                             int n, const ln_draw_address *address);

/* Views of a batch, made where the images lie: out (views,B,C,H,W), contiguous, of dtype float32,
 * float16 or bfloat16. images (N,C,H,W) uint8, contiguous; index (B) int64 on the CPU, contiguous.
 * They are a loader's with this seed in this epoch: the draws, and the bits too but for a CUDA
 * device's blurs (its exp). Such a device refuses what overflows a block's shared memory. */
ln_status ln_augment(ln_tensor **out, int dtype, const ln_tensor *images, const ln_tensor *index,
                     const ln_transform *steps, int n, uint64_t seed, int64_t epoch, int views);

/* A loader makes the batches of an epoch on threads of its own, or in its caller with 0 of them.
 * The order of samples is a function of (seed, epoch), a view of (seed, epoch, sample, view): no
 * value depends on the number of threads. Calls on one loader come from one thread at a time. */
typedef struct ln_loader ln_loader;
typedef struct {
    uint64_t seed;
    int64_t batch;   /* samples in a batch */
    int views;       /* 1 to 16 */
    int threads;     /* 0 to 256 */
    int queue;       /* batches that are made ahead, at least 1 */
    bool shuffle, drop_last;
    bool on_device;  /* ln_augment makes the views, when asked for them: images may lie anywhere */
    int rank, world; /* of every `world` consecutive samples in the epoch's order, this loader takes
                        number `rank`; all ranks get equally many: short ones begin again, or with
                        drop_last the remainder is left out */
    int device;      /* where x and y are given out; LN_CPU: where they were made */
} ln_loader_options;
typedef struct {
    int64_t batches, samples; /* given out since the loader was made */
    int64_t queued, starved;  /* batches that lie ready now; that were not ready when asked for */
    double wait_seconds; /* waited for them */
    double work_seconds; /* spent on making batches, all threads together */
    double seconds;      /* since the first batch was asked for */
} ln_loader_stats;

/* images (N,C,H,W) uint8 and labels NULL or (N) int64, both contiguous on the CPU; retained, not
 * copied. NULL steps with n = 0: only 0..255 to 0..1. */
ln_status ln_loader_new(ln_loader **out, const ln_tensor *images, const ln_tensor *labels,
                        const ln_transform *steps, int n, const ln_loader_options *options);
/* Stops and joins the threads. NULL is allowed. Loaders that live at exit are stopped then. */
void ln_loader_release(ln_loader *l);
/* Begins an epoch with batch number `first`, from 0; what was left of another is dropped. */
ln_status ln_loader_start(ln_loader *l, int64_t epoch, int64_t first);
/* The next batch: x[0..views) each (B,C,H,W) float32, where the images lie; on the CPU y (B) int64,
 * or NULL without labels, and index (B) int64, the samples' positions from 1. All stay NULL when
 * the epoch is over. A batch that fails is made again by the next call. */
ln_status ln_loader_next(ln_loader *l, ln_tensor **x, ln_tensor **y, ln_tensor **index);
int64_t ln_loader_batches(const ln_loader *l); /* in an epoch */
void ln_loader_info(ln_loader_stats *out, ln_loader *l);

/* ---- Owning tensors from a collected language ----------------------------------------------- */
/* The handles that one host state owns. A finaliser for each would cost more than a small operator,
 * so the host keeps weak references to the owners beside this array, and releases what has none
 * after a cycle of its collector. */
typedef struct {
    int64_t capacity;
    ln_tensor **handle; /* capacity entries, NULL where unused; the array is the host's */
    bool stale;         /* a cycle has ended: time to look */
} ln_handles;

/* Two finalisers. ln_handles_mark belongs to an object that dies in every cycle and sets stale;
 * ln_handles_release belongs to the struct and gives back what is left when the host closes. */
void ln_handles_mark(ln_handles *all);
void ln_handles_release(ln_handles *all);

/* ---- Host ----------------------------------------------------------------------------------- */
/* Seconds on a clock that never jumps; only differences mean something. */
double ln_clock(void);
/* Whether a person watches file descriptor 0, 1 or 2. */
bool ln_is_terminal(int descriptor);

#pragma GCC visibility pop
#endif
