/* Reductions over any set of dimensions, extremes with their positions, and running sums. x is
 * never copied: its dimensions, ordered by stride, are read as rows of up to ROW elements an
 * equal step apart. A row holds `columns` results side by side (1 where the innermost dimension is
 * reduced), each in up to `replicas` lanes, which a halving tree joins at the end of a chunk.
 * Invariants: chunks depend on shapes only and are joined in order, so every team gives the same
 * bits; floating elements are summed in double, integers in int64 (which wraps). */
#include "axis.h"
#include "fold.h"

enum {
    CHUNK = 1 << 15, /* elements that one item of the team reduces, about */
    SHORT = 32       /* rows of so few neighbours are read across instead */
};

enum { IN, OUT, AT }; /* the tensors of an axis */

typedef struct {
    const ln_tensor *x;
    ln_tensor *out, *at; /* at: the positions of extremes, or NULL */
    int op;
    double a;
    bool integer; /* cells are int64 */
    map_kind map;
    fold_kind fold;
    axis kept[LN_MAX_DIMS], reduced[LN_MAX_DIMS]; /* outside the row */
    int kept_count, reduced_count;
    axis column;                      /* the results in a row */
    axis lane;                        /* the innermost reduced axis */
    int64_t replicas, lane_rows;      /* lane positions in a row; rows along the lane axis */
    int64_t rows, chunk_rows, chunks; /* that one result is reduced from */
    int64_t column_blocks, blocks;    /* of up to ROW columns: in a row, and in all */
    ln_cell *partials;                /* the states of all chunks; NULL where there is one */
    int64_t lane_of[ROW];             /* the lane of each element of a row, for extremes */
} reduction;

/* What is known of a block of results after `count` elements of each: the value folded so far and,
 * beside it, the sum of squared deviations (var), the sum of exponentials (logsumexp) or the
 * positions (extremes). */
typedef struct {
    ln_cell *value, *other;
    int64_t count;
} state;

/* A block of results: its offset in x, and the rows of one chunk. */
typedef struct {
    int64_t offset, columns, from, to;
} block;

/* ---- The plan ---- */

/* x's dimensions; those in the bit set `reduced` are set apart. */
static int list_axes(axis *axes, const reduction *r, uint32_t reduced) {
    int n = 0;
    for (int i = 0; i < r->x->ndim; i++) {
        axis a = {.extent = r->x->shape[i], .apart = reduced >> i & 1};
        a.step[IN] = r->x->stride[i];
        if (r->out->shape[i] != 1) a.step[OUT] = r->out->stride[i];
        if (r->at != NULL && r->at->shape[i] != 1) a.step[AT] = r->at->stride[i];
        n = axis_insert(axes, n, a);
    }
    return axis_join(axes, n);
}

static void plan_axes(reduction *r, uint32_t reduced) {
    axis axes[LN_MAX_DIMS];
    int n = list_axes(axes, r, reduced), lane = -1, column = -1;
    for (int i = 0; i < n; i++) *(axes[i].apart ? &lane : &column) = i;
    r->lane = lane < 0 ? (axis){.extent = 1} : axes[lane];
    if (column < lane && r->lane.extent > SHORT) column = -1;
    r->column = (axis){.extent = 1, .step[IN] = r->lane.step[IN]};
    if (column >= 0) r->column = axes[column];
    for (int i = 0; i < n; i++) {
        if (i == lane || i == column) continue;
        if (axes[i].apart) r->reduced[r->reduced_count++] = axes[i];
        else r->kept[r->kept_count++] = axes[i];
    }
}

static void plan_rows(reduction *r) {
    int64_t columns = r->column.extent;
    bool adjacent = r->lane.step[IN] == columns * r->column.step[IN];
    r->replicas = adjacent && 2 * columns <= ROW ? smaller(ROW / columns, r->lane.extent) : 1;
    r->replicas = larger(r->replicas, 1);
    r->lane_rows = ceil_div(r->lane.extent, r->replicas);
    r->rows = r->lane_rows * axis_positions(r->reduced, r->reduced_count);
    r->chunk_rows = CHUNK / smaller(ROW, columns * r->replicas);
    r->chunks = larger(ceil_div(r->rows, r->chunk_rows), 1);
    r->column_blocks = ceil_div(columns, ROW);
    r->blocks = r->column_blocks * axis_positions(r->kept, r->kept_count);
}

/* Splits an index over pairs into both of its parts. The divisions would cost as much as a short
 * row, and most extents that are divided by are 1. */
