/* The similarity engine's part of the C ABI: links, masks, reductions, order statistics, and the
 * tiles that they share. Part of ln.h, which includes it and whose conventions it follows. */
#ifndef LN_ABI_SIMILARITY_H
#define LN_ABI_SIMILARITY_H
#include "ln.h"
#pragma GCC visibility push(default)

/* A link function f(s, parameters) is a list of steps in single-assignment form: step i defines
 * value i from the values of earlier steps a, b, c. Comparisons give 1 or 0; WHERE is
 * a != 0 ? b : c. ORDER LINK: names and arities in link.c follow it. */
typedef enum {
    LN_LINK_S,         /* the similarity */
    LN_LINK_NUMBER,    /* the step's own number */
    LN_LINK_PARAMETER, /* parameter number a */
    LN_LINK_NEG, LN_LINK_ABS, LN_LINK_SQUARE, LN_LINK_SQRT, LN_LINK_EXP, LN_LINK_EXPM1,
    LN_LINK_LOG, LN_LINK_LOG1P, LN_LINK_TANH, LN_LINK_SIGMOID, LN_LINK_SOFTPLUS,
    LN_LINK_ADD, LN_LINK_SUB, LN_LINK_MUL, LN_LINK_DIV, LN_LINK_POW, LN_LINK_MIN, LN_LINK_MAX,
    LN_LINK_LT, LN_LINK_LE, LN_LINK_GT, LN_LINK_GE, LN_LINK_EQ,
    LN_LINK_WHERE
} ln_link_op;
typedef struct {
    int op, a, b, c;
    double number;
} ln_link_step;

/* A parameter's value has one element, one for each row (N) or one for each column (M) of the
 * similarity matrix, in the dtype of q. slope is the step that is df/dparameter; -1: no gradient
 * is wanted. */
typedef enum { LN_PARAMETER_SCALAR, LN_PARAMETER_ROW, LN_PARAMETER_COLUMN } ln_parameter_kind;
typedef struct {
    int kind, slope;
    const ln_tensor *value;
} ln_parameter;

/* Which entries (row, column) of the matrix are candidates: all masks must admit them. Labels and
 * indices are int64; indices count from 1. */
typedef enum {
    LN_MASK_SELF,      /* row != column */
    LN_MASK_INDEX,     /* row[r] != column; row: (N) indices of columns */
    LN_MASK_SAME,      /* row[r] == column[c]; labels (N) and (M) */
    LN_MASK_DIFFERENT, /* row[r] != column[c] */
    LN_MASK_TRIANGLE   /* column > row */
} ln_mask_kind;
typedef struct {
    int kind;
    const ln_tensor *row, *column;
} ln_mask;

/* A reduction of f over each row's candidates, or over each column's when by_column. */
typedef enum { LN_REDUCE_LSE, LN_REDUCE_SUM } ln_reduction_kind;
typedef struct {
    int kind;
    bool by_column;
    int n_steps, value, slope; /* the steps that are f and df/ds (-1: no gradient wanted) */
    const ln_link_step *steps;
    int n_parameters, n_masks;
    const ln_parameter *parameters;
    const ln_mask *masks;
} ln_reduction;

enum { LN_LINK_STEPS = 256, LN_LINK_PARAMETERS = 16, LN_MAX_MASKS = 8, LN_MAX_REDUCTIONS = 8 };

/* Bounds of every step of a link over s in [low[0], high[0]] and parameters in [low[1 + p],
 * high[1 + p]], into lows and highs (n_steps each), by interval arithmetic. A step that leaves its
 * domain (the log or root of a negative number, a division by an interval around 0) fails with a
 * message that says how to stay inside. */
ln_status ln_link_bounds(double *lows, double *highs, int n_steps, const ln_link_step *steps,
                         const double *low, const double *high);

/* Tiles of a matrix that its passes share. values: contiguous, of q's dtype, on its device, with
 * room for ln_similarity_tiles's elements or for fewer: then only so many tiles are kept. Once a
 * pass has filled it, later passes over the same q and k, unchanged, read it instead of computing
 * the tiles again; the results are the same bits. The caller's.
 * alone: one forward pass and its backward passes are all that is expected to come. Where the
 * gradient of what that forward pass reduces needs no more than its weights, these are what it
 * keeps: then only its own backward passes may be given the tiles until another pass has filled
 * them with similarities, as any other does. */
