/* The arithmetic of image steps, as inline functions for data/ and, with LN_INLINE defined before
 * inclusion, for device code: colours of a pixel by torchvision's formulas for float images, and
 * the weights and positions of filters. Holds no loop over pixels. Invariant: every floating-point
 * step is correctly rounded but for a Gaussian's exp, so a file that includes this one and is
 * compiled without fused multiply-add gives the same bits, whatever it runs on. */
#ifndef LN_PIXEL_H
#define LN_PIXEL_H
#include <math.h>

#include "ln.h"

#ifndef LN_INLINE
#define LN_INLINE static inline
#endif

/* ---- Colours: values are 0 to 1 and stay there, but for normalising ---- */

typedef struct {
    float r, g, b;
} ln_rgb;

/* ITU-R 601 luma, with torchvision's digits. */
static const float LN_LUMA_R = 0.2989f, LN_LUMA_G = 0.587f, LN_LUMA_B = 0.114f;

LN_INLINE float ln_luma(ln_rgb p) {
    return LN_LUMA_R * p.r + LN_LUMA_G * p.g + LN_LUMA_B * p.b;
}

LN_INLINE float ln_from_byte(unsigned char v) {
    return (float)v / 255.0f; /* as torchvision's to_tensor */
}

LN_INLINE float ln_clamp(float v) {
    v = v > 0 ? v : 0;
    return v < 1 ? v : 1;
}

/* What brightness, contrast and saturation have in common. */
LN_INLINE float ln_blend(float v, float factor, float shift) {
    return ln_clamp(factor * v + shift);
}

/* An image's mean grey is summed over blocks of its planes, of each on so many lanes in float (lane
 * k: values k, k + lanes, ...), whose sums and what is left of the last block are added in double:
 * in that order everywhere, so that long sums lose no digits and need not wait. */
enum { LN_SUM_LANES = 16, LN_SUM_BLOCK = 1024 };

/* The shift of a contrast, from the sums over planes of n values. The luma is linear, so its mean
 * is the luma of the means. */
LN_INLINE float ln_contrast_shift(const double *sums, int64_t channels, int64_t n, float factor) {
    double mean = sums[0] / (double)n;
    if (channels == 3)
        mean = LN_LUMA_R * mean + LN_LUMA_G * (sums[1] / (double)n) +
               LN_LUMA_B * (sums[2] / (double)n);
    return (1 - factor) * (float)mean;
}

LN_INLINE ln_rgb ln_saturate(ln_rgb p, float factor) {
    float shift = (1 - factor) * ln_luma(p);
    ln_rgb q = {ln_blend(p.r, factor, shift), ln_blend(p.g, factor, shift),
                ln_blend(p.b, factor, shift)};
    return q;
}

/* ln_clamp, where arithmetic follows. Choices become products with a truth value, 1 or 0: compilers
 * would move that arithmetic under a condition, which keeps a loop from becoming vectors. */
LN_INLINE float ln_clamp_by_product(float v) {
    return (float)((v > 0) & (v < 1)) * v + (float)(v >= 1);
}

/* HSV and back, with the hue counted in sextants from red. Value and chroma stay as they are, so
 * neither the saturation nor its division is needed. turn: -0.5 to 0.5. */
LN_INLINE ln_rgb ln_turn_hue(ln_rgb p, float turn) {
    float shift = 6 * turn + 6; /* and one turn, so that the sum is above 0 */
    float high = p.r > p.g ? p.r : p.g, low = p.r < p.g ? p.r : p.g;
    high = high > p.b ? high : p.b;
    low = low < p.b ? low : p.b;
    float chroma = high - low, scale = 1 / (chroma + (float)(chroma == 0));
    float is_red = (float)((p.r >= p.g) & (p.r >= p.b));
    float is_green = (float)(p.g >= p.b) * (1 - is_red);
    float hue = is_red * ((p.g - p.b) * scale) + is_green * (2 + (p.b - p.r) * scale) +
                (1 - is_red - is_green) * (4 + (p.r - p.g) * scale) + shift;
    hue -= 6 * (float)(int)(hue / 6);
    ln_rgb q = {high - chroma * ln_clamp_by_product(2 - fabsf(hue - 3)),
                high - chroma * ln_clamp_by_product(fabsf(hue - 2) - 1),
                high - chroma * ln_clamp_by_product(fabsf(hue - 4) - 1)};
    return q;
}

LN_INLINE float ln_solarized(float v, float threshold) {
    float bright = (float)(v >= threshold); /* v, or 1 - v */
    return bright + (1 - 2 * bright) * v;
}

/* ---- Resampling: output i of an axis is a weighted sum of `taps` neighbours ---- */

LN_INLINE double ln_bilinear(double x) {
    x = fabs(x);
    return x < 1 ? 1 - x : 0;
}

/* Keys' cubic with a = -1/2, Pillow's choice. */
LN_INLINE double ln_bicubic(double x) {
    x = fabs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

LN_INLINE double ln_filter_reach(int64_t in, int64_t out, int filter) {
    double scale = (double)in / (double)out;
    return (filter == LN_BICUBIC ? 2 : 1) * (scale > 1 ? scale : 1);
}

/* Never falls when `in` grows. */
LN_INLINE int64_t ln_filter_taps(int64_t in, int64_t out, int filter) {
    int64_t taps = (int64_t)ceil(2 * ln_filter_reach(in, out, filter));
    return taps < in ? taps : in;
}

/* The weights of output i, which sum to 1, and the position of the first of its neighbours. */
LN_INLINE int64_t ln_filter_weights(float *weight, int64_t i, int64_t in, int64_t out, int64_t taps,
                                    int filter) {
    double scale = (double)in / (double)out, reach = ln_filter_reach(in, out, filter);
    double shrink = scale > 1 ? 1 / scale : 1, center = ((double)i + 0.5) * scale, total = 0;
    int64_t low = (int64_t)(center - reach + 0.5), high = (int64_t)(center + reach + 0.5);
    if (low < 0) low = 0;
    if (high > in) high = in;
    int64_t first = low < in - taps ? low : in - taps;
    for (int64_t k = 0; k < taps; k++) {
        double x = ((double)(first + k) - center + 0.5) * shrink;
        bool inside = first + k >= low && first + k < high;
        double value = inside ? (filter == LN_BICUBIC ? ln_bicubic(x) : ln_bilinear(x)) : 0;
        weight[k] = (float)value;
        total += value;
    }
    for (int64_t k = 0; k < taps; k++) weight[k] = (float)(weight[k] / total);
    return first;
}

/* ---- Gaussians ---- */

/* The odd number of weights that a kernel of this odd size needs: beyond 6.5 sigma they are below
 * 1e-9 of the middle's. */
LN_INLINE int64_t ln_gaussian_taps(int64_t kernel, double sigma) {
    return 2 * (int64_t)fmin((double)(kernel - 1) / 2, ceil(6.5 * sigma)) + 1;
}

/* Weight k of `taps`, before all are divided by their sum. */
LN_INLINE float ln_gaussian(int64_t k, int64_t taps, double sigma) {
    double x = ((double)k - (double)(taps - 1) / 2) / sigma;
    return (float)exp(-0.5 * x * x);
}

/* Position i of n, reflected at the edges without repeating the outermost sample. */
LN_INLINE int64_t ln_reflect(int64_t i, int64_t n) {
    if (i < 0) return -i;
    return i < n ? i : 2 * (n - 1) - i;
}

#endif