static int64_t split(int64_t index, int64_t inner_extent, int64_t *inner) {
    if (inner_extent == 1) {
        *inner = 0;
        return index;
    }
    *inner = index % inner_extent;
    return index / inner_extent;
}

static int64_t block_offset(const reduction *r, int64_t index, int tensor) {
    int64_t columns, kept = split(index, r->column_blocks, &columns);
    return axis_offset(r->kept, r->kept_count, kept, tensor) +
           columns * ROW * r->column.step[tensor];
}

static int64_t block_columns(const reduction *r, int64_t index) {
    int64_t columns;
    split(index, r->column_blocks, &columns);
    return smaller(ROW, r->column.extent - columns * ROW);
}

/* ---- Rows ---- */

/* The place of a row of the block in x, and the lane positions that it holds. */
static const char *place_row(const reduction *r, const block *b, int64_t row, int64_t *width) {
    int64_t t, reduced = split(row, r->lane_rows, &t);
    int64_t offset = b->offset + t * r->replicas * r->lane.step[IN] +
                     axis_offset(r->reduced, r->reduced_count, reduced, IN);
    *width = smaller(r->replicas, r->lane.extent - t * r->replicas);
    return element(r->x, offset);
}

static void load_row(const reduction *r, ln_cell *cells, const char *place, int64_t n) {
    CPU(row_load)(cells, place, r->x->dtype, n, r->column.step[IN], r->integer);
}

/* ---- Reducing a chunk ---- */

static bool is_packed_float(const reduction *r) {
    return r->x->dtype == LN_FLOAT32 && r->column.step[IN] == 1;
}

/* Whether rows i to i + 3 of the block can be added at once: the sum of a few terms may be taken in
 * float32, but not by var, which squares deviations from what it gives. */
static bool adds_four(const reduction *r, const block *b, int64_t i, map_kind map, fold_kind fold) {
    bool sums = is_packed_float(r) && map == SAME && fold == ADD && r->op != LN_VAR;
    if (!sums || i + 4 > b->to) return false;
    int64_t t;
    split(i, r->lane_rows, &t);
    return (t + 4) * r->replicas <= r->lane.extent;
}

/* Whether a row can be folded straight into one result. */
static bool folds_rows(const reduction *r, map_kind map, fold_kind fold) {
    return r->column.extent == 1 && is_packed_float(r) && r->op != LN_VAR &&
           CPU(can_fold_floats)(map, fold);
}

/* Folds row i of the block, and three more where they can be had at once, into lanes. Returns the
 * number of rows; adds the elements that a result has of them to *count. */
static int64_t fold_rows(const reduction *r, ln_cell *lanes, const block *b, int64_t i,
                         map_kind map, fold_kind fold, const double *centre, int64_t *count) {
    ln_cell row[ROW];
    int64_t width;
    const char *place = place_row(r, b, i, &width);
    const float *floats = (const float *)place;
    int64_t n = width * b->columns;
    *count += width;
    if (folds_rows(r, map, fold)) {
        CPU(fold_floats)(map, fold, &lanes->f, floats, centre == NULL ? 0 : *centre, n);
        return 1;
    }
    if (adds_four(r, b, i, map, fold)) {
        CPU(add_four_floats)(&lanes->f, floats, r->replicas * r->lane.step[IN], n);
        *count += 3 * width;
        return 4;
    }
    if (is_packed_float(r) && CPU(map_fold_floats)(map, fold, &lanes->f, floats, n)) return 1;
    load_row(r, row, place, n);
    CPU(map_row)(map, row, centre, n, r->x->dtype != LN_FLOAT64);
    CPU(fold_row)(fold, lanes, row, n);
    return 1;
}

/* Repeats the first n values of a row up to `all`. */
static void repeat(double *row, int64_t n, int64_t all) {
    for (int64_t have = n, more; have < all; have += more) {
        more = smaller(have, all - have);
        memcpy(row + have, row, (size_t)more * sizeof *row);
    }
}

/* Reduces the block's rows to `result`, each element mapped first. centre, NULL where the map takes
 * none, holds a value for each column and has room for ROW. Returns the number of elements in each
 * result. */
