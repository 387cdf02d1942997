/* Sorting and the choice of the k best. Elements of any dtype become 64-bit keys whose order as
 * unsigned integers is the order wanted, so that one sort serves all. Invariants: equal elements
 * stay in the order of their positions; -0 equals 0; a NaN is larger than all else. */
#include "axis.h"
#include "row.h"

/* An element: its key and its position on its line, from 0. */
typedef struct {
    uint64_t key;
    int64_t at;
} entry;

enum { X, VALUES, INDICES }; /* the tensors of an axis */

typedef struct {
    const ln_tensor *x;
    ln_tensor *values, *indices;
    axis axes[LN_MAX_DIMS]; /* the dimensions other than the line's */
    int count;
    axis line; /* along which x is sorted */
    int64_t k;
    bool largest, sorts; /* sorts: the whole line; otherwise a heap holds the k best so far */
    entry *scratch;
    int64_t scratch_entries; /* a member's share */
} selection;

/* ---- Keys ---- */

static uint64_t key_of(double x) {
    ln_cell c = {.f = x};
    if (x != x) return UINT64_MAX;
    if (x == 0) c.u = 0;
    return c.u ^ (c.i < 0 ? UINT64_MAX : (uint64_t)1 << 63);
}

/* The keys of up to ROW elements of a line, from `start`: what comes first has the smallest. */
static int64_t load_keys(const selection *s, uint64_t *keys, int64_t offset, int64_t start) {
    ln_cell row[ROW];
    bool integer = !ln_dtype_is_float(s->x->dtype);
    int64_t n = smaller(ROW, s->line.extent - start);
    CPU(row_load)(row, element(s->x, offset + start * s->line.step[X]), s->x->dtype, n,
                  s->line.step[X], integer);
    for (int64_t i = 0; i < n; i++) {
        uint64_t key = integer ? row[i].u ^ (uint64_t)1 << 63 : key_of(row[i].f);
        keys[i] = s->largest ? ~key : key;
    }
    return n;
}

/* ---- Sorting a line ---- */

static void insertion_sort(entry *a, int64_t n) {
    for (int64_t i = 1; i < n; i++) {
        entry e = a[i];
        int64_t place = i;
        for (; place > 0 && a[place - 1].key > e.key; place--) a[place] = a[place - 1];
        a[place] = e;
    }
}

enum { DIGITS = 8, DIGIT_VALUES = 256, FEW = 64 };

static unsigned digit_of(uint64_t key, int digit) {
    return (unsigned)(key >> 8 * digit) % DIGIT_VALUES;
}

/* Distributes from a to b, in the order of one digit. */
static void radix_pass(entry *restrict b, const entry *restrict a, int64_t n, int digit,
                       const int64_t *counts) {
    int64_t place[DIGIT_VALUES], sum = 0;
    for (int v = 0; v < DIGIT_VALUES; v++) {
        place[v] = sum;
        sum += counts[v];
    }
    for (int64_t i = 0; i < n; i++) b[place[digit_of(a[i].key, digit)]++] = a[i];
}

/* Stable, by key; b is room for n more. Returns the one of a and b that holds the result. */
static entry *radix_sort(entry *a, entry *b, int64_t n) {
    int64_t counts[DIGITS][DIGIT_VALUES];
    if (n < FEW) {
        insertion_sort(a, n);
        return a;
    }
    memset(counts, 0, sizeof counts);
    for (int64_t i = 0; i < n; i++)
        for (int d = 0; d < DIGITS; d++) counts[d][digit_of(a[i].key, d)]++;
    for (int d = 0; d < DIGITS; d++) {
        if (counts[d][digit_of(a[0].key, d)] == n) continue; /* all have the same digit */
        radix_pass(b, a, n, d, counts[d]);
        entry *other = a;
        a = b;
        b = other;
    }
    return a;
}

