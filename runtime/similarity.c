/* The public similarity operators: checks q, k, links, parameters and masks, decides for each
 * log-sum-exp between a fixed shift and a running maximum, makes the outputs, and calls the
 * backend. No element loops over the matrix; what has one element for a row or a column is read on
 * the host. Invariant: what reaches a backend is contiguous and of one dtype, and every index and
 * step is in range. */
#include "similarity.h"
#include "link.h"

#include <math.h>
#include <string.h>

/* Rounding lets a cosine leave [-1, 1] by a little. */
#define COSINE_SLACK 1e-6

/* A fixed shift serves where exp(lowest - highest) is far from underflow: float32 holds e^-87. */
#define SPREAD_FLOAT32 80.0
#define SPREAD_FLOAT64 600.0

/* ---- Checks ---- */

ln_status ln_similarity_check(const ln_tensor *q, const ln_tensor *k) {
    const ln_tensor *inputs[] = {q, k};
    ln_tensor first;
    if (q != NULL && q->second != NULL) {
        if (k != NULL)
            return ln_fail(LN_BAD_ARGUMENT, "similarity: joined rows are taken where k is NULL");
        first = ln_first_rows(q);
        inputs[0] = &first;
        inputs[1] = q->second;
    }
    ln_status status = ln_check_inputs("similarity", inputs[1] != NULL ? 2 : 1, inputs);
    if (status != LN_OK) return status;
    if (q->ndim != 2 || (q->dtype != LN_FLOAT32 && q->dtype != LN_FLOAT64))
        return ln_fail(LN_BAD_ARGUMENT, "similarity: q is %s; (N,d) float32 or float64 is taken",
                       ln_text(q));
    if (k != NULL && (k->ndim != 2 || k->dtype != q->dtype || k->shape[1] != q->shape[1]))
        return ln_fail(LN_BAD_ARGUMENT, "similarity: q is %s and k is %s; k must be (M,%lld) %s",
                       ln_text(q), ln_text(k), (long long)q->shape[1], ln_text_dtype(q->dtype));
    if (!ln_is_contiguous(q) || (k != NULL && !ln_is_contiguous(k)))
        return ln_fail(LN_BAD_ARGUMENT, "similarity: q and k must be contiguous");
    return LN_OK;
}

ln_status ln_check_beside(const ln_tensor *q, const ln_tensor *x) {
    const ln_tensor rows = ln_first_rows(q), *inputs[] = {&rows, x};
    return ln_check_inputs("similarity", 2, inputs);
}

static ln_status check_parameter(const ln_parameter *p, int number, const ln_tensor *q, int64_t m) {
    static const char *const kinds[] = {"a scalar", "for each row", "for each column"};
    if (p->kind < LN_PARAMETER_SCALAR || p->kind > LN_PARAMETER_COLUMN)
        return ln_fail(LN_BAD_ARGUMENT, "link: parameter %d has no kind %d", number + 1, p->kind);
    const ln_tensor rows = ln_first_rows(q), *inputs[] = {&rows, p->value};
    ln_status status = ln_check_inputs("link", 2, inputs);
    if (status != LN_OK) return status;
    int64_t wanted = p->kind == LN_PARAMETER_SCALAR ? 1
                     : p->kind == LN_PARAMETER_ROW  ? q->shape[0]
                                                    : m;
    if (p->value->numel != wanted || p->value->dtype != q->dtype || !ln_is_contiguous(p->value))
        return ln_fail(LN_BAD_ARGUMENT,
                       "link: parameter %d is %s; %s, %lld contiguous elements of %s are taken",
                       number + 1, ln_text(p->value), kinds[p->kind], (long long)wanted,
                       ln_text_dtype(q->dtype));
    return LN_OK;
}

static bool is_list(const ln_tensor *t, int64_t n, int device) {
    return t != NULL && t->ndim == 1 && t->shape[0] == n && t->dtype == LN_INT64 &&
           ln_is_contiguous(t) && ln_device(t) == device;
}