typedef enum { LN_TILES_NOTHING, LN_TILES_SIMILARITIES, LN_TILES_WEIGHTS } ln_tiles_content;
typedef struct {
    ln_tensor *values;
    int holds; /* ln_tiles_content */
    bool alone;
} ln_tiles;
/* The elements that hold all tiles of the matrix; 0 where the device keeps none. */
ln_status ln_similarity_tiles(int64_t *elements, const ln_tensor *q, const ln_tensor *k);

/* What CUDA devices round rows and weights to in the products of float32 matrices' reductions and
 * gradients; sums are in float32. Dot products take TF32 for float16, which lacks their range.
 * Order statistics need more than a half has: where that is the dtype, they take cosines from rows
 * in two float16 parts, nearly as precise as float32; else, and of dot products, from float32. */
typedef enum { LN_TILE_FLOAT32, LN_TILE_TF32, LN_TILE_BFLOAT16, LN_TILE_FLOAT16 } ln_tile_dtype;
/* q (N,d), k (M,d) or NULL for k = q: the matrix is q k^T, of the rows scaled to unit length when
 * cosine (norms clamped below at 1e-8). float32 or float64. Runs n reductions over one computation
 * of the matrix's tiles; out[r]: (N), or (M) when by_column. tiles: read or filled, or NULL. Extra
 * memory: O(N + M) and a few tiles for each thread. An anchor without candidates gives -inf for LSE
 * and 0 for SUM. The results are the same bits for every size of team. */
ln_status ln_similarity_forward(ln_tensor **out, const ln_tensor *q, const ln_tensor *k,
                                bool cosine, int tile_dtype, int n, const ln_reduction *reductions,
                                ln_tiles *tiles);
/* The gradients of the same: y[r] and dy[r] are the reductions' values and their gradients. dq, dk
 * may be NULL: not wanted (dk must be NULL where k is); dparameters: one place for each parameter
 * of each reduction in order, used where its slope is not -1. */
ln_status ln_similarity_backward(ln_tensor **dq, ln_tensor **dk, ln_tensor **dparameters,
                                 const ln_tensor *const *dy, const ln_tensor *const *y,
                                 const ln_tensor *q, const ln_tensor *k, bool cosine,
                                 int tile_dtype, int n, const ln_reduction *reductions,
                                 ln_tiles *tiles);

/* Each row's k largest candidates, largest first, and their columns (int64), both (N,k), ties by
 * place; where a row has fewer, its last values are -inf. 0 <= k <= M. */
ln_status ln_similarity_topk(ln_tensor **values, ln_tensor **columns, const ln_tensor *q,
                             const ln_tensor *k, bool cosine, int tile_dtype, int64_t count,
                             int n_masks, const ln_mask *masks, ln_tiles *tiles);
/* The tail of each row's shortfalls d = max(1 - s, 1e-6), ascending: fits (N,5) float64 holds d_1,
 * then slope and sum of squared errors of least squares of log F and of log(-log F) on log d, with
 * F_r = r / (points + 1), over r = burnt + 1 .. points (0 where fewer than two). A row must have
 * `points` candidates. */
ln_status ln_similarity_tail(ln_tensor **fits, const ln_tensor *q, const ln_tensor *k, bool cosine,
                             int tile_dtype, int64_t points, int64_t burnt, int n_masks,
                             const ln_mask *masks, ln_tiles *tiles);
/* The same for the candidates of all rows together: fit (5). */
ln_status ln_similarity_pooled_tail(ln_tensor **fit, const ln_tensor *q, const ln_tensor *k,
                                    bool cosine, int tile_dtype, int64_t points, int64_t burnt,
                                    int n_masks, const ln_mask *masks);
/* Entries: columns (N,K) int64 from 1; out (N,K). And the gradients of q and k (NULL: not wanted;
 * dk is NULL where k is), which are added to what dq and dk hold, where they hold a tensor. */
ln_status ln_similarity_at(ln_tensor **out, const ln_tensor *q, const ln_tensor *k, bool cosine,
                           const ln_tensor *columns);
ln_status ln_similarity_at_backward(ln_tensor **dq, ln_tensor **dk, const ln_tensor *dy,
                                    const ln_tensor *q, const ln_tensor *k, bool cosine,
                                    const ln_tensor *columns);
/* The number of candidates of each of n rows of m columns: out (n) int64, on the device of the
 * masks' labels and indices. */
ln_status ln_similarity_count(ln_tensor **out, int device, int64_t n, int64_t m, int n_masks,
                              const ln_mask *masks);

#pragma GCC visibility pop
#endif
