/* Batch normalisation and its gradient: sums in double, results in float32 for float32, otherwise
 * in double too. x, seen as (N, C, L), is gone through in strips: rows of up to ROW neighbours that
 * belong to one channel or to several whole ones, visited for many n while the sums of each lane
 * stay in the cache. Invariant: strips and chunks depend on shapes only and are joined in order, so
 * every team gives the same bits. */
#include "row.h"

enum { CHUNK = 1 << 15 }; /* elements that one item of the team handles, about */

typedef struct {
    const ln_tensor *x, *dy; /* dy: NULL in the forward pass */
    ln_tensor *out;
    int64_t N, C, L;
    int64_t group, strips;   /* channels in a strip */
    int64_t pieces;          /* rows that one n has of a strip: 1, or more of a single channel */
    int64_t chunk_n, chunks; /* an item of the team is a strip for chunk_n values of n */
    /* Of each channel. y = (x - mean) scale + shift;
     * dx = (dy - mean_dy - (x - mean) slope) scale. */
    double *mean, *scale, *shift, *mean_dy, *slope;
    double *rstd, *other;
    double *sum, *square;   /* sums of e and of e (x - mean), where e is dy or, forward, x - mean */
    double *first, *second; /* the same of each chunk: chunks x C */
} batch;

typedef struct {
    int64_t channel, channels, lanes, from, to; /* lanes: as many of each channel */
} strip;

static strip strip_of(const batch *b, int64_t item) {
    strip s = {.channel = item % b->strips * b->group, .from = item / b->strips * b->chunk_n};
    s.channels = smaller(b->group, b->C - s.channel);
    s.lanes = s.channels * smaller(b->L, ROW);
    s.to = smaller(s.from + b->chunk_n, b->N);
    return s;
}

/* The offset of a row of the strip, and its elements. */
static int64_t row_of(const batch *b, const strip *s, int64_t n, int64_t piece, int64_t *elements) {
    *elements = smaller(s->lanes, b->L * s->channels - piece * ROW);
    return (n * b->C + s->channel) * b->L + piece * ROW;
}

/* Gives each lane its channel's value. */
static void spread(const strip *s, double *lanes, const double *channels) {
    int64_t each = s->lanes / s->channels;
    for (int64_t c = 0; c < s->channels; c++)
        for (int64_t i = 0; i < each; i++) lanes[c * each + i] = channels[s->channel + c];
}

/* ---- Sums ---- */

ROW_LOOP add_row_of(double *restrict first, double *restrict second, const void *restrict x,
                    const void *restrict dy, const double *restrict mean, int64_t n, bool single) {
    for (int64_t i = 0; dy == NULL && i < n; i++) {
        double d = row_value(x, i, single) - mean[i];
        first[i] += d;
        second[i] += d * d;
    }
    for (int64_t i = 0; dy != NULL && i < n; i++) {
        double e = row_value(dy, i, single);
        first[i] += e;
        second[i] += e * (row_value(x, i, single) - mean[i]);
    }
}

static void add_row(const batch *b, double *first, double *second, int64_t offset,
                    const double *mean, int64_t n) {
    double cells[ROW], dy_cells[ROW];
    const void *x = row_read(cells, b->x, offset, n);
    const void *dy = b->dy == NULL ? NULL : row_read(dy_cells, b->dy, offset, n);
    if (b->x->dtype == LN_FLOAT32) add_row_of(first, second, x, dy, mean, n, true);
    else add_row_of(first, second, x, dy, mean, n, false);
}

/* Four rows of float32, `pitch` apart, at once: what they add to a lane is added up in float32,
 * whose error in so few terms near 0 is far below that of the results' own rounding. */
static void add_four(double *restrict first, double *restrict second, const float *x,
                     const float *dy, int64_t pitch, const double *restrict mean, int64_t n) {
    const float *x1 = x + pitch, *x2 = x1 + pitch, *x3 = x2 + pitch;
    if (dy == NULL) {
        for (int64_t i = 0; i < n; i++) {
            float m = (float)mean[i], a = x[i] - m, b = x1[i] - m, c = x2[i] - m, d = x3[i] - m;
            first[i] += (a + b) + (c + d);
            second[i] += (a * a + b * b) + (c * c + d * d);
        }
        return;
    }
    const float *dy1 = dy + pitch, *dy2 = dy1 + pitch, *dy3 = dy2 + pitch;
    for (int64_t i = 0; i < n; i++) {
        float m = (float)mean[i], a = x[i] - m, b = x1[i] - m, c = x2[i] - m, d = x3[i] - m;
        first[i] += (dy[i] + dy1[i]) + (dy2[i] + dy3[i]);
        second[i] += (dy[i] * a + dy1[i] * b) + (dy2[i] * c + dy3[i] * d);
    }
}

