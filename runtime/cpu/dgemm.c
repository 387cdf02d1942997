/* The float64 matrix product, in the usual three levels: blocks of y that stay in the third-level
 * cache, blocks of x that stay in the second, and tiles of z that stay in registers. Both operands
 * are packed into panels, which also takes care of any strides. Invariant: every element of z adds
 * its terms in the order of k, whatever the blocks and the team. */
#include "dgemm.h"

#include <omp.h>

#if defined __AVX512F__
enum { LANES = 8, ROWS = 12 };
#elif defined __AVX__
enum { LANES = 4, ROWS = 6 };
#else
enum { LANES = 2, ROWS = 6 };
#endif
/* A tile's ROWS x 2 accumulators, a row of y and an element of x fill the vector registers. */
typedef double lanes __attribute__((vector_size(LANES * sizeof(double)), may_alias));

enum {
    COLUMNS = 2 * LANES,
    DEPTH = 256,
    X_ROWS = 96,      /* a multiple of ROWS; with DEPTH, 192 KiB */
    Y_COLUMNS = 2048, /* a multiple of COLUMNS; with DEPTH, 4 MiB */
};

/* Packs `width` lines of `depth` elements, padded with zeros to `padded` lines: element p of line i
 * goes to panel[p * padded + i]. */
static void pack(double *restrict panel, const double *from, int64_t line, int64_t step,
                 int64_t width, int64_t padded, int64_t depth) {
    for (int64_t p = 0; p < depth; p++, panel += padded, from += step) {
        for (int64_t i = 0; i < width; i++) panel[i] = from[i * line];
        for (int64_t i = width; i < padded; i++) panel[i] = 0;
    }
}

/* Adds a tile's product to the rows x columns of z that exist. */
static void tile(ln_dmatrix z, const double *x, const lanes *y, int64_t rows, int64_t columns,
                 int64_t depth) {
    lanes sum[ROWS][2] = {0};
    for (int64_t p = 0; p < depth; p++, x += ROWS, y += 2)
        for (int i = 0; i < ROWS; i++) {
            sum[i][0] += x[i] * y[0];
            sum[i][1] += x[i] * y[1];
        }
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            z.data[i * z.row + j * z.column] += sum[i][j / LANES][j % LANES];
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t round_up(int64_t a, int64_t step) {
    return (a + step - 1) / step * step;
}

/* Adds rows of x, from `first`, times a packed block of y (depth,m). */
static void rows_of_blocks(ln_dmatrix z, ln_dmatrix x, const double *y_packed, double *x_packed,
                           int64_t rows, int64_t m, int64_t depth) {
    for (int64_t i = 0; i < rows; i += ROWS)
        pack(x_packed + i * depth, x.data + i * x.row, x.row, x.column, smaller(ROWS, rows - i),
             ROWS, depth);
    for (int64_t j = 0; j < m; j += COLUMNS)
        for (int64_t i = 0; i < rows; i += ROWS) {
            ln_dmatrix part = {z.data + i * z.row + j * z.column, z.row, z.column};
            tile(part, x_packed + i * depth, (const lanes *)(y_packed + j * depth),
                 smaller(ROWS, rows - i), smaller(COLUMNS, m - j), depth);
        }
}

ln_status CPU(dgemm)(ln_dmatrix z, ln_dmatrix x, ln_dmatrix y, int64_t n, int64_t m, int64_t k) {
    int team = ln_team(n * m * k);
    int64_t depth = smaller(k, DEPTH), columns = round_up(smaller(m, Y_COLUMNS), COLUMNS);
    int64_t rows = smaller(X_ROWS, round_up((n + team - 1) / team, ROWS));
    double *packed =
        ln_scratch_new(sizeof(double) * (size_t)(depth * (columns + team * X_ROWS)), "matmul");
    if (packed == NULL) return LN_OUT_OF_MEMORY;
#pragma omp parallel num_threads(team)
    for (int64_t c = 0; c < m; c += columns)
        for (int64_t p = 0; p < k; p += depth) {
            int64_t width = smaller(columns, m - c), deep = smaller(depth, k - p);
            double *own = packed + depth * (columns + omp_get_thread_num() * X_ROWS);
#pragma omp for schedule(static)
            for (int64_t j = 0; j < width; j += COLUMNS)
                pack(packed + j * deep, y.data + p * y.row + (c + j) * y.column, y.column, y.row,
                     smaller(COLUMNS, width - j), COLUMNS, deep);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < n; i += rows) {
                ln_dmatrix zi = {z.data + i * z.row + c * z.column, z.row, z.column};
                ln_dmatrix xi = {x.data + i * x.row + p * x.column, x.row, x.column};
                rows_of_blocks(zi, xi, packed, own, smaller(rows, n - i), width, deep);
            }
        }
    ln_scratch_release(packed);
    return LN_OK;
}
