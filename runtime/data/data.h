/* Internal to runtime/data/: working images, the memory they are made in, and the steps of a view.
 * Holds no code. Invariant: nothing here depends on the thread that runs it; a step's result is a
 * function of its input and its numbers alone. */
#ifndef LN_DATA_H
#define LN_DATA_H
#include "backend.h"

/* An image of `channels` planes of height x width, row-major: bytes 0..255 or floats 0..1. */
typedef struct {
    const void *data;
    bool bytes;
    int64_t channels, height, width;
} ln_image;

/* Compiled for AVX2 as well, and chosen when the library is loaded. Without fused multiply-add, so
 * both give the same bits. */
#define LN_CLONES __attribute__((target_clones("avx2", "default")))

/* ---- Memory of a thread (transform.c) ---- */

enum { LN_SLOT_FRONT, LN_SLOT_BACK, LN_SLOT_ROWS, LN_SLOT_WEIGHTS, LN_SLOTS };
typedef struct {
    void *block[LN_SLOTS];
    size_t bytes[LN_SLOTS];
} ln_workspace; /* zeroed to begin with; grows, and is kept until released */

/* At least `bytes` in a slot, contents undefined; NULL when there are none (the message is set). */
void *ln_workspace_get(ln_workspace *w, int slot, size_t bytes);
void ln_workspace_release(ln_workspace *w);

/* ---- Resampling (resize.c) ---- */

typedef struct {
    int64_t top, left, height, width;
} ln_box;

/* dst (channels,height,width) = the box of src, resampled. The box lies inside src. */
ln_status ln_resize(float *dst, int64_t height, int64_t width, const ln_image *src, ln_box box,
                    int filter, ln_workspace *w);
/* dst[x] = the sum over k < taps of weight[k] * src[k * stride + x], for x < n. */
void ln_weighted_sum(float *dst, const float *src, int64_t stride, const float *weight,
                     int64_t taps, int64_t n);
/* dst[i] = src[i] / 255, as torchvision's to_tensor. */
void ln_bytes_to_float(float *dst, const unsigned char *src, int64_t n);

/* ---- Colours and filters (color.c, blur.c): in place on planes of n floats ---- */

void ln_brightness(float *x, int64_t n, float factor);
void ln_contrast(float *x, int64_t channels, int64_t n, float factor);
void ln_saturation(float *rgb, int64_t n, float factor);
void ln_hue(float *rgb, int64_t n, float turn);
void ln_grayscale(float *rgb, int64_t n);
void ln_solarize(float *x, int64_t n, float threshold);
void ln_normalize(float *x, int64_t n, float mean, float deviation);
void ln_hflip(float *x, int64_t rows, int64_t width);
ln_status ln_blur(float *x, const ln_image *shape, int64_t kernel, double sigma, ln_workspace *w);

/* ---- Steps (draw.c, transform.c) ---- */

enum { LN_MAX_STEPS = 16, LN_MAX_DRAWN = 4 * LN_MAX_STEPS };
enum { LN_MAX_VIEWS = 16, LN_MAX_SAMPLES = INT32_MAX };

/* Checks a chain for images of this shape, and gives the shape of its results. */
ln_status ln_steps_check(const ln_transform *steps, int n, int64_t channels, int64_t *height,
                         int64_t *width);
/* Whether the step changes the image's size; then every view takes it, as one LN_CROP. */
bool ln_step_sizes(const ln_transform *step);
/* The most steps that one view takes. */
int ln_steps_most(const ln_transform *steps, int n);
/* The steps that one view takes, in order, with all numbers drawn: of LN_CROP to LN_NORMALIZE only,
 * at most ln_steps_most, which is at most LN_MAX_DRAWN. Returns their number. */
int ln_steps_draw(ln_transform *drawn, const ln_transform *steps, int n, int64_t height,
                  int64_t width, const ln_draw_address *address);
/* dst = src taken through drawn steps. */
ln_status ln_steps_apply(float *dst, const ln_image *src, const ln_transform *drawn, int n,
                         ln_workspace *w);

#endif
