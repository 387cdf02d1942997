/* Selecting and sorting the largest entries of a row: those at or above a threshold are kept, which
 * is the last row's, where it keeps enough and not too many, else it comes from a histogram. With
 * their columns they are sorted by radix; without, spread over bins by value and sorted within.
 * Invariant: whatever the threshold and the values are, the result is exact. */
#include "rank.h"
#include "keep.h"

#include <math.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

/* The columns of the entries that are not below the threshold: a NaN is kept, and a NaN threshold
 * keeps all. Without a branch, because which entries pass cannot be foreseen. */
static int64_t append_columns(int32_t *columns, const real *x, int64_t m, real threshold) {
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

/* Whether what a threshold kept will do: all of the k largest, and not many more. */
static bool is_near(int64_t n, int64_t k) {
    return n >= k && n <= 2 * k + 64;
}

/* A little below the last of the largest, so that the next row is likely to keep enough. */
static real below(real first, real last) {
    real margin = (first - last) / 16;
    return margin >= 0 && margin < INFINITY ? last - margin : -INFINITY;
}

const candidate *REAL(rank_largest)(rank_state *state, const real *x, int64_t m, int64_t k) {
    int64_t n = 0;
    if (state->threshold == state->threshold)
        n = append_columns(state->columns, x, m, state->threshold);
    if (!is_near(n, k)) {
        state->threshold = histogram_threshold(x, m, k);
        n = append_columns(state->columns, x, m, state->threshold);
        if (n < k) n = append_columns(state->columns, x, m, -INFINITY);
    }
    for (int64_t i = 0; i < n; i++)
        state->kept[i] = (candidate){rank_key(x[state->columns[i]]), state->columns[i]};
    const candidate *sorted = REAL(rank_sort)(state->kept, state->spare, n);
    if (k > 0) state->threshold = below(rank_value(sorted[0].key), rank_value(sorted[k - 1].key));
    return sorted;
}

/* ---- Values alone ---- */

/* By partitions around a middle element; keys, because NaN have a place among them. */
static void partition(real *x, int64_t n, int64_t k) {
    int64_t low = 0, high = n - 1;
    while (low < high) {
        uint64_t middle = rank_key(x[low + (high - low) / 2]);
        int64_t i = low, j = high;
        while (i <= j) {
            while (rank_key(x[i]) < middle) i++;
            while (rank_key(x[j]) > middle) j--;
            if (i > j) break;
            real swap = x[i];
            x[i++] = x[j];
            x[j--] = swap;
        }
        if (k - 1 <= j) high = j;
        else if (k - 1 >= i) low = i;
        else return;
    }
}

int64_t REAL(rank_cut)(real *x, real *threshold, int64_t n, int64_t k, int64_t most) {
    int64_t left = 0;
    *threshold = histogram_threshold(x, n, k);
    for (int64_t t = 0; t < n; t++) {
        real value = x[t];
        x[left] = value;
        left += !(value < *threshold);
    }
    if (left <= most) return left;
    partition(x, left, k);
    *threshold = x[k - 1];
    return k;
}

enum {
    MOST_BINS = 4096,
    FEWEST_BINS = 256,
    CROWD = 32 /* entries of one bin that are sorted in place */
};

/* About as many as there are entries: with fewer, bins take longer to sort, and with more, there
 * are more to go through. */
static int bins_for(int64_t n) {
    int bins = FEWEST_BINS;
    while (bins < MOST_BINS && bins < n * 3 / 4) bins *= 2;
    return bins;
}

typedef struct {
    uint16_t starts[MOST_BINS + 1];
    uint16_t bins[];
} spread;

static size_t spread_bytes(int64_t n) {
    return (sizeof(spread) + (size_t)n * sizeof(uint16_t) + 63) / 64 * 64;
}

size_t REAL(rank_scratch_bytes)(int64_t n) {
    size_t bins = spread_bytes(n), keys = 2 * (size_t)n * sizeof(candidate);
    return ((bins > keys ? bins : keys) + 63) / 64 * 64;
}

static void by_radix(real *sorted, const real *x, int64_t n, int64_t k, candidate *keys) {
    for (int64_t i = 0; i < n; i++) keys[i] = (candidate){rank_key(x[i]), 0};
    const candidate *done = REAL(rank_sort)(keys, keys + n, n);
    for (int64_t i = 0; i < k; i++) sorted[i] = rank_value(done[i].key);
}

/* How far entries are from the largest, 0 to 1, to a power that spreads them evenly over bins: the
 * tail whose share past a distance v is 1 - v^p has a mean of p / (p + 1). */
static int power_for(real mean) {
    return mean < (real)0.6 ? 1 : mean < (real)0.75 ? 2 : 4;
}

/* Each entry's bin, the first for the largest; false where bins do not serve. */
static bool find_bins(uint16_t *bin, const real *x, int64_t n, int bins) {
    real low = x[0], high = x[0], sum = 0;
#pragma omp simd reduction(min : low) reduction(max : high) reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
        sum += x[i]; /* NaN or infinite where one is */
    }
    real scale = 1 / (high - low), most = (real)(bins - 1);
    if (!(sum - sum == 0) || !(high > low) || !(scale < INFINITY) || n > UINT16_MAX) return false;
    int power = power_for((high - sum / (real)n) * scale);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        real v = (high - x[i]) * scale;
        v = power > 1 ? v * v : v;
        v = power > 2 ? v * v : v;
        bin[i] = (uint16_t)(int32_t)(v * most);
    }
    return true;
}