static ln_status check_mask(const ln_mask *mask, int device, int64_t n, int64_t m, bool looked) {
    if (mask->kind < LN_MASK_SELF || mask->kind > LN_MASK_TRIANGLE)
        return ln_fail(LN_BAD_ARGUMENT, "similarity: there is no mask %d", mask->kind);
    if (mask->kind == LN_MASK_SELF || mask->kind == LN_MASK_TRIANGLE) return LN_OK;
    if (!is_list(mask->row, n, device))
        return ln_fail(LN_BAD_ARGUMENT,
                       "similarity: a mask takes (%lld) int64 for the rows; got %s", (long long)n,
                       mask->row != NULL ? ln_text(mask->row) : "none");
    if (mask->kind == LN_MASK_INDEX)
        return looked ? LN_OK : ln_index_check(mask->row, m, "similarity");
    if (!is_list(mask->column, m, device))
        return ln_fail(LN_BAD_ARGUMENT,
                       "similarity: a mask takes (%lld) int64 for the columns; got %s",
                       (long long)m, mask->column != NULL ? ln_text(mask->column) : "none");
    return ln_check_inputs("similarity", 2, (const ln_tensor *[]){mask->row, mask->column});
}

ln_status ln_masks_check(int n_masks, const ln_mask *masks, int device, int64_t n, int64_t m,
                         bool looked) {
    if (n_masks < 0 || n_masks > LN_MAX_MASKS)
        return ln_fail(LN_BAD_ARGUMENT, "similarity: %d masks; up to %d are taken", n_masks,
                       LN_MAX_MASKS);
    ln_status status = LN_OK;
    for (int i = 0; i < n_masks && status == LN_OK; i++)
        status = check_mask(&masks[i], device, n, m, looked);
    return status;
}

static bool is_step(const ln_reduction *r, int step) {
    return step >= 0 && step < r->n_steps;
}

static ln_status check_reduction(const ln_reduction *r, const ln_tensor *q, int64_t m,
                                 bool looked) {
    if (r->kind != LN_REDUCE_LSE && r->kind != LN_REDUCE_SUM)
        return ln_fail(LN_BAD_ARGUMENT, "similarity: there is no reduction %d", r->kind);
    if (r->n_parameters < 0 || r->n_parameters > LN_LINK_PARAMETERS)
        return ln_fail(LN_BAD_ARGUMENT, "link: %d parameters; up to %d are taken", r->n_parameters,
                       LN_LINK_PARAMETERS);
    ln_status status = ln_link_check(r->n_steps, r->steps, r->n_parameters);
    if (status != LN_OK) return status;
    bool known = is_step(r, r->value) && (r->slope == -1 || is_step(r, r->slope));
    for (int p = 0; p < r->n_parameters; p++) {
        known &= r->parameters[p].slope == -1 || is_step(r, r->parameters[p].slope);
        status = check_parameter(&r->parameters[p], p, q, m);
        if (status != LN_OK) return status;
    }
    if (!known)
        return ln_fail(LN_BAD_ARGUMENT, "link: its value or a slope is not one of its steps");
    return ln_masks_check(r->n_masks, r->masks, ln_device(q), q->shape[0], m, looked);
}

ln_status ln_tile_dtype_check(int tile_dtype) {
    if (tile_dtype >= LN_TILE_FLOAT32 && tile_dtype <= LN_TILE_FLOAT16) return LN_OK;
    return ln_fail(LN_BAD_ARGUMENT, "similarity: there is no dtype of tiles %d", tile_dtype);
}

/* looked: see ln_masks_check; on the CPU it is not taken on trust. */
static ln_status check_all(const ln_tensor *q, const ln_tensor *k, int tile_dtype, int n,
                           const ln_reduction *r, bool looked) {
    ln_status status = ln_similarity_check(q, k);
    if (status == LN_OK) status = ln_tile_dtype_check(tile_dtype);
    if (status != LN_OK) return status;
    if (n < 1 || n > LN_MAX_REDUCTIONS)
        return ln_fail(LN_BAD_ARGUMENT, "similarity: %d reductions at once; 1 to %d are taken", n,
                       LN_MAX_REDUCTIONS);
    int64_t m = k != NULL ? k->shape[0] : q->shape[0];
    looked &= ln_device(q) != LN_CPU;
    for (int i = 0; i < n && status == LN_OK; i++) status = check_reduction(&r[i], q, m, looked);
    return status;
}

/* ---- The shift ---- */

ln_status ln_on_host(ln_tensor **out, const ln_tensor *x) {
    return ln_device(x) == LN_CPU ? ln_tensor_alias(out, x) : ln_to_device(out, x, LN_CPU);
}

