/* Choosing, adding and writing at positions that an index tensor holds. gather and scatter_add are
 * one walk over the index with a different move at each of its elements; index_select, index_add
 * and index_copy are the same walk with an index that does not vary along the other dimensions.
 * Invariants: the index is checked whole before anything is written; an element of dst receives its
 * sources in the order of the index, whatever the team, which shares only elements of different
 * lines. */
#include "axis.h"
#include "row.h"

#include <stdio.h>

/* The tensors of an axis: the one that is addressed by the index, the one of the index's shape, and
 * the index itself, row-major. Steps are bytes in the first two, elements in the index. */
enum { ADDRESSED, SHAPED, INDEX };

enum {
    PIECE = 1 << 14, /* elements that one item of the team moves, about */
    RUN = 64         /* neighbours that one item adds to, all along their lines */
};

/* shaped = addressed; addressed += shaped; addressed = shaped. */
typedef enum { TAKE, ADD, REPLACE } move;

typedef struct {
    const ln_tensor *addressed, *shaped;
    move move;
    int64_t *index; /* positions from 0 */
    axis outer[LN_MAX_DIMS];
    int outer_count;
    axis line, inner;                /* along the dimension of the index; innermost of the others */
    int64_t line_piece, inner_piece; /* extents that an item covers */
    int64_t line_pieces, inner_pieces;
} walk;

/* ---- The index ---- */

/* From 1, or -1 for the last. */
static bool in_range(int64_t value, int64_t extent) {
    return ((value >= 1) & (value <= extent)) | ((value == -1) & (extent > 0));
}

/* The message for the first value out of range of a row-major index. */
static ln_status out_of_range(const char *what, const ln_tensor *index, int64_t extent) {
    int64_t i = 0, at[LN_MAX_DIMS], value;
    do CPU(row_load)(&value, element(index, i++), index->dtype, 1, 1, true);
    while (in_range(value, extent));
    i--;
    for (int d = index->ndim - 1; d >= 0; d--) {
        at[d] = i % index->shape[d] + 1;
        i /= index->shape[d];
    }
    char position[24];
    snprintf(position, sizeof position, "%lld", (long long)at[0]);
    return ln_fail(LN_BAD_ARGUMENT, "%s: index %lld at position %s is outside 1..%lld", what,
                   (long long)value, index->ndim == 1 ? position : ln_text_shape(index->ndim, at),
                   (long long)extent);
}

/* Turns values into positions from 0; false where one is out of range. */
static bool find_positions(int64_t *positions, const int64_t *values, int64_t n, int64_t extent) {
    int bad = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t value = values[i];
        bad |= !in_range(value, extent);
        positions[i] = value == -1 ? extent - 1 : value - 1;
    }
    return !bad;
}

/* The values of an index in row-major order, as positions from 0, in new scratch. */
static ln_status read_index(int64_t **positions, const ln_tensor *index, int64_t extent,
                            const char *what) {
    ln_tensor *made = NULL;
    ln_status status = CPU(row_major)(&made, &index, what);
    if (status != LN_OK) return status;
    int64_t *p = ln_scratch_new((size_t)larger(index->numel, 1) * sizeof *p, what);
    if (p == NULL) {
        status = LN_OUT_OF_MEMORY;
    } else {
        const void *values = index->data;
        if (index->dtype != LN_INT64) {
            CPU(row_load)(p, values, index->dtype, index->numel, 1, true);
            values = p;
        }
        if (!find_positions(p, values, index->numel, extent))
            status = out_of_range(what, index, extent);
    }
    ln_tensor_release(made);
    if (status == LN_OK) *positions = p;
    else ln_scratch_release(p);
    return status;
}

/* ---- Moves ---- */

/* to[i] += from[i]; steps in bytes. */
static void add_run(char *to, const char *from, int dtype, int64_t n, int64_t to_step,
                    int64_t from_step) {
    ln_cell a[ROW], b[ROW];
    double *sum = &a->f;
    const double *addend = &b->f;
    bool integer = !ln_dtype_is_float(dtype);
    int64_t size = (int64_t)ln_dtype_size(dtype);
    if (dtype == LN_FLOAT32 && to_step == size && from_step == size) {
        float *floats = (float *)to;
        for (int64_t i = 0; i < n; i++) floats[i] += ((const float *)from)[i];
        return;
    }
    for (int64_t start = 0; start < n; start += ROW) {
        int64_t count = smaller(ROW, n - start);
        char *target = to + start * to_step;
        CPU(row_load)(a, target, dtype, count, to_step / size, integer);
        CPU(row_load)(b, from + start * from_step, dtype, count, from_step / size, integer);
        for (int64_t i = 0; integer && i < count; i++) a[i].u += b[i].u;
        for (int64_t i = 0; !integer && i < count; i++) sum[i] += addend[i];
        CPU(row_store)(target, a, dtype, count, to_step / size);
    }
}

