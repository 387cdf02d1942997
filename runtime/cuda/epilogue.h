/* What is done with a tile of similarities, by kernels that are compiled at run time with the link
 * of a loss: this file is their text, and for the host the layout of their arguments. It includes
 * nothing. Invariants: an anchor's sums are taken in a fixed order; what the masks leave out is
 * computed, but never used.
 *
 * LN_EPILOGUE is the kind of kernel that the text is compiled to. Before it stand `real`,
 * MATH(name) for its functions, `place` for a row's or column's number in the matrix, and the
 * structures of what a link and the masks read there; after it the functions declared here. */
#ifndef LN_CUDA_EPILOGUE_H
#define LN_CUDA_EPILOGUE_H

enum {
    EPILOGUE_THREADS = 256, /* a block, of every kind */
    EPILOGUE_NUMBERS = 272, /* those of a link, and what a pass adds */
    EPILOGUE_PARAMETERS = 24,
    EPILOGUE_MASKS = 8
};

#define EPILOGUE_SUMS 1    /* of rows or columns, with running maxima if wanted */
#define EPILOGUE_BOTH 2    /* of the rows, and of the columns as the transposed matrix has them */
#define EPILOGUE_WEIGHTS 3 /* the values themselves */
/* Those of fused_epilogue.h, of tiles that are nowhere written: */
#define EPILOGUE_FUSED_SUMS 4    /* of x's rows */
#define EPILOGUE_FUSED_RUNNING 5 /* likewise log-sum-exps, with running maxima */
#define EPILOGUE_FUSED_BOTH 6    /* of x's rows, and of y's as the transposed matrix has them */
#define EPILOGUE_FUSED_BOTH_RUNNING 7
#define EPILOGUE_FUSED_GRADIENT 8 /* of x's rows: the values times y's rows */

/* exp(most) * sum; most stays 0 where no maximum is kept. */
typedef struct {
    double most, sum;
} epilogue_total;
typedef struct {
    float most, sum;
} epilogue_part; /* likewise, of a column in a block's rows */

typedef struct {
    const void *parameters[EPILOGUE_PARAMETERS]; /* of the link's rows, columns or all */
    union {
        double wide[EPILOGUE_NUMBERS];
        float narrow[EPILOGUE_NUMBERS];
    } numbers; /* in the dtype of the link */
    struct {
        const long long *row, *column;
    } masks[EPILOGUE_MASKS];
    long long row, rows, column, columns; /* the tile's place in the matrix */
    const void *s;                        /* the tile (rows, columns) */
    void *w;                              /* WEIGHTS: (rows, columns) */
    epilogue_total *totals;               /* SUMS: of all anchors of the matrix */
    void *row_sums, *column_sums;         /* BOTH: see its kernel */
    int by_column, running;               /* SUMS: anchors are columns; a log-sum-exp */
    int flipped;  /* SUMS: of the transposed matrix's entries. BOTH: its columns' sums are ours */
    int mirrored; /* WEIGHTS: with those of the transposed matrix */
    int adds;     /* WEIGHTS: to what w has */
    float *most;  /* WEIGHTS: the largest magnitude that each block has written, or NULL */
    /* FUSED: x's rows are those of the tile, y's its columns; of a flipped kernel those of the
     * transposed matrix's tile. totals: of this tile alone, (splits, rows); w: float (splits, rows,
     * features); adds: to what w has */
    const void *x, *y; /* in halves */
    long long splits, features;
    epilogue_part
        *below; /* FUSED_BOTH: (blocks of rows, columns), right of each block's own rows */
} epilogue;

/* BOTH: a block's part of the tile, which the tests' build shrinks. Rows and columns have a sum in
 * each part. */
#ifndef LN_PART_ROWS
#define LN_PART_ROWS 128
#define LN_PART_COLUMNS 256
#endif
enum { PART_ROWS = LN_PART_ROWS, PART_COLUMNS = LN_PART_COLUMNS };

/* FUSED: a block's columns at a time, which a warp's lanes have between them; for a width of rows
 * its warps, of 16 rows each, so many that a gradient's sums fit a thread's registers; and its
 * shared memory, for its rows and two tiles' columns, the warps' parts of two tiles' sums of
 * columns, or at the end the sums of a gradient, which take more. */
enum { FUSED_COLUMNS = 32, FUSED_WIDEST = 256 };
#define FUSED_WARPS(width) ((width) > 128 ? 4 : 8)
#define FUSED_THREADS(width) (32 * FUSED_WARPS(width))
#define FUSED_ROWS(width) (16 * FUSED_WARPS(width))
#define FUSED_IS_BOTH(kernel)                                                                      \
    ((kernel) == EPILOGUE_FUSED_BOTH || (kernel) == EPILOGUE_FUSED_BOTH_RUNNING)