static int64_t scan(const reduction *r, ln_cell *result, const block *b, map_kind map,
                    fold_kind fold, double *centre) {
    ln_cell lanes[ROW];
    int64_t count = 0, replicas = folds_rows(r, map, fold) ? 1 : r->replicas;
    if (centre != NULL) repeat(centre, b->columns, b->columns * replicas);
    CPU(fold_start)(fold, lanes, b->columns * replicas);
    for (int64_t i = b->from; i < b->to;) i += fold_rows(r, lanes, b, i, map, fold, centre, &count);
    CPU(fold_lanes)(fold, lanes, b->columns, replicas);
    memcpy(result, lanes, (size_t)b->columns * sizeof *lanes);
    return count;
}

/* The positions of a row's elements, of which the first lane has `first`. */
static void number_lanes(const reduction *r, ln_cell *row_at, int64_t first, int64_t n) {
    int64_t *at = &row_at->i;
    const int64_t *lane = r->lane_of;
    for (int64_t i = 0; i < n; i++) at[i] = lane[i] + first;
}

static void scan_extremes(const reduction *r, const state *s, const block *b) {
    ln_cell row[ROW], row_at[ROW], lanes[ROW], at[ROW];
    int64_t columns = b->columns, all = columns * r->replicas;
    CPU(fold_start)(r->fold, lanes, all);
    for (int64_t i = 0; i < all; i++) at[i].i = INT64_MAX;
    for (int64_t i = b->from; i < b->to; i++) {
        int64_t width;
        const char *place = place_row(r, b, i, &width);
        load_row(r, row, place, width * columns);
        CPU(map_row)(r->map, row, NULL, width * columns, false);
        number_lanes(r, row_at, i * r->replicas + 1, width * columns);
        CPU(fold_extremes)(r->integer, lanes, at, row, row_at, width * columns);
    }
    for (int64_t width = r->replicas, half; width > 1; width = half) {
        half = (width + 1) / 2;
        CPU(fold_extremes)(r->integer, lanes, at, lanes + half * columns, at + half * columns,
                           (width - half) * columns);
    }
    memcpy(s->value, lanes, (size_t)columns * sizeof *lanes);
    memcpy(s->other, at, (size_t)columns * sizeof *at);
}

/* The shift under which a row's exponentials are summed: its maximum, where that is finite. */
static double shift_of(double maximum) {
    return isfinite(maximum) ? maximum : 0;
}

static void reduce_chunk(const reduction *r, state *s, const block *b) {
    double centre[ROW];
    if (r->at != NULL) {
        scan_extremes(r, s, b);
        return;
    }
    s->count = scan(r, s->value, b, r->map, r->fold, NULL);
    if (r->op == LN_VAR) {
        for (int64_t i = 0; i < b->columns; i++) centre[i] = s->value[i].f / (double)s->count;
        scan(r, s->other, b, DEVIATION, ADD, centre);
    } else if (r->op == LN_LOGSUMEXP) {
        for (int64_t i = 0; i < b->columns; i++) centre[i] = shift_of(s->value[i].f);
        scan(r, s->other, b, EXPONENTIAL, ADD, centre);
    }
}

/* ---- Joining chunks and finishing ---- */

/* Chan, Golub and LeVeque's update of sums and squared deviations. */
static void join_var(state *s, const state *next, int64_t n) {
    double total = (double)(s->count + next->count);
    double weight = (double)s->count * (double)next->count / total;
    for (int64_t i = 0; i < n; i++) {
        double apart = next->value[i].f / (double)next->count - s->value[i].f / (double)s->count;
        s->value[i].f += next->value[i].f;
        s->other[i].f += next->other[i].f + apart * apart * weight;
    }
}

static void join_logsumexp(state *s, const state *next, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        double m1 = s->value[i].f, m2 = next->value[i].f;
        CPU(fold_row)(MAXIMUM, &s->value[i], &next->value[i], 1);
        double shift = shift_of(s->value[i].f);
        double sum = 0; /* a chunk of -inf holds no term, whatever the shift */
        if (m1 != -INFINITY) sum += s->other[i].f * exp(shift_of(m1) - shift);
        if (m2 != -INFINITY) sum += next->other[i].f * exp(shift_of(m2) - shift);
        s->other[i].f = sum;
    }
}

static void join(const reduction *r, state *s, const state *next, int64_t n) {
    if (r->at != NULL)
        CPU(fold_extremes)(r->integer, s->value, s->other, next->value, next->other, n);
    else if (r->op == LN_VAR) join_var(s, next, n);
    else if (r->op == LN_LOGSUMEXP) join_logsumexp(s, next, n);
    else CPU(fold_row)(r->fold, s->value, next->value, n);
    s->count += next->count;
}

