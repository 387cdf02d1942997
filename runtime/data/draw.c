/* Chains of steps: their checks, and the drawing of one view's numbers. Touches no pixel, so that
 * another device may draw the same. Invariant: a draw's value depends on its address alone, and a
 * step's addresses on its place in the chain alone. */
#include "data/data.h"

#include <math.h>

#include "random.h"

enum { DRAWS_PER_STEP = 256, MAX_SIDE = 1 << 16, ATTEMPTS = 10 };
static const double BIG = 1e30; /* what no sensible number reaches */

/* ---- Checks ---- */

/* ORDER TRANSFORM */
static const char *const names[] = {
    "crop",        "horizontal_flip", "brightness",    "contrast",  "saturation",          "hue",
    "grayscale",   "solarize",        "gaussian_blur", "normalize", "random_resized_crop", "resize",
    "center_crop", "color_jitter",
};

static bool is_side(double v) {
    return v >= 1 && v <= MAX_SIDE && v == floor(v);
}

static bool is_filter(double v) {
    return v == LN_BILINEAR || v == LN_BICUBIC;
}

/* low <= from <= to <= high; false where one is NaN. */
static bool is_range(double low, const double *from_to, double high) {
    return low <= from_to[0] && from_to[0] <= from_to[1] && from_to[1] <= high;
}

static bool is_position(double v, double size, int64_t extent) {
    return v >= 0 && v == floor(v) && v + size <= (double)extent;
}

/* NULL, or what is wrong with a step's numbers for an image of this size. */
static const char *fault_of_size(const ln_transform *s, int64_t height, int64_t width) {
    const double *a = s->a;
    switch (s->op) {
    case LN_CROP:
        if (!is_side(a[2]) || !is_side(a[3]) || !is_position(a[0], a[2], height) ||
            !is_position(a[1], a[3], width))
            return "the box is not inside the image";
        return is_side(a[4]) && is_side(a[5]) && is_filter(a[6]) ? NULL : "no such size or filter";
    case LN_RANDOM_RESIZED_CROP:
        if (!is_side(a[0]) || !is_side(a[1]) || !is_filter(a[6])) return "no such size or filter";
        if (!is_range(0, a + 2, 1) || a[3] == 0) return "scale is not ascending in 0 to 1";
        return is_range(0, a + 4, BIG) && a[4] > 0 ? NULL : "ratio is not ascending from above 0";
    case LN_RESIZE:
        if (a[0] == 0 ? !is_side(a[1]) || !is_side(a[2]) : !is_side(a[0])) return "no such size";
        return is_filter(a[3]) ? NULL : "no such filter";
    default: /* LN_CENTER_CROP */
        return is_side(a[0]) && is_side(a[1]) && a[0] <= (double)height && a[1] <= (double)width
                   ? NULL
                   : "the box is larger than the image";
    }
}

static const char *fault_of_values(const ln_transform *s, int64_t height, int64_t width) {
    const double *a = s->a, reach = (double)(height < width ? height : width);
    switch (s->op) {
    case LN_BRIGHTNESS:
    case LN_CONTRAST:
    case LN_SATURATION: return a[0] >= 0 && a[0] <= BIG ? NULL : "the factor is not 0 or more";
    case LN_HUE: return fabs(a[0]) <= 0.5 ? NULL : "the turn is not -0.5 to 0.5";
    case LN_SOLARIZE: return fabs(a[0]) <= BIG ? NULL : "the threshold is not a number";
    case LN_BLUR:
        if (!is_side(a[0]) || fmod(a[0], 2) != 1 || a[0] / 2 >= reach)
            return "the kernel is not odd and less than twice the image";
        return a[1] > 0 && is_range(0, a + 1, BIG) ? NULL : "sigma is not ascending from above 0";
    case LN_NORMALIZE:
        for (int i = 0; i < 3; i++)
            if (!(fabs(a[i]) <= BIG && a[3 + i] > 0 && a[3 + i] <= BIG))
                return "a mean is not finite or a deviation not above 0";
        return NULL;
    case LN_COLOR_JITTER:
        if (!is_range(0, a, BIG) || !is_range(0, a + 2, BIG) || !is_range(0, a + 4, BIG))
            return "a factor's range is not ascending from 0 or more";
        return is_range(-0.5, a + 6, 0.5) ? NULL : "the hue's range is not in -0.5 to 0.5";
    default: return NULL;
    }
}

