/* Internal to runtime/: the tensor and storage structs, errors, allocation, and the backend table.
 * Holds no code but trivial accessors. Invariants: a tensor's elements lie inside its storage; a
 * storage lives while its count is above 0; only memory.c makes and frees storages, only tensor.c
 * tensors. */
#ifndef LN_BACKEND_H
#define LN_BACKEND_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus /* CUDA sources carry storages about and leave their counts alone */
typedef int atomic_int;
typedef unsigned atomic_uint;
extern "C" {
#else
#include <stdatomic.h>
#endif

#include "ln.h"
#pragma GCC visibility push(default) /* for backends in shared objects of their own */

/* ---- Errors (error.c) ---- */

/* Sets the thread's message and returns the status. The message begins with the operator:
 * "matmul: shapes (2,3) and (4,5) ...". */
ln_status ln_fail(ln_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* "(2,3) float32" in a buffer of the thread's own; up to four texts live at once. */
const char *ln_text(const ln_tensor *t);
const char *ln_text_shape(int ndim, const int64_t *shape);
const char *ln_text_dtype(int dtype);   /* "float32" */
const char *ln_text_device(int device); /* "cpu", "cuda:0"; one lives at once */

/* For functions that end at `fail:` with a variable `status`. */
#define LN_TRY(call)                                                                               \
    do {                                                                                           \
        if ((status = (call)) != LN_OK) goto fail;                                                 \
    } while (0)

/* ---- Tensors and their storages ---- */

typedef struct ln_storage ln_storage;

struct ln_tensor {
    ln_storage *storage;
    char *data; /* the first element: storage->data + offset */
    int dtype, ndim;
    int64_t numel;
    int64_t shape[LN_MAX_DIMS], stride[LN_MAX_DIMS]; /* strides in elements, >= 0 */
    ln_tensor *second; /* NULL, or of joined rows those that are not at data: see joined.c */
};

/* The handle that comes with a storage needs no memory of its own: it is `whole`. */
struct ln_storage {
    atomic_int refs;
    atomic_uint version;
    int device;
    size_t bytes;     /* of the whole block: what the device's live bytes count */
    void *data;       /* 64-byte aligned; after the storage, or what a driver gave */
    bool pinned;      /* on the CPU, but from CUDA's driver */
    void *upload;     /* atomic; the driver's mark of a copy that it is an end of: see ln_settle */
    int arrival;      /* of a download into it: an ln_arrival */
    ln_graph *graph;  /* in whose memory it lies, or NULL; then bytes is 0: the graph counts them */
    ln_storage *next; /* among those that are released when a capture ends */
    ln_tensor whole;
};

/* ---- Storages (memory.c) ---- */

/* Counts a CUDA device from now on. Called once for each, before its number is given out. */
void ln_memory_open(int device, int64_t total_bytes, int64_t available_bytes);

/* PINNED: on the CPU, from CUDA's driver. AHEAD: on a CUDA device, and an upload may write it while
 * what the thread asked before is still under way. */
typedef enum { LN_USUAL, LN_PINNED, LN_AHEAD } ln_memory_kind;

/* `what` names the operator in the message. */
ln_status ln_storage_new(ln_storage **out, int device, ln_memory_kind kind, size_t bytes,
                         const char *what);
void ln_storage_retain(ln_storage *s);
void ln_storage_release(ln_storage *s); /* NULL allowed */
void ln_storage_free(ln_storage *s);    /* of one that nobody holds: its memory goes back */

/* Counts bytes of a device that lie in no storage. */
ln_status ln_memory_take(int device, size_t bytes, const char *what);
void ln_memory_give(int device, size_t bytes);

/* Uncounted scratch for kernels, 64-byte aligned, cached between calls; NULL when there is none
 * (the message is set). */
void *ln_scratch_new(size_t bytes, const char *what);
void ln_scratch_release(void *p);

/* ---- Tensors (tensor.c) ---- */

static inline int ln_device(const ln_tensor *t) {
    return t->storage->device;
}

size_t ln_dtype_size(int dtype); /* bytes of one element */
bool ln_dtype_valid(int dtype);
bool ln_dtype_is_float(int dtype);  /* the four floating types */
int ln_dtype_promote(int a, int b); /* PyTorch's promotion */
bool ln_is_contiguous(const ln_tensor *t);
/* (N,C,H,W) with exactly the strides that ln_channels_last gives, where these are not row-major. */
bool ln_is_channels_last(const ln_tensor *t);
bool ln_same_shape(const ln_tensor *a, const ln_tensor *b);

/* Makes *out of this shape when NULL, else checks that it fits; counts a write to it. `what` names
 * the operator. Where a later step fails, the caller gives back what was made: see
 * ln_out_fail. */
ln_status ln_out(ln_tensor **out, int dtype, int device, int ndim, const int64_t *shape,
                 const char *what);
/* The same on the device of `like`; where that is channels-last, so is a new tensor (N,C,H,W). */
ln_status ln_out_like(ln_tensor **out, int dtype, const ln_tensor *like, int ndim,
                      const int64_t *shape, const char *what);
/* t (N,C,H,W) seen as (N,H,W,C): row-major where t is channels-last. A stack copy. */
ln_tensor ln_channels_moved_last(const ln_tensor *t);
/* Makes a tensor (N,C,H,W) that nothing has written yet channels-last. */
void ln_set_channels_last(ln_tensor *t);
/* For fail paths: releases *out and sets it to NULL if it is not `given`, the value that *out had
 * on entry. */
void ln_out_fail(ln_tensor **out, const ln_tensor *given);
/* A new row-major tensor, contents undefined. */
ln_status ln_tensor_new(ln_tensor **out, int dtype, int device, ln_memory_kind kind, int ndim,
                        const int64_t *shape, const char *what);
/* Another handle, as `view` says, of the same storage. */
ln_status ln_view_new(ln_tensor **out, const ln_tensor *view);
/* Of joined rows those at data, of others all: a stack copy. */
ln_tensor ln_first_rows(const ln_tensor *t);
/* NULL, freed, foreign-device and joined inputs fail here: checks n tensors, all on one device. */
ln_status ln_check_handles(const char *what, int n, const ln_tensor *const *inputs);
/* The same, and settles them: their elements may be read and written. */
ln_status ln_check_inputs(const char *what, int n, const ln_tensor *const *inputs);
/* A stack copy of t broadcast to shape (strides 0). The caller has checked that it fits. */
ln_tensor ln_broadcast(const ln_tensor *t, int ndim, const int64_t *shape);
/* NumPy's broadcasting of two shapes; false where they do not fit. */
bool ln_broadcast_shape(int *ndim, int64_t *shape, const ln_tensor *a, const ln_tensor *b);
/* Bumps the version and settles t: every in-place writer calls it, before it writes where no
 * check of inputs has settled t already. */
void ln_wrote(ln_tensor *t);

/* The element of t, wherever that lies, at place i in row-major order; its positions from 1. */
ln_status ln_tensor_element(double *value, int64_t *positions, const ln_tensor *t, int64_t i);

int64_t ln_tensor_handles(void); /* tensors not yet released */

/* ---- Uploads and downloads (upload.c) ---- */

/* EXPECTED: one was begun, and nobody has waited for it. LOST: the device was lost before. */
typedef enum { LN_ARRIVED, LN_EXPECTED, LN_LOST } ln_arrival;

/* Where a copy may still write or read the storage: on a CUDA device what the calling thread asks
 * next comes after it; on the CPU waits until it has ended. */
void ln_settle(ln_storage *s);

/* ---- Captured graphs (graph.c) ---- */

ln_graph *ln_capturing(void); /* what the calling thread records; NULL where it does not */
/* Fails where the thread records; `instead` says what to do. */
ln_status ln_capture_refuses(const char *what, const char *instead);
/* Fails where it records on another device. */
ln_status ln_capture_admits(int device, const char *what);
/* Memory of the graph that is recorded. Given back, it serves what is recorded later. */
ln_status ln_graph_acquire(void **out, ln_graph *g, int device, size_t bytes, const char *what);
void ln_graph_give_back(ln_graph *g, void *p);
/* A storage that lies there: it keeps the graph's memory alive until it leaves, with its part. */
ln_status ln_graph_join(ln_graph *g, ln_storage *s);
void ln_graph_leave(ln_graph *g, ln_storage *s);
/* Where the thread records: the graph reads, or writes, the storage, and keeps it. */
void ln_graph_note(ln_storage *s, bool written);
/* Where the thread records, but not with this storage: takes one that nobody holds, to free it when
 * the capture ends. Else false. */
bool ln_graph_defers(ln_storage *s);

/* ---- Single elements (element.c) ---- */

/* Host doubles to and from one element of any dtype. */
double ln_element_get(int dtype, const void *p);
void ln_element_set(int dtype, void *p, double v);
double ln_element_below(int dtype, double b); /* the largest of a floating dtype below b */

float ln_bfloat16_to_float(uint16_t x);
uint16_t ln_float_to_bfloat16(float x); /* nearest even */
float ln_float16_to_float(uint16_t x);
uint16_t ln_float_to_float16(float x);

/* ---- Views of images (data/augment.c) ---- */

/* A view: of which image, and which of the batch's steps it takes. */
typedef struct {
    int64_t image, first;
    int count;
} ln_drawn_view;
typedef struct {
    int64_t n, n_steps;
    const ln_drawn_view *views;
    const ln_transform *steps; /* LN_CROP to LN_NORMALIZE, all numbers drawn; sizes are checked */
    bool crops_first;          /* the first step of every view is LN_CROP, whatever is drawn */
} ln_drawn_batch;
/* For backends that compute on the host: makes views first to last - 1 of out, a float32 one. */
ln_status ln_augment_views(ln_tensor *out, const ln_tensor *images, const ln_drawn_batch *batch,
                           int64_t first, int64_t last);

/* ---- The backend table ---- */

typedef struct {
#define OP(name, arguments) ln_status(*name) arguments;
#include "ops.def"
#undef OP
} ln_backend;

const ln_backend *ln_cpu_backend(void);

/* What the shared object of the CUDA backend gives device.c. Devices have their numbers in ln.h.
 * Where a function fails it sets the thread's message. */
enum { LN_DRIVER_VERSION = 5, LN_MOST_DEVICES = 65 }; /* the CPU among them */
typedef struct {
    int version; /* LN_DRIVER_VERSION, as it was built */
    int devices; /* 1 or more */
    const ln_backend *backend;
    /* Memory that the calling thread's later work may use, or, `ahead`, its next upload; released,
     * it serves later work again. LN_OUT_OF_MEMORY, without a message, where there is none even
     * after flushing. */
    ln_status (*acquire)(void **out, int device, size_t bytes, bool ahead);
    void (*release)(void *p, int device);
    /* Pinned memory of the host, likewise. mark: NULL, or that of a copy from or to it, which it
     * takes over. */
    ln_status (*pin)(void **out, size_t bytes);
    void (*unpin)(void *p, size_t bytes, void *mark);
    /* Copies bytes from or to a CUDA device, after what the thread asked before. When it returns,
     * memory of the host has been read or written. */
    ln_status (*transfer)(void *dst, int dst_device, const void *src, int src_device, size_t bytes);
    /* Begins to copy bytes from pinned memory to memory that was acquired ahead. Gives a mark for
     * each end, which `follow` or `wait` takes back: what the thread asks next comes after the
     * copy; it has ended. after: NULL or a mark that the copy follows, which it takes back. Where
     * it fails nothing is under way. */
    ln_status (*upload)(void **written, void **read, void *dst, int device, const void *src,
                        size_t bytes, void *after);
    /* The same from memory of a device to pinned memory, after what the thread asked before. */
    ln_status (*download)(void **written, void **read, void *dst, const void *src, int device,
                          size_t bytes);
    void (*follow)(void *mark, int device);
    bool (*wait)(void *mark); /* false where a device was lost, perhaps before the copy's end */
    ln_status (*synchronize)(int device);
    ln_status (*flush)(int device); /* gives cached memory back */
    ln_status (*memory)(int64_t *total, int64_t *available, int64_t *cached, int device);
    /* From begin to end what the thread asks of the device is recorded; end gives it, or forgets it
     * where made is NULL, or fails where something could not be recorded. */
    ln_status (*capture_begin)(int device);
    ln_status (*capture_end)(void **made, int device);
    ln_status (*graph_launch)(void *made, int device); /* after what the thread asked before */
    void (*graph_destroy)(void *made, int device);
    /* Memory of no thread's work in particular, also while the thread records. */
    ln_status (*reserve)(void **out, int device, size_t bytes);
    void (*unreserve)(void *p, int device);          /* waits for the device */
    ln_status (*name)(const char **out, int device); /* in a buffer of the thread's own */
    bool (*lost)(void);
    int (*cudnn)(const char **why); /* see ln_cuda_cudnn, but for what is allowed */
} ln_driver;
/* The function that the shared object exports. */
ln_status ln_driver_open(const ln_driver **out);

/* ---- Devices (device.c) ---- */

bool ln_cuda_cudnn_allowed(void); /* what ln_cuda_cudnn_set said last */

/* The table for a device (never NULL for the device of a live tensor). */
const ln_backend *ln_backend_of(int device);
const ln_driver *ln_driver_of(int device); /* of a CUDA device that was checked */
ln_status ln_driver_load(const ln_driver **out, const char *what); /* of any; fails where none is */
/* Exists; a CUDA device is made ready. */
ln_status ln_device_check(int device, const char *what);
/* Copies n bytes between contiguous blocks on any two devices. */
ln_status ln_transfer(void *dst, int dst_device, const void *src, int src_device, size_t n);

/* Team size for a kernel that does `work` elementary steps: 1 when too little to share. */
int ln_team(int64_t work);
/* Called by each thread of a region before its work: keeps a team's threads apart. */
void ln_take_place(void);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
