/* Convolutions of channels-last tensors as matrix products: a row for each place of the output with
 * the elements under the kernel, channels together. w, y and their gradients are matrices as they
 * lie, (O, taps) and (places, O), and so is x, the rows, for a 1x1 kernel that visits every place.
 * For so many samples at a time as scratch memory holds rows for. Invariants: operands have no
 * gaps; an element is summed by one thread or one product, in a fixed order. */
#include "conv_shape.h"
#include "convolve.h"

/* ---- Rows: element (place, a, b, c) at (place kh kw + a kw + b) C + c ---- */

/* Bits: of the size of an element; all of them 0 is 0. A thread an element of the rows. */
template <typename Bits>
static __global__ void rows_kernel(shape s, const Bits *x, Bits *rows, int64_t samples) {
    int64_t total = samples * s.places * s.taps;
    for (int64_t t = grid_thread(); t < total; t += grid_threads()) {
        int64_t above = divide(t, s.C), c = t - above * s.C;
        int64_t line = divide(above, s.kw), b = above - line * s.kw;
        int64_t place = divide(line, s.kh), a = line - place * s.kh;
        int64_t row = divide(place, s.ow), n = divide(row, s.oh);
        int64_t i = under(s, 0, row - n * s.oh, a), j = under(s, 1, place - row * s.ow, b);
        bool inside = i >= 0 && i < s.H && j >= 0 && j < s.W;
        rows[t] = inside ? x[((n * s.H + i) * s.W + j) * s.C + c] : (Bits)0;
    }
}

/* dx from the gradient of the rows: a thread an element of dx. */
template <typename T>
static __global__ void pixels_kernel(shape s, char *dx, int dtype, const char *rows,
                                     int64_t samples) {
    int64_t total = samples * s.H * s.W * s.C;
    for (int64_t t = grid_thread(); t < total; t += grid_threads()) {
        int64_t pixel = divide(t, s.C), c = t - pixel * s.C;
        int64_t line = divide(pixel, s.W), n = divide(line, s.H);
        T sum = 0;
        for (int64_t a = 0; a < s.kh; a++)
            for (int64_t b = 0; b < s.kw; b++) {
                int64_t oi = over(s, 0, line - n * s.H, a, s.oh);
                int64_t oj = over(s, 1, pixel - line * s.W, b, s.ow);
                if (oi < 0 || oj < 0) continue;
                int64_t place = (n * s.oh + oi) * s.ow + oj;
                sum += load<T>(rows, dtype, place * s.taps + (a * s.kw + b) * s.C + c);
            }
        store(dx, dtype, t, sum);
    }
}

static ln_status make_rows(const shape &s, const char *x, void *rows, size_t size, int64_t samples,
                           const char *what) {
    unsigned blocks = blocks_for(samples * s.places * s.taps);
    switch (size) {
    case 2:
        return launch(what, rows_kernel<uint16_t>, blocks, THREADS, s, (const uint16_t *)x,
                      (uint16_t *)rows, samples);
    case 4:
        return launch(what, rows_kernel<uint32_t>, blocks, THREADS, s, (const uint32_t *)x,
                      (uint32_t *)rows, samples);
    default:
        return launch(what, rows_kernel<uint64_t>, blocks, THREADS, s, (const uint64_t *)x,
                      (uint64_t *)rows, samples);
    }
}

static ln_status make_pixels(const shape &s, char *dx, int dtype, const void *rows, int64_t samples,
                             const char *what) {
    unsigned blocks = blocks_for(samples * s.H * s.W * s.C);
    if (dtype == LN_FLOAT64)
        return launch(what, pixels_kernel<double>, blocks, THREADS, s, dx, dtype,
                      (const char *)rows, samples);
    return launch(what, pixels_kernel<float>, blocks, THREADS, s, dx, dtype, (const char *)rows,
                  samples);
}

/* ---- Passes ---- */

/* One pass for some samples: xs and ys are their parts of x and y. rows: scratch, or xs itself. */
static ln_status convolve_some(convolve_pass pass, const shape &s, int dtype, char *xs, char *w,
                               char *ys, void *rows, int64_t samples, bool first,
                               const char *what) {
    bool direct = rows == xs;
    int64_t places = samples * s.places;
    matrix x = {rows, s.taps, 0, false}, filter = {w, s.taps, 0, false}, y = {ys, s.O, 0, false};
    ln_status status = LN_OK;
    if (pass != CONVOLVE_DATA && !direct)
        LN_TRY(make_rows(s, xs, rows, ln_dtype_size(dtype), samples, what));
    switch (pass) {
    case CONVOLVE_FORWARD:
        filter.transposed = true;
        return cuda_product(product_of(dtype), y, x, filter, places, s.O, s.taps, 1, false, what);
    case CONVOLVE_FILTER:
        y.transposed = true;
        return cuda_product(product_of(dtype), filter, y, x, s.O, s.taps, places, 1, !first, what);
    default: break;
    }
    LN_TRY(cuda_product(product_of(dtype), x, y, filter, places, s.taps, s.O, 1, false, what));
    if (!direct) status = make_pixels(s, xs, dtype, rows, samples, what);
fail:
    return status;
}

ln_status cuda_convolve_rows(convolve_pass pass, const ln_tensor *x, const ln_tensor *w,
                             const ln_tensor *y, const ln_conv_params *p, const char *what) {
    shape s = shape_of(x, w, y, p);
    int64_t size = (int64_t)ln_dtype_size(x->dtype), sample = s.places * s.taps * size;
    bool direct = s.kh == 1 && s.kw == 1 && p->stride[0] == 1 && p->stride[1] == 1 &&
                  p->padding[0] == 0 && p->padding[1] == 0;
    int64_t batch = direct ? s.N : SCRATCH / sample;
    void *scratch = NULL;
    if (batch < 1) batch = 1;
    if (batch > s.N) batch = s.N;
    ln_status status = LN_OK;
    if (!direct) LN_TRY(cuda_scratch(&scratch, (size_t)(batch * sample), what));
    for (int64_t n = 0; n < s.N; n += batch) {
        int64_t samples = s.N - n < batch ? s.N - n : batch;
        char *xs = x->data + n * s.H * s.W * s.C * size;
        char *ys = y->data + n * s.places * s.O * size;
        LN_TRY(convolve_some(pass, s, x->dtype, xs, w->data, ys, direct ? xs : scratch, samples,
                             n == 0, what));
    }
fail:
    cuda_scratch_release(scratch);
    return status;
}