bool ln_step_sizes(const ln_transform *step) {
    return step->op == LN_CROP || step->op == LN_RANDOM_RESIZED_CROP || step->op == LN_RESIZE ||
           step->op == LN_CENTER_CROP;
}

/* From the size before a step to the size after it. */
static void step_size(const ln_transform *s, int64_t *height, int64_t *width) {
    if (!ln_step_sizes(s)) return;
    if (s->op == LN_RESIZE && s->a[0] > 0) {
        int64_t h = *height, w = *width, side = (int64_t)s->a[0];
        *height = h <= w ? side : side * h / w;
        *width = w <= h ? side : side * w / h;
        return;
    }
    const double *size = s->a + (s->op == LN_CROP ? 4 : s->op == LN_RESIZE ? 1 : 0);
    *height = (int64_t)size[0];
    *width = (int64_t)size[1];
}

ln_status ln_steps_check(const ln_transform *steps, int n, int64_t channels, int64_t *height,
                         int64_t *width) {
    if (n < 0 || n > LN_MAX_STEPS)
        return ln_fail(LN_BAD_ARGUMENT, "augment: %d steps; at most %d are taken", n, LN_MAX_STEPS);
    if ((channels != 1 && channels != 3) || *height < 1 || *width < 1)
        return ln_fail(LN_BAD_ARGUMENT,
                       "augment: images of shape (%lld,%lld,%lld); (C,H,W) with 1 "
                       "or 3 channels and at least one pixel is taken",
                       (long long)channels, (long long)*height, (long long)*width);
    for (int i = 0; i < n; i++) {
        const ln_transform *s = steps + i;
        if (s->op < 0 || s->op > LN_COLOR_JITTER)
            return ln_fail(LN_BAD_ARGUMENT, "augment: step %d: no operation %d", i + 1, s->op);
        bool sized = ln_step_sizes(s);
        const char *fault =
            sized ? fault_of_size(s, *height, *width) : fault_of_values(s, *height, *width);
        if (!(s->p >= 0 && s->p <= 1)) fault = "p is not 0 to 1";
        if (sized && s->p != 1) fault = "it changes the size, so p must be 1";
        if (fault != NULL)
            return ln_fail(LN_BAD_ARGUMENT, "augment: step %d (%s) on %lld x %lld pixels: %s",
                           i + 1, names[s->op], (long long)*height, (long long)*width, fault);
        step_size(s, height, width);
        if (*height < 1 || *width < 1 || *height > MAX_SIDE || *width > MAX_SIDE)
            return ln_fail(LN_BAD_ARGUMENT, "augment: step %d (%s) gives %lld x %lld pixels", i + 1,
                           names[s->op], (long long)*height, (long long)*width);
    }
    return LN_OK;
}

/* ---- Drawing ---- */

/* Where the next draw is. */
typedef struct {
    uint64_t seed, stream, index;
} draws;

static uint64_t draw_bits(draws *d) {
    return ln_random_bits(d->seed, d->stream, d->index++);
}

static double draw_between(draws *d, const double *from_to) {
    return from_to[0] + (from_to[1] - from_to[0]) * ln_uniform(draw_bits(d));
}

static int64_t draw_below(draws *d, int64_t n) {
    return (int64_t)ln_integer(draw_bits(d), (uint64_t)n);
}

static ln_transform crop(ln_box box, int64_t height, int64_t width, int64_t filter) {
    int64_t numbers[] = {box.top, box.left, box.height, box.width, height, width, filter};
    ln_transform s = {.op = LN_CROP, .p = 1};
    for (int i = 0; i < 7; i++) s.a[i] = (double)numbers[i];
    return s;
}

static ln_box centered(int64_t height, int64_t width, int64_t box_height, int64_t box_width) {
    return (ln_box){(int64_t)rint((double)(height - box_height) / 2),
                    (int64_t)rint((double)(width - box_width) / 2), box_height, box_width};
}

