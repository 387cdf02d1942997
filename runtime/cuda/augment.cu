/* Views of images that lie on the device as bytes: one launch for a batch, a block a view, which is
 * in shared memory from its bytes to its last step. Compiled without fused multiply-add, and sums
 * are taken as color.c takes them, so that the bits are the CPU's, but for a Gaussian's exp.
 * Invariants: every step ends at a barrier; the room that a view takes depends on the chain's
 * steps, not on what was drawn. */
#include "cuda.h"

#define LN_INLINE static inline __device__ __host__
#include "pixel.h"

static const char *const WHAT = "augment";

/* ---- Room ---- */

/* What a block's memory begins with. */
typedef struct {
    double sums[4];    /* of planes */
    float levels[256]; /* bytes as floats */
} basics;

/* Then come arrays of floats, so many of them: */
typedef struct {
    int64_t weights, positions; /* of a filter; positions are int */
    int64_t work;               /* one plane between a filter's passes, or the lanes of sums */
    int64_t image[2];           /* crops go to the first and the second in turn */
} room;

static void grow(int64_t *most, int64_t n) {
    if (*most < n) *most = n;
}

/* What an image needs for blurs and contrasts. */
static void grow_for_image(room *r, int which, int64_t channels, int64_t height, int64_t width) {
    int64_t plane = height * width, lanes = LN_SUM_LANES * ceil_div(plane, LN_SUM_BLOCK);
    grow(&r->image[which], channels * plane);
    grow(&r->work, plane);
    grow(&r->work, channels * lanes);
    grow(&r->weights, 2 * (height < width ? height : width));
}

/* All views go through the same sizes, so any one tells them. */
static room room_of(const ln_tensor *images, const ln_drawn_batch *batch) {
    int64_t channels = images->shape[1], height = images->shape[2], width = images->shape[3];
    room r = {};
    int crops = 0;
    if (!batch->crops_first) grow_for_image(&r, 1, channels, height, width);
    for (int i = 0; i < batch->views[0].count; i++) {
        const ln_transform *s = batch->steps + batch->views[0].first + i;
        if (s->op != LN_CROP) continue;
        int64_t h = (int64_t)s->a[4], w = (int64_t)s->a[5];
        int filter = (int)s->a[6];
        grow(&r.weights,
             h * ln_filter_taps(height, h, filter) + w * ln_filter_taps(width, w, filter));
        grow(&r.positions, h + w);
        grow(&r.work, height * w);
        grow_for_image(&r, crops++ % 2, channels, h, w);
        height = h;
        width = w;
    }
    return r;
}

static int64_t bytes_of(const room *r) {
    return (int64_t)sizeof(basics) +
           4 * (r->weights + r->positions + r->work + r->image[0] + r->image[1]);
}

static ln_status check_room(const room *r, const ln_tensor *images, const ln_tensor *out) {
    const int64_t *in = images->shape + 1, *to = out->shape + 2;
    int most = 0, device = ln_device(images);
    ln_status status = cuda_check(
        cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device - LN_CUDA),
        WHAT);
    if (status != LN_OK || bytes_of(r) <= most) return status;
    return ln_fail(LN_BAD_ARGUMENT,
                   "%s: views %s of images %s take %lld bytes of shared memory and %s has %d; make "
                   "them on the cpu, or of smaller images",
                   WHAT, ln_text_shape(3, to), ln_text_shape(3, in), (long long)bytes_of(r),
                   ln_text_device(device), most);
}

/* ---- A view in the making ---- */

/* The image is `bytes` until the first step has made it floats, then x. The next crop goes to
 * `next`. */
typedef struct {
    basics *b;
    float *weights, *work, *x, *next;
    int *positions;
    const uint8_t *bytes;
    int channels, height, width;
    bool floats;
} view;

static __device__ view view_new(const room &r) {
    view v = {};
    v.b = (basics *)shared_memory();
    v.weights = (float *)(v.b + 1);
    v.positions = (int *)(v.weights + r.weights);
    v.work = (float *)(v.positions + r.positions);
    v.next = v.work + r.work;
    v.x = v.next + r.image[0];
    return v;
}

/* f(i) for i < n, on all threads of the block; then a barrier, for others read what f wrote. */
template <typename F> static __device__ void each(int n, F f) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) f(i);
    __syncthreads();
}

static __device__ int plane_of(const view &v) {
    return v.height * v.width;
}

/* ---- Resampling ---- */

struct levels {
    const uint8_t *bytes;
    const float *of;
    __device__ float operator[](int64_t i) const {
        return of[bytes[i]];
    }
};

