/* How elementwise kernels walk tensors: in blocks of 4 KiB that stay in the first-level cache,
 * computed on in one of three types whatever the operands' dtypes and strides. Holds the interface
 * of block.c. Invariants: a body sees contiguous arrays of the walk's type; an element's result
 * does not depend on its place in the tensor, on the strides or on the team, because every body
 * runs over whole vectors. */
#ifndef LN_CPU_BLOCK_H
#define LN_CPU_BLOCK_H
#include "kernels.h"

#include <immintrin.h>

enum {
    BLOCK_BYTES = 4096,
    BLOCK_LANES = 16, /* a block's length is a multiple: the most lanes a vector has */
    BLOCK_OPERANDS = 4
};

/* float for float32, bfloat16 and float16; double; int64 for integers and bool (0 and 1). */
typedef enum { BLOCK_FLOAT, BLOCK_DOUBLE, BLOCK_INT64 } block_type;

static inline block_type block_type_of(int dtype) {
    if (!ln_dtype_is_float(dtype)) return BLOCK_INT64;
    return dtype == LN_FLOAT64 ? BLOCK_DOUBLE : BLOCK_FLOAT;
}

/* Computes n elements, a multiple of BLOCK_LANES: p[k] are operand k's, from the start-th element
 * of the walk on. Two operands that are one tensor may have one array. */
typedef void block_body(void *const *p, int64_t n, int64_t start, const void *context);

typedef struct {
    block_body *body; /* NULL: operand 0 becomes operand 1 */
    /* The body with operand 0 written past the caches, bit for bit what body gives, or NULL: for
     * bodies so long that, in blocks, the memory would wait for them and they for the memory. */
    block_body *streamed;
    const void *context;
    block_type type;
    int64_t cost;           /* elementary steps for an element, about the time of an addition */
    unsigned reads, writes; /* bit k: operand k */
    bool row_major;         /* start counts in row-major order; otherwise in any */
} block_kernel;

/* Moves bytes past the caches, a multiple of 32 to an address that is one. */
static inline void block_stream(void *y, const void *x, int64_t bytes) {
#ifdef __AVX__
    for (int64_t i = 0; i < bytes / 32; i++)
        _mm256_stream_si256((__m256i *)y + i, _mm256_loadu_si256((const __m256i *)x + i));
#else
    for (int64_t i = 0; i < bytes / 16; i++)
        _mm_stream_si128((__m128i *)y + i, _mm_loadu_si128((const __m128i *)x + i));
#endif
}

/* Runs the kernel over n operands of one shape, which is the first one's. */
void CPU(block_run)(const block_kernel *kernel, int n, const ln_tensor *const *operands);

/* n elements of any dtype, stride elements apart, to an array of the type, and back. An int64 array
 * takes no floating elements; into integers, int64 wraps, floating values saturate and NaN is 0. */
void CPU(block_load)(block_type type, void *y, const void *x, int dtype, int64_t stride, int64_t n);
void CPU(block_store)(block_type type, void *y, const void *x, int dtype, int64_t stride,
                      int64_t n);

/* dst = src of the same dtype and shape, bit by bit. */
void CPU(block_move)(ln_tensor *dst, const ln_tensor *src);

#endif