/* As torchvision: ten attempts at a box of the drawn area and ratio; then the largest central box
 * whose ratio is allowed. */
static ln_box draw_box(draws *d, int64_t height, int64_t width, const double *scale,
                       const double *ratio) {
    double logs[2] = {log(ratio[0]), log(ratio[1])}, whole = (double)width / (double)height;
    for (int i = 0; i < ATTEMPTS; i++) {
        double area = (double)(height * width) * draw_between(d, scale);
        double drawn = exp(draw_between(d, logs)), w = rint(sqrt(area * drawn)),
               h = rint(sqrt(area / drawn));
        if (w < 1 || h < 1 || w > (double)width || h > (double)height) continue;
        ln_box box = {0, 0, (int64_t)h, (int64_t)w};
        box.top = draw_below(d, height - box.height + 1);
        box.left = draw_below(d, width - box.width + 1);
        return box;
    }
    double h = whole < ratio[0] ? rint((double)width / ratio[0]) : (double)height;
    double w = whole > ratio[1] ? rint((double)height * ratio[1]) : (double)width;
    return centered(height, width, h < 1 ? 1 : (int64_t)h, w < 1 ? 1 : (int64_t)w);
}

/* The four factors in a drawn order: each next one is drawn from those left. One that cannot
 * change anything is left out, but has its draws. */
static int draw_jitter(ln_transform *drawn, draws *d, const double *ranges) {
    int left[4] = {0, 1, 2, 3}, n = 0;
    for (int rest = 4; rest > 0; rest--) {
        int64_t place = draw_below(d, rest);
        int which = left[place];
        left[place] = left[rest - 1];
        const double *range = ranges + 2 * which, neutral = which == 3 ? 0 : 1;
        double factor = draw_between(d, range);
        if (range[0] == neutral && range[1] == neutral) continue;
        drawn[n++] = (ln_transform){LN_BRIGHTNESS + which, 1, {factor}};
    }
    return n;
}

static int draw_step(ln_transform *drawn, draws *d, const ln_transform *s, int64_t height,
                     int64_t width) {
    int64_t out_height = height, out_width = width;
    step_size(s, &out_height, &out_width);
    *drawn = *s;
    if (s->op == LN_RANDOM_RESIZED_CROP) {
        ln_box box = draw_box(d, height, width, s->a + 2, s->a + 4);
        *drawn = crop(box, out_height, out_width, (int64_t)s->a[6]);
    } else if (s->op == LN_RESIZE) {
        *drawn = crop((ln_box){0, 0, height, width}, out_height, out_width, (int64_t)s->a[3]);
    } else if (s->op == LN_CENTER_CROP) {
        ln_box box = centered(height, width, out_height, out_width);
        *drawn = crop(box, out_height, out_width, LN_BILINEAR);
    } else if (s->op == LN_BLUR) {
        drawn->a[1] = drawn->a[2] = draw_between(d, s->a + 1);
    } else if (s->op == LN_COLOR_JITTER) {
        return draw_jitter(drawn, d, s->a);
    }
    return 1;
}

int ln_steps_most(const ln_transform *steps, int n) {
    int most = 0;
    for (int i = 0; i < n; i++) most += steps[i].op == LN_COLOR_JITTER ? 4 : 1;
    return most;
}

int ln_steps_draw(ln_transform *drawn, const ln_transform *steps, int n, int64_t height,
                  int64_t width, const ln_draw_address *address) {
    uint64_t stream = UINT64_C(1) << 63 | (uint64_t)address->view << 32 | address->epoch;
    int count = 0;
    for (int i = 0; i < n; i++) {
        uint64_t index = ((uint64_t)address->sample << 33) + (uint64_t)i * DRAWS_PER_STEP;
        draws d = {address->seed, stream, index};
        bool taken = ln_uniform(draw_bits(&d)) < steps[i].p;
        if (taken) count += draw_step(drawn + count, &d, steps + i, height, width);
        step_size(steps + i, &height, &width);
    }
    return count;
}
