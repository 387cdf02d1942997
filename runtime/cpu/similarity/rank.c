/* Selecting the k largest entries of a row: entries at or above a threshold are kept and sorted by
 * radix. The threshold is the last row's, where it keeps enough and not too many, else it comes
 * from a histogram. Invariant: whatever the threshold was, the result is exact. */
#include "rank.h"

#include <math.h>
#include <string.h>

/* The bits of a float, turned so that a larger value has a smaller key. */
uint64_t REAL(rank_key)(real x) {
    if (sizeof(real) == 8) {
        uint64_t bits;
        memcpy(&bits, &x, sizeof x);
        return bits >> 63 ? bits : ~bits & (UINT64_MAX >> 1);
    }
    uint32_t bits;
    memcpy(&bits, &x, sizeof x);
    return bits >> 31 ? bits : ~bits & (UINT32_MAX >> 1);
}

real REAL(rank_value)(uint64_t key) {
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

/* How many entries are not below the threshold: a NaN is kept, and a NaN threshold keeps all. */
static int64_t count_kept(const real *x, int64_t m, real threshold) {
    int64_t count = 0;
#pragma omp simd reduction(+ : count)
    for (int64_t t = 0; t < m; t++) count += !(x[t] < threshold);
    return count;
}

static int64_t keep(candidate *to, const real *x, int64_t m, real threshold) {
    int64_t n = 0;
    for (int64_t t = 0; t < m; t++) {
        to[n] = (candidate){REAL(rank_key)(x[t]), t};
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

/* By bytes, from the least significant. */
candidate *REAL(rank_sort)(candidate *a, candidate *b, int64_t n) {
    for (int shift = 0; shift < 8 * (int)sizeof(real); shift += 8) {
        int64_t starts[256] = {0}, next = 0;
        for (int64_t i = 0; i < n; i++) starts[a[i].key >> shift & 255]++;
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
    int64_t count = state->threshold == state->threshold ? count_kept(x, m, state->threshold) : 0;
    if (count < k || count > 2 * k + 64) {
        state->threshold = histogram_threshold(x, m, k);
        count = count_kept(x, m, state->threshold);
        if (count < k) state->threshold = -INFINITY;
    }
    int64_t n = keep(state->kept, x, m, state->threshold);
    const candidate *sorted = REAL(rank_sort)(state->kept, state->spare, n);
    if (k > 0) { /* a little below the k-th value, so that the next row is likely to keep enough */
        real first = REAL(rank_value)(sorted[0].key), last = REAL(rank_value)(sorted[k - 1].key);
        real margin = (first - last) / 16;
        state->threshold = margin >= 0 && margin < INFINITY ? last - margin : -INFINITY;
    }
    return sorted;
}
