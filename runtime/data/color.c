/* Colours and flips, in place on planes of floats, by torchvision's formulas for float images.
 * Values are 0 to 1 and stay there, but for normalising. Invariant: sums are taken in one order
 * whatever the vector width, so that every processor gives the same bits. */
#include "data/data.h"

#include <math.h>

/* ITU-R 601 luma, with torchvision's digits. */
static const float RED = 0.2989f, GREEN = 0.587f, BLUE = 0.114f;

static inline float clamp(float v) {
    v = v > 0 ? v : 0;
    return v < 1 ? v : 1;
}

LN_CLONES void ln_brightness(float *x, int64_t n, float factor) {
    for (int64_t i = 0; i < n; i++) x[i] = clamp(factor * x[i]);
}

/* In blocks of floats on 16 lanes, so that long sums lose no digits and need not wait. */
LN_CLONES static double sum(const float *x, int64_t n) {
    enum { LANES = 16, BLOCK = 1024 };
    double total = 0;
    for (int64_t start = 0; start < n; start += BLOCK) {
        int64_t end = start + BLOCK < n ? start + BLOCK : n, i = start;
        float lane[LANES] = {0};
        for (; i + LANES <= end; i += LANES)
            for (int k = 0; k < LANES; k++) lane[k] += x[i + k];
        for (int k = 0; k < LANES; k++) total += lane[k];
        for (; i < end; i++) total += x[i];
    }
    return total;
}

/* Towards the image's mean grey. The luma is linear, so its mean is the luma of the means. */
LN_CLONES void ln_contrast(float *x, int64_t channels, int64_t n, float factor) {
    double mean = sum(x, n) / (double)n;
    if (channels == 3)
        mean = RED * mean + GREEN * (sum(x + n, n) / (double)n) +
               BLUE * (sum(x + 2 * n, n) / (double)n);
    float shift = (1 - factor) * (float)mean;
    for (int64_t i = 0; i < channels * n; i++) x[i] = clamp(factor * x[i] + shift);
}

LN_CLONES void ln_saturation(float *rgb, int64_t n, float factor) {
    float *restrict r = rgb, *restrict g = rgb + n, *restrict b = rgb + 2 * n;
    for (int64_t i = 0; i < n; i++) {
        float shift = (1 - factor) * (RED * r[i] + GREEN * g[i] + BLUE * b[i]);
        r[i] = clamp(factor * r[i] + shift);
        g[i] = clamp(factor * g[i] + shift);
        b[i] = clamp(factor * b[i] + shift);
    }
}

LN_CLONES void ln_grayscale(float *rgb, int64_t n) {
    float *restrict r = rgb, *restrict g = rgb + n, *restrict b = rgb + 2 * n;
    for (int64_t i = 0; i < n; i++) r[i] = g[i] = b[i] = RED * r[i] + GREEN * g[i] + BLUE * b[i];
}

/* clamp, where arithmetic follows. Choices become products with a truth value, 1 or 0: the compiler
 * would move that arithmetic under a condition, which keeps a loop from becoming vectors. */
static inline float clamp_by_product(float v) {
    return (float)((v > 0) & (v < 1)) * v + (float)(v >= 1);
}

/* HSV and back, with the hue counted in sextants from red. Value and chroma stay as they are, so
 * neither the saturation nor its division is needed. */
LN_CLONES void ln_hue(float *rgb, int64_t n, float turn) {
    float *restrict r = rgb, *restrict g = rgb + n, *restrict b = rgb + 2 * n;
    float shift = 6 * turn + 6; /* and one turn, so that the sum is above 0 */
    for (int64_t i = 0; i < n; i++) {
        float red = r[i], green = g[i], blue = b[i];
        float high = red > green ? red : green, low = red < green ? red : green;
        high = high > blue ? high : blue;
        low = low < blue ? low : blue;
        float chroma = high - low, scale = 1 / (chroma + (float)(chroma == 0));
        float is_red = (float)((red >= green) & (red >= blue));
        float is_green = (float)(green >= blue) * (1 - is_red);
        float hue = is_red * ((green - blue) * scale) + is_green * (2 + (blue - red) * scale) +
                    (1 - is_red - is_green) * (4 + (red - green) * scale) + shift;
        hue -= 6 * (float)(int)(hue / 6);
        r[i] = high - chroma * clamp_by_product(2 - fabsf(hue - 3));
        g[i] = high - chroma * clamp_by_product(fabsf(hue - 2) - 1);
        b[i] = high - chroma * clamp_by_product(fabsf(hue - 4) - 1);
    }
}

LN_CLONES void ln_solarize(float *x, int64_t n, float threshold) {
    for (int64_t i = 0; i < n; i++) {
        float bright = (float)(x[i] >= threshold); /* x, or 1 - x */
        x[i] = bright + (1 - 2 * bright) * x[i];
    }
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
