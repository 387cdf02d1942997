/* Views of a batch on the device that holds the images: checks, the drawing of all steps on the
 * host, and dispatch; and making views on the host, for a backend that computes there. Invariant: a
 * view's steps are drawn by the same calls as a loader's, so that it has the same numbers. */
#include "data/data.h"

static const char *const WHAT = "augment";

/* ---- Checks ---- */

static ln_status check_images(const ln_tensor *images) {
    if (images->ndim != 4 || images->dtype != LN_UINT8 || !ln_is_contiguous(images))
        return ln_fail(LN_BAD_ARGUMENT, "%s: images are %s%s; contiguous (N,C,H,W) uint8 is taken",
                       WHAT, ln_text(images), ln_is_contiguous(images) ? "" : ", not contiguous");
    if (images->shape[0] <= LN_MAX_SAMPLES) return LN_OK;
    return ln_fail(LN_BAD_ARGUMENT, "%s: %lld samples; up to %d are taken", WHAT,
                   (long long)images->shape[0], LN_MAX_SAMPLES);
}

static ln_status check_index(const ln_tensor *index, int64_t samples) {
    if (index->ndim != 1 || index->dtype != LN_INT64 || ln_device(index) != LN_CPU ||
        !ln_is_contiguous(index))
        return ln_fail(LN_BAD_ARGUMENT,
                       "%s: the index is %s; contiguous (B) int64 on the cpu is taken", WHAT,
                       ln_text(index));
    const int64_t *at = (const int64_t *)index->data;
    for (int64_t i = 0; i < index->numel; i++)
        if (at[i] != -1 ? at[i] < 1 || at[i] > samples : samples == 0)
            return ln_fail(LN_BAD_ARGUMENT, "%s: index %lld at position %lld is outside 1..%lld",
                           WHAT, (long long)at[i], (long long)i + 1, (long long)samples);
    return LN_OK;
}

static ln_status check_options(int dtype, int64_t epoch, int views) {
    if (epoch < 0 || epoch > UINT32_MAX)
        return ln_fail(LN_BAD_ARGUMENT, "%s: got epoch %lld; 0 to 2^32 - 1 are taken", WHAT,
                       (long long)epoch);
    if (views < 1 || views > LN_MAX_VIEWS)
        return ln_fail(LN_BAD_ARGUMENT, "%s: got views %d; 1 to %d are taken", WHAT, views,
                       LN_MAX_VIEWS);
    if (dtype == LN_FLOAT32 || dtype == LN_FLOAT16 || dtype == LN_BFLOAT16) return LN_OK;
    return ln_fail(LN_BAD_ARGUMENT, "%s: got dtype %s; float32, float16 and bfloat16 are taken",
                   WHAT, ln_dtype_valid(dtype) ? ln_text_dtype(dtype) : "unknown");
}

/* ---- Drawing ---- */

typedef struct {
    const ln_tensor *images, *index;
    const ln_transform *steps;
    int n;
    uint64_t seed;
    uint32_t epoch, views;
} request;

/* The views of the index in order, the first of each sample before the second of any, into arrays
 * that have the room. */
static ln_drawn_batch draw_views(ln_drawn_view *views, ln_transform *drawn, const request *r) {
    const int64_t *shape = r->images->shape, *at = (const int64_t *)r->index->data;
    ln_drawn_batch b = {0, 0, views, drawn, r->n > 0 && ln_step_sizes(r->steps)};
    for (uint32_t v = 0; v < r->views; v++)
        for (int64_t i = 0; i < r->index->numel; i++) {
            int64_t sample = at[i] == -1 ? shape[0] - 1 : at[i] - 1;
            ln_draw_address address = {r->seed, r->epoch, (uint32_t)sample, v};
            int count =
                ln_steps_draw(drawn + b.n_steps, r->steps, r->n, shape[2], shape[3], &address);
            views[b.n++] = (ln_drawn_view){sample, b.n_steps, count};
            b.n_steps += count;
        }
    return b;
}

/* Draws, and has the device make, the views in out. */
static ln_status make_views(ln_tensor *out, const request *r) {
    size_t n = (size_t)(r->views * r->index->numel);
    size_t steps = n * (size_t)ln_steps_most(r->steps, r->n);
    if (n == 0) return LN_OK;
    ln_drawn_view *views = ln_scratch_new(n * sizeof *views + steps * sizeof(ln_transform), WHAT);
    if (views == NULL) return LN_OUT_OF_MEMORY;
    ln_drawn_batch batch = draw_views(views, (ln_transform *)(views + n), r);
    ln_status status = ln_backend_of(ln_device(out))->augment(out, r->images, &batch);
    ln_scratch_release(views);
    return status;
}

ln_status ln_augment(ln_tensor **out, int dtype, const ln_tensor *images, const ln_tensor *index,
                     const ln_transform *steps, int n, uint64_t seed, int64_t epoch, int views) {
    ln_tensor *const given = *out;
    ln_status status;
    LN_TRY(ln_check_inputs(WHAT, 1, &images));
    LN_TRY(ln_check_inputs(WHAT, 1, &index));
    LN_TRY(check_images(images));
    LN_TRY(check_index(index, images->shape[0]));
    LN_TRY(check_options(dtype, epoch, views));
    int64_t shape[] = {views, index->numel, images->shape[1], images->shape[2], images->shape[3]};
    LN_TRY(ln_steps_check(steps, n, shape[2], &shape[3], &shape[4]));
    LN_TRY(ln_out(out, dtype, ln_device(images), 5, shape, WHAT));
    if (!ln_is_contiguous(*out))
        LN_TRY(ln_fail(LN_BAD_ARGUMENT, "%s: the result would go to %s, which is not contiguous",
                       WHAT, ln_text(*out)));
    request r = {images, index, steps, n, seed, (uint32_t)epoch, (uint32_t)views};
    LN_TRY(make_views(*out, &r));
    return LN_OK;
fail:
    ln_out_fail(out, given);
    return status;
}

/* ---- Making views on the host ---- */

ln_status ln_augment_views(ln_tensor *out, const ln_tensor *images, const ln_drawn_batch *batch,
                           int64_t first, int64_t last) {
    const int64_t *shape = images->shape;
    int64_t in = shape[1] * shape[2] * shape[3], size = out->numel / batch->n;
    ln_workspace w = {0};
    ln_status status = LN_OK;
    for (int64_t i = first; i < last && status == LN_OK; i++) {
        const ln_drawn_view *v = batch->views + i;
        ln_image image = {images->data + v->image * in, true, shape[1], shape[2], shape[3]};
        status = ln_steps_apply((float *)out->data + i * size, &image, batch->steps + v->first,
                                v->count, &w);
    }
    ln_workspace_release(&w);
    return status;
}
