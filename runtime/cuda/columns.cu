/* Kernels of batch normalisation over the columns of a row-major matrix; see columns.h. A thread
 * takes 16 bytes of neighbouring channels and walks down the rows of a chunk, so that a warp reads
 * whole lines. Holds no statistics (norm.cu). Invariants: chunks depend on shapes only; no two
 * threads write one element; an element is read before the same thread writes it. */
#include "columns.h"

enum {
    VECTOR = 16,      /* bytes that a thread reads at once */
    WIDEST = 32,      /* vectors side by side in a block, at most */
    RUN = 16,         /* rows that are added up in float before they go to a double */
    MOST_CHUNKS = 512 /* that the rows are cut into */
};

/* Neighbouring channels of one row. */
template <typename S> struct alignas(VECTOR) pack {
    enum { N = VECTOR / sizeof(S) };
    S v[N];
};

/* One value a channel, or NULL: the number. */
typedef struct {
    const char *data;
    int dtype;
    int64_t stride;
    double number;
} channels;

typedef struct {
    int64_t rows, vectors;        /* of the matrix */
    int64_t tiles, chunk, chunks; /* tiles of `wide` vectors; rows in a chunk */
    int wide, lanes;              /* threads of a block: vectors side by side, rows */
    const char *x, *dy, *y, *residual;
    char *out; /* y, dx, or what of dy passes relu; may be NULL there */
    channels mean, rstd, weight, bias, sum, dot;
    bool relu;
} matrix_job;

static __device__ float value_of(float v) {
    return v;
}

static __device__ float value_of(__half v) {
    return __half2float(v);
}

static __device__ float value_of(__nv_bfloat16 v) {
    return __bfloat162float(v);
}

static __device__ void set(float &to, float v) {
    to = v;
}

static __device__ void set(__half &to, float v) {
    to = __float2half_rn(v);
}

static __device__ void set(__nv_bfloat16 &to, float v) {
    to = __float2bfloat16_rn(v);
}

template <typename S> static __device__ pack<S> pack_at(const char *data, int64_t i) {
    return ((const pack<S> *)data)[i];
}

static __device__ double channel(const channels &c, int64_t i) {
    return c.data == NULL ? c.number : load<double>(c.data, c.dtype, i * c.stride);
}

/* What passes relu of the gradient, given the output: NaN in either stays. */
static __device__ float masked(float dy, float y) {
    return y <= 0 ? 0 : dy;
}

/* A thread's part of an item: vectors `column`, `step` rows apart. */
typedef struct {
    int64_t column, from, to;
    bool inside;
} place;

static __device__ place place_of(const matrix_job &j, int64_t item) {
    int64_t chunk = item / j.tiles;
    int thread = (int)threadIdx.x;
    place p;
    p.column = (item - chunk * j.tiles) * j.wide + thread % j.wide;
    p.inside = p.column < j.vectors;
    p.from = chunk * j.chunk + thread / j.wide;
    p.to = (chunk + 1) * j.chunk < j.rows ? (chunk + 1) * j.chunk : j.rows;
    return p;
}

/* ---- Sums down the columns ---- */

/* Forward (no dy): sums of d and d^2, where d = x - centre; backward: of g and g d. */
template <typename S, bool backward> struct column_sums {
    enum { N = pack<S>::N };
    float first[N], second[N];
    double firsts[N], seconds[N];

    __device__ void clear() {
        for (int v = 0; v < N; v++) first[v] = second[v] = 0, firsts[v] = seconds[v] = 0;
    }

    __device__ void flush() {
        for (int v = 0; v < N; v++) {
            firsts[v] += first[v];
            seconds[v] += second[v];
            first[v] = second[v] = 0;
        }
    }

    __device__ void add_row(const matrix_job &j, int64_t at, const float *centre) {
        pack<S> x = pack_at<S>(j.x, at), g;
        if (backward) {
            g = pack_at<S>(j.dy, at);
            if (j.y != NULL) {
                pack<S> y = pack_at<S>(j.y, at);
                for (int v = 0; v < N; v++) set(g.v[v], masked(value_of(g.v[v]), value_of(y.v[v])));
                if (j.out != NULL) ((pack<S> *)j.out)[at] = g;
            }
        }
        for (int v = 0; v < N; v++) {
            float d = value_of(x.v[v]) - centre[v], e = backward ? value_of(g.v[v]) : d;
            first[v] += e;
            second[v] += e * d;
        }
    }
};

