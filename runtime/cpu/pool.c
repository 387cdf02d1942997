/* Pooling: a plane is turned into cells (row.h), pooled there in double precision, and stored.
 * Invariant: a plane belongs to one member of the team, who adds its terms in order. */
#include "row.h"
#include "window.h"

#include <math.h>

/* Moves the planes of t, counted through both leading dimensions, to and from cells. */
static void move_plane(const ln_tensor *t, int64_t plane, ln_cell *cells, bool in) {
    int64_t height = t->shape[2], width = t->shape[3], step = t->stride[3];
    int64_t n = plane / t->shape[1], c = plane % t->shape[1];
    char *data = element(t, n * t->stride[0] + c * t->stride[1]);
    int64_t pitch = t->stride[2] * (int64_t)ln_dtype_size(t->dtype);
    if (t->stride[2] == width * step) { /* one long row */
        width *= height;
        height = 1;
    }
    for (int64_t i = 0; i < height; i++, data += pitch, cells += width) {
        if (in) CPU(row_load)(cells, data, t->dtype, width, step, !ln_dtype_is_float(t->dtype));
        else CPU(row_store)(data, cells, t->dtype, width, step);
    }
}

typedef struct {
    const ln_tensor *out, *in, *indices;
    const ln_pool_params *p; /* NULL for the adaptive pools */
} pool;

/* Pools a plane of `in`, which may be spoilt, into one of `out`, which holds zeros; `where` is the
 * plane of indices, written by max_pool2d and read by its backward. False for an index that lies
 * outside. */
typedef bool plane_rule(const pool *c, double *out, double *in, int64_t *where);

static ln_status each_plane(const pool *c, plane_rule *rule, bool reads_indices, const char *what) {
    const ln_tensor *planes[] = {c->out, c->in, c->indices};
    int64_t extent[3], window = c->p == NULL ? 1 : c->p->kernel[0] * c->p->kernel[1];
    for (int i = 0; i < 3; i++)
        extent[i] = planes[i] == NULL ? 0 : planes[i]->shape[2] * planes[i]->shape[3];
    int64_t room = extent[0] + extent[1] + extent[2];
    int team = ln_team(window * (c->out->numel + c->in->numel));
    bool valid = true;
    ln_cell *cells = ln_scratch_new((size_t)(room * team) * sizeof *cells, what);
    if (cells == NULL) return LN_OUT_OF_MEMORY;
#pragma omp parallel for schedule(static) num_threads(team) reduction(&& : valid)
    for (int64_t i = 0; i < c->out->shape[0] * c->out->shape[1]; i++) {
        ln_cell *out = cells + room * omp_get_thread_num(), *in = out + extent[0];
        ln_cell *where = in + extent[1];
        for (int64_t j = 0; j < extent[0]; j++) out[j].f = 0;
        move_plane(c->in, i, in, true);
        if (reads_indices) move_plane(c->indices, i, where, true);
        valid = rule(c, &out->f, &in->f, &where->i) && valid;
        move_plane(c->out, i, out, false);
        if (c->indices != NULL && !reads_indices) move_plane(c->indices, i, where, false);
    }
    ln_scratch_release(cells);
    return valid ? LN_OK
                 : ln_fail(LN_BAD_ARGUMENT, "%s: an index lies outside of its plane in %s", what,
                           ln_text(c->out));
}

/* ---- Windows that slide ---- */

/* Takes `in`, every `step`-th, where it is larger than `best` or not a number. Constant steps let
 * the loop become vectors; it has no branches, because the winner is unpredictable. */
static inline __attribute__((always_inline)) void
take_larger(double *restrict best, int64_t *restrict where, const double *restrict in,
            int64_t position, int64_t n, int64_t step) {
    for (int64_t j = 0; j < n; j++) {
        double v = in[j * step];
        int64_t wins = -(int64_t)((v > best[j]) | (v != v));
        best[j] = wins ? v : best[j];
        where[j] = (where[j] & ~wins) | ((position + j * step) & wins);
    }
}

static bool max_plane(const pool *c, double *out, double *in, int64_t *where) {
    int64_t height = c->in->shape[2], width = c->in->shape[3], outputs = c->out->shape[3];
    int64_t step = c->p->stride[1];
    for (int64_t i = 0; i < c->out->shape[2]; i++, out += outputs, where += outputs) {
        int64_t top = i * c->p->stride[0] - c->p->padding[0];
        for (int64_t j = 0; j < outputs; j++) {
            out[j] = -INFINITY;
            where[j] = larger(top, 0) * width + larger(j * step - c->p->padding[1], 0);
        }
        for (int64_t y = larger(top, 0); y < smaller(top + c->p->kernel[0], height); y++)
            for (int64_t k = 0; k < c->p->kernel[1]; k++) {
                int64_t from, to, offset = k - c->p->padding[1];
                window_inside(&from, &to, outputs, width, step, offset);
                int64_t at = y * width + from * step + offset, n = to - from;
                if (step == 1) take_larger(out + from, where + from, in + at, at, n, 1);
                else if (step == 2) take_larger(out + from, where + from, in + at, at, n, 2);
                else take_larger(out + from, where + from, in + at, at, n, step);
            }
    }
    return true;
}

static bool max_backward_plane(const pool *c, double *out, double *in, int64_t *where) {
    int64_t extent = c->out->shape[2] * c->out->shape[3], n = c->in->shape[2] * c->in->shape[3];
    bool valid = true;
    for (int64_t i = 0; i < n; i++) {
        bool inside = where[i] >= 0 && where[i] < extent;
        if (inside) out[where[i]] += in[i];
        valid &= inside;
    }
    return valid;
}

