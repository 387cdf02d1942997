/* Resampling of a box of an image, antialiased as in Pillow and torchvision: the filter's support
 * grows with the scale when shrinking. Two separable passes, rows before columns. Invariant: the
 * weights of an output sum to 1 and reach no sample outside the box. */
#include "data/data.h"
#include "pixel.h"

/* Output i of an axis is the sum over k < taps of weight[i * taps + k] * in[first[i] + k]. */
typedef struct {
    int64_t out, taps;
    int64_t *first;
    float *weight;
} axis;

static void fill_axis(axis *a, int64_t in, int filter) {
    for (int64_t i = 0; i < a->out; i++)
        a->first[i] = ln_filter_weights(a->weight + i * a->taps, i, in, a->out, a->taps, filter);
}

LN_CLONES void ln_bytes_to_float(float *restrict dst, const unsigned char *restrict src,
                                 int64_t n) {
    for (int64_t i = 0; i < n; i++) dst[i] = ln_from_byte(src[i]);
}

static inline void filter_row(float *restrict dst, const float *restrict src, const axis *a,
                              int64_t taps) {
    for (int64_t i = 0; i < a->out; i++) {
        const float *s = src + a->first[i], *w = a->weight + i * taps;
        float sum = w[0] * s[0];
        for (int64_t k = 1; k < taps; k++) sum += w[k] * s[k];
        dst[i] = sum;
    }
}

/* rows (box height, columns->out): the box's rows of one channel, filtered. `row` holds one. */
static void filter_rows(float *rows, float *row, const ln_image *src, int64_t channel, ln_box box,
                        const axis *columns) {
    int64_t start = (channel * src->height + box.top) * src->width + box.left;
    for (int64_t y = 0; y < box.height; y++, start += src->width, rows += columns->out) {
        const float *in = (const float *)src->data + start;
        if (src->bytes) {
            ln_bytes_to_float(row, (const unsigned char *)src->data + start, box.width);
            in = row;
        }
        if (columns->taps == 2) filter_row(rows, in, columns, 2); /* enlarging: worth unrolling */
        else filter_row(rows, in, columns, columns->taps);
    }
}

/* Eight floats anywhere in memory. Two registers where the processor has no such wide ones. */
typedef float lanes __attribute__((vector_size(32), aligned(4), may_alias));

/* `count` lanes of a weighted sum at once: a constant, so that the sums stay in registers. */
static inline __attribute__((always_inline)) void weigh(float *dst, const float *src,
                                                        int64_t stride, const float *weight,
                                                        int64_t taps, const int count) {
    lanes sum[4] = {{0}};
    for (int64_t k = 0; k < taps; k++, src += stride)
        for (int i = 0; i < count; i++) sum[i] += weight[k] * ((const lanes *)src)[i];
    for (int i = 0; i < count; i++) ((lanes *)dst)[i] = sum[i];
}

LN_CLONES void ln_weighted_sum(float *dst, const float *src, int64_t stride, const float *weight,
                               int64_t taps, int64_t n) {
    int64_t x = 0;
    for (; x + 32 <= n; x += 32) weigh(dst + x, src + x, stride, weight, taps, 4);
    for (; x + 8 <= n; x += 8) weigh(dst + x, src + x, stride, weight, taps, 1);
    for (; x < n; x++) {
        float sum = 0;
        for (int64_t k = 0; k < taps; k++) sum += weight[k] * src[k * stride + x];
        dst[x] = sum;
    }
}

ln_status ln_resize(float *dst, int64_t height, int64_t width, const ln_image *src, ln_box box,
                    int filter, ln_workspace *w) {
    axis lines = {height, ln_filter_taps(box.height, height, filter), NULL, NULL};
    axis columns = {width, ln_filter_taps(box.width, width, filter), NULL, NULL};
    size_t weights = (size_t)(height * lines.taps + width * columns.taps) * sizeof(float);
    size_t positions = (size_t)(height + width) * sizeof(int64_t);
    lines.first = ln_workspace_get(w, LN_SLOT_WEIGHTS, positions + weights);
    float *rows =
        ln_workspace_get(w, LN_SLOT_ROWS, (size_t)(box.height * width + box.width) * sizeof(float));
    if (lines.first == NULL || rows == NULL) return LN_OUT_OF_MEMORY;
    columns.first = lines.first + height;
    lines.weight = (float *)(columns.first + width);
    columns.weight = lines.weight + height * lines.taps;
    fill_axis(&lines, box.height, filter);
    fill_axis(&columns, box.width, filter);
    for (int64_t c = 0; c < src->channels; c++) {
        filter_rows(rows, rows + box.height * width, src, c, box, &columns);
        for (int64_t y = 0; y < height; y++, dst += width)
            ln_weighted_sum(dst, rows + lines.first[y] * width, width,
                            lines.weight + y * lines.taps, lines.taps, width);
    }
    return LN_OK;
}