static void add_rows(const batch *b, const strip *s, int64_t piece, double *first, double *second,
                     const double *mean) {
    int64_t n = s->from, count, pitch = b->C * b->L;
    for (; b->x->dtype == LN_FLOAT32 && n + 4 <= s->to; n += 4) {
        int64_t offset = row_of(b, s, n, piece, &count);
        const float *dy = b->dy == NULL ? NULL : (const float *)element(b->dy, offset);
        add_four(first, second, (const float *)element(b->x, offset), dy, pitch, mean, count);
    }
    for (; n < s->to; n++) {
        int64_t offset = row_of(b, s, n, piece, &count);
        add_row(b, first, second, offset, mean, count);
    }
}

static void sum_body(void *context, int64_t item, int member) {
    (void)member;
    const batch *b = context;
    strip s = strip_of(b, item);
    double first[ROW] = {0}, second[ROW] = {0}, mean[ROW];
    spread(&s, mean, b->mean);
    for (int64_t piece = 0; piece < b->pieces; piece++) add_rows(b, &s, piece, first, second, mean);
    int64_t each = s.lanes / s.channels, at = item / b->strips * b->C + s.channel;
    for (int64_t c = 0; c < s.channels; c++) {
        b->first[at + c] = CPU(row_sum)(first + c * each, each);
        b->second[at + c] = CPU(row_sum)(second + c * each, each);
    }
}

/* ---- Results ---- */

/* What each lane of a strip is computed with, in the order of `batch`; single holds the same. */
enum { MEAN, SCALE, SHIFT, MEAN_DY, SLOPE, PARAMETERS };
typedef struct {
    double value[PARAMETERS][ROW];
    float single[PARAMETERS][ROW];
} lanes;

static void apply_floats(float *restrict y, const float *restrict x, const float *restrict dy,
                         const float (*restrict p)[ROW], int64_t n) {
    for (int64_t i = 0; dy == NULL && i < n; i++)
        y[i] = (x[i] - p[MEAN][i]) * p[SCALE][i] + p[SHIFT][i];
    for (int64_t i = 0; dy != NULL && i < n; i++)
        y[i] = (dy[i] - p[MEAN_DY][i] - (x[i] - p[MEAN][i]) * p[SLOPE][i]) * p[SCALE][i];
}

static void apply_doubles(double *restrict y, const double *restrict x, const double *restrict dy,
                          const double (*restrict p)[ROW], int64_t n) {
    for (int64_t i = 0; dy == NULL && i < n; i++)
        y[i] = (x[i] - p[MEAN][i]) * p[SCALE][i] + p[SHIFT][i];
    for (int64_t i = 0; dy != NULL && i < n; i++)
        y[i] = (dy[i] - p[MEAN_DY][i] - (x[i] - p[MEAN][i]) * p[SLOPE][i]) * p[SCALE][i];
}

static void apply_row(const batch *b, const lanes *l, int64_t offset, int64_t n) {
    double cells[ROW], dy_cells[ROW], results[ROW];
    const void *x = row_read(cells, b->x, offset, n);
    const void *dy = b->dy == NULL ? NULL : row_read(dy_cells, b->dy, offset, n);
    void *out = element(b->out, offset);
    switch (b->x->dtype) {
    case LN_FLOAT32: apply_floats(out, x, dy, l->single, n); break;
    case LN_FLOAT64: apply_doubles(out, x, dy, l->value, n); break;
    default:
        apply_doubles(results, x, dy, l->value, n);
        CPU(row_store)(out, results, b->out->dtype, n, 1);
    }
}

static void apply_body(void *context, int64_t item, int member) {
    (void)member;
    const batch *b = context;
    strip s = strip_of(b, item);
    const double *const channels[] = {b->mean, b->scale, b->shift, b->mean_dy, b->slope};
    lanes l;
    for (int p = 0; p < PARAMETERS; p++) {
        spread(&s, l.value[p], channels[p]);
        for (int64_t i = 0; i < s.lanes; i++) l.single[p][i] = (float)l.value[p][i];
    }
    for (int64_t i = 0; i < s.lanes; i++) { /* what the mean's rounding took goes to the shift */
        double lost = l.value[MEAN][i] - l.single[MEAN][i];
        l.single[SHIFT][i] = (float)(l.value[SHIFT][i] - lost * l.value[SCALE][i]);
    }
    for (int64_t n = s.from; n < s.to; n++)
        for (int64_t piece = 0; piece < b->pieces; piece++) {
            int64_t count, offset = row_of(b, &s, n, piece, &count);
            apply_row(b, &l, offset, count);
        }
}

/* ---- Both passes ---- */

