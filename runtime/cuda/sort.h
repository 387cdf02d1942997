/* Sorting of entries, which choosing and scattering build on, and the keys of numbers: unsigned
 * integers of their order, in which -0 equals 0 and a NaN is larger than all else. */
#ifndef LN_CUDA_SORT_H
#define LN_CUDA_SORT_H
#include <string.h>

#include "walk.h"

/* An element: its key and its position on its line, from 0. Entries that only fill a line up to
 * its length have the largest of both. */
typedef struct {
    uint64_t key;
    int64_t at;
} entry;

static inline __device__ bool comes_later(const entry &a, const entry &b) {
    return a.key != b.key ? a.key > b.key : a.at > b.at;
}

/* ---- Keys ---- */

static inline __device__ uint32_t key_of(float x) {
    uint32_t bits;
    if (x != x) return UINT32_MAX;
    if (x == 0) x = 0; /* -0 too */
    memcpy(&bits, &x, sizeof bits);
    return bits ^ (bits >> 31 != 0 ? UINT32_MAX : (uint32_t)1 << 31);
}

static inline __device__ uint64_t key_of(double x) {
    uint64_t bits;
    if (x != x) return UINT64_MAX;
    if (x == 0) x = 0;
    memcpy(&bits, &x, sizeof bits);
    return bits ^ (bits >> 63 != 0 ? UINT64_MAX : (uint64_t)1 << 63);
}

static inline __device__ uint64_t key_of(int64_t x) {
    return (uint64_t)x ^ (uint64_t)1 << 63;
}

/* What has the key, or a NaN. */
static inline __device__ float value_of(uint32_t key) {
    float x;
    key ^= key >> 31 != 0 ? (uint32_t)1 << 31 : UINT32_MAX;
    memcpy(&x, &key, sizeof x);
    return x;
}

static inline __device__ double value_of(uint64_t key) {
    double x;
    key ^= key >> 63 != 0 ? (uint64_t)1 << 63 : UINT64_MAX;
    memcpy(&x, &key, sizeof x);
    return x;
}

/* ---- Sorting ---- */

/* The least power of two that n fits in: the length of a line of entries. */
static inline int64_t cuda_sort_length(int64_t n) {
    int64_t length = 1;
    while (length < n) length *= 2;
    return length;
}

/* Sorts `lines` lines of `length` entries each (a power of two) by key, then by position. */
ln_status cuda_sort(entry *entries, int64_t lines, int64_t length, const char *what);

#endif