static double number_at(const ln_tensor *t, int64_t i) {
    return ln_element_get(t->dtype, t->data + (size_t)i * ln_dtype_size(t->dtype));
}

static ln_status largest_norm(double *out, const ln_tensor *x) {
    ln_tensor *norms = NULL, *host = NULL;
    ln_status status;
    LN_TRY(ln_reduce(&norms, LN_NORM, x, 1u << 1, false, 2));
    LN_TRY(ln_on_host(&host, norms));
    *out = 0;
    for (int64_t i = 0; i < host->numel; i++)
        if (!(number_at(host, i) <= *out)) *out = number_at(host, i); /* a NaN stays */
fail:
    ln_tensor_release(norms);
    ln_tensor_release(host);
    return status;
}

/* The range of the similarities: cosines, or Cauchy and Schwarz's bound of dot products. */
static ln_status similarity_range(ln_interval *range, const ln_tensor *q, const ln_tensor *k,
                                  bool cosine) {
    double of_q = 1, of_k = 1;
    ln_status status = LN_OK;
    if (!cosine) status = largest_norm(&of_q, q);
    of_k = of_q;
    if (!cosine && k != NULL && status == LN_OK) status = largest_norm(&of_k, k);
    double most = of_q * of_k * (1 + COSINE_SLACK);
    *range = (ln_interval){-most, most};
    return status;
}

static ln_interval parameter_range(const ln_tensor *t) {
    ln_interval r = {INFINITY, -INFINITY};
    for (int64_t i = 0; i < t->numel; i++) {
        double v = number_at(t, i);
        r.low = fmin(r.low, v);
        r.high = fmax(r.high, v);
    }
    return r;
}

static bool has_own(const ln_reduction *r) {
    int own = r->by_column ? LN_PARAMETER_COLUMN : LN_PARAMETER_ROW;
    for (int p = 0; p < r->n_parameters; p++)
        if (r->parameters[p].kind == own) return true;
    return false;
}

/* The bounds of f for each anchor: the anchors' own parameters are known, the others lie in their
 * range. Stores the upper bounds, and tells whether a fixed shift at them serves every anchor.
 * Shift and values (the parameters') are in host memory. */
static ln_status bound_anchors(bool *serves, ln_tensor *shift, const ln_reduction *r,
                               ln_tensor *const *values, ln_interval s) {
    ln_interval steps[LN_LINK_STEPS], parameters[LN_LINK_PARAMETERS];
    int own = r->by_column ? LN_PARAMETER_COLUMN : LN_PARAMETER_ROW;
    bool any_own = has_own(r);
    double spread = shift->dtype == LN_FLOAT64 ? SPREAD_FLOAT64 : SPREAD_FLOAT32;
    size_t size = ln_dtype_size(shift->dtype);
    for (int p = 0; p < r->n_parameters; p++) parameters[p] = parameter_range(values[p]);
    *serves = true;
    for (int64_t i = 0; i < shift->numel; i++) {
        for (int p = 0; p < r->n_parameters; p++) {
            double v = 0;
            if (r->parameters[p].kind == own) v = number_at(values[p], i);
            if (r->parameters[p].kind == own) parameters[p] = (ln_interval){v, v};
        }
        if (i == 0 || any_own) {
            ln_status status = ln_link_bound(steps, r->n_steps, r->steps, s, parameters);
            if (status != LN_OK) return status;
        }
        ln_interval f = steps[r->value];
        *serves &= f.high - f.low <= spread && isfinite(f.high); /* false for NaN */
        ln_element_set(shift->dtype, shift->data + (size_t)i * size, f.high);
    }
    return LN_OK;
}

/* Makes *shift, on `device`, where a fixed shift serves the reduction; else leaves it NULL. The
 * bounds of a sum are wanted for what they refuse. Where no anchor has parameters of its own one
 * bound is that of all, and nothing need be copied to the device. */
