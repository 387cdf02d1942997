/* Sorting of entries, which choosing and scattering build on. Declarations only. */
#ifndef LN_CUDA_SORT_H
#define LN_CUDA_SORT_H
#include "walk.h"

/* An element: its key and its position on its line, from 0. Entries that only fill a line up to
 * its length have the largest of both. */
typedef struct {
    uint64_t key;
    int64_t at;
} entry;

/* The least power of two that n fits in: the length of a line of entries. */
int64_t cuda_sort_length(int64_t n);

/* Sorts `lines` lines of `length` entries each (a power of two) by key, then by position. */
ln_status cuda_sort(entry *entries, int64_t lines, int64_t length, const char *what);

#endif
