/* The Gaussian blur of torchvision: an odd kernel whose weights sum to 1, edges reflected without
 * repeating the outermost sample. Rows, then columns. Invariant: the kernel's reach is less than
 * either side, so one reflection suffices. */
#include "data/data.h"

#include <math.h>
#include <string.h>

static void fill_kernel(float *weight, int64_t size, double sigma) {
    double total = 0;
    for (int64_t k = 0; k < size; k++) {
        double x = ((double)k - (double)(size - 1) / 2) / sigma;
        weight[k] = (float)exp(-0.5 * x * x);
        total += weight[k];
    }
    for (int64_t k = 0; k < size; k++) weight[k] = (float)(weight[k] / total);
}

static int64_t reflect(int64_t i, int64_t n) {
    if (i < 0) return -i;
    return i < n ? i : 2 * (n - 1) - i;
}

/* dst[x] += weight * src[x]. */
LN_CLONES static void accumulate(float *restrict dst, const float *restrict src, float weight,
                                 int64_t n) {
    for (int64_t x = 0; x < n; x++) dst[x] += weight * src[x];
}

static void blur_rows(float *dst, const float *src, float *row, const ln_image *shape,
                      const float *weight, int64_t kernel) {
    int64_t width = shape->width, reach = kernel / 2;
    for (int64_t y = 0; y < shape->height; y++, dst += width, src += width) {
        for (int64_t x = -reach; x < width + reach; x++) row[x + reach] = src[reflect(x, width)];
        memset(dst, 0, (size_t)width * sizeof *dst);
        for (int64_t k = 0; k < kernel; k++) accumulate(dst, row + k, weight[k], width);
    }
}

static void blur_columns(float *dst, const float *src, const ln_image *shape, const float *weight,
                         int64_t kernel) {
    int64_t width = shape->width, reach = kernel / 2;
    for (int64_t y = 0; y < shape->height; y++, dst += width) {
        memset(dst, 0, (size_t)width * sizeof *dst);
        for (int64_t k = 0; k < kernel; k++)
            accumulate(dst, src + reflect(y + k - reach, shape->height) * width, weight[k], width);
    }
}

ln_status ln_blur(float *x, const ln_image *shape, int64_t kernel, double sigma, ln_workspace *w) {
    int64_t plane = shape->height * shape->width;
    float *weight = ln_workspace_get(w, LN_SLOT_WEIGHTS, (size_t)kernel * sizeof *weight);
    float *rows =
        ln_workspace_get(w, LN_SLOT_ROWS, (size_t)(plane + shape->width + kernel) * sizeof *rows);
    if (weight == NULL || rows == NULL) return LN_OUT_OF_MEMORY;
    fill_kernel(weight, kernel, sigma);
    for (int64_t c = 0; c < shape->channels; c++, x += plane) {
        blur_rows(rows, x, rows + plane, shape, weight, kernel);
        blur_columns(x, rows, shape, weight, kernel);
    }
    return LN_OK;
}
