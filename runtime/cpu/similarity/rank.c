/* Selecting the k largest entries of a row: entries at or above a threshold are kept and sorted by
 * radix. The threshold is the last row's, where it keeps enough and not too many, else it comes
 * from a histogram. Invariant: whatever the threshold was, the result is exact. */
#include "rank.h"

#include <math.h>
#include <string.h>

/* The columns of the entries that are not below the threshold: a NaN is kept, and a NaN threshold
 * keeps all. Without a branch, because which entries pass cannot be foreseen. */
static int64_t keep(int32_t *columns, const real *x, int64_t m, real threshold) {
    int64_t n = 0;
    for (int64_t t = 0; t < m; t++) {
        columns[n] = (int32_t)t;
        n += !(x[t] < threshold);
    }
    return n;
}

enum { BINS = 1024 };

/* The lower edge of a histogram bin that has at least k finite entries at or above it; -inf where
 * there are not so many. */
static real histogram_threshold(const real *x, int64_t m, int64_t k) {
    real low = INFINITY, high = -INFINITY;
    int32_t bins[BINS] = {0};
    for (int64_t t = 0; t < m; t++) {
        if (x[t] > high) high = x[t];
        if (x[t] < low && x[t] > -INFINITY) low = x[t];
    }
    real scale = BINS / (high - low);
    if (!(high > low) || !(scale < INFINITY) || high == INFINITY) return -INFINITY;
    for (int64_t t = 0; t < m; t++) {
        if (!(x[t] >= low)) continue;
        int bin = (int)((x[t] - low) * scale);
        bins[bin < BINS ? bin : BINS - 1]++;
    }
    int64_t above = 0;
    int bin = BINS;
    while (bin > 0 && above < k) above += bins[--bin];
    if (above < k) return -INFINITY;
    return low + (real)(bin - 1) / scale; /* a bin lower: rounding may have moved its edge */
}

/* By bytes, from the least significant; one that all keys share needs no pass. */
candidate *REAL(rank_sort)(candidate *a, candidate *b, int64_t n) {
    for (int shift = 0; shift < 8 * (int)sizeof(real); shift += 8) {
        int64_t starts[256] = {0}, next = 0;
        for (int64_t i = 0; i < n; i++) starts[a[i].key >> shift & 255]++;
        if (n == 0 || starts[a[0].key >> shift & 255] == n) continue;
        for (int d = 0; d < 256; d++) {
            int64_t count = starts[d];
            starts[d] = next;
            next += count;
        }
        for (int64_t i = 0; i < n; i++) b[starts[a[i].key >> shift & 255]++] = a[i];
        candidate *swap = a;
        a = b;
        b = swap;
    }
    return a;
}

const candidate *REAL(rank_largest)(rank_state *state, const real *x, int64_t m, int64_t k) {
    int64_t n = 0;
    if (state->threshold == state->threshold) n = keep(state->columns, x, m, state->threshold);
    if (n < k || n > 2 * k + 64) {
        state->threshold = histogram_threshold(x, m, k);
        n = keep(state->columns, x, m, state->threshold);
        if (n < k) n = keep(state->columns, x, m, -INFINITY);
    }
    for (int64_t i = 0; i < n; i++)
        state->kept[i] = (candidate){rank_key(x[state->columns[i]]), state->columns[i]};
    const candidate *sorted = REAL(rank_sort)(state->kept, state->spare, n);
    if (k > 0) { /* a little below the k-th value, so that the next row is likely to keep enough */
        real first = rank_value(sorted[0].key), last = rank_value(sorted[k - 1].key);
        real margin = (first - last) / 16;
        state->threshold = margin >= 0 && margin < INFINITY ? last - margin : -INFINITY;
    }
    return sorted;
}
