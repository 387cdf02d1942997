/* The layouts that tile products read. Internal to cpu/. */
#ifndef LN_CPU_PACK_H
#define LN_CPU_PACK_H
#include "mask.h"
#include "tile.h"

/* Room for both sides (one where q is k) in the layouts that the pass reads; none where they would
 * take much: then each pair packs its rows. Released in any case. */
ln_status REAL(pack_sides)(tile_pass *pass, bool square);
void REAL(pack_release)(tile_pass *pass, bool square);
/* The parts in which the sides are packed. */
int64_t REAL(pack_parts)(const tile_pass *pass, bool square);
void REAL(pack_part)(const tile_pass *pass, int64_t part);

/* `count` rows from `first` on, scaled; behind them lie as many, zeros or the next block's, as
 * complete their micro-tiles. What the pass does not read is NULL. */
typedef struct {
    int64_t first, count;
    int64_t stride; /* rows of the panels */
    real *rows;     /* (rows, d), d padded to whole panels */
    real *columns;  /* panels of MICRO_COLUMNS rows: (rows / MICRO_COLUMNS, d, MICRO_COLUMNS) */
    real *panels;   /* panels of MICRO_COLUMNS features: (d / MICRO_COLUMNS, stride, ...) */
} row_block;

/* The blocks of a pair, of the sides where those are packed, else packed into memory, of which a
 * pair of blocks of `rows` rows takes pack_own_elements. Returns what is left of the memory. */
int64_t REAL(pack_own_elements)(const tile_pass *pass, int64_t rows);
real *REAL(pack_pair)(const tile_pass *pass, real *memory, row_block *q, row_block *k,
                      tile_range r);

/* Rows row0..row1 of q, then zeros up to `height` rows, each of padded length. */
void REAL(pack_rows)(const tile_pass *pass, real *to, int64_t row0, int64_t row1, int64_t height);
/* The columns of the matrix in panels: how many, and the elements they take; packing one. */
int64_t REAL(pack_column_panels)(const tile_pass *pass, int64_t *elements);
void REAL(pack_column_panel)(const tile_pass *pass, real *panels, int64_t panel);

#endif
