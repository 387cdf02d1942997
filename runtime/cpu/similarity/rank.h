/* Selecting and sorting the largest entries of a row. Compiled once for each element type and
 * instruction set. Internal to cpu/. */
#ifndef LN_CPU_RANK_H
#define LN_CPU_RANK_H
#include "machine.h"

/* A value by a key that sorts descending values ascending, NaN first; ties keep their places. */
typedef struct {
    uint64_t key;
    int64_t column;
} candidate;

uint64_t REAL(rank_key)(real value);
real REAL(rank_value)(uint64_t key);
/* Sorts by key, stable; returns a or b, where the result lies. */
candidate *REAL(rank_sort)(candidate *a, candidate *b, int64_t n);

/* Scratch for rows of m entries: 2 m candidates. threshold carries what one row teaches the next;
 * start with NaN. */
typedef struct {
    candidate *kept, *spare;
    real threshold;
} rank_state;

/* The k largest of m entries, in order, ties by place; returns where they lie in the scratch. */
const candidate *REAL(rank_largest)(rank_state *state, const real *x, int64_t m, int64_t k);

#endif