/* next (channels, height, width) = the box of src, rows before columns, a channel at a time. */
template <typename Source>
static __device__ void resample(const view &v, Source src, const double *a) {
    int top = (int)a[0], left = (int)a[1], box_height = (int)a[2], box_width = (int)a[3];
    int height = (int)a[4], width = (int)a[5], filter = (int)a[6], stride = v.width;
    int lines = (int)ln_filter_taps(box_height, height, filter);
    int columns = (int)ln_filter_taps(box_width, width, filter);
    float *of_columns = v.weights + height * lines, *work = v.work;
    each(height + width, [&](int i) {
        int x = i - height;
        v.positions[i] = (int)(x < 0 ? ln_filter_weights(v.weights + i * lines, i, box_height,
                                                         height, lines, filter)
                                     : ln_filter_weights(of_columns + x * columns, x, box_width,
                                                         width, columns, filter));
    });
    for (int c = 0; c < v.channels; c++) {
        each(box_height * width, [&](int i) {
            int y = i / width, x = i - y * width;
            int64_t row = (int64_t)c * v.height + top + y;
            int64_t from = row * stride + left + v.positions[height + x];
            const float *weight = of_columns + x * columns;
            float sum = weight[0] * src[from];
            for (int k = 1; k < columns; k++) sum += weight[k] * src[from + k];
            work[i] = sum;
        });
        each(height * width, [&](int i) {
            int y = i / width, x = i - y * width;
            const float *weight = v.weights + y * lines, *from = work + v.positions[y] * width + x;
            float sum = 0;
            for (int k = 0; k < lines; k++) sum += weight[k] * from[k * width];
            v.next[c * height * width + i] = sum;
        });
    }
}

static __device__ void crop(view &v, const double *a) {
    if (v.floats) resample(v, (const float *)v.x, a);
    else resample(v, levels{v.bytes, v.b->levels}, a);
    float *made = v.next;
    v.next = v.x;
    v.x = made;
    v.height = (int)a[4];
    v.width = (int)a[5];
    v.floats = true;
}

/* ---- Steps in place ---- */

static __device__ void make_floats(view &v) {
    each(v.channels * plane_of(v), [&](int i) { v.x[i] = v.b->levels[v.bytes[i]]; });
    v.floats = true;
}

static __device__ void flip(const view &v) {
    int half = v.width / 2;
    each(v.channels * v.height * half, [&](int i) {
        int y = i / half, k = i - y * half;
        float *left = v.x + y * v.width + k, *right = v.x + (y + 1) * v.width - 1 - k;
        float held = *left;
        *left = *right;
        *right = held;
    });
}

/* Makes every pixel f of it. */
template <typename F> static __device__ void recolor(const view &v, F f) {
    int n = plane_of(v);
    float *r = v.x, *g = r + n, *b = g + n;
    if (v.channels == 1) return;
    each(n, [&](int i) {
        ln_rgb p = f(ln_rgb{r[i], g[i], b[i]});
        r[i] = p.r;
        g[i] = p.g;
        b[i] = p.b;
    });
}

/* The sums of planes, to the bits of color.c: a thread a lane of a block of values, then a thread a
 * plane, which adds the lanes in order and the values that are left of the last block. */
static __device__ void sum_planes(const view &v) {
    int n = plane_of(v), blocks = (n + LN_SUM_BLOCK - 1) / LN_SUM_BLOCK;
    int lanes = blocks * LN_SUM_LANES, left = n - n % LN_SUM_LANES;
    each(v.channels * lanes, [&](int i) {
        int c = i / lanes, lane = i - c * lanes;
        int start = lane / LN_SUM_LANES * LN_SUM_BLOCK, end = start + LN_SUM_BLOCK;
        const float *x = v.x + c * n;
        float sum = 0;
        for (int j = start + lane % LN_SUM_LANES; j < end && j < left; j += LN_SUM_LANES)
            sum += x[j];
        v.work[i] = sum;
    });
    each(v.channels, [&](int c) {
        double sum = 0;
        for (int i = 0; i < lanes; i++) sum += v.work[c * lanes + i];
        for (int i = left; i < n; i++) sum += v.x[c * n + i];
        v.b->sums[c] = sum;
    });
}

static __device__ void contrast(const view &v, float factor) {
    sum_planes(v);
    float shift = ln_contrast_shift(v.b->sums, v.channels, plane_of(v), factor);
    each(v.channels * plane_of(v), [&](int i) { v.x[i] = ln_blend(v.x[i], factor, shift); });
}

static __device__ void normalize(const view &v, const double *a) {
    int n = plane_of(v);
    each(v.channels * n, [&](int i) {
        int c = i / n;
        v.x[i] = (v.x[i] - (float)a[c]) / (float)a[3 + c];
    });
}

