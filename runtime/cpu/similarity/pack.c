/* The layouts that tile products read, made of the rows of q and k: of a whole side of the matrix
 * or of a pair of blocks. Computes nothing but rows times their factors. Compiled once for each
 * element type and instruction set. */
#include "pack.h"
#include "keep.h"
#include "product.h"

#include <string.h>

/* Heights are whole panels, and cover whole micro-tiles of rows. */
static int64_t padded_height(int64_t rows) {
    return round_up(rows + MICRO_ROWS, MICRO_COLUMNS);
}

/* ---- Layouts ---- */

/* n rows of d elements with their factors, and zeros up to height and to padded elements. */
typedef struct {
    const real *x, *scale; /* of the first row; scale NULL: 1 */
    int64_t n, height, d, padded;
} source;

static source source_of(const tile_pass *pass, bool of_q, int64_t first, int64_t end,
                        int64_t height) {
    const real *scale = of_q ? pass->q_scale : pass->k_scale;
    return (source){(of_q ? pass->q : pass->k) + first * pass->d,
                    scale != NULL ? scale + first : NULL,
                    end > first ? end - first : 0,
                    height,
                    pass->d,
                    padded_features(pass->d)};
}

/* Elements from..from + count of row i. */
static inline void scaled(real *to, const source *s, int64_t i, int64_t from, int64_t count) {
    int64_t have = i < s->n ? s->d - from : 0;
    if (have > count) have = count;
    real factor = s->scale != NULL && have > 0 ? s->scale[i] : 1;
    const real *x = s->x + i * s->d + from;
    if (have == MICRO_COLUMNS) {
        for (int64_t k = 0; k < MICRO_COLUMNS; k++) to[k] = x[k] * factor;
        return;
    }
    for (int64_t k = 0; k < have; k++) to[k] = x[k] * factor;
    if (have < count) memset(to + (have > 0 ? have : 0), 0, (size_t)(count - have) * sizeof *to);
}

static void rows_of(real *rows, const source *s) {
    for (int64_t i = 0; i < s->height; i++) scaled(rows + i * s->padded, s, i, 0, s->padded);
}

/* Straight from the rows as they are given. */
static void pack_panels(real *panels, int64_t stride, const source *s) {
    for (int64_t i = 0; i < s->height; i++)
        for (int64_t k = 0; k < s->padded; k += MICRO_COLUMNS)
            scaled(panels + k * stride + i * MICRO_COLUMNS, s, i, k, MICRO_COLUMNS);
}

/* y = the transpose of MICRO_COLUMNS rows and columns of x, rows `apart` elements apart. */
static inline void turn_panel(real *y, const real *x, int64_t apart) {
#ifdef __AVX2__
    if (sizeof(real) == sizeof(float)) {
        for (int64_t i = 0; i < MICRO_COLUMNS; i += 8)
            for (int64_t c = 0; c < MICRO_COLUMNS; c += 8)
                turn_eight((float *)(y + c * MICRO_COLUMNS + i), MICRO_COLUMNS,
                           (const float *)(x + i * apart + c), apart);
        return;
    }
#endif
    for (int64_t i = 0; i < MICRO_COLUMNS; i++)
        for (int64_t c = 0; c < MICRO_COLUMNS; c++) y[c * MICRO_COLUMNS + i] = x[i * apart + c];
}

/* From packed rows. */
static void pack_columns(real *columns, const real *rows, int64_t height, int64_t padded) {
    for (int64_t j = 0; j < height; j += MICRO_COLUMNS)
        for (int64_t k = 0; k < padded; k += MICRO_COLUMNS)
            turn_panel(columns + j * padded + k * MICRO_COLUMNS, rows + j * padded + k, padded);
}

/* ---- Whole sides ---- */

/* Sides that take more are not packed whole. */
#define SIDES_BYTES ((int64_t)16 << 20)

static int64_t side_elements(const tile_pass *pass, int64_t rows) {
    return padded_height(rows) * padded_features(pass->d);
}

/* Room for one layout, a block of its own: of its size there are others, which can be it later. */
static bool layout_new(real **layout, bool wanted, int64_t elements) {
    if (wanted) *layout = ln_scratch_new((size_t)elements * sizeof(real), "similarity");
    return !wanted || *layout != NULL;
}

/* Products of similarities read rows and columns, those of gradients panels. */
static bool side_new(tile_side *side, const tile_pass *pass, int64_t rows) {
    int64_t elements = side_elements(pass, rows);
    side->height = padded_height(rows);
    return layout_new(&side->rows, !pass->kept_all, elements) &&
           layout_new(&side->columns, !pass->kept_all, elements) &&
           layout_new(&side->panels, pass->backward, elements);
}

static void side_release(tile_side *side) {
    ln_scratch_release(side->rows);
    ln_scratch_release(side->columns);
    ln_scratch_release(side->panels);
}