/* The sums of chunk c at partials[2 c C...] and partials[(2 c + 1) C...]. An item is a chunk of a
 * tile; lanes of a column are joined by halving. */
template <typename S, bool backward>
static __global__ void sums_kernel(matrix_job j, double *partials) {
    enum { N = pack<S>::N };
    __shared__ double joined[2][THREADS * N];
    column_sums<S, backward> sums;
    int thread = (int)threadIdx.x, lane = thread / j.wide;
    for (int64_t item = blockIdx.x; item < j.tiles * j.chunks; item += gridDim.x) {
        place p = place_of(j, item);
        float centre[N];
        sums.clear();
        for (int v = 0; v < N; v++) centre[v] = 0;
        if (p.inside) {
            if (backward)
                for (int v = 0; v < N; v++) centre[v] = (float)channel(j.mean, p.column * N + v);
            else
                for (int v = 0; v < N; v++) centre[v] = value_of(pack_at<S>(j.x, p.column).v[v]);
            int run = 0;
            for (int64_t r = p.from; r < p.to; r += j.lanes) {
                sums.add_row(j, r * j.vectors + p.column, centre);
                if (++run % RUN == 0) sums.flush();
            }
        }
        sums.flush();
        for (int v = 0; v < N; v++) {
            joined[0][thread * N + v] = sums.firsts[v];
            joined[1][thread * N + v] = sums.seconds[v];
        }
        for (int half = j.lanes / 2; half > 0; half /= 2) {
            __syncthreads(); /* all sums of the last round are written */
            int from = (thread + half * j.wide) * N;
            for (int v = 0; lane < half && v < N; v++) {
                joined[0][thread * N + v] += joined[0][from + v];
                joined[1][thread * N + v] += joined[1][from + v];
            }
        }
        double *to = partials + item / j.tiles * 2 * j.vectors * N + p.column * N;
        for (int v = 0; lane == 0 && p.inside && v < N; v++) {
            to[v] = joined[0][thread * N + v];
            to[j.vectors * N + v] = joined[1][thread * N + v];
        }
        __syncthreads(); /* the sums are read before the next round writes them */
    }
}

enum { JOINED = 32, JOINING = THREADS / JOINED }; /* channels of a block, threads of a channel */

/* Joins the chunks of each channel: forward to mean and squares, backward to sum and dot. */
template <typename S, bool backward>
static __global__ void join_sums_kernel(matrix_job j, const double *partials, double *first,
                                        double *second) {
    __shared__ double joined[2][THREADS];
    int64_t C = j.vectors * pack<S>::N;
    int thread = (int)threadIdx.x, lane = thread / JOINED;
    for (int64_t from = (int64_t)blockIdx.x * JOINED; from < C;
         from += (int64_t)gridDim.x * JOINED) {
        int64_t c = from + thread % JOINED;
        double a = 0, b = 0;
        for (int64_t i = lane; c < C && i < j.chunks; i += JOINING) {
            a += partials[2 * i * C + c];
            b += partials[(2 * i + 1) * C + c];
        }
        joined[0][thread] = a;
        joined[1][thread] = b;
        __syncthreads(); /* all are written */
        if (lane == 0 && c < C) {
            for (int i = 1; i < JOINING; i++) {
                a += joined[0][thread + i * JOINED];
                b += joined[1][thread + i * JOINED];
            }
            if (backward) {
                double mean = channel(j.mean, c), centre = (float)mean;
                first[c] = a;
                second[c] = (b - (mean - centre) * a) * channel(j.rstd, c);
            } else {
                double apart = a / (double)j.rows, squares = b - apart * a;
                first[c] = (double)value_of(((const S *)j.x)[c]) + apart;
                second[c] = squares < 0 ? 0 : squares;
            }
        }
        __syncthreads(); /* all are read before the next round writes them */
    }
}

/* ---- Elements ---- */

