/* The Gaussian blur of torchvision: an odd kernel whose weights sum to 1, edges reflected without
 * repeating the outermost sample. Rows, then columns. Invariant: the kernel's reach is less than
 * either side, so one reflection suffices. */
#include "data/data.h"
#include "pixel.h"

#include <string.h>

static void fill_kernel(float *weight, int64_t size, double sigma) {
    double total = 0;
    for (int64_t k = 0; k < size; k++) {
        weight[k] = ln_gaussian(k, size, sigma);
        total += weight[k];
    }
    for (int64_t k = 0; k < size; k++) weight[k] = (float)(weight[k] / total);
}

/* rows (height + 2 reach, width): the blurred rows, and before and after them their reflections. */
static void blur_rows(float *rows, const float *src, float *row, const ln_image *shape,
                      const float *weight, int64_t kernel) {
    int64_t height = shape->height, width = shape->width, reach = kernel / 2;
    for (int64_t y = 0; y < height; y++, src += width) {
        for (int64_t x = -reach; x < width + reach; x++) row[x + reach] = src[ln_reflect(x, width)];
        ln_weighted_sum(rows + (y + reach) * width, row, 1, weight, kernel, width);
    }
    for (int64_t y = 1; y <= reach; y++) {
        float *first = rows + reach * width, *last = rows + (reach + height - 1) * width;
        memcpy(first - y * width, first + y * width, (size_t)width * sizeof *rows);
        memcpy(last + y * width, last - y * width, (size_t)width * sizeof *rows);
    }
}

ln_status ln_blur(float *x, const ln_image *shape, int64_t kernel, double sigma, ln_workspace *w) {
    kernel = ln_gaussian_taps(kernel, sigma);
    int64_t height = shape->height, width = shape->width, padded = (height + kernel - 1) * width;
    float *weight = ln_workspace_get(w, LN_SLOT_WEIGHTS, (size_t)kernel * sizeof *weight);
    float *rows =
        ln_workspace_get(w, LN_SLOT_ROWS, (size_t)(padded + width + kernel) * sizeof *rows);
    if (weight == NULL || rows == NULL) return LN_OUT_OF_MEMORY;
    fill_kernel(weight, kernel, sigma);
    for (int64_t c = 0; c < shape->channels; c++) {
        blur_rows(rows, x, rows + padded, shape, weight, kernel);
        for (int64_t y = 0; y < height; y++, x += width)
            ln_weighted_sum(x, rows + y * width, width, weight, kernel, width);
    }
    return LN_OK;
}