ln_status REAL(pack_sides)(tile_pass *pass, bool square) {
    int64_t elements = side_elements(pass, pass->n) + (square ? 0 : side_elements(pass, pass->m));
    int64_t layouts = (pass->kept_all ? 0 : 2) + (pass->backward ? 1 : 0);
    pass->q_side = pass->k_side = (tile_side){0};
    pass->packed = layouts * elements * (int64_t)sizeof(real) <= SIDES_BYTES;
    if (!pass->packed) return LN_OK;
    if (!side_new(&pass->q_side, pass, pass->n)) return LN_OUT_OF_MEMORY;
    if (!square && !side_new(&pass->k_side, pass, pass->m)) return LN_OUT_OF_MEMORY;
    if (square) pass->k_side = pass->q_side;
    return LN_OK;
}

void REAL(pack_release)(tile_pass *pass, bool square) {
    side_release(&pass->q_side);
    if (!square) side_release(&pass->k_side);
}

enum { PART_ROWS = TILE_ROWS }; /* whole panels */

static int64_t parts_of(const tile_side *side) {
    return (side->height + PART_ROWS - 1) / PART_ROWS;
}

int64_t REAL(pack_parts)(const tile_pass *pass, bool square) {
    if (pass->kept_all && !pass->backward) return 0;
    return parts_of(&pass->q_side) + (square ? 0 : parts_of(&pass->k_side));
}

void REAL(pack_part)(const tile_pass *pass, int64_t part) {
    bool of_q = part < parts_of(&pass->q_side);
    const tile_side *side = of_q ? &pass->q_side : &pass->k_side;
    int64_t first = PART_ROWS * (of_q ? part : part - parts_of(&pass->q_side));
    int64_t left = side->height - first, n = of_q ? pass->n : pass->m;
    int64_t height = left < PART_ROWS ? left : PART_ROWS, padded = padded_features(pass->d);
    source s = source_of(pass, of_q, first, n < first + height ? n : first + height, height);
    if (side->rows != NULL) {
        rows_of(side->rows + first * padded, &s);
        pack_columns(side->columns + first * padded, side->rows + first * padded, height, padded);
    }
    if (side->panels != NULL) pack_panels(side->panels + first * MICRO_COLUMNS, side->height, &s);
}

/* ---- A pair of blocks ---- */

int64_t REAL(pack_own_elements)(const tile_pass *pass, int64_t rows) {
    return pass->packed ? 0 : 6 * padded_height(rows) * padded_features(pass->d);
}

/* A block of a packed side. */
static row_block block_of(const tile_pass *pass, const tile_side *side, int64_t first,
                          int64_t end) {
    int64_t offset = first * padded_features(pass->d);
    return (row_block){first,
                       end - first,
                       side->height,
                       side->rows != NULL ? side->rows + offset : NULL,
                       side->columns != NULL ? side->columns + offset : NULL,
                       side->panels != NULL ? side->panels + first * MICRO_COLUMNS : NULL};
}

static real *take(real **next, int64_t n) {
    real *p = *next;
    *next += n;
    return p;
}

static row_block own_block(const tile_pass *pass, real **next, bool of_q, int64_t first,
                           int64_t end) {
    int64_t height = padded_height(end - first), elements = height * padded_features(pass->d);
    row_block b = {first,
                   end - first,
                   height,
                   take(next, elements),
                   take(next, elements),
                   take(next, elements)};
    source s = source_of(pass, of_q, first, end, height);
    const real *wanted = of_q ? pass->dk : pass->dq;
    rows_of(b.rows, &s);
    if (!of_q) pack_columns(b.columns, b.rows, height, s.padded);
    if (pass->backward && wanted != NULL) pack_panels(b.panels, b.stride, &s);
    return b;
}

real *REAL(pack_pair)(const tile_pass *pass, real *memory, row_block *q, row_block *k,
                      tile_range r) {
    *q = pass->packed ? block_of(pass, &pass->q_side, r.row0, r.row1)
                      : own_block(pass, &memory, true, r.row0, r.row1);
    *k = pass->packed ? block_of(pass, &pass->k_side, r.column0, r.column1)
                      : own_block(pass, &memory, false, r.column0, r.column1);
    return memory;
}

/* ---- For whole rows ---- */

void REAL(pack_rows)(const tile_pass *pass, real *to, int64_t row0, int64_t row1, int64_t height) {
    source s = source_of(pass, true, row0, row1, height);
    rows_of(to, &s);
}

int64_t REAL(pack_column_panels)(const tile_pass *pass, int64_t *elements) {
    int64_t panels = (pass->m + MICRO_COLUMNS - 1) / MICRO_COLUMNS;
    *elements = panels * MICRO_COLUMNS * padded_features(pass->d);
    return panels;
}

void REAL(pack_column_panel)(const tile_pass *pass, real *panels, int64_t panel) {
    int64_t padded = padded_features(pass->d), first = panel * MICRO_COLUMNS;
    real *to = panels + first * padded;
    for (int64_t i = 0; i < MICRO_COLUMNS; i++) {
        bool inside = first + i < pass->m;
        real scale = inside && pass->k_scale != NULL ? pass->k_scale[first + i] : 1;
        for (int64_t k = 0; k < padded; k++)
            to[k * MICRO_COLUMNS + i] =
                inside && k < pass->d ? pass->k[(first + i) * pass->d + k] * scale : 0;
    }
}
