/* Keeping what is not below the threshold of an anchor (tile_keep): appending it to the anchor's
 * list, without a branch, because which elements pass cannot be foreseen. Internal to cpu/. */
#ifndef LN_CPU_KEEP_H
#define LN_CPU_KEEP_H
#include "rank.h"
#include "tile.h"

#include <string.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif

/* A NaN passes. Returns how many did. */
static inline int64_t append_each(real *list, const real *x, real threshold, int64_t n) {
    int64_t have = 0;
    for (int64_t t = 0; t < n; t++) {
        list[have] = x[t];
        have += !(x[t] < threshold);
    }
    return have;
}

#ifdef __AVX2__
/* The transpose of 8 x 8 floats, rows y_apart and x_apart elements apart. */
static inline void turn_eight(float *y, int64_t y_apart, const float *x, int64_t x_apart) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = _mm256_loadu_ps(x + i * x_apart);
    for (int i = 0; i < 8; i += 2) { /* pairs of rows, then pairs of those, then halves */
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0x44);
            a[i + 2 * j + 1] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps(y + i * y_apart, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
        _mm256_storeu_ps(y + (i + 4) * y_apart, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
}

/* For each set of lanes: their numbers, a byte each, in front. */
#define LANE(set, i)                                                                               \
    ((uint64_t)((set) >> (i)&1 ? (i) : 0) << 8 * __builtin_popcount((set) & ((1 << (i)) - 1)))
#define LANES_OF(set)                                                                              \
    (LANE(set, 0) | LANE(set, 1) | LANE(set, 2) | LANE(set, 3) | LANE(set, 4) | LANE(set, 5) |     \
     LANE(set, 6) | LANE(set, 7))
#define SETS_OF_4(set) LANES_OF(set), LANES_OF((set) + 1), LANES_OF((set) + 2), LANES_OF((set) + 3)
#define SETS_OF_16(set)                                                                            \
    SETS_OF_4(set), SETS_OF_4((set) + 4), SETS_OF_4((set) + 8), SETS_OF_4((set) + 12)
#define SETS_OF_64(set)                                                                            \
    SETS_OF_16(set), SETS_OF_16((set) + 16), SETS_OF_16((set) + 32), SETS_OF_16((set) + 48)
static const uint64_t lanes_of[256] = {SETS_OF_64(0), SETS_OF_64(64), SETS_OF_64(128),
                                       SETS_OF_64(192)};

/* Floats, eight at a time: those that pass move together and are stored. */
static inline int64_t append_eights(void *list, const void *x, float threshold, int64_t n) {
    const __m256 bound = _mm256_set1_ps(threshold);
    int64_t have = 0;
    for (int64_t t = 0; t < n; t += 8) {
        __m256 value = _mm256_loadu_ps((const float *)x + t);
        unsigned passed = (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(value, bound, _CMP_NLT_UQ));
        __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)&lanes_of[passed]));
        _mm256_storeu_ps((float *)list + have, _mm256_permutevar8x32_ps(value, order));
        have += __builtin_popcount(passed);
    }
    return have;
}
#endif

static inline int64_t append(real *list, const real *x, real threshold, int64_t n) {
    int64_t have = 0, done = 0;
#ifdef __AVX2__
    if (sizeof(real) == sizeof(float)) {
        done = n / 8 * 8;
        have = append_eights(list, x, (float)threshold, done);
    }
#endif
    return have + append_each(list + have, x + done, threshold, n - done);
}

/* Where the list might not hold all of x: what passes goes by way of a buffer. */
static __attribute__((noinline)) void keep_tightly(tile_keep *k, int64_t anchor, const real *x,
                                                   int64_t n) {
    real passed[SEGMENT + APPEND_SPARE], *list = k->kept + anchor * k->capacity;
    int64_t have = k->count[anchor];
    n = append(passed, x, k->threshold[anchor], n);
    if (have + n > k->capacity)
        have = REAL(rank_cut)(list, &k->threshold[anchor], have, k->k, k->capacity - SEGMENT);
    memcpy(list + have, passed, (size_t)n * sizeof *list);
    k->count[anchor] = (int32_t)(have + n);
}

static inline void keep(tile_keep *k, int64_t anchor, const real *x, int64_t n) {
    int64_t have = k->count[anchor];
    if (have + n + APPEND_SPARE > k->capacity) {
        keep_tightly(k, anchor, x, n);
        return;
    }
    real *list = k->kept + anchor * k->capacity + have;
    k->count[anchor] += (int32_t)append(list, x, k->threshold[anchor], n);
}

enum { KEEP_COLUMNS = 8 }; /* that are turned into rows at a time */

/* y[c * y_apart + i] = x[i * apart + c]. */
static inline void turn(real *y, int64_t y_apart, const real *x, int64_t apart, int64_t rows) {
    int64_t done = 0;
#ifdef __AVX2__
    if (sizeof(real) == sizeof(float))
        for (; done + 8 <= rows; done += 8)
            turn_eight((float *)(y + done), y_apart, (const float *)(x + done * apart), apart);
#endif
    for (int64_t i = done; i < rows; i++)
        for (int64_t c = 0; c < KEEP_COLUMNS; c++) y[c * y_apart + i] = x[i * apart + c];
}

#endif
