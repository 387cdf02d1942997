/* Runs a pass: pairs of row blocks over the team. Computes nothing itself. Compiled once for each
 * element type and instruction set.
 *
 * Pairs run in rounds in which no two share rows or columns (a tournament for one set of rows, a
 * Latin square for two). Invariant: a block's pairs run in the order of the rounds, so the results
 * do not depend on the size of the team. */
#include "schedule.h"
#include "kept.h"

#include <omp.h>

typedef struct {
    const tile_pass *pass;
    kept_blocks blocks; /* square: pairs are unordered */
    char *scratch;      /* scratch_bytes for each thread */
    size_t scratch_bytes;
} schedule;

static void run_blocks(const schedule *s, char *scratch, tile_mode mode, int64_t i, int64_t j) {
    int64_t size = s->blocks.rows, n = s->pass->n, m = s->pass->m;
    REAL(tile_pair)
    (s->pass, scratch, REAL(kept_pair)(s->pass, &s->blocks, i, j), mode, i * size,
     (i + 1) * size < n ? (i + 1) * size : n, j * size, (j + 1) * size < m ? (j + 1) * size : m);
}

/* The blocks that meet as number `at` of a round. Square: the circle method, where the last of an
 * even number of players stays, and i <= j; round -1 is each block with itself. */
static void meeting(const kept_blocks *b, int64_t round, int64_t at, int64_t *i, int64_t *j) {
    if (!b->square) {
        int64_t size = b->row_blocks > b->column_blocks ? b->row_blocks : b->column_blocks;
        *i = at;
        *j = (at + round) % size;
        return;
    }
    int64_t others = b->row_blocks - 1 + b->row_blocks % 2;
    int64_t one = round < 0 ? at : at == 0 ? others : (round + at) % others;
    int64_t other = round < 0 ? at : (round - at + others) % others;
    *i = one < other ? one : other;
    *j = one < other ? other : one;
}

static void run_meeting(const schedule *s, int64_t round, int64_t at) {
    int64_t i, j;
    meeting(&s->blocks, round, at, &i, &j);
    if (i >= s->blocks.row_blocks || j >= s->blocks.column_blocks) return;
    char *scratch = s->scratch + (size_t)omp_get_thread_num() * s->scratch_bytes;
    if (s->pass->symmetric && i != j) {
        run_blocks(s, scratch, TILE_MIRRORED, i, j);
        return;
    }
    run_blocks(s, scratch, TILE_PLAIN, i, j);
    if (s->blocks.square && i != j) run_blocks(s, scratch, TILE_PLAIN, j, i);
}

static ln_status run_rounds(const schedule *s, int team) {
    const kept_blocks *b = &s->blocks;
    int64_t blocks = b->row_blocks > b->column_blocks ? b->row_blocks : b->column_blocks;
    int64_t players = b->row_blocks + b->row_blocks % 2;
    int64_t last = b->square ? players - 1 : blocks;
    for (int64_t round = b->square ? -1 : 0; round < last; round++) {
        int64_t meetings = !b->square || round < 0 ? blocks : players / 2;
        if (ln_interrupted()) return ln_fail(LN_INTERRUPTED, "similarity: interrupted");
#pragma omp parallel for schedule(dynamic) num_threads(team)
        for (int64_t at = 0; at < meetings; at++) run_meeting(s, round, at);
    }
    return LN_OK;
}

static void pack_side(const tile_pass *pass, const tile_side *side) {
    int64_t parts = REAL(tile_side_parts)(side);
#pragma omp parallel for schedule(static) num_threads(ln_team(side->height * pass->d))
    for (int64_t part = 0; part < parts; part++) REAL(tile_pack_part)(pass, side, part);
}

static ln_status run_pairs(const tile_pass *pass, bool square) {
    schedule s = {.pass = pass, .blocks = REAL(kept_blocks_of)(pass, square)};
    s.scratch_bytes = REAL(tile_scratch_bytes)(pass, s.blocks.rows);
    s.scratch_bytes = (s.scratch_bytes + 4095) / 4096 * 4096;
    int team = ln_team(pass->n * pass->m);
    s.scratch = ln_scratch_new(s.scratch_bytes * (size_t)team, "similarity");
    if (s.scratch == NULL) return LN_OUT_OF_MEMORY;
    ln_status status = run_rounds(&s, team);
    ln_scratch_release(s.scratch);
    return status;
}

/* Sides that take no more are packed once; of larger ones each pair packs its rows. */
#define SIDES_BYTES ((int64_t)16 << 20)

ln_status REAL(schedule_run)(const tile_pass *given, bool square, ln_tiles *tiles) {
    tile_pass pass = *given;
    if (pass.n == 0 || pass.m == 0) return LN_OK;
    if (square && !pass.symmetric) tiles = NULL; /* a pair's two halves are computed apart */
    REAL(kept_use)(&pass, tiles);
    int64_t bytes = REAL(tile_side_elements)(&pass, square) * (int64_t)sizeof(real);
    real *memory = NULL;
    if (bytes <= SIDES_BYTES) {
        memory = ln_scratch_new((size_t)bytes, "similarity");
        if (memory == NULL) return LN_OUT_OF_MEMORY;
        REAL(tile_sides)(&pass, square, memory);
        pack_side(&pass, &pass.q_side);
        if (!square) pack_side(&pass, &pass.k_side);
    }
    ln_status status = run_pairs(&pass, square);
    if (tiles != NULL && status == LN_OK) tiles->filled = true;
    ln_scratch_release(memory);
    return status;
}