static void add_element(char *to, const char *from, int dtype) {
    if (dtype == LN_FLOAT32) *(float *)to += *(const float *)from;
    else if (dtype == LN_FLOAT64) *(double *)to += *(const double *)from;
    else add_run(to, from, dtype, 1, 0, 0);
}

/* Moves n elements that have positions of their own, steps apart; size: of an element. */
static inline __attribute__((always_inline)) void move_row_of(const walk *w, char *addressed,
                                                              char *shaped, const int64_t *index,
                                                              int64_t n, const int64_t *steps,
                                                              size_t size) {
    int64_t line_step = w->line.step[ADDRESSED];
    int dtype = w->addressed->dtype;
    for (int64_t i = 0; i < n; i++) {
        char *a = addressed + index[i * steps[INDEX]] * line_step + i * steps[ADDRESSED];
        char *s = shaped + i * steps[SHAPED];
        if (w->move == ADD) add_element(a, s, dtype);
        else if (w->move == REPLACE) copy_element(a, s, size);
        else copy_element(s, a, size);
    }
}

static void move_row(const walk *w, char *addressed, char *shaped, const int64_t *index, int64_t n,
                     const int64_t *steps) {
    if (ln_dtype_size(w->addressed->dtype) == 4)
        move_row_of(w, addressed, shaped, index, n, steps, 4);
    else move_row_of(w, addressed, shaped, index, n, steps, ln_dtype_size(w->addressed->dtype));
}

/* Moves n neighbours that share a position. */
static void move_run(const walk *w, char *addressed, char *shaped, int64_t n) {
    int dtype = w->addressed->dtype;
    size_t size = ln_dtype_size(dtype);
    int64_t a_step = w->inner.step[ADDRESSED], s_step = w->inner.step[SHAPED];
    if (w->move == ADD) {
        add_run(addressed, shaped, dtype, n, a_step, s_step);
        return;
    }
    bool packed = a_step == (int64_t)size && s_step == (int64_t)size, back = w->move == REPLACE;
    char *to = back ? addressed : shaped, *from = back ? shaped : addressed;
    int64_t to_step = back ? a_step : s_step, from_step = back ? s_step : a_step;
    if (packed) memcpy(to, from, (size_t)n * size);
    else
        for (int64_t i = 0; i < n; i++) copy_element(to + i * to_step, from + i * from_step, size);
}

/* ---- The walk ---- */

/* Whether the index is the same for all neighbours along the inner axis. */
static bool is_run(const walk *w) {
    return w->inner.step[INDEX] == 0 && w->inner.extent > 1;
}

static bool line_is_innermost(const walk *w) {
    return w->line.step[SHAPED] < w->inner.step[SHAPED] || w->inner.extent == 1;
}

/* The part of the walk that is one item: where it starts in each tensor, and its extents. */
typedef struct {
    char *addressed, *shaped;
    const int64_t *index;
    int64_t line, inner;
} part;

static void walk_part(const walk *w, const part *p) {
    const int64_t *line = w->line.step, *inner = w->inner.step;
    if (is_run(w)) {
        for (int64_t j = 0; j < p->line; j++)
            move_run(w, p->addressed + p->index[j * line[INDEX]] * line[ADDRESSED],
                     p->shaped + j * line[SHAPED], p->inner);
    } else if (line_is_innermost(w)) {
        const int64_t steps[] = {0, line[SHAPED], line[INDEX]};
        for (int64_t i = 0; i < p->inner; i++)
            move_row(w, p->addressed + i * inner[ADDRESSED], p->shaped + i * inner[SHAPED],
                     p->index + i * inner[INDEX], p->line, steps);
    } else {
        for (int64_t j = 0; j < p->line; j++)
            move_row(w, p->addressed, p->shaped + j * line[SHAPED], p->index + j * line[INDEX],
                     p->inner, inner);
    }
}

static void walk_body(void *context, int64_t item, int member) {
    (void)member;
    const walk *w = context;
    int64_t j = item % w->line_pieces * w->line_piece;
    item /= w->line_pieces;
    int64_t i = item % w->inner_pieces * w->inner_piece;
    item /= w->inner_pieces;
    int64_t offset[AXIS_TENSORS];
    for (int t = 0; t < AXIS_TENSORS; t++)
        offset[t] = axis_offset(w->outer, w->outer_count, item, t) + i * w->inner.step[t];
    part p = {.addressed = w->addressed->data + offset[ADDRESSED],
              .shaped = w->shaped->data + offset[SHAPED] + j * w->line.step[SHAPED],
              .index = w->index + offset[INDEX] + j * w->line.step[INDEX],
              .line = smaller(w->line_piece, w->line.extent - j),
              .inner = smaller(w->inner_piece, w->inner.extent - i)};
    walk_part(w, &p);
}