/* out[j] += in[j step], or out[j step] += in[j] where `spread`. */
static inline __attribute__((always_inline)) void
add_strided(double *restrict out, const double *restrict in, int64_t n, int64_t step, bool spread) {
    for (int64_t j = 0; j < n; j++) {
        if (spread) out[j * step] += in[j];
        else out[j] += in[j * step];
    }
}

/* Sums the windows of `image` into `pooled`, or adds each value of this to its window of that. */
static void slide(const pool *c, const ln_tensor *image, const ln_tensor *pooled, double *out,
                  const double *in, bool spread) {
    int64_t height = image->shape[2], width = image->shape[3], outputs = pooled->shape[3];
    int64_t step = c->p->stride[1];
    for (int64_t i = 0; i < pooled->shape[2]; i++) {
        int64_t top = i * c->p->stride[0] - c->p->padding[0];
        for (int64_t y = larger(top, 0); y < smaller(top + c->p->kernel[0], height); y++)
            for (int64_t k = 0; k < c->p->kernel[1]; k++) {
                int64_t from, to, offset = k - c->p->padding[1];
                window_inside(&from, &to, outputs, width, step, offset);
                int64_t wide = y * width + from * step + offset, narrow = i * outputs + from;
                double *o = out + (spread ? wide : narrow);
                const double *x = in + (spread ? narrow : wide);
                if (step == 2) add_strided(o, x, to - from, 2, spread);
                else add_strided(o, x, to - from, step, spread);
            }
    }
}

static bool avg_plane(const pool *c, double *out, double *in, int64_t *where) {
    (void)where;
    double count = (double)(c->p->kernel[0] * c->p->kernel[1]);
    slide(c, c->in, c->out, out, in, false);
    for (int64_t i = 0; i < c->out->shape[2] * c->out->shape[3]; i++) out[i] /= count;
    return true;
}

static bool avg_backward_plane(const pool *c, double *out, double *in, int64_t *where) {
    (void)where;
    double count = (double)(c->p->kernel[0] * c->p->kernel[1]);
    for (int64_t i = 0; i < c->in->shape[2] * c->in->shape[3]; i++) in[i] /= count;
    slide(c, c->out, c->in, out, in, true);
    return true;
}

/* ---- Windows that divide the image evenly ---- */

/* Place (i, j) of the pooled plane has the window [top, bottom) x [left, right) of the image. */
typedef struct {
    int64_t top, bottom, left, right;
} window;

static window adaptive_window(const ln_tensor *image, const ln_tensor *pooled, int64_t i,
                              int64_t j) {
    int64_t h = image->shape[2], w = image->shape[3], H = pooled->shape[2], W = pooled->shape[3];
    return (window){i * h / H, ceil_div((i + 1) * h, H), j * w / W, ceil_div((j + 1) * w, W)};
}

static bool adaptive_plane(const pool *c, double *out, double *in, int64_t *where) {
    (void)where;
    for (int64_t i = 0; i < c->out->shape[2]; i++)
        for (int64_t j = 0; j < c->out->shape[3]; j++, out++) {
            window w = adaptive_window(c->in, c->out, i, j);
            double sum = 0;
            for (int64_t y = w.top; y < w.bottom; y++)
                for (int64_t x = w.left; x < w.right; x++) sum += in[y * c->in->shape[3] + x];
            *out = sum / (double)((w.bottom - w.top) * (w.right - w.left));
        }
    return true;
}

static bool adaptive_backward_plane(const pool *c, double *out, double *in, int64_t *where) {
    (void)where;
    for (int64_t i = 0; i < c->in->shape[2]; i++)
        for (int64_t j = 0; j < c->in->shape[3]; j++, in++) {
            window w = adaptive_window(c->out, c->in, i, j);
            double each = *in / (double)((w.bottom - w.top) * (w.right - w.left));
            for (int64_t y = w.top; y < w.bottom; y++)
                for (int64_t x = w.left; x < w.right; x++) out[y * c->out->shape[3] + x] += each;
        }
    return true;
}

/* ---- The operators ---- */

ln_status CPU(max_pool2d)(ln_tensor *y, ln_tensor *indices, const ln_tensor *x,
                          const ln_pool_params *p) {
    return each_plane(&(pool){y, x, indices, p}, max_plane, false, "max_pool2d");
}

ln_status CPU(max_pool2d_backward)(ln_tensor *dx, const ln_tensor *dy, const ln_tensor *indices) {
    return each_plane(&(pool){dx, dy, indices, NULL}, max_backward_plane, true,
                      "max_pool2d_backward");
}

ln_status CPU(avg_pool2d)(ln_tensor *y, const ln_tensor *x, const ln_pool_params *p) {
    return each_plane(&(pool){y, x, NULL, p}, avg_plane, false, "avg_pool2d");
}

ln_status CPU(avg_pool2d_backward)(ln_tensor *dx, const ln_tensor *dy, const ln_pool_params *p) {
    return each_plane(&(pool){dx, dy, NULL, p}, avg_backward_plane, false, "avg_pool2d_backward");
}

ln_status CPU(adaptive_avg_pool2d)(ln_tensor *y, const ln_tensor *x) {
    return each_plane(&(pool){y, x, NULL, NULL}, adaptive_plane, false, "adaptive_avg_pool2d");
}

ln_status CPU(adaptive_avg_pool2d_backward)(ln_tensor *dx, const ln_tensor *dy) {
    return each_plane(&(pool){dx, dy, NULL, NULL}, adaptive_backward_plane, false,
                      "adaptive_avg_pool2d_backward");
}