/* The mean as a float, whose rounding goes to the shift: y = (x - mean) scale + shift. */
template <typename S> static __global__ void columns_normalise_kernel(matrix_job j) {
    enum { N = pack<S>::N };
    for (int64_t item = blockIdx.x; item < j.tiles * j.chunks; item += gridDim.x) {
        place p = place_of(j, item);
        if (!p.inside) continue;
        float mean[N], scale[N], shift[N];
        for (int v = 0; v < N; v++) {
            int64_t c = p.column * N + v;
            double m = channel(j.mean, c), s = channel(j.rstd, c) * channel(j.weight, c);
            mean[v] = (float)m;
            scale[v] = (float)s;
            shift[v] = (float)(channel(j.bias, c) - (m - mean[v]) * s);
        }
        for (int64_t r = p.from; r < p.to; r += j.lanes) {
            int64_t at = r * j.vectors + p.column;
            pack<S> x = pack_at<S>(j.x, at), y, residual;
            if (j.residual != NULL) residual = pack_at<S>(j.residual, at);
            for (int v = 0; v < N; v++) {
                float t = (value_of(x.v[v]) - mean[v]) * scale[v] + shift[v];
                if (j.residual != NULL) t += value_of(residual.v[v]);
                set(y.v[v], j.relu && t < 0 ? 0 : t);
            }
            ((pack<S> *)j.out)[at] = y;
        }
    }
}

template <typename S> static __global__ void columns_gradient_kernel(matrix_job j) {
    enum { N = pack<S>::N };
    for (int64_t item = blockIdx.x; item < j.tiles * j.chunks; item += gridDim.x) {
        place p = place_of(j, item);
        if (!p.inside) continue;
        float mean[N], scale[N], mean_g[N], slope[N];
        for (int v = 0; v < N; v++) {
            int64_t c = p.column * N + v;
            double rstd = channel(j.rstd, c), m = channel(j.mean, c);
            double k = rstd * channel(j.dot, c) / (double)j.rows;
            mean[v] = (float)m;
            scale[v] = (float)(rstd * channel(j.weight, c));
            slope[v] = (float)k;
            mean_g[v] = (float)(channel(j.sum, c) / (double)j.rows - (m - mean[v]) * k);
        }
        for (int64_t r = p.from; r < p.to; r += j.lanes) {
            int64_t at = r * j.vectors + p.column;
            pack<S> x = pack_at<S>(j.x, at), dy = pack_at<S>(j.dy, at), dx, y;
            if (j.y != NULL) y = pack_at<S>(j.y, at);
            for (int v = 0; v < N; v++) {
                float g = value_of(dy.v[v]);
                if (j.y != NULL) g = masked(g, value_of(y.v[v]));
                set(dx.v[v], (g - mean_g[v] - (value_of(x.v[v]) - mean[v]) * slope[v]) * scale[v]);
            }
            ((pack<S> *)j.out)[at] = dx;
        }
    }
}

/* ---- Launchers ---- */

static bool is_matrix(const ln_tensor *t) {
    if (t->ndim == 2) return ln_is_contiguous(t);
    if (t->ndim != 4) return false;
    ln_tensor moved = ln_channels_moved_last(t);
    return ln_is_contiguous(&moved);
}

bool cuda_columns_fit(int n, const ln_tensor *const *t) {
    for (int i = 0; i < n; i++) {
        if (t[i] == NULL) continue;
        int64_t size = (int64_t)ln_dtype_size(t[i]->dtype);
        if (t[i]->dtype == LN_FLOAT64 || t[i]->dtype != t[0]->dtype || !is_matrix(t[i]) ||
            !ln_same_shape(t[i], t[0]) || t[i]->shape[1] * size % VECTOR != 0 ||
            (uintptr_t)t[i]->data % VECTOR != 0)
            return false;
    }
    return true;
}

static channels channels_of(const ln_tensor *t, double number) {
    if (t == NULL) return {NULL, LN_FLOAT64, 0, number};
    return {t->data, t->dtype, t->stride[0], number};
}

static const char *data_of(const ln_tensor *t) {
    return t == NULL ? NULL : t->data;
}

/* rows: those that a thread takes of a chunk, at least. */
static matrix_job job_of(const ln_tensor *x, int rows, int64_t most_chunks) {
    matrix_job j = {};
    j.x = x->data;
    j.rows = x->numel / x->shape[1];
    j.vectors = x->shape[1] * (int64_t)ln_dtype_size(x->dtype) / VECTOR;
    j.wide = 1;
    while (j.wide < WIDEST && j.wide < j.vectors) j.wide *= 2;
    j.lanes = THREADS / j.wide;
    j.tiles = ceil_div(j.vectors, j.wide);
    j.chunk = ceil_div(j.rows, most_chunks);
    if (j.chunk < rows * j.lanes) j.chunk = rows * j.lanes;
    j.chunks = ceil_div(j.rows, j.chunk);
    j.mean = j.sum = j.dot = j.bias = channels_of(NULL, 0);
    j.rstd = j.weight = channels_of(NULL, 1);
    return j;
}

