/* Selecting and sorting the largest entries of a row. Compiled once for each element type and
 * instruction set. Internal to cpu/. */
#ifndef LN_CPU_RANK_H
#define LN_CPU_RANK_H
#include "machine.h"

#include <string.h>

/* A value by a key that sorts descending values ascending, NaN first; ties keep their places. */
typedef struct {
    uint64_t key;
    int64_t column;
} candidate;

static inline uint64_t rank_key(real x) {
    if (x != x) return 0; /* whatever its sign */
    if (sizeof(real) == 8) {
        uint64_t bits;
        memcpy(&bits, &x, sizeof x);
        return bits >> 63 ? bits : ~bits & (UINT64_MAX >> 1);
    }
    uint32_t bits;
    memcpy(&bits, &x, sizeof x);
    return bits >> 31 ? bits : ~bits & (UINT32_MAX >> 1);
}

/* The value of a key: turning it twice gives it back. */
static inline real rank_value(uint64_t key) {
    real x;
    if (sizeof(real) == 8) {
        uint64_t bits = key >> 63 ? key : ~key & (UINT64_MAX >> 1);
        memcpy(&x, &bits, sizeof x);
    } else {
        uint32_t low = (uint32_t)key;
        uint32_t bits = low >> 31 ? low : ~low & (UINT32_MAX >> 1);
        memcpy(&x, &bits, sizeof x);
    }
    return x;
}

/* Sorts by key, stable; returns a or b, where the result lies. */
candidate *REAL(rank_sort)(candidate *a, candidate *b, int64_t n);

/* A value that at least k of n entries are not below, and not many more; -inf where there is none.
 * scratch: rank_scratch_bytes. */
real REAL(rank_threshold)(const real *x, int64_t n, int64_t k, void *scratch);
/* Leaves the k largest of n entries, in any order, and perhaps others, `most` at most, k <= most:
 * those not below the threshold that it stores. Returns how many. */
int64_t REAL(rank_cut)(real *x, real *threshold, int64_t n, int64_t k, int64_t most);
/* The k largest of n entries, largest first. sorted: room for n. scratch: rank_scratch_bytes. */
void REAL(rank_values)(real *sorted, const real *x, int64_t n, int64_t k, void *scratch);
size_t REAL(rank_scratch_bytes)(int64_t n);

/* Scratch for rows of m entries: 2 m candidates and m columns. threshold carries what one row
 * teaches the next; start with NaN. */
typedef struct {
    candidate *kept, *spare;
    int32_t *columns;
    real threshold;
} rank_state;

/* The k largest of m entries, in order, ties by place; returns where they lie in the scratch. */
const candidate *REAL(rank_largest)(rank_state *state, const real *x, int64_t m, int64_t k);

enum { APPEND_SPARE = 8 }; /* entries behind the last appended that may be written (keep.h) */

/* The same without columns: room for m + APPEND_SPARE entries each, and rank_scratch_bytes(m). */
typedef struct {
    real *kept, *sorted;
    void *scratch;
    real threshold;
} value_state;

/* The k largest of m entries, largest first, in the state's room. */
real *REAL(rank_largest_values)(value_state *state, const real *x, int64_t m, int64_t k);

#endif