static void plan_pieces(walk *w) {
    int64_t line = w->line.extent, inner = w->inner.extent;
    if (w->move != TAKE) {
        w->line_piece = line;
        w->inner_piece = is_run(w) ? RUN : ceil_div(PIECE, line);
    } else if (line_is_innermost(w)) {
        w->line_piece = smaller(line, PIECE);
        w->inner_piece = ceil_div(PIECE, w->line_piece);
    } else {
        w->inner_piece = smaller(inner, PIECE);
        w->line_piece = ceil_div(PIECE, w->inner_piece);
    }
}

/* steps: the index's own, 0 along dimensions that it does not have. */
static void plan_walk(walk *w, int dim, const int64_t *steps) {
    const ln_tensor *a = w->addressed, *s = w->shaped;
    int64_t size = (int64_t)ln_dtype_size(a->dtype);
    for (int d = 0; d < s->ndim; d++) {
        axis x = {s->shape[d], {a->stride[d] * size, s->stride[d] * size, steps[d]}, false};
        if (d == dim) w->line = x;
        else w->outer_count = axis_insert(w->outer, w->outer_count, x);
    }
    w->outer_count = axis_join(w->outer, w->outer_count);
    w->inner = w->outer_count > 0 ? w->outer[--w->outer_count] : (axis){.extent = 1};
    plan_pieces(w);
    w->inner_pieces = ceil_div(w->inner.extent, w->inner_piece);
    w->line_pieces = ceil_div(w->line.extent, w->line_piece);
}

static ln_status run(walk *w, int dim, const ln_tensor *index, const int64_t *steps,
                     const char *what) {
    ln_status status = read_index(&w->index, index, w->addressed->shape[dim], what);
    if (status != LN_OK) return status;
    if (w->shaped->numel > 0) {
        plan_walk(w, dim, steps);
        int64_t outer = axis_positions(w->outer, w->outer_count);
        share(outer * w->inner_pieces * w->line_pieces, w->shaped->numel, walk_body, w);
    }
    ln_scratch_release(w->index);
    return LN_OK;
}

/* An index of one dimension: one step along dim. */
static ln_status run_index(walk *w, int dim, const ln_tensor *index, const char *what) {
    int64_t steps[LN_MAX_DIMS] = {0};
    steps[dim] = 1;
    return run(w, dim, index, steps, what);
}

static ln_status run_gather(walk *w, int dim, const ln_tensor *index, const char *what) {
    int64_t steps[LN_MAX_DIMS], step = 1;
    for (int d = index->ndim - 1; d >= 0; d--) {
        steps[d] = step;
        step *= index->shape[d];
    }
    return run(w, dim, index, steps, what);
}

/* index: any dtype of integers, any strides. */
ln_status CPU(index_check)(int64_t *first, const ln_tensor *index, int64_t extent,
                           const char *what) {
    ln_tensor *made = NULL;
    ln_status status = CPU(row_major)(&made, &index, what);
    if (status != LN_OK) return status;
    int64_t row[ROW];
    *first = -1;
    for (int64_t start = 0; start < index->numel && *first < 0; start += ROW) {
        int64_t n = smaller(ROW, index->numel - start);
        CPU(row_load)(row, element(index, start), index->dtype, n, 1, true);
        for (int64_t i = 0; i < n && *first < 0; i++)
            if (row[i] < 1 || row[i] > extent) *first = start + i;
    }
    ln_tensor_release(made);
    return LN_OK;
}

ln_status CPU(index_select)(ln_tensor *out, const ln_tensor *x, int dim, const ln_tensor *index) {
    walk w = {.addressed = x, .shaped = out};
    return run_index(&w, dim, index, "index_select");
}

ln_status CPU(index_add)(ln_tensor *dst, int dim, const ln_tensor *index, const ln_tensor *src) {
    walk w = {.addressed = dst, .shaped = src, .move = ADD};
    return run_index(&w, dim, index, "index_add");
}

ln_status CPU(index_copy)(ln_tensor *dst, int dim, const ln_tensor *index, const ln_tensor *src) {
    walk w = {.addressed = dst, .shaped = src, .move = REPLACE};
    return run_index(&w, dim, index, "index_copy_");
}

ln_status CPU(gather)(ln_tensor *out, const ln_tensor *x, int dim, const ln_tensor *index) {
    walk w = {.addressed = x, .shaped = out};
    return run_gather(&w, dim, index, "gather");
}

/* src may be larger than index: only the part of index's shape is added. */
ln_status CPU(scatter_add)(ln_tensor *dst, int dim, const ln_tensor *index, const ln_tensor *src) {
    ln_tensor shaped = *src;
    memcpy(shaped.shape, index->shape, sizeof shaped.shape);
    shaped.numel = index->numel;
    walk w = {.addressed = dst, .shaped = &shaped, .move = ADD};
    return run_gather(&w, dim, index, "scatter_add");
}