/* Turns the state of whole results into the results, in s->value. */
static void finish(const reduction *r, state *s, int64_t n) {
    ln_cell *y = s->value;
    double count = (double)s->count, freedom = count - r->a;
    switch (r->op) {
    case LN_MEAN:
        for (int64_t i = 0; i < n; i++) y[i].f /= count;
        break;
    case LN_MIN: CPU(map_row)(r->map, y, NULL, n, false); break; /* NEGATIVE or INVERSE: undone */
    case LN_ANY:
        for (int64_t i = 0; i < n; i++) y[i].i = y[i].f > 0;
        break;
    case LN_ALL: /* no zero was seen */
        for (int64_t i = 0; i < n; i++) y[i].i = !(y[i].f > 0);
        break;
    case LN_VAR:
        for (int64_t i = 0; i < n; i++) y[i].f = s->other[i].f / (freedom > 0 ? freedom : 0);
        break;
    case LN_LOGSUMEXP:
        for (int64_t i = 0; i < n; i++) y[i].f = shift_of(y[i].f) + log(s->other[i].f);
        break;
    case LN_NORM:
        for (int64_t i = 0; r->a == 2 && i < n; i++) y[i].f = sqrt(y[i].f);
    }
}

static void finish_block(const reduction *r, state *s, int64_t index) {
    int64_t columns = block_columns(r, index);
    finish(r, s, columns);
    CPU(row_store)(element(r->out, block_offset(r, index, OUT)), s->value, r->out->dtype, columns,
                   r->column.step[OUT]);
    if (r->at != NULL)
        CPU(row_store)(element(r->at, block_offset(r, index, AT)), s->other, r->at->dtype, columns,
                       r->column.step[AT]);
}

/* The place of a chunk's state among the partials: value, other, count. */
static int64_t partial_cells(const reduction *r) {
    return 2 * smaller(ROW, r->column.extent) + 1;
}

static state partial(const reduction *r, int64_t item) {
    ln_cell *start = r->partials + item * partial_cells(r);
    return (state){start + 1, start + 1 + smaller(ROW, r->column.extent), start->i};
}

static void chunk_body(void *context, int64_t item, int member) {
    (void)member;
    const reduction *r = context;
    ln_cell value[ROW], other[ROW];
    int64_t chunk, index = split(item, r->chunks, &chunk), from = chunk * r->chunk_rows;
    block b = {block_offset(r, index, IN), block_columns(r, index), from,
               smaller(from + r->chunk_rows, r->rows)};
    state s = {value, other, 0};
    if (r->partials != NULL) s = partial(r, item);
    reduce_chunk(r, &s, &b);
    if (r->partials != NULL) r->partials[item * partial_cells(r)].i = s.count;
    else finish_block(r, &s, index);
}

static void join_body(void *context, int64_t index, int member) {
    (void)member;
    const reduction *r = context;
    state s = partial(r, index * r->chunks);
    for (int64_t i = 1; i < r->chunks; i++) {
        state next = partial(r, index * r->chunks + i);
        join(r, &s, &next, block_columns(r, index));
    }
    finish_block(r, &s, index);
}

/* ORDER REDUCE. Minima are maxima of what reverses the order. */
static const struct {
    const char *name;
    map_kind map;
    fold_kind fold;
} plans[] = {
    {"sum", SAME, ADD},         {"mean", SAME, ADD},    {"prod", SAME, MULTIPLY},
    {"min", NEGATIVE, MAXIMUM}, {"max", SAME, MAXIMUM}, {"any", NONZERO, MAXIMUM},
    {"all", ZERO, MAXIMUM},     {"var", SAME, ADD},     {"logsumexp", SAME, MAXIMUM},
    {"norm", ABSOLUTE, ADD},
};

static void plan_fold(reduction *r) {
    bool exact = r->op == LN_SUM || r->op == LN_PROD || r->op == LN_MIN || r->op == LN_MAX;
    r->integer = exact && !ln_dtype_is_float(r->x->dtype);
    r->map = plans[r->op].map;
    r->fold = plans[r->op].fold;
    if (r->op == LN_NORM && r->a == 2) r->map = SQUARE;
    if (r->op == LN_NORM && isinf(r->a)) r->fold = MAXIMUM;
    if (!r->integer) return;
    r->fold += ADD_INTEGER - ADD;
    if (r->map == NEGATIVE) r->map = INVERSE;
}