enum { ARRAYS = 9 };

/* Plans, and makes the arrays of channels and chunks, in one block of scratch: b->mean. */
static ln_status plan(batch *b, const char *what) {
    const ln_tensor *x = b->x;
    b->N = x->shape[0];
    b->C = x->shape[1];
    b->L = 1;
    for (int i = 2; i < x->ndim; i++) b->L *= x->shape[i];
    b->group = larger(1, smaller(b->C, ROW / larger(b->L, 1)));
    b->strips = ceil_div(b->C, b->group);
    b->pieces = ceil_div(b->L, ROW);
    b->chunk_n = larger(1, CHUNK / larger(b->group * b->L, 1));
    b->chunks = larger(ceil_div(b->N, b->chunk_n), 1);
    int64_t cells = (ARRAYS + 2 * b->chunks) * b->C;
    double *p = ln_scratch_new((size_t)cells * sizeof *p, what);
    if (p == NULL) return LN_OUT_OF_MEMORY;
    memset(p, 0, (size_t)cells * sizeof *p);
    double **const arrays[ARRAYS] = {&b->mean, &b->scale,  &b->shift, &b->mean_dy, &b->slope,
                                     &b->sum,  &b->square, &b->rstd,  &b->other};
    for (int i = 0; i < ARRAYS; i++, p += b->C) *arrays[i] = p;
    b->first = p;
    b->second = p + b->chunks * b->C;
    return LN_OK;
}

/* A vector of C as doubles; where it is NULL, all are `otherwise`. */
static void load(const batch *b, double *to, const ln_tensor *t, double otherwise) {
    for (int64_t c = 0; t == NULL && c < b->C; c++) to[c] = otherwise;
    if (t != NULL) CPU(row_load)(to, t->data, t->dtype, b->C, t->stride[0], false);
}

static void store(const batch *b, ln_tensor *t, const double *from) {
    if (t != NULL) CPU(row_store)(t->data, from, t->dtype, b->C, t->stride[0]);
}

static void walk(batch *b, share_body *body) {
    if (b->x->numel > 0) share(b->strips * b->chunks, b->x->numel, body, b);
}

/* Sums e and e (x - mean) over each channel. */
static void sum_channels(batch *b) {
    walk(b, sum_body);
    for (int64_t i = 0; i < b->chunks; i++)
        for (int64_t c = 0; c < b->C; c++) {
            b->sum[c] += b->first[i * b->C + c];
            b->square[c] += b->second[i * b->C + c];
        }
}

/* A value near the channel's mean, beside its spread: the mean of a few of its elements. */
static void guess_mean(batch *b) {
    int64_t few = smaller(b->N, 8);
    for (int64_t n = 0; n < few; n++) {
        CPU(row_load)(b->other, element(b->x, n * b->C * b->L), b->x->dtype, b->C, b->L, false);
        for (int64_t c = 0; c < b->C; c++) b->mean[c] += b->other[c] / (double)few;
    }
    for (int64_t c = 0; c < b->C; c++) b->mean[c] = (float)b->mean[c]; /* for add_four */
}

/* The batch's mean, and the sum of squared deviations from it. The sums are taken about a guess of
 * the mean and corrected: one pass over x, without the cancellation of sums of plain squares. */
static void find_statistics(batch *b) {
    double count = (double)(b->N * b->L);
    guess_mean(b);
    sum_channels(b);
    for (int64_t c = 0; c < b->C; c++) {
        double apart = b->sum[c] / count;
        b->mean[c] += apart;
        b->square[c] -= apart * b->sum[c];
        if (b->square[c] < 0) b->square[c] = 0;
    }
}

/* running += momentum (factor new - running) */
static void move_running(const batch *b, ln_tensor *running, const double *new, double factor,
                         double momentum) {
    if (running == NULL) return;
    load(b, b->other, running, 0);
    for (int64_t c = 0; c < b->C; c++) b->other[c] += momentum * (new[c] * factor - b->other[c]);
    store(b, running, b->other);
}

