/* Where tiles that are kept between passes lie. Internal to cpu/. */
#ifndef LN_CPU_KEPT_H
#define LN_CPU_KEPT_H
#include "tile.h"

/* Has the pass read and fill these tiles; NULL: none. */
void REAL(kept_use)(tile_pass *pass, const ln_tiles *tiles);

/* The blocks that a pass over n rows and m columns is cut into; square: of one set of rows, of
 * which the pairs i <= j are kept. */
typedef struct {
    int64_t rows, row_blocks, column_blocks; /* rows: of a block */
    bool square;
} kept_blocks;

kept_blocks REAL(kept_blocks_of)(const tile_pass *pass, bool square);
/* The elements that the tiles of all pairs take. */
int64_t REAL(kept_elements)(const kept_blocks *blocks);
/* Where the tiles of the pair (i, j) are kept: NULL where there is no room for it. */
real *REAL(kept_pair)(const tile_pass *pass, const kept_blocks *blocks, int64_t i, int64_t j);
/* In a pair of so many rows, the tile whose first row and column are these, which are multiples of
 * the tiles' height and TILE_COLUMNS: its rows lie `columns` apart, a multiple of MICRO_COLUMNS. */
real *REAL(kept_tile)(real *pair, int64_t rows, int64_t row, int64_t column, int64_t columns);

/* Whether all tiles are kept, and filled. */
bool REAL(kept_all)(const tile_pass *pass, const kept_blocks *blocks);
/* Writes rows row0..row1 of the matrix, whose tiles are all kept, `stride` elements apart. */
void REAL(kept_rows)(const tile_pass *pass, const kept_blocks *blocks, real *to, int64_t stride,
                     int64_t row0, int64_t row1);

#endif