/* Rows, then columns, a channel at a time. */
static __device__ void blur(const view &v, int kernel, double sigma) {
    int taps = (int)ln_gaussian_taps(kernel, sigma), reach = taps / 2, width = v.width;
    double total = 0;
    each(taps, [&](int k) { v.weights[k] = ln_gaussian(k, taps, sigma); });
    for (int k = 0; k < taps; k++) total += v.weights[k];
    __syncthreads(); /* all threads have the total of what is now divided */
    each(taps, [&](int k) { v.weights[k] = (float)(v.weights[k] / total); });
    for (int c = 0; c < v.channels; c++) {
        float *x = v.x + c * plane_of(v);
        each(plane_of(v), [&](int i) {
            int y = i / width, first = i - y * width - reach;
            float sum = 0;
            for (int k = 0; k < taps; k++)
                sum += v.weights[k] * x[y * width + (int)ln_reflect(first + k, width)];
            v.work[i] = sum;
        });
        each(plane_of(v), [&](int i) {
            int y = i / width, column = i - y * width, first = y - reach;
            float sum = 0;
            for (int k = 0; k < taps; k++)
                sum += v.weights[k] * v.work[(int)ln_reflect(first + k, v.height) * width + column];
            x[i] = sum;
        });
    }
}

static __device__ void take(view &v, const ln_transform &step) {
    float a = (float)step.a[0];
    float *x = v.x;
    int n = v.channels * plane_of(v);
    switch (step.op) {
    case LN_HFLIP: flip(v); break;
    case LN_BRIGHTNESS: each(n, [&](int i) { x[i] = ln_clamp(a * x[i]); }); break;
    case LN_CONTRAST: contrast(v, a); break;
    case LN_SATURATION: recolor(v, [&](ln_rgb p) { return ln_saturate(p, a); }); break;
    case LN_HUE: recolor(v, [&](ln_rgb p) { return ln_turn_hue(p, a); }); break;
    case LN_GRAYSCALE:
        recolor(v, [&](ln_rgb p) {
            float grey = ln_luma(p);
            return ln_rgb{grey, grey, grey};
        });
        break;
    case LN_SOLARIZE: each(n, [&](int i) { x[i] = ln_solarized(x[i], a); }); break;
    case LN_BLUR: blur(v, (int)step.a[0], step.a[1]); break;
    default: normalize(v, step.a); break; /* LN_NORMALIZE */
    }
}

/* ---- The kernel ---- */

typedef struct {
    const uint8_t *data;
    int channels, height, width;
} pixels;

/* A block a view. */
static __global__ void augment_kernel(void *out, int dtype, pixels images, room r,
                                      const ln_drawn_view *views, const ln_transform *steps,
                                      int64_t n) {
    int64_t in = (int64_t)images.channels * images.height * images.width;
    for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
        view v = view_new(r);
        v.bytes = images.data + views[i].image * in;
        v.channels = images.channels;
        v.height = images.height;
        v.width = images.width;
        each(256, [&](int k) { v.b->levels[k] = ln_from_byte((uint8_t)k); });
        for (int k = 0; k < views[i].count; k++) {
            const ln_transform &step = steps[views[i].first + k];
            if (step.op == LN_CROP) {
                crop(v, step.a);
            } else {
                if (!v.floats) make_floats(v);
                take(v, step);
            }
        }
        if (!v.floats) make_floats(v);
        int size = v.channels * plane_of(v);
        each(size, [&](int k) { store(out, dtype, i * size + k, v.x[k]); });
    }
}

ln_status CUDA(augment)(ln_tensor *out, const ln_tensor *images, const ln_drawn_batch *batch) {
    size_t of_views = (size_t)batch->n * sizeof *batch->views;
    size_t of_steps = (size_t)batch->n_steps * sizeof *batch->steps;
    const int64_t *shape = images->shape;
    int device = ln_device(images);
    room r = room_of(images, batch);
    void *drawn = NULL;
    ln_status status;
    LN_TRY(ln_capture_refuses(WHAT, "make the views before the step, and give them to it"));
    LN_TRY(cuda_enter(images, WHAT));
    LN_TRY(check_room(&r, images, out));
    LN_TRY(cuda_scratch(&drawn, of_views + of_steps, WHAT));
    LN_TRY(ln_transfer(drawn, device, batch->views, LN_CPU, of_views));
    LN_TRY(ln_transfer((char *)drawn + of_views, device, batch->steps, LN_CPU, of_steps));
    status = launch_shared(
        WHAT, augment_kernel, blocks_for(batch->n, 1), THREADS, (size_t)bytes_of(&r), out->data,
        out->dtype,
        pixels{(const uint8_t *)images->data, (int)shape[1], (int)shape[2], (int)shape[3]}, r,
        (const ln_drawn_view *)drawn, (const ln_transform *)((char *)drawn + of_views), batch->n);
fail:
    cuda_scratch_release(drawn);
    return status;
}