/* starts[b + 1], the entries of bin b, becomes those of the bins up to b: four at a time, which a
 * product adds up. */
static void add_up(uint16_t *starts, int bins) {
    const uint64_t ones = 0x0001000100010001;
    uint64_t before = 0;
    for (int b = 0; b < bins; b += 4) {
        uint64_t four;
        memcpy(&four, starts + b + 1, sizeof four);
        uint64_t up_to = four * ones, moved = up_to + before * ones;
        memcpy(starts + b + 1, &moved, sizeof moved);
        before += up_to >> 48;
    }
}

/* Counts the entries of each bin and adds them up. Returns the first bin past the k largest, or 0
 * where bins do not serve. crowd: the entries of the fullest bin. */
static int64_t count_bins(spread *s, const real *x, int64_t n, int64_t k, int bins,
                          int32_t *crowd) {
    if (!find_bins(s->bins, x, n, bins)) return 0;
    memset(s->starts, 0, (size_t)(bins + 1) * sizeof *s->starts);
    for (int64_t i = 0; i < n; i++) s->starts[s->bins[i] + 1]++;
    uint16_t fullest = 0;
#pragma omp simd reduction(max : fullest)
    for (int bin = 1; bin <= bins; bin++)
        fullest = s->starts[bin] > fullest ? s->starts[bin] : fullest;
    *crowd = fullest;
    add_up(s->starts, bins);
    int64_t below = 0, last = bins; /* starts[below] < k <= starts[last] */
    while (last - below > 1) {
        int64_t middle = (below + last) / 2;
        if (s->starts[middle] < k) below = middle;
        else last = middle;
    }
    return last;
}

real REAL(rank_threshold)(const real *x, int64_t n, int64_t k, void *scratch) {
    spread *s = scratch;
    int32_t crowd;
    real least = INFINITY;
    int64_t last = count_bins(s, x, n, k, FEWEST_BINS, &crowd);
    if (last == 0) return histogram_threshold(x, n, k);
#pragma omp simd reduction(min : least)
    for (int64_t i = 0; i < n; i++) {
        real value = s->bins[i] < last ? x[i] : INFINITY;
        least = value < least ? value : least;
    }
    return least;
}

/* The larger of every two neighbours in front. */
static void exchange(real *x, int64_t n) {
    int64_t i = 0;
#ifdef __AVX2__
    if (sizeof(real) == sizeof(float))
        for (float *f = (float *)x; i + 8 <= n; i += 8) {
            __m256 v = _mm256_loadu_ps(f + i), other = _mm256_permute_ps(v, 0xb1);
            __m256 larger = _mm256_max_ps(v, other), smaller = _mm256_min_ps(v, other);
            _mm256_storeu_ps(f + i, _mm256_blend_ps(larger, smaller, 0xaa));
        }
#endif
    for (; i + 2 <= n; i += 2) {
        real first = x[i], second = x[i + 1];
        x[i] = first > second ? first : second;
        x[i + 1] = first > second ? second : first;
    }
}

/* x is spread over bins in sorted, what is past the k largest behind them. As many exchanges of
 * neighbours as a bin has entries sort each bin, all at once and without a branch. */
void REAL(rank_values)(real *sorted, const real *x, int64_t n, int64_t k, void *scratch) {
    spread *s = scratch;
    int bins = bins_for(n);
    int32_t crowd = 0, last = 0;
    if (k > 0) last = (int32_t)count_bins(s, x, n, k, bins, &crowd);
    if (last == 0 || crowd > CROWD) {
        by_radix(sorted, x, n, k, scratch);
        return;
    }
    int32_t end = s->starts[last];
    for (int64_t i = 0; i < n; i++) sorted[s->starts[s->bins[i]]++] = x[i];
    for (int32_t i = 0; i < crowd; i++) exchange(sorted + i % 2, end - i % 2);
}

real *REAL(rank_largest_values)(value_state *state, const real *x, int64_t m, int64_t k) {
    int64_t n = 0;
    if (state->threshold == state->threshold) n = append(state->kept, x, state->threshold, m);
    if (!is_near(n, k)) {
        n = append(state->kept, x, histogram_threshold(x, m, k), m);
        if (n < k) n = append(state->kept, x, -INFINITY, m);
    }
    REAL(rank_values)(state->sorted, state->kept, n, k, state->scratch);
    if (k > 0) state->threshold = below(state->sorted[0], state->sorted[k - 1]);
    return state->sorted;
}