static ln_status normalise(ln_tensor *y, ln_tensor *mean, ln_tensor *rstd, const ln_tensor *x,
                           const ln_tensor *weight, const ln_tensor *bias, ln_tensor *running_mean,
                           ln_tensor *running_var, bool training, double momentum, double eps) {
    batch b = {.x = x, .out = y};
    ln_tensor *made_x = NULL, *made_y = NULL;
    double factor = 1; /* of square in the variance */
    ln_status status;
    LN_TRY(CPU(row_major)(&made_x, &b.x, "batch_norm"));
    LN_TRY(CPU(row_major_out)(&made_y, &b.out, "batch_norm"));
    LN_TRY(plan(&b, "batch_norm"));
    if (!training) {
        load(&b, b.mean, running_mean, 0);
        load(&b, b.square, running_var, 0);
    } else if (x->numel > 0) {
        double count = (double)(b.N * b.L);
        find_statistics(&b);
        move_running(&b, running_mean, b.mean, 1, momentum);
        move_running(&b, running_var, b.square, 1 / (count - 1), momentum);
        factor = 1 / count;
    }
    load(&b, b.scale, weight, 1);
    load(&b, b.shift, bias, 0);
    for (int64_t c = 0; c < b.C; c++) {
        b.rstd[c] = 1 / sqrt(b.square[c] * factor + eps);
        b.scale[c] *= b.rstd[c];
    }
    store(&b, mean, b.mean);
    store(&b, rstd, b.rstd);
    walk(&b, apply_body);
    LN_TRY(CPU(row_major_end)(y, made_y));
fail:
    ln_scratch_release(b.mean);
    ln_tensor_release(made_x);
    ln_tensor_release(made_y);
    return status;
}

ln_status CPU(batch_norm)(ln_tensor *y, ln_tensor *mean, ln_tensor *rstd, const ln_tensor *x,
                          const ln_tensor *weight, const ln_tensor *bias, const ln_tensor *residual,
                          ln_tensor *running_mean, ln_tensor *running_var, bool training, bool relu,
                          double momentum, double eps) {
    ln_status status = normalise(y, mean, rstd, x, weight, bias, running_mean, running_var,
                                 training, momentum, eps);
    if (status == LN_OK && residual != NULL) status = CPU(axpby)(y, 1, residual, 1);
    if (status == LN_OK && relu) status = CPU(unary)(y, LN_RELU, y, 0, 0);
    return status;
}

/* With d = x - mean: dweight = rstd sum of dy d, dbias = sum of dy; in training, whose statistics
 * depend on x, dx = (dy - mean of dy - d rstd^2 mean of dy d) weight rstd. */
static ln_status gradients(ln_tensor *dx, ln_tensor *dweight, ln_tensor *dbias, const ln_tensor *dy,
                           const ln_tensor *x, const ln_tensor *weight, const ln_tensor *mean,
                           const ln_tensor *rstd, bool training) {
    batch b = {.x = x, .dy = dy, .out = dx};
    ln_tensor *made_x = NULL, *made_dy = NULL, *made_dx = NULL;
    ln_status status;
    LN_TRY(CPU(row_major)(&made_x, &b.x, "batch_norm_backward"));
    LN_TRY(CPU(row_major)(&made_dy, &b.dy, "batch_norm_backward"));
    LN_TRY(CPU(row_major_out)(&made_dx, &b.out, "batch_norm_backward"));
    LN_TRY(plan(&b, "batch_norm_backward"));
    load(&b, b.mean, mean, 0);
    load(&b, b.rstd, rstd, 0);
    load(&b, b.scale, weight, 1);
    sum_channels(&b);
    double count = (double)(b.N * b.L);
    for (int64_t c = 0; c < b.C; c++) {
        b.other[c] = b.square[c] * b.rstd[c];
        b.scale[c] *= b.rstd[c];
        b.mean_dy[c] = training ? b.sum[c] / count : 0;
        b.slope[c] = training ? b.other[c] * b.rstd[c] / count : 0;
    }
    store(&b, dbias, b.sum);
    store(&b, dweight, b.other);
    walk(&b, apply_body);
    LN_TRY(CPU(row_major_end)(dx, made_dx));
fail:
    ln_scratch_release(b.mean);
    ln_tensor_release(made_x);
    ln_tensor_release(made_dy);
    ln_tensor_release(made_dx);
    return status;
}

/* The gradient before relu is the residual's; where that is not wanted, it is made aside. */
ln_status CPU(batch_norm_backward)(ln_tensor *dx, ln_tensor *dweight, ln_tensor *dbias,
                                   ln_tensor *dresidual, const ln_tensor *dy, const ln_tensor *x,
                                   const ln_tensor *y, const ln_tensor *weight,
                                   const ln_tensor *mean, const ln_tensor *rstd, bool training) {
    ln_tensor *made = NULL, *masked = dresidual;
    ln_status status = LN_OK;
    if (y != NULL) {
        if (masked == NULL) {
            LN_TRY(ln_out(&made, dy->dtype, LN_CPU, dy->ndim, dy->shape, "batch_norm_backward"));
            masked = made;
        }
        LN_TRY(CPU(binary)(masked, LN_RELU_BACKWARD, dy, y));
        dy = masked;
    }
    status = gradients(dx, dweight, dbias, dy, x, weight, mean, rstd, training);
fail:
    ln_tensor_release(made);
    return status;
}
