/* The layout of kept tiles: pair after pair, in a pair column strips of tiles; and rows of the
 * whole matrix out of them. Computes no similarity. Compiled once for each element type and
 * instruction set. */
#include "kept.h"
#include "keep.h"
#include "product.h"

#include <string.h>

void REAL(kept_use)(tile_pass *pass, const ln_tiles *tiles) {
    if (tiles == NULL) return;
    bool weights = pass->backward && pass->keep_weights;
    pass->kept = (real *)tiles->values->data;
    pass->kept_elements = tiles->values->numel;
    pass->have_kept = tiles->holds == (weights ? LN_TILES_WEIGHTS : LN_TILES_SIMILARITIES);
}

kept_blocks REAL(kept_blocks_of)(const tile_pass *pass, bool square) {
    int64_t larger = pass->n > pass->m ? pass->n : pass->m;
    int64_t rows = REAL(tile_block_rows)(larger, pass->d);
    return (kept_blocks){rows, (pass->n + rows - 1) / rows, (pass->m + rows - 1) / rows, square};
}

static int64_t pair_elements(int64_t rows) {
    return round_up(rows, MICRO_ROWS) * round_up(rows, MICRO_COLUMNS);
}

int64_t REAL(kept_elements)(const kept_blocks *b) {
    int64_t pairs = b->row_blocks * b->column_blocks;
    if (b->square) pairs = b->row_blocks * (b->row_blocks + 1) / 2;
    return pairs * pair_elements(b->rows);
}

real *REAL(kept_pair)(const tile_pass *pass, const kept_blocks *b, int64_t i, int64_t j) {
    int64_t elements = pair_elements(b->rows), number = i * b->column_blocks + j;
    if (b->square) number = j * (j + 1) / 2 + i;
    bool fits = pass->kept != NULL && (number + 1) * elements <= pass->kept_elements;
    return fits ? pass->kept + number * elements : NULL;
}

real *REAL(kept_tile)(real *pair, int64_t rows, int64_t row, int64_t column, int64_t columns) {
    return pair + round_up(rows, MICRO_ROWS) * column + row * columns;
}

bool REAL(kept_all)(const tile_pass *pass, const kept_blocks *b) {
    return pass->kept != NULL && pass->have_kept && REAL(kept_elements)(b) <= pass->kept_elements;
}

/* ---- Rows ---- */

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* The tile of the pair (i, j) that holds the entry at (row, column) of the pair, and how far its
 * rows are apart. */
static const real *tile_at(const tile_pass *pass, const kept_blocks *b, int64_t i, int64_t j,
                           int64_t row, int64_t column, int64_t *apart) {
    int64_t rows = least(b->rows, pass->n - i * b->rows);
    int64_t columns = least(b->rows, pass->m - j * b->rows);
    bool square = b->square && i == j;
    int64_t height = square ? SQUARE : TILE_ROWS, across = square ? SQUARE : TILE_COLUMNS;
    int64_t first = column / across * across;
    *apart = round_up(least(across, columns - first), MICRO_COLUMNS);
    return REAL(kept_tile)(REAL(kept_pair)(pass, b, i, j), rows, row / height * height, first,
                           *apart);
}

/* Rows of the pair (i, j) from `row` on, of its block i. */
static void copy_pair(const tile_pass *pass, const kept_blocks *b, real *to, int64_t stride,
                      int64_t i, int64_t j, int64_t row, int64_t count) {
    int64_t columns = least(b->rows, pass->m - j * b->rows), apart;
    for (int64_t r = 0; r < count; r++)
        for (int64_t c = 0; c < columns; c += TILE_COLUMNS) {
            const real *tile = tile_at(pass, b, i, j, row + r, c, &apart);
            memcpy(to + r * stride + c, tile + (row + r) % TILE_ROWS * apart,
                   (size_t)least(TILE_COLUMNS, columns - c) * sizeof *to);
        }
}

/* The same of the block i with itself, of whose tiles those below the diagonal are the transposes
 * of those above. */
static void copy_square(const tile_pass *pass, const kept_blocks *b, real *to, int64_t stride,
                        int64_t i, int64_t row, int64_t count) {
    int64_t columns = least(b->rows, pass->n - i * b->rows), apart;
    for (int64_t r = row; r < row + count; r++, to += stride)
        for (int64_t c = 0; c < columns; c += SQUARE) {
            bool below = c + SQUARE <= r;
            int64_t n = least(SQUARE, columns - c);
            const real *tile =
                below ? tile_at(pass, b, i, i, c, r, &apart) : tile_at(pass, b, i, i, r, c, &apart);
            if (!below) memcpy(to + c, tile + r % SQUARE * apart, (size_t)n * sizeof *to);
            for (int64_t t = 0; below && t < n; t++) to[c + t] = tile[t * apart + r % SQUARE];
        }
}

/* Rows of the transpose of the pair (j, i): columns from `row` on of its block i. */
static void turn_pair(const tile_pass *pass, const kept_blocks *b, real *to, int64_t stride,
                      int64_t j, int64_t i, int64_t row, int64_t count) {
    int64_t others = least(b->rows, pass->n - j * b->rows), apart;
    real turned[KEEP_COLUMNS][TILE_ROWS];
    for (int64_t c = 0; c < others; c += TILE_ROWS) {
        int64_t n = least(TILE_ROWS, others - c);
        for (int64_t r = 0, group; r < count; r += group) {
            int64_t column = row + r, first = column % KEEP_COLUMNS;
            const real *tile = tile_at(pass, b, j, i, c, column, &apart);
            group = least(KEEP_COLUMNS - first, count - r);
            turn(turned[0], TILE_ROWS, tile + column % TILE_COLUMNS - first, apart, n);
            for (int64_t g = 0; g < group; g++)
                memcpy(to + (r + g) * stride + c, turned[first + g], (size_t)n * sizeof *to);
        }
    }
}

void REAL(kept_rows)(const tile_pass *pass, const kept_blocks *b, real *to, int64_t stride,
                     int64_t row0, int64_t row1) {
    for (int64_t row = row0, count; row < row1; row += count, to += count * stride) {
        int64_t i = row / b->rows, from = row % b->rows;
        count = least(row1 - row, b->rows - from);
        for (int64_t j = 0; j < b->column_blocks; j++) {
            real *at = to + j * b->rows;
            if (b->square && j == i) copy_square(pass, b, at, stride, i, from, count);
            else if (b->square && j < i) turn_pair(pass, b, at, stride, j, i, from, count);
            else copy_pair(pass, b, at, stride, i, j, from, count);
        }
    }
}