static void plan(reduction *r, uint32_t reduced) {
    plan_fold(r);
    plan_axes(r, reduced);
    plan_rows(r);
}

static ln_status run(reduction *r) {
    int64_t items = r->blocks * r->chunks;
    if (r->chunks > 1) {
        size_t bytes = (size_t)(items * partial_cells(r)) * sizeof *r->partials;
        r->partials = ln_scratch_new(bytes, plans[r->op].name);
        if (r->partials == NULL) return LN_OUT_OF_MEMORY;
    }
    int64_t work = r->x->numel * (r->op == LN_LOGSUMEXP ? 4 : 1);
    share(items, work, chunk_body, r);
    if (r->partials != NULL) share(r->blocks, items * partial_cells(r), join_body, r);
    ln_scratch_release(r->partials);
    return LN_OK;
}

ln_status CPU(reduce)(ln_tensor *out, int op, const ln_tensor *x, double a) {
    reduction r = {.x = x, .out = out, .op = op, .a = a};
    uint32_t reduced = 0;
    if (out->numel == 0) return LN_OK;
    for (int i = 0; i < x->ndim; i++)
        if (out->shape[i] == 1) reduced |= 1u << i;
    plan(&r, reduced);
    return run(&r);
}

ln_status CPU(extreme)(ln_tensor *values, ln_tensor *indices, const ln_tensor *x, int dim,
                       bool largest) {
    int op = largest ? LN_MAX : LN_MIN;
    reduction r = {.x = x, .out = values, .at = indices, .op = op};
    if (values->numel == 0) return LN_OK;
    plan(&r, 1u << dim);
    for (int64_t i = 0; i < smaller(ROW, r.column.extent * r.replicas); i++)
        r.lane_of[i] = i / r.column.extent;
    return run(&r);
}

/* ---- Running sums ---- */

/* Along the columns of a block: one running sum a column. */
static void sum_columns(const reduction *r, int64_t index, bool reverse) {
    ln_cell row[ROW], sums[ROW];
    int64_t columns = block_columns(r, index), extent = r->lane.extent;
    int64_t in = block_offset(r, index, IN), out = block_offset(r, index, OUT);
    CPU(fold_start)(r->fold, sums, columns);
    for (int64_t i = 0; i < extent; i++) {
        int64_t t = reverse ? extent - 1 - i : i;
        CPU(row_load)(row, element(r->x, in + t * r->lane.step[IN]), r->x->dtype, columns,
                      r->column.step[IN], r->integer);
        CPU(fold_row)(r->fold, sums, row, columns);
        CPU(row_store)(element(r->out, out + t * r->lane.step[OUT]), sums, r->out->dtype, columns,
                       r->column.step[OUT]);
    }
}

/* Along a single line, ROW elements at a time. */
static void sum_line(const reduction *r, int64_t index, bool reverse) {
    ln_cell row[ROW];
    int64_t extent = r->lane.extent, pieces = ceil_div(extent, ROW);
    int64_t in = block_offset(r, index, IN), out = block_offset(r, index, OUT);
    double sum = 0;
    uint64_t whole_sum = 0;
    for (int64_t i = 0; i < pieces; i++) {
        int64_t t = (reverse ? pieces - 1 - i : i) * ROW, n = smaller(ROW, extent - t);
        CPU(row_load)(row, element(r->x, in + t * r->lane.step[IN]), r->x->dtype, n,
                      r->lane.step[IN], r->integer);
        for (int64_t k = 0; k < n; k++) {
            ln_cell *cell = &row[reverse ? n - 1 - k : k];
            if (r->integer) cell->u = whole_sum += cell->u;
            else cell->f = sum += cell->f;
        }
        CPU(row_store)(element(r->out, out + t * r->lane.step[OUT]), row, r->out->dtype, n,
                       r->lane.step[OUT]);
    }
}

static void cumsum_body(void *context, int64_t index, int member) {
    (void)member;
    const reduction *r = context;
    bool reverse = r->a != 0;
    if (r->column.extent == 1) sum_line(r, index, reverse);
    else sum_columns(r, index, reverse);
}

ln_status CPU(cumsum)(ln_tensor *y, const ln_tensor *x, int dim, bool reverse) {
    reduction r = {.x = x, .out = y, .op = LN_SUM, .a = reverse};
    if (x->numel == 0) return LN_OK;
    plan(&r, 1u << dim);
    share(r.blocks, x->numel, cumsum_body, &r);
    return LN_OK;
}
