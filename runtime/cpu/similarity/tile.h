/* The passes of the similarity engine over one pair of row blocks, compiled once for each element
 * type and instruction set. Internal to cpu/: tile.c runs a pair, schedule.c all of them.
 *
 * A pass computes tiles of the similarity matrix and hands each to its jobs, one a reduction.
 * Invariant: a pair writes only the accumulators and gradients of its own rows and columns, so
 * pairs that share none may run at once, and their order alone decides the bits. */
#ifndef LN_CPU_TILE_H
#define LN_CPU_TILE_H
#include "machine.h"

/* Keeps every anchor's entries that are not below its threshold, to find its k largest: a list that
 * is full is cut to its k largest, and the threshold rises to the last of them. */
typedef struct {
    int64_t k, capacity; /* capacity: k + SEGMENT at least */
    real *threshold;     /* (anchors) */
    real *kept;          /* (anchors, capacity) */
    int32_t *count;      /* (anchors) */
} tile_keep;
/* One reduction. Accumulators have an element for each anchor. */
typedef struct {
    const ln_reduction *reduction;
    tile_keep *keep;  /* NULL, or what the job does instead of reducing; it reads the masks only */
    bool fixed_shift; /* LSE: shift holds a bound; else the running maximum */
    bool inside[LN_LINK_STEPS],
        inside_weight;       /* machine.inside of the link and of exp(f - shift) */
    bool one_link;           /* both halves of a symmetric tile take the same values */
    bool both_at_once, even; /* even: the masks admit (i,j) where they admit (j,i) */
    real *shift;             /* (anchors) */
    double *sum;             /* (anchors) */
    double *dparameters[LN_LINK_PARAMETERS]; /* (N), or (M) for column parameters; NULL unwanted */
    machine straight, flipped;               /* anchors are the rows, the columns */
    machine both; /* both_at_once: serves the two where nothing is masked, or masks are even */
} tile_job;

/* All rows of q or of k in the layouts of pack.h that the pass reads. */
typedef struct {
    int64_t height;
    real *rows, *columns, *panels;
} tile_side;

typedef struct {
    bool backward, symmetric;
    bool finite; /* all similarities are known to be cosines of finite rows */
    int64_t n, m, d;
    const real *q, *k;             /* (n,d), (m,d) */
    const real *q_scale, *k_scale; /* (n), (m): factors of the rows; NULL: 1 */
    real *dq, *dk;                 /* gradients of the scaled rows; NULL: not wanted */
    int n_jobs;
    tile_job *jobs;
    bool packed; /* the sides are; else each pair packs its rows */
    tile_side q_side, k_side;
    /* Room for tiles, kept from one pass to another in the order of the pairs, as far as it goes;
     * NULL: none. have_kept: an earlier pass has filled it. keep_weights: with the only job's
     * exp(f - shift), in room for all tiles, instead of the similarities. */
    real *kept;
    int64_t kept_elements;
    bool have_kept, keep_weights;
    bool kept_all; /* have_kept, of all tiles: none is computed again */
} tile_pass;

/* Rows in a block of a pair, for rows of d elements: what fits the second-level cache. */
int64_t REAL(tile_block_rows)(int64_t rows, int64_t d);
/* Bytes of scratch that one thread needs for pairs of blocks of `rows` rows. */
size_t REAL(tile_scratch_bytes)(const tile_pass *pass, int64_t rows);

typedef enum {
    TILE_PLAIN,    /* every job in its own orientation */
    TILE_MIRRORED, /* symmetric and off the diagonal: the tile also stands for its transpose */
    TILE_FOLDED,   /* on the diagonal: its weights and their transpose are summed for dq alone */
    TILE_SQUARE    /* symmetric, a block with itself: its tiles are of the other two modes */
} tile_mode;
/* kept: where the pair's tiles are kept, or NULL. */
void REAL(tile_pair)(const tile_pass *pass, void *scratch, real *kept, tile_mode mode, int64_t row0,
                     int64_t row1, int64_t column0, int64_t column1);

/* ---- Whole rows, for order statistics ---- */

/* How many rows one thread, which is given `most`, computes at a time, how far apart, and the
 * elements of its scratch. */
int64_t REAL(tile_row_block)(const tile_pass *pass, int64_t most, int64_t *stride,
                             int64_t *elements);
/* The similarities of rows row0..row1 with all columns, -inf where masked, in scratch. */
real *REAL(tile_rows)(const tile_pass *pass, const real *panels, real *scratch,
                      const ln_mask *masks, int n_masks, int64_t row0, int64_t row1);

#endif