template <typename S, bool backward>
static ln_status sums_in(const matrix_job &j, ln_tensor *first, ln_tensor *second,
                         const char *what) {
    void *partials = NULL;
    int64_t C = first->numel;
    ln_status status = cuda_scratch(&partials, (size_t)(2 * j.chunks * C) * sizeof(double), what);
    if (status == LN_OK)
        status = launch(what, sums_kernel<S, backward>, blocks_for(j.tiles * j.chunks, 1), THREADS,
                        j, (double *)partials);
    if (status == LN_OK)
        status = launch(what, join_sums_kernel<S, backward>, blocks_for(C, JOINED), THREADS, j,
                        (const double *)partials, (double *)first->data, (double *)second->data);
    cuda_scratch_release(partials);
    return status;
}

template <bool backward>
static ln_status sums(const matrix_job &j, int dtype, ln_tensor *first, ln_tensor *second,
                      const char *what) {
    switch (dtype) {
    case LN_FLOAT16: return sums_in<__half, backward>(j, first, second, what);
    case LN_BFLOAT16: return sums_in<__nv_bfloat16, backward>(j, first, second, what);
    default: return sums_in<float, backward>(j, first, second, what);
    }
}

ln_status cuda_columns_moments(ln_tensor *mean, ln_tensor *squares, const ln_tensor *x,
                               const char *what) {
    return sums<false>(job_of(x, RUN, MOST_CHUNKS), x->dtype, mean, squares, what);
}

ln_status cuda_columns_sums(ln_tensor *sum, ln_tensor *dot, ln_tensor *out, const ln_tensor *dy,
                            const ln_tensor *x, const ln_tensor *y, const ln_tensor *mean,
                            const ln_tensor *rstd, const char *what) {
    matrix_job j = job_of(x, RUN, MOST_CHUNKS);
    j.dy = dy->data;
    j.y = data_of(y);
    j.out = out == NULL ? NULL : out->data;
    j.mean = channels_of(mean, 0);
    j.rstd = channels_of(rstd, 1);
    return sums<true>(j, x->dtype, sum, dot, what);
}

/* Launches the one of these kernels that is for the dtype. */
static ln_status launch_elements(const matrix_job &j, int dtype, void (*halves)(matrix_job),
                                 void (*brains)(matrix_job), void (*floats)(matrix_job),
                                 const char *what) {
    void (*kernel)(matrix_job) = floats;
    if (dtype == LN_FLOAT16) kernel = halves;
    if (dtype == LN_BFLOAT16) kernel = brains;
    return launch(what, kernel, blocks_for(j.tiles * j.chunks, 1), THREADS, j);
}

enum { ELEMENT_ROWS = 8 }; /* that a thread takes: its channels' values serve them all */

ln_status cuda_columns_normalise(ln_tensor *y, const ln_tensor *x, const ln_tensor *mean,
                                 const ln_tensor *rstd, const ln_tensor *weight,
                                 const ln_tensor *bias, const ln_tensor *residual, bool relu,
                                 const char *what) {
    matrix_job j = job_of(x, ELEMENT_ROWS, MOST_BLOCKS);
    j.out = y->data;
    j.residual = data_of(residual);
    j.relu = relu;
    j.mean = channels_of(mean, 0);
    j.rstd = channels_of(rstd, 1);
    j.weight = channels_of(weight, 1);
    j.bias = channels_of(bias, 0);
    return launch_elements(j, x->dtype, columns_normalise_kernel<__half>,
                           columns_normalise_kernel<__nv_bfloat16>, columns_normalise_kernel<float>,
                           what);
}

ln_status cuda_columns_gradient(ln_tensor *dx, const ln_tensor *dy, const ln_tensor *x,
                                const ln_tensor *y, const ln_tensor *weight, const ln_tensor *mean,
                                const ln_tensor *rstd, const ln_tensor *sum, const ln_tensor *dot,
                                const char *what) {
    matrix_job j = job_of(x, ELEMENT_ROWS, MOST_BLOCKS);
    j.out = dx->data;
    j.dy = dy->data;
    j.y = data_of(y);
    j.mean = channels_of(mean, 0);
    j.rstd = channels_of(rstd, 1);
    j.weight = channels_of(weight, 1);
    j.sum = channels_of(sum, 0);
    j.dot = channels_of(dot, 0);
    return launch_elements(j, x->dtype, columns_gradient_kernel<__half>,
                           columns_gradient_kernel<__nv_bfloat16>, columns_gradient_kernel<float>,
                           what);
}