#define FUSED_BYTES(kernel, width)                                                                 \
    ((kernel) == EPILOGUE_FUSED_GRADIENT                                                           \
         ? FUSED_ROWS(width) * 4 * ((width) + 8)                                                   \
         : (FUSED_ROWS(width) + 2 * FUSED_COLUMNS) * (2 * (width) + 16) +                          \
               FUSED_IS_BOTH(kernel) * 2 * FUSED_WARPS(width) * FUSED_COLUMNS *                    \
                   (int)sizeof(epilogue_part))

/* Adds a total to another. */
static inline __device__ void epilogue_add(epilogue_total *to, epilogue_total t) {
    if (t.sum == 0) return; /* but not NaN */
    if (t.most > to->most) {
        if (to->sum != 0) to->sum *= exp(to->most - t.most);
        to->most = t.most;
    }
    to->sum += t.most == to->most ? t.sum : t.sum * exp(t.most - to->most);
}

#ifdef LN_EPILOGUE
#ifdef __CUDACC_RTC__
#define INFINITY __int_as_float(0x7f800000)
#endif
enum { LANES = 32, WARPS = EPILOGUE_THREADS / LANES };

/* What the link reads, of all entries, of a row and of a column of the matrix; its value where
 * their similarity is s; likewise the masks, and whether they leave the entry in. */
static __device__ link_all link_all_of(const epilogue &a, place);
static __device__ link_row link_row_of(const epilogue &a, place row);
static __device__ link_column link_column_of(const epilogue &a, place column);
static __device__ real link(const epilogue &a, const link_all &all, real s, const link_row &row,
                            const link_column &column);
static __device__ mask_row mask_row_of(const epilogue &a, place row);
static __device__ mask_column mask_column_of(const epilogue &a, place column);
static __device__ bool admitted(const mask_row &row, const mask_column &column);

/* The place that counts from 1; one that is nowhere, of a number that no place has. */
static __device__ place place_of(long long number) {
    return number - 1 == (place)(number - 1) ? (place)(number - 1) : -1;
}

/* FUSED: whether sums keep running maxima, and the value that adds nothing. */
#if LN_EPILOGUE == EPILOGUE_FUSED_RUNNING || LN_EPILOGUE == EPILOGUE_FUSED_BOTH_RUNNING
#define LN_RUNNING 1
#define NOTHING -INFINITY
#else
#define LN_RUNNING 0
#define NOTHING 0
#endif

#if LN_EPILOGUE < EPILOGUE_FUSED_SUMS
static __device__ real quotient(real x, real y) {
    return x / y;
}

/* Of a row and a column of the matrix. */
static __device__ real link_at(const epilogue &a, real s, long long row, long long column) {
    return link(a, link_all_of(a, 0), s, link_row_of(a, row), link_column_of(a, column));
}

static __device__ bool admitted_at(const epilogue &a, long long row, long long column) {
    return admitted(mask_row_of(a, row), mask_column_of(a, column));
}

/* At (i, j) of the tile, or as the transposed matrix has it. */
static __device__ real value(const epilogue &a, real s, long long i, long long j, bool flipped) {
    long long row = flipped ? a.column + j : a.row + i;
    long long column = flipped ? a.row + i : a.column + j;
    real v = link_at(a, s, row, column);
    return admitted_at(a, row, column) ? v : NOTHING;
}
#endif
#endif

/* ---- Sums of rows or columns ---- */

#if LN_EPILOGUE == EPILOGUE_SUMS
/* exp(v) with a running maximum; -inf adds nothing. */
static __device__ void add_exp(epilogue_total *to, real v) {
    if (v == -INFINITY) return;
    if ((double)v > to->most) {
        if (to->sum != 0) to->sum *= exp(to->most - (double)v);
        to->most = (double)v;
    }
    to->sum += v == (real)to->most ? 1 : (double)MATH(exp)(v - (real)to->most);
}

/* A block takes 8 rows by 32 threads each, which read along the row, or 32 columns by 8 threads
 * each: neighbours read what lies together. */