static entry *sort_line(const selection *s, entry *entries, int64_t offset) {
    uint64_t keys[ROW];
    for (int64_t start = 0; start < s->line.extent; start += ROW) {
        int64_t n = load_keys(s, keys, offset, start);
        for (int64_t i = 0; i < n; i++) entries[start + i] = (entry){keys[i], start + i};
    }
    return radix_sort(entries, entries + s->line.extent, s->line.extent);
}

/* ---- Choosing k of a line ---- */

static bool comes_later(entry a, entry b) {
    return a.key != b.key ? a.key > b.key : a.at > b.at;
}

/* Puts e in at the root and moves it down; each parent comes later than its children. */
static void heap_replace(entry *heap, int64_t n, entry e) {
    int64_t i = 0;
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && comes_later(heap[child + 1], heap[child])) child++;
        if (!comes_later(heap[child], e)) break;
        heap[i] = heap[child];
    }
    heap[i] = e;
}

/* The k entries that come first, in order. The root of the heap is the last of those chosen so far.
 */
static void choose_line(const selection *s, entry *heap, int64_t offset) {
    uint64_t keys[ROW];
    for (int64_t i = 0; i < s->k; i++) heap[i] = (entry){UINT64_MAX, INT64_MAX};
    for (int64_t start = 0; start < s->line.extent; start += ROW) {
        int64_t n = load_keys(s, keys, offset, start);
        for (int64_t i = 0; i < n; i++) {
            entry e = {keys[i], start + i};
            if (comes_later(heap[0], e)) heap_replace(heap, s->k, e);
        }
    }
    for (int64_t n = s->k - 1; n > 0; n--) {
        entry last = heap[0];
        heap_replace(heap, n, heap[n]);
        heap[n] = last;
    }
}

/* ---- Lines ---- */

/* The values are copied from x, so that every bit of theirs stays. */
static void store_line(const selection *s, const entry *chosen, int64_t line) {
    int64_t from = axis_offset(s->axes, s->count, line, X);
    int64_t values = axis_offset(s->axes, s->count, line, VALUES);
    int64_t indices = axis_offset(s->axes, s->count, line, INDICES);
    size_t size = ln_dtype_size(s->x->dtype);
    for (int64_t i = 0; i < s->k; i++) {
        copy_element(element(s->values, values + i * s->line.step[VALUES]),
                     element(s->x, from + chosen[i].at * s->line.step[X]), size);
        int64_t *index = (int64_t *)element(s->indices, indices + i * s->line.step[INDICES]);
        *index = chosen[i].at + 1;
    }
}

static void line_body(void *context, int64_t line, int member) {
    const selection *s = context;
    entry *entries = s->scratch + member * s->scratch_entries;
    int64_t offset = axis_offset(s->axes, s->count, line, X);
    if (s->sorts) {
        entries = sort_line(s, entries, offset);
    } else {
        choose_line(s, entries, offset);
    }
    store_line(s, entries, line);
}

ln_status CPU(topk)(ln_tensor *values, ln_tensor *indices, const ln_tensor *x, int64_t k, int dim,
                    bool largest) {
    selection s = {.x = x, .values = values, .indices = indices, .k = k, .largest = largest};
    if (k == 0 || x->numel == 0) return LN_OK;
    for (int i = 0; i < x->ndim; i++) {
        axis a = {x->shape[i], {x->stride[i], values->stride[i], indices->stride[i]}, false};
        if (i == dim) s.line = a;
        else s.count = axis_insert(s.axes, s.count, a);
    }
    s.count = axis_join(s.axes, s.count);
    s.sorts = k > s.line.extent / 8;
    s.scratch_entries = s.sorts ? 2 * s.line.extent : k;
    int64_t lines = x->numel / s.line.extent, work = x->numel * (s.sorts ? 16 : 2);
    size_t bytes = (size_t)(share_team(lines, work) * s.scratch_entries) * sizeof *s.scratch;
    s.scratch = ln_scratch_new(bytes, k == s.line.extent ? "sort" : "topk");
    if (s.scratch == NULL) return LN_OUT_OF_MEMORY;
    share(lines, work, line_body, &s);
    ln_scratch_release(s.scratch);
    return LN_OK;
}