static ln_status choose_shift(ln_tensor **shift, const ln_reduction *r, int64_t anchors, int dtype,
                              int device, ln_interval s) {
    ln_tensor *values[LN_LINK_PARAMETERS] = {0}, *bounds = NULL;
    int64_t n = !has_own(r) && anchors > 0 ? 1 : anchors;
    bool serves;
    ln_status status;
    for (int p = 0; p < r->n_parameters; p++)
        LN_TRY(ln_on_host(&values[p], r->parameters[p].value));
    LN_TRY(ln_out(&bounds, dtype, LN_CPU, 1, &n, "similarity"));
    LN_TRY(bound_anchors(&serves, bounds, r, values, s));
    if (!serves || r->kind != LN_REDUCE_LSE) goto fail;
    if (n != anchors) {
        LN_TRY(ln_out(shift, dtype, device, 1, &anchors, "similarity"));
        LN_TRY(ln_fill(*shift, number_at(bounds, 0)));
    } else if (device != LN_CPU) {
        LN_TRY(ln_to_device(shift, bounds, device));
    } else {
        *shift = bounds;
        bounds = NULL;
    }
fail:
    ln_tensor_release(bounds);
    for (int p = 0; p < LN_LINK_PARAMETERS; p++) ln_tensor_release(values[p]);
    return status;
}

/* For each reduction; NULL: a running maximum. A captured step cannot look at values: where bounds
 * depend on them, it takes running maxima. */
static ln_status choose_shifts(ln_tensor **shifts, const ln_tensor *q, const ln_tensor *k,
                               bool cosine, int n, const ln_reduction *r) {
    ln_interval s = {0};
    bool blind = ln_capturing() != NULL && ln_device(q) != LN_CPU;
    ln_status status = blind && !cosine ? LN_OK : similarity_range(&s, q, k, cosine);
    for (int i = 0; i < n && status == LN_OK; i++) {
        if (blind && (!cosine || r[i].n_parameters > 0)) continue;
        int64_t anchors = r[i].by_column && k != NULL ? k->shape[0] : q->shape[0];
        status = choose_shift(&shifts[i], &r[i], anchors, q->dtype, ln_device(q), s);
    }
    return status;
}

static void release_all(ln_tensor *const *t, int n) {
    for (int i = 0; i < n; i++) ln_tensor_release(t[i]);
}

/* ---- The operators ---- */

ln_status ln_tiles_check(const ln_tiles *tiles, const ln_tensor *q) {
    if (tiles == NULL) return LN_OK;
    ln_status status = ln_check_beside(q, tiles->values);
    if (status == LN_OK && (tiles->values->dtype != q->dtype || !ln_is_contiguous(tiles->values)))
        return ln_fail(LN_BAD_ARGUMENT, "similarity: tiles are %s; contiguous %s are taken",
                       ln_text(tiles->values), ln_text_dtype(q->dtype));
    return status;
}

ln_status ln_similarity_tiles(int64_t *elements, const ln_tensor *q, const ln_tensor *k) {
    ln_status status = ln_similarity_check(q, k);
    if (status != LN_OK) return status;
    return ln_backend_of(ln_device(q))->similarity_tiles(elements, q, k);
}

ln_status ln_similarity_forward(ln_tensor **out, const ln_tensor *q, const ln_tensor *k,
                                bool cosine, int tile_dtype, int n, const ln_reduction *reductions,
                                ln_tiles *tiles) {
    ln_tensor *made[LN_MAX_REDUCTIONS] = {0}, *shifts[LN_MAX_REDUCTIONS] = {0};
    ln_status status;
    LN_TRY(check_all(q, k, tile_dtype, n, reductions, false));
    LN_TRY(ln_tiles_check(tiles, q));
    LN_TRY(choose_shifts(shifts, q, k, cosine, n, reductions));
    for (int i = 0; i < n; i++) {
        int64_t anchors = reductions[i].by_column && k != NULL ? k->shape[0] : q->shape[0];
        LN_TRY(ln_out(&made[i], q->dtype, ln_device(q), 1, &anchors, "similarity"));
    }
    LN_TRY(ln_backend_of(ln_device(q))
               ->similarity_forward(made, q, k, cosine, tile_dtype, n, reductions,
                                    (const ln_tensor *const *)shifts, tiles));
    for (int i = 0; i < n; i++) {
        out[i] = made[i];
        made[i] = NULL;
    }
fail:
    release_all(made, LN_MAX_REDUCTIONS);
    release_all(shifts, LN_MAX_REDUCTIONS);
    return status;
}