extern "C" __global__ void epilogue_kernel(epilogue a) {
    __shared__ epilogue_total parts[EPILOGUE_THREADS];
    const real *s = (const real *)a.s;
    int across = a.by_column ? LANES : WARPS, lanes = EPILOGUE_THREADS / across;
    int mine = a.by_column ? threadIdx.x % across : threadIdx.x / lanes;
    int lane = a.by_column ? threadIdx.x / across : threadIdx.x % lanes;
    long long anchors = a.by_column ? a.columns : a.rows;
    long long others = a.by_column ? a.rows : a.columns;
    for (long long first = (long long)blockIdx.x * across; first < anchors;
         first += (long long)gridDim.x * across) {
        long long anchor = first + mine;
        epilogue_total t = {a.running ? -INFINITY : 0.0, 0};
        for (long long other = lane; anchor < anchors && other < others; other += lanes) {
            long long i = a.by_column ? other : anchor, j = a.by_column ? anchor : other;
            long long row = a.flipped ? a.column + j : a.row + i;
            long long column = a.flipped ? a.row + i : a.column + j;
            if (!admitted_at(a, row, column)) continue;
            real v = link_at(a, s[i * a.columns + j], row, column);
            if (a.running) add_exp(&t, v);
            else t.sum += (double)v;
        }
        parts[threadIdx.x] = t;
        __syncthreads(); /* all parts are there */
        if (lane == 0 && anchor < anchors) {
            int step = a.by_column ? across : 1;
            epilogue_total *to = &a.totals[(a.by_column ? a.column : a.row) + anchor];
            for (int l = 0; l < lanes; l++) epilogue_add(to, parts[threadIdx.x + l * step]);
        }
        __syncthreads(); /* they are read */
    }
}
#endif

/* ---- Sums of both halves of a symmetric matrix ---- */

#if LN_EPILOGUE == EPILOGUE_BOTH
enum { EACH = PART_COLUMNS / LANES, WARP_ROWS = PART_ROWS / WARPS };

static __device__ real warp_total(real x) {
    for (int distance = LANES / 2; distance > 0; distance /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
}

/* One reading of the tile for both: row_sums[part across * rows + i] and column_sums[part down *
 * columns + j]. A warp takes some rows of a part, a lane some of its columns. What one thread sums
 * is short; the parts are added up elsewhere. */
extern "C" __global__ void epilogue_kernel(epilogue a) {
    __shared__ real sums[WARPS][PART_COLUMNS];
    const real *s = (const real *)a.s;
    int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    long long across = (a.columns + PART_COLUMNS - 1) / PART_COLUMNS;
    long long parts = across * ((a.rows + PART_ROWS - 1) / PART_ROWS);
    for (long long part = blockIdx.x; part < parts; part += gridDim.x) {
        long long column0 = part % across * PART_COLUMNS;
        long long row0 = part / across * PART_ROWS + warp * WARP_ROWS;
        real below[EACH] = {};
        for (long long i = row0; i < row0 + WARP_ROWS && i < a.rows; i++) {
            real along = 0;
            for (int k = 0; k < EACH; k++) {
                long long j = column0 + lane + k * LANES;
                if (j >= a.columns) break;
                real own = value(a, s[i * a.columns + j], i, j, false);
                real other = value(a, s[i * a.columns + j], i, j, true);
                along += a.flipped ? other : own;
                below[k] += a.flipped ? own : other;
            }
            along = warp_total(along);
            if (lane == 0) ((real *)a.row_sums)[part % across * a.rows + i] = along;
        }
        for (int k = 0; k < EACH; k++) sums[warp][lane + k * LANES] = below[k];
        __syncthreads(); /* all sums are there */
        for (int c = threadIdx.x; c < PART_COLUMNS && column0 + c < a.columns;
             c += EPILOGUE_THREADS) {
            real sum = 0;
            for (int w = 0; w < WARPS; w++) sum += sums[w][c];
            ((real *)a.column_sums)[part / across * a.columns + column0 + c] = sum;
        }
        __syncthreads(); /* they are read */
    }
}
#endif

/* ---- Weights ---- */

#if LN_EPILOGUE == EPILOGUE_WEIGHTS
/* The block's largest, which is not negative. */
static __device__ void store_most(float *to, float most) {
    __shared__ float parts[WARPS];
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, most, distance);
        most = other > most ? other : most;
    }
    if (threadIdx.x % LANES == 0) parts[threadIdx.x / LANES] = most;
    __syncthreads(); /* all warps' are there */
    if (threadIdx.x > 0) return;
    for (int warp = 1; warp < WARPS; warp++) most = parts[warp] > most ? parts[warp] : most;
    *to = most;
}

/* A thread an entry. */
extern "C" __global__ void epilogue_kernel(epilogue a) {
    const real *s = (const real *)a.s;
    real *w = (real *)a.w;
    float most = 0;
    for (long long t = (long long)blockIdx.x * EPILOGUE_THREADS + threadIdx.x;
         t < a.rows * a.columns; t += (long long)gridDim.x * EPILOGUE_THREADS) {
        long long i = t / a.columns, j = t % a.columns;
        real v = value(a, s[t], i, j, false);
        if (a.mirrored) v += value(a, s[t], i, j, true);
        if (a.adds) v += w[t];
        w[t] = v;
        float size = (float)MATH(fabs)(v);
        if (size > most) most = size;
    }
    if (a.most != nullptr) store_most(a.most + blockIdx.x, most);
}
#endif

#endif
