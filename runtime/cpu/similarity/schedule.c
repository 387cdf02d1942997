/* Runs a pass: packing, then pairs of row blocks, over the team. Computes nothing itself. Compiled
 * once for each element type and instruction set.
 *
 * Pairs are taken round by round, and in a round no two share rows or columns (a tournament for one
 * set of rows, a Latin square for two), so that who takes one seldom waits for its blocks.
 * Invariant: a block's pairs run in the order of the rounds, so the results do not depend on the
 * size of the team. */
#include "schedule.h"
#include "kept.h"
#include "pack.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

/* The pairs of a block: how many were taken, and how many of them are done. */
typedef struct {
    int64_t taken;
    _Atomic int64_t done;
} turns;

typedef struct {
    const tile_pass *pass;
    kept_blocks blocks; /* square: pairs are unordered */
    char *scratch;      /* scratch_bytes for each thread */
    size_t scratch_bytes;
    pthread_mutex_t lock; /* of what follows, but for turns.done */
    int64_t round, at;    /* the next meeting */
    turns *turns;         /* of the blocks of rows, then of those of columns where not square */
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

static void run_meeting(const schedule *s, int64_t i, int64_t j) {
    char *scratch = s->scratch + (size_t)omp_get_thread_num() * s->scratch_bytes;
    if (s->pass->symmetric) {
        run_blocks(s, scratch, i == j ? TILE_SQUARE : TILE_MIRRORED, i, j);
        return;
    }
    run_blocks(s, scratch, TILE_PLAIN, i, j);
    if (s->blocks.square && i != j) run_blocks(s, scratch, TILE_PLAIN, j, i);
}

/* A meeting that a thread has taken: its blocks, and the pairs of theirs that come before. */
typedef struct {
    int64_t i, j, before_i, before_j;
    turns *of_i, *of_j; /* one where a block meets itself */
} taken_meeting;

/* The next meeting of blocks that exist; false: there is none. */
static bool next_meeting(schedule *s, taken_meeting *t) {
    const kept_blocks *b = &s->blocks;
    int64_t blocks = b->row_blocks > b->column_blocks ? b->row_blocks : b->column_blocks;
    int64_t players = b->row_blocks + b->row_blocks % 2;
    int64_t rounds = b->square ? players - 1 : blocks;
    while (s->round < rounds) {
        meeting(b, s->round, s->at, &t->i, &t->j);
        if (++s->at == (!b->square || s->round < 0 ? blocks : players / 2)) {
            s->round++;
            s->at = 0;
        }
        if (t->i < b->row_blocks && t->j < b->column_blocks) return true;
    }
    return false;
}

static bool take(schedule *s, taken_meeting *t) {
    pthread_mutex_lock(&s->lock);
    bool any = !ln_interrupted() && next_meeting(s, t);
    if (any) {
        t->of_i = &s->turns[t->i];
        t->of_j = s->blocks.square ? &s->turns[t->j] : &s->turns[s->blocks.row_blocks + t->j];
        t->before_i = t->of_i->taken++;
        t->before_j = t->of_j == t->of_i ? t->before_i : t->of_j->taken++;
    }
    pthread_mutex_unlock(&s->lock);
    return any;
}

/* What is waited for was taken before, so that it is running. */
static void wait_for(_Atomic int64_t *done, int64_t wanted) {
    enum { SPINS = 1000 };
    for (int spins = 0; atomic_load_explicit(done, memory_order_acquire) < wanted; spins++) {
        if (spins < SPINS) __builtin_ia32_pause();
        else sched_yield();
    }
}

static void run_taken(const schedule *s, const taken_meeting *t) {
    wait_for(&t->of_i->done, t->before_i);
    wait_for(&t->of_j->done, t->before_j);
    run_meeting(s, t->i, t->j);
    atomic_fetch_add_explicit(&t->of_i->done, 1, memory_order_release);
    if (t->of_j != t->of_i) atomic_fetch_add_explicit(&t->of_j->done, 1, memory_order_release);
}

/* ---- The run ---- */

/* Items that the threads of a region take one by one. */
typedef struct {
    int64_t count;
    _Atomic int64_t taken, done;
} items;

static void pack_all(const tile_pass *pass, items *parts) {
    int64_t part;
    while ((part = atomic_fetch_add(&parts->taken, 1)) < parts->count) {
        REAL(pack_part)(pass, part);
        atomic_fetch_add_explicit(&parts->done, 1, memory_order_release);
    }
    wait_for(&parts->done, parts->count);
}

static ln_status run(const tile_pass *pass, bool square) {
    schedule s = {.pass = pass,
                  .blocks = REAL(kept_blocks_of)(pass, square),
                  .round = square ? -1 : 0,
                  .lock = PTHREAD_MUTEX_INITIALIZER};
    items parts = {.count = pass->packed ? REAL(pack_parts)(pass, square) : 0};
    size_t turns_bytes = (size_t)(s.blocks.row_blocks + s.blocks.column_blocks) * sizeof(turns);
    s.scratch_bytes = REAL(tile_scratch_bytes)(pass, s.blocks.rows);
    s.scratch_bytes = (s.scratch_bytes + 4095) / 4096 * 4096;
    int team = ln_team(pass->n * pass->m);
    s.scratch = ln_scratch_new(s.scratch_bytes * (size_t)team, "similarity");
    s.turns = ln_scratch_new(turns_bytes, "similarity");
    if (s.scratch != NULL && s.turns != NULL) {
        memset(s.turns, 0, turns_bytes);
#pragma omp parallel num_threads(team)
        {
            ln_take_place();
            pack_all(pass, &parts);
            for (taken_meeting t; take(&s, &t);) run_taken(&s, &t);
        }
    }
    bool ran = s.scratch != NULL && s.turns != NULL;
    ln_scratch_release(s.turns);
    ln_scratch_release(s.scratch);
    if (!ran) return LN_OUT_OF_MEMORY;
    return ln_interrupted() ? ln_fail(LN_INTERRUPTED, "similarity: interrupted") : LN_OK;
}

ln_status REAL(schedule_run)(const tile_pass *given, bool square, ln_tiles *tiles) {
    tile_pass pass = *given;
    if (pass.n == 0 || pass.m == 0) return LN_OK;
    if (square && !pass.symmetric) tiles = NULL; /* a pair's two halves are computed apart */
    REAL(kept_use)(&pass, tiles);
    kept_blocks blocks = REAL(kept_blocks_of)(&pass, square);
    pass.kept_all = REAL(kept_all)(&pass, &blocks);
    ln_status status = REAL(pack_sides)(&pass, square);
    if (status == LN_OK) status = run(&pass, square);
    if (tiles != NULL && status == LN_OK)
        tiles->holds = pass.keep_weights ? LN_TILES_WEIGHTS : LN_TILES_SIMILARITIES;
    REAL(pack_release)(&pass, square);
    return status;
}
