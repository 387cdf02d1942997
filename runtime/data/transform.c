/* Taking an image through drawn steps, in the memory of the thread that does it. Draws nothing
 * itself. Invariant: the source is never written; a working image lies in one slot, and a step that
 * cannot work in place makes the next one in the other. */
#include "data/data.h"

#include <stdlib.h>
#include <string.h>

void *ln_workspace_get(ln_workspace *w, int slot, size_t bytes) {
    if (w->bytes[slot] >= bytes && w->block[slot] != NULL) return w->block[slot];
    ln_scratch_release(w->block[slot]);
    w->block[slot] = ln_scratch_new(bytes, "augment");
    w->bytes[slot] = w->block[slot] == NULL ? 0 : bytes;
    return w->block[slot];
}

void ln_workspace_release(ln_workspace *w) {
    for (int i = 0; i < LN_SLOTS; i++) ln_scratch_release(w->block[i]);
    *w = (ln_workspace){0};
}

static int64_t image_size(const ln_image *image) {
    return image->channels * image->height * image->width;
}

static void copy_pixels(float *dst, const ln_image *src) {
    int64_t n = image_size(src);
    if (src->bytes) ln_bytes_to_float(dst, src->data, n);
    else memcpy(dst, src->data, (size_t)n * sizeof *dst);
}

/* image = its box, resampled, in the slot that it does not lie in. */
static ln_status take_crop(ln_image *image, int *slot, const double *a, ln_workspace *w) {
    ln_box box = {(int64_t)a[0], (int64_t)a[1], (int64_t)a[2], (int64_t)a[3]};
    ln_image next = {NULL, false, image->channels, (int64_t)a[4], (int64_t)a[5]};
    int other = *slot == LN_SLOT_FRONT ? LN_SLOT_BACK : LN_SLOT_FRONT;
    float *data = ln_workspace_get(w, other, (size_t)image_size(&next) * sizeof *data);
    if (data == NULL) return LN_OUT_OF_MEMORY;
    next.data = data;
    *slot = other;
    ln_status status = ln_resize(data, next.height, next.width, image, box, (int)a[6], w);
    *image = next;
    return status;
}

static ln_status take_in_place(float *x, const ln_image *image, const ln_transform *step,
                               ln_workspace *w) {
    int64_t plane = image->height * image->width, n = image->channels * plane;
    float a = (float)step->a[0];
    bool of_color = step->op == LN_SATURATION || step->op == LN_HUE || step->op == LN_GRAYSCALE;
    if (of_color && image->channels == 1) return LN_OK;
    switch (step->op) {
    case LN_HFLIP: ln_hflip(x, image->channels * image->height, image->width); break;
    case LN_BRIGHTNESS: ln_brightness(x, n, a); break;
    case LN_CONTRAST: ln_contrast(x, image->channels, plane, a); break;
    case LN_SATURATION: ln_saturation(x, plane, a); break;
    case LN_HUE: ln_hue(x, plane, a); break;
    case LN_GRAYSCALE: ln_grayscale(x, plane); break;
    case LN_SOLARIZE: ln_solarize(x, n, a); break;
    case LN_BLUR: return ln_blur(x, image, (int64_t)step->a[0], step->a[1], w);
    case LN_NORMALIZE:
        for (int64_t c = 0; c < image->channels; c++)
            ln_normalize(x + c * plane, plane, (float)step->a[c], (float)step->a[3 + c]);
        break;
    }
    return LN_OK;
}

ln_status ln_steps_apply(float *dst, const ln_image *src, const ln_transform *drawn, int n,
                         ln_workspace *w) {
    ln_image image = *src;
    int slot = LN_SLOTS; /* the source's own memory */
    ln_status status = LN_OK;
    for (int i = 0; i < n && status == LN_OK; i++) {
        if (drawn[i].op == LN_CROP) {
            status = take_crop(&image, &slot, drawn[i].a, w);
            continue;
        }
        if (slot == LN_SLOTS) {
            float *copy =
                ln_workspace_get(w, LN_SLOT_FRONT, (size_t)image_size(&image) * sizeof *copy);
            if (copy == NULL) return LN_OUT_OF_MEMORY;
            copy_pixels(copy, &image);
            image.data = copy;
            image.bytes = false;
            slot = LN_SLOT_FRONT;
        }
        status = take_in_place(w->block[slot], &image, drawn + i, w);
    }
    if (status == LN_OK) copy_pixels(dst, &image);
    return status;
}

ln_status ln_image_transform(ln_tensor **out, const ln_tensor *image, const ln_transform *steps,
                             int n, const ln_draw_address *address) {
    if (image == NULL || ln_device(image) != LN_CPU || !ln_is_contiguous(image) ||
        image->ndim != 3 || (image->dtype != LN_UINT8 && image->dtype != LN_FLOAT32))
        return ln_fail(LN_BAD_ARGUMENT,
                       "augment: got %s; a contiguous (C,H,W) uint8 or float32 image is taken",
                       image == NULL ? "nothing" : ln_text(image));
    ln_status status = ln_check_inputs("augment", 1, &image);
    if (status != LN_OK) return status;
    ln_image src = {image->data, image->dtype == LN_UINT8, image->shape[0], image->shape[1],
                    image->shape[2]};
    int64_t shape[3] = {src.channels, src.height, src.width};
    status = ln_steps_check(steps, n, src.channels, &shape[1], &shape[2]);
    if (status != LN_OK) return status;
    ln_tensor *t = NULL;
    ln_workspace w = {0};
    ln_transform drawn[LN_MAX_DRAWN];
    int count = ln_steps_draw(drawn, steps, n, src.height, src.width, address);
    LN_TRY(ln_tensor_empty(&t, LN_FLOAT32, LN_CPU, 3, shape));
    LN_TRY(ln_steps_apply((float *)t->data, &src, drawn, count, &w));
    *out = t;
    t = NULL;
fail:
    ln_workspace_release(&w);
    ln_tensor_release(t);
    return status;
}
