/* Colours and flips, in place on planes of floats: the loops around the formulas of pixel.h.
 * Invariant: sums are taken in one order whatever the vector width, so that every processor gives
 * the same bits. */
#include "data/data.h"
#include "pixel.h"

LN_CLONES void ln_brightness(float *x, int64_t n, float factor) {
    for (int64_t i = 0; i < n; i++) x[i] = ln_clamp(factor * x[i]);
}

LN_CLONES static double sum(const float *x, int64_t n) {
    double total = 0;
    for (int64_t start = 0; start < n; start += LN_SUM_BLOCK) {
        int64_t end = start + LN_SUM_BLOCK < n ? start + LN_SUM_BLOCK : n, i = start;
        float lane[LN_SUM_LANES] = {0};
        for (; i + LN_SUM_LANES <= end; i += LN_SUM_LANES)
            for (int k = 0; k < LN_SUM_LANES; k++) lane[k] += x[i + k];
        for (int k = 0; k < LN_SUM_LANES; k++) total += lane[k];
        for (; i < end; i++) total += x[i];
    }
    return total;
}

/* Towards the image's mean grey. */
LN_CLONES void ln_contrast(float *x, int64_t channels, int64_t n, float factor) {
    double sums[3] = {0};
    for (int64_t c = 0; c < channels; c++) sums[c] = sum(x + c * n, n);
    float shift = ln_contrast_shift(sums, channels, n, factor);
    for (int64_t i = 0; i < channels * n; i++) x[i] = ln_blend(x[i], factor, shift);
}

LN_CLONES void ln_saturation(float *rgb, int64_t n, float factor) {
    float *restrict r = rgb, *restrict g = rgb + n, *restrict b = rgb + 2 * n;
    for (int64_t i = 0; i < n; i++) {
        ln_rgb p = ln_saturate((ln_rgb){r[i], g[i], b[i]}, factor);
        r[i] = p.r;
        g[i] = p.g;
        b[i] = p.b;
    }
}

LN_CLONES void ln_grayscale(float *rgb, int64_t n) {
    float *restrict r = rgb, *restrict g = rgb + n, *restrict b = rgb + 2 * n;
    for (int64_t i = 0; i < n; i++) r[i] = g[i] = b[i] = ln_luma((ln_rgb){r[i], g[i], b[i]});
}

LN_CLONES void ln_hue(float *rgb, int64_t n, float turn) {
    float *restrict r = rgb, *restrict g = rgb + n, *restrict b = rgb + 2 * n;
    for (int64_t i = 0; i < n; i++) {
        ln_rgb p = ln_turn_hue((ln_rgb){r[i], g[i], b[i]}, turn);
        r[i] = p.r;
        g[i] = p.g;
        b[i] = p.b;
    }
}

LN_CLONES void ln_solarize(float *x, int64_t n, float threshold) {
    for (int64_t i = 0; i < n; i++) x[i] = ln_solarized(x[i], threshold);
}

LN_CLONES void ln_normalize(float *x, int64_t n, float mean, float deviation) {
    for (int64_t i = 0; i < n; i++) x[i] = (x[i] - mean) / deviation;
}

void ln_hflip(float *x, int64_t rows, int64_t width) {
    for (int64_t y = 0; y < rows; y++, x += width)
        for (int64_t i = 0, j = width - 1; i < j; i++, j--) {
            float held = x[i];
            x[i] = x[j];
            x[j] = held;
        }
}
