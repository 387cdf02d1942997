/* The products of a tile by micro-kernels, which the compiler keeps in registers: the similarities
 * of two blocks of rows, and what their weights give the gradients. Everything is in the layouts
 * that tile.c packs. Internal to cpu/. */
#ifndef LN_CPU_PRODUCT_H
#define LN_CPU_PRODUCT_H
#include "machine.h"
#include <string.h>

/* The micro-kernel's tile: ROWS x COLUMNS accumulators fill the vector registers. */
#if defined __AVX512F__
enum { VECTOR_BYTES = 64, MICRO_ROWS = 12 };
#elif defined __AVX2__
enum { VECTOR_BYTES = 32, MICRO_ROWS = 6 };
#else
enum { VECTOR_BYTES = 16, MICRO_ROWS = 6 };
#endif
enum {
    LANES = VECTOR_BYTES / (int)sizeof(real),
    MICRO_COLUMNS = 2 * LANES,
    TILE_ROWS = 96,         /* tiles are whole numbers of micro-tiles, and so are their */
    TILE_COLUMNS = SEGMENT, /* transposes: multiples of MICRO_ROWS and MICRO_COLUMNS */
    TALL_ROWS = 144,        /* of tiles of blocks of no more rows, which have one across */
    SQUARE = MICRO_COLUMNS > 16 ? 96 : 48, /* rows and columns of tiles along the diagonal */
    DEPTH = 256                            /* a panel of DEPTH x MICRO_COLUMNS stays in L1 */
};
_Static_assert(TILE_ROWS % MICRO_ROWS == 0 && TALL_ROWS % MICRO_ROWS == 0 &&
                   TILE_COLUMNS % MICRO_ROWS == 0 && TILE_COLUMNS % MICRO_COLUMNS == 0 &&
                   SQUARE % MICRO_ROWS == 0 && SQUARE % MICRO_COLUMNS == 0,
               "tiles are whole numbers of micro-tiles");
typedef real vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real))));

static inline int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

/* The length of packed rows: whole panels, one at least, so that products of rows without features
 * are 0. */
static inline int64_t padded_features(int64_t d) {
    return round_up(d > 0 ? d : 1, MICRO_COLUMNS);
}

/* sum = a b over k < K; a(i,k) at a[i * ra + k * ca]; b is a panel. */
static inline __attribute__((always_inline)) void micro_product(vector sum[MICRO_ROWS][2],
                                                                const real *a, int64_t ra,
                                                                int64_t ca, const real *b,
                                                                int64_t K) {
    for (int i = 0; i < MICRO_ROWS; i++)
        for (int j = 0; j < 2; j++) sum[i][j] = (vector){0};
    for (int64_t k = 0; k < K; k++) {
        vector b0 = *(const vector *)(b + k * MICRO_COLUMNS);
        vector b1 = *(const vector *)(b + k * MICRO_COLUMNS + LANES);
#pragma GCC unroll 16
        for (int i = 0; i < MICRO_ROWS; i++) {
            vector x = a[i * ra + k * ca] - (vector){0};
            sum[i][0] += x * b0;
            sum[i][1] += x * b1;
        }
    }
}

/* c (MICRO_ROWS x MICRO_COLUMNS) = or += sum. */
static inline __attribute__((always_inline)) void micro_store(real *c, int64_t ldc,
                                                              vector sum[MICRO_ROWS][2], bool add) {
    for (int i = 0; i < MICRO_ROWS; i++)
        for (int j = 0; j < 2; j++) {
            vector *to = (vector *)(c + i * ldc + j * LANES);
            *to = add ? *to + sum[i][j] : sum[i][j];
        }
}

/* The same of the first rows and columns alone. */
static inline void micro_add_part(real *c, int64_t ldc, vector sum[MICRO_ROWS][2], int64_t rows,
                                  int64_t columns) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) c[i * ldc + j] += sum[i][j / LANES][j % LANES];
}

/* c (rows x columns, ldc apart) = a (rows x d, row-major) times panels of (d x MICRO_COLUMNS);
 * whole micro-tiles. */
static inline void similarity_product(real *c, int64_t ldc, const real *a, const real *panels,
                                      int64_t rows, int64_t columns, int64_t d) {
    for (int64_t k = 0; k < d; k += DEPTH)
        for (int64_t j = 0; j < columns; j += MICRO_COLUMNS)
            for (int64_t i = 0; i < rows; i += MICRO_ROWS) {
                int64_t K = d - k < DEPTH ? d - k : DEPTH;
                vector sum[MICRO_ROWS][2];
                micro_product(sum, a + i * d + k, d, 1, panels + j * d + k * MICRO_COLUMNS, K);
                micro_store(c + i * ldc + j, ldc, sum, k > 0);
            }
}

/* c (rows x d, row-major) += w (rows x K by strides) times the panels of a (K x d) matrix, each
 * `height` rows high. w has whole micro-tiles of rows; what lies past its rows does not matter. */
static inline void gradient_product(real *c, const real *w, int64_t rw, int64_t cw,
                                    const real *panels, int64_t height, int64_t rows, int64_t K,
                                    int64_t d) {
    for (int64_t j = 0; j < d; j += MICRO_COLUMNS)
        for (int64_t i = 0; i < rows; i += MICRO_ROWS) {
            vector sum[MICRO_ROWS][2], part[MICRO_ROWS][2];
            micro_product(sum, w + i * rw, rw, cw, panels + j * height, K);
            if (i + MICRO_ROWS <= rows && j + MICRO_COLUMNS <= d) {
                micro_store(c + i * d + j, d, sum, true);
                continue;
            }
            memcpy(part, sum, sizeof part); /* so that sum itself stays in registers */
            micro_add_part(c + i * d + j, d, part, rows - i < MICRO_ROWS ? rows - i : MICRO_ROWS,
                           d - j < MICRO_COLUMNS ? d - j : MICRO_COLUMNS);
        }
}

#endif
