/* The similarity matrix on a device, tile by tile: blocks of rows, scaled to unit length where it
 * is of cosines, their products in the dtype of tiles, and the masks. Knows no links. Invariant:
 * what lies in scratch does not grow with the matrix, but for one scale a row. */
#ifndef LN_CUDA_TILE_H
#define LN_CUDA_TILE_H
#include "cuda.h"

/* ---- Rows ---- */

/* How a block has its rows: as they are; or unit rows u of float32 in float16 parts, high + low = u
 * but for 2^-22 of it, so that a product of halves is float32's but for low low: of q (high / 32,
 * 32 low, high), of k (32 low, high / 32, high). What is small comes first: fewer sums are cut off
 * at the size of what is large. With the 32, what subnormal parts lack changes a product by less
 * than 2^-29. */
typedef enum { SIDE_WHOLE, SIDE_SPLIT_Q, SIDE_SPLIT_K } side_form;
enum { SIDE_PARTS = 3 };

/* Where the rows of x (n,d) lie, which may be joined. */
template <typename T> struct row_list {
    const T *first, *second;
    int64_t in_first, d;
    __device__ const T *at(int64_t row) const {
        return row < in_first ? first + row * d : second + (row - in_first) * d;
    }
};

template <typename T> static inline row_list<T> row_list_of(const ln_tensor *x) {
    bool joined = x->second != NULL;
    return {(const T *)x->data, joined ? (const T *)x->second->data : NULL,
            x->shape[0] - (joined ? x->second->shape[0] : 0), x->shape[1]};
}

/* The rows of q or of k, and a block of them. */
typedef struct side {
    const ln_tensor *x;      /* (n,d) */
    const struct side *like; /* NULL, or one of the same x, whose scale serves this one too, and
                                whose block where both have all rows in one form */
    void *scale;             /* (n), 1 / max(|x|, 1e-8); NULL: as they are */
    void *made;              /* scratch for a block */
    const void *block;       /* (count,width): those from `first` on */
    int dtype;               /* of a block: x's, or what it is rounded to */
    side_form form;
    int64_t width; /* d, or of all parts; of halves a multiple of 16, which zeros fill */
    bool rough;    /* products round float32 to TF32 */
    int64_t most, first, count;
} side;

/* What the rows of a matrix of x's are rounded to, from a dtype of tiles: x's dtype or a half. */
int side_dtype(const ln_tensor *x, bool cosine, int tile_dtype);
static inline int64_t side_width(int dtype, int64_t d) {
    return dtype == LN_FLOAT16 || dtype == LN_BFLOAT16 ? (d + 15) / 16 * 16 : d;
}
/* In blocks of up to `most` rows, 0 for the scales alone, for products in a dtype of tiles; split,
 * it is of float32 cosines, whatever the dtype of tiles. `like`, or NULL, is taken first wherever
 * this one is, and released after it. The caller releases it, also where this fails. */
ln_status side_new(side *s, const ln_tensor *x, bool cosine, int64_t most,
                   int tile_dtype = LN_TILE_FLOAT32, side_form form = SIDE_WHOLE,
                   const side *like = NULL);
void side_release(side *s);
/* Makes the block from a row on; fails where the user interrupted. */
ln_status side_take(side *s, int64_t first);
/* From the gradient of the unit rows to that of x, in place. */
ln_status side_backward(ln_tensor *dx, const side *s);

/* Whether the norm behind a scale was below the floor, so that the scale is a constant. */
template <typename T> static __device__ bool unit_is_clamped(T scale) {
    return (double)scale >= 1e8;
}

/* ---- Products ---- */

/* s (q's count, k's count, rows `stride` apart): the similarities of two blocks. */
ln_status tile_product(void *s, int64_t stride, const side *q, const side *k);
/* Adds w y to the rows of dx that `to` has its block of: y is `from`'s block, w (to's count, from's
 * count) of its dtype, stored the other way round where it is transposed. factors: NULL, or what
 * tile_round gave for w. */
ln_status tile_gradient(ln_tensor *dx, const void *w, const float *factors, bool transposed,
                        const side *to, const side *from);

/* Rounds n weights w to a half dtype, times the power of two that takes the largest, of which each
 * of n_most has a part's, to at least 2^14 and below 2^15. factors, TILE_FACTORS: the power's
 * inverse, 1, and the power. */
enum { TILE_FACTORS = 3 };
ln_status tile_round(void *to, int dtype, float *factors, const float *w, int64_t n,
                     const float *most, int64_t n_most);

/* ---- Masks ---- */

typedef struct {
    int n;
    struct {
        int kind;
        const int64_t *row, *column;
    } mask[LN_MAX_MASKS];
} masks;

masks masks_of(int n, const ln_mask *given);

static inline __device__ bool admits(const masks &m, int64_t row, int64_t column) {
    for (int i = 0; i < m.n; i++) {
        bool kept = false;
        switch (m.mask[i].kind) {
        case LN_MASK_SELF: kept = row != column; break;
        case LN_MASK_TRIANGLE: kept = column > row; break;
        case LN_MASK_INDEX: kept = m.mask[i].row[row] - 1 != column; break;
        case LN_MASK_SAME: kept = m.mask[i].row[row] == m.mask[i].column[column]; break;
        default: kept = m.mask[i].row[row] != m.mask[i].column[column];
        }
        if (!kept) return false;
    }
    return true;
}

/* ---- What threads do together ---- */

/* The sum over the warp's lanes, in an order of its own, given to all of them. */
static inline __device__ double warp_sum(double x) {
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
}

static inline __device__ int64_t grid_warp() {
    return grid_thread() / WARP;
}

static inline __device__ int64_t grid_warps() {
    return grid_threads() / WARP;
}

#endif