/* The gradients to be made, which are all given back where one of them fails. */
typedef struct {
    ln_tensor *dq, *dk, *parameters[LN_MAX_REDUCTIONS * LN_LINK_PARAMETERS];
} gradients;

static ln_status make_gradients(gradients *g, bool want_q, bool want_k, const ln_tensor *q,
                                const ln_tensor *k, int n, const ln_reduction *r) {
    ln_status status;
    int next = 0;
    if (want_q) LN_TRY(ln_out(&g->dq, q->dtype, ln_device(q), 2, q->shape, "similarity"));
    if (want_k) LN_TRY(ln_out(&g->dk, k->dtype, ln_device(k), 2, k->shape, "similarity"));
    for (int i = 0; i < n; i++)
        for (int p = 0; p < r[i].n_parameters; p++, next++) {
            const ln_tensor *value = r[i].parameters[p].value;
            if (r[i].parameters[p].slope < 0) continue;
            LN_TRY(ln_out(&g->parameters[next], value->dtype, ln_device(value), value->ndim,
                          value->shape, "similarity"));
        }
    return LN_OK;
fail:
    return status;
}

static ln_status check_cotangents(const ln_tensor *const *dy, const ln_tensor *const *y,
                                  const ln_tensor *q, const ln_tensor *k, int n,
                                  const ln_reduction *r) {
    for (int i = 0; i < n; i++) {
        int64_t anchors = r[i].by_column && k != NULL ? k->shape[0] : q->shape[0];
        const ln_tensor rows = ln_first_rows(q), *pair[] = {&rows, y[i], dy[i]};
        ln_status status = ln_check_inputs("similarity", 3, pair);
        if (status != LN_OK) return status;
        for (int j = 1; j < 3; j++)
            if (pair[j]->ndim != 1 || pair[j]->shape[0] != anchors || pair[j]->dtype != q->dtype ||
                !ln_is_contiguous(pair[j]))
                return ln_fail(LN_BAD_ARGUMENT,
                               "similarity: a result or its gradient is %s; (%lld) contiguous %s "
                               "is taken",
                               ln_text(pair[j]), (long long)anchors, ln_text_dtype(q->dtype));
        if (r[i].slope < 0)
            return ln_fail(LN_BAD_ARGUMENT, "similarity: reduction %d has no slope", i + 1);
    }
    return LN_OK;
}

ln_status ln_similarity_backward(ln_tensor **dq, ln_tensor **dk, ln_tensor **dparameters,
                                 const ln_tensor *const *dy, const ln_tensor *const *y,
                                 const ln_tensor *q, const ln_tensor *k, bool cosine,
                                 int tile_dtype, int n, const ln_reduction *reductions,
                                 ln_tiles *tiles) {
    gradients g = {0};
    ln_tensor *shifts[LN_MAX_REDUCTIONS] = {0};
    int count = 0;
    ln_status status;
    LN_TRY(check_all(q, k, tile_dtype, n, reductions, true));
    LN_TRY(check_cotangents(dy, y, q, k, n, reductions));
    LN_TRY(ln_tiles_check(tiles, q));
    if (k == NULL && dk != NULL)
        LN_TRY(ln_fail(LN_BAD_ARGUMENT, "similarity: there is no k to take a gradient"));
    LN_TRY(choose_shifts(shifts, q, k, cosine, n, reductions));
    LN_TRY(make_gradients(&g, dq != NULL, dk != NULL, q, k, n, reductions));
    LN_TRY(ln_backend_of(ln_device(q))
               ->similarity_backward(g.dq, g.dk, g.parameters, dy, y, q, k, cosine, tile_dtype, n,
                                     reductions, (const ln_tensor *const *)shifts, tiles));
    for (int i = 0; i < n; i++) count += reductions[i].n_parameters;
    if (dq != NULL) *dq = g.dq;
    if (dk != NULL) *dk = g.dk;
    for (int i = 0; i < count; i++)
        if (g.parameters[i] != NULL) dparameters[i] = g.parameters[i];
    g = (gradients){0};
fail:
    ln_tensor_release(g.dq);
    ln_tensor_release(g.dk);
    release_all(g.parameters, LN_MAX_REDUCTIONS * LN_LINK_PARAMETERS);
    release_all(shifts, LN_MAX_REDUCTIONS);
    return status;
}
