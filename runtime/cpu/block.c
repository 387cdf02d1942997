/* Walks over the elements of several tensors in blocks: see block.h. Holds the order of the walk,
 * the conversions between dtypes and compute types, and the sharing among a team; no arithmetic. */
#include "block.h"

#include <string.h>

enum {
    SHARE = 4096,            /* elements: what the team is dealt in multiples of */
    STREAM_BYTES = 32 << 20, /* a result from here on does not fit the caches: written past them */
    TILE_ROWS = 64, /* with few columns: the rows of a power of two's stride share cache sets */
    TILE_COLUMNS = 8
};

typedef struct {
    char *data;
    int64_t stride[LN_MAX_DIMS];
    int64_t size; /* bytes of an element */
    int dtype;
    bool packed;   /* lies in the walk's order without gaps */
    bool constant; /* is one element everywhere */
    bool direct;   /* packed and of the walk's own type: computed on where it lies */
    bool stream;   /* direct, but written past the caches */
} operand;

typedef struct {
    const block_kernel *kernel;
    int n, ndim;
    int64_t numel, shape[LN_MAX_DIMS];
    operand operand[BLOCK_OPERANDS];
} walk;

/* ---- Conversions ---- */

static int64_t saturate(double v, double low, double high, int64_t lowest, int64_t highest) {
    if (v != v) return 0;
    return v <= low ? lowest : v >= high ? highest : (int64_t)v;
}

/* int64 wraps into smaller integers; floating values saturate, and NaN becomes 0. */
#define TO_INTEGER(type, low, high, lowest, highest)                                               \
    _Generic(v, int64_t : (type)v, default : (type)saturate((double)v, low, high, lowest, highest))

/* CONVERSION(dtype, C type, its value v to a compute type, a compute type's value v to it) */
#define CONVERSIONS(CONVERSION)                                                                    \
    CONVERSION(LN_FLOAT32, float, v, (float)v)                                                     \
    CONVERSION(LN_FLOAT64, double, v, (double)v)                                                   \
    CONVERSION(LN_BFLOAT16, uint16_t, ln_bfloat16_to_float(v), ln_float_to_bfloat16((float)v))     \
    CONVERSION(LN_FLOAT16, uint16_t, ln_float16_to_float(v), ln_float_to_float16((float)v))        \
    CONVERSION(LN_INT64, int64_t, v, TO_INTEGER(int64_t, -0x1p63, 0x1p63, INT64_MIN, INT64_MAX))   \
    CONVERSION(LN_INT32, int32_t, v,                                                               \
               TO_INTEGER(int32_t, INT32_MIN, INT32_MAX, INT32_MIN, INT32_MAX))                    \
    CONVERSION(LN_UINT8, uint8_t, v, TO_INTEGER(uint8_t, 0, 255, 0, 255))                          \
    CONVERSION(LN_BOOL, uint8_t, v, v != 0)

#define LOAD(DTYPE, type, from, to)                                                                \
    case DTYPE:                                                                                    \
        for (int64_t i = 0; i < n; i++) {                                                          \
            type v = ((const type *)x)[i * stride];                                                \
            y[i] = from;                                                                           \
        }                                                                                          \
        break;

static void load_float(float *y, const void *x, int dtype, int64_t stride, int64_t n) {
    switch (dtype) { CONVERSIONS(LOAD) }
}

static void load_double(double *y, const void *x, int dtype, int64_t stride, int64_t n) {
    switch (dtype) { CONVERSIONS(LOAD) }
}

static void load_int64(int64_t *y, const void *x, int dtype, int64_t stride, int64_t n) {
    switch (dtype) { CONVERSIONS(LOAD) }
}

#define STORE(DTYPE, type, from, to)                                                               \
    case DTYPE:                                                                                    \
        for (int64_t i = 0; i < n; i++) {                                                          \
            __auto_type v = x[i];                                                                  \
            ((type *)y)[i * stride] = to;                                                          \
        }                                                                                          \
        break;

static void store_float(void *y, const float *x, int dtype, int64_t stride, int64_t n) {
    switch (dtype) { CONVERSIONS(STORE) }
}

static void store_double(void *y, const double *x, int dtype, int64_t stride, int64_t n) {
    switch (dtype) { CONVERSIONS(STORE) }
}

static void store_int64(void *y, const int64_t *x, int dtype, int64_t stride, int64_t n) {
    switch (dtype) { CONVERSIONS(STORE) }
}

/* y[begin..end) = *x */
static void repeat(block_type type, void *y, const void *x, int64_t begin, int64_t end) {
    switch (type) {
    case BLOCK_FLOAT:
        for (float *f = y, v = *(const float *)x; begin < end; begin++) f[begin] = v;
        break;
    case BLOCK_DOUBLE:
        for (double *d = y, v = *(const double *)x; begin < end; begin++) d[begin] = v;
        break;
    case BLOCK_INT64:
        for (int64_t *l = y, v = *(const int64_t *)x; begin < end; begin++) l[begin] = v;
        break;
    }
}

void CPU(block_load)(block_type type, void *y, const void *x, int dtype, int64_t stride,
                     int64_t n) {
    int64_t loaded = stride == 0 && n > 1 ? 1 : n;
    switch (type) {
    case BLOCK_FLOAT: load_float(y, x, dtype, stride, loaded); break;
    case BLOCK_DOUBLE: load_double(y, x, dtype, stride, loaded); break;
    case BLOCK_INT64: load_int64(y, x, dtype, stride, loaded); break;
    }
    repeat(type, y, y, loaded, n);
}

void CPU(block_store)(block_type type, void *y, const void *x, int dtype, int64_t stride,
                      int64_t n) {
    switch (type) {
    case BLOCK_FLOAT: store_float(y, x, dtype, stride, n); break;
    case BLOCK_DOUBLE: store_double(y, x, dtype, stride, n); break;
    case BLOCK_INT64: store_int64(y, x, dtype, stride, n); break;
    }
}

/* ---- The order of a walk ---- */

/* The dimensions of more than one element, those with the first operand's widest strides first
 * unless the order is to be row-major. */
static int order_dims(int *dims, const ln_tensor *t, bool row_major) {
    int count = 0;
    for (int d = 0; d < t->ndim; d++) {
        if (t->shape[d] == 1) continue;
        int i = count++;
        for (; !row_major && i > 0 && t->stride[dims[i - 1]] < t->stride[d]; i--)
            dims[i] = dims[i - 1];
        dims[i] = d;
    }
    return count;
}

/* Appends dimension d of the operands, merged with the last one where all step through both as
 * through one. */
static void append_dim(walk *w, const ln_tensor *const *t, int d) {
    int last = w->ndim - 1;
    bool merges = w->ndim > 0;
    for (int k = 0; merges && k < w->n; k++)
        merges = w->operand[k].stride[last] == t[k]->stride[d] * t[k]->shape[d];
    if (!merges) {
        last = w->ndim++;
        w->shape[last] = 1;
    }
    w->shape[last] *= t[0]->shape[d];
    for (int k = 0; k < w->n; k++) w->operand[k].stride[last] = t[k]->stride[d];
}

static void plan_order(walk *w, const ln_tensor *const *t, bool row_major) {
    bool contiguous = true;
    for (int k = 0; contiguous && k < w->n; k++) contiguous = ln_is_contiguous(t[k]);
    w->ndim = 0;
    if (!contiguous) {
        int dims[LN_MAX_DIMS], count = order_dims(dims, t[0], row_major);
        for (int i = 0; i < count; i++) append_dim(w, t, dims[i]);
        return;
    }
    w->ndim = 1;
    w->shape[0] = w->numel;
    for (int k = 0; k < w->n; k++) w->operand[k].stride[0] = 1;
}

static bool is_packed(const walk *w, const operand *o) {
    int64_t expected = 1;
    for (int d = w->ndim - 1; d >= 0; d--) {
        if (o->stride[d] != expected) return false;
        expected *= w->shape[d];
    }
    return true;
}

static void plan_operands(walk *w, const ln_tensor *const *t) {
    for (int k = 0; k < w->n; k++) {
        operand *o = &w->operand[k];
        o->data = t[k]->data;
        o->dtype = t[k]->dtype;
        o->size = (int64_t)ln_dtype_size(o->dtype);
        o->packed = is_packed(w, o);
        o->constant = w->ndim == 1 && o->stride[0] == 0;
    }
}

/* The offset, in elements, of the start-th element, and its position in each dimension. */
static int64_t locate(const walk *w, const operand *o, int64_t start, int64_t *position) {
    int64_t offset = 0;
    for (int d = w->ndim - 1; d >= 0; d--) {
        position[d] = start % w->shape[d];
        start /= w->shape[d];
        offset += position[d] * o->stride[d];
    }
    return offset;
}

/* Moves to the first element of the next run along the last dimension. */
static int64_t next_run(const walk *w, const operand *o, int64_t offset, int64_t *position) {
    int d = w->ndim - 1;
    offset -= position[d] * o->stride[d];
    position[d] = 0;
    while (--d >= 0) {
        offset += o->stride[d];
        if (++position[d] < w->shape[d]) break;
        offset -= position[d] * o->stride[d];
        position[d] = 0;
    }
    return offset;
}

/* ---- Blocks ---- */

static int64_t round_up(int64_t n) {
    return (n + BLOCK_LANES - 1) / BLOCK_LANES * BLOCK_LANES;
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t type_size(block_type type) {
    return type == BLOCK_FLOAT ? sizeof(float) : sizeof(double);
}

static void gather(const walk *w, const operand *o, int64_t start, int64_t n, char *y) {
    block_type type = w->kernel->type;
    int64_t position[LN_MAX_DIMS], last = w->ndim - 1;
    if (o->packed) {
        CPU(block_load)(type, y, o->data + start * o->size, o->dtype, 1, n);
        return;
    }
    int64_t offset = locate(w, o, start, position);
    for (int64_t done = 0, run; done < n; done += run, offset = next_run(w, o, offset, position)) {
        run = least(n - done, w->shape[last] - position[last]);
        CPU(block_load)(type, y + done * type_size(type), o->data + offset * o->size, o->dtype,
                        o->stride[last], run);
    }
}

static void scatter(const walk *w, const operand *o, int64_t start, int64_t n, const char *x) {
    block_type type = w->kernel->type;
    int64_t position[LN_MAX_DIMS], last = w->ndim - 1;
    if (o->packed) {
        CPU(block_store)(type, o->data + start * o->size, x, o->dtype, 1, n);
        return;
    }
    int64_t offset = locate(w, o, start, position);
    for (int64_t done = 0, run; done < n; done += run, offset = next_run(w, o, offset, position)) {
        run = least(n - done, w->shape[last] - position[last]);
        CPU(block_store)(type, o->data + offset * o->size, x + done * type_size(type), o->dtype,
                         o->stride[last], run);
    }
}

/* Operand k's elements for the body: where they lie, or in the buffer. */
static void *fetch(const walk *w, int k, int64_t start, int64_t n, char *buffer) {
    const operand *o = &w->operand[k];
    if (o->constant) return buffer;
    if (o->direct && !o->stream && n % BLOCK_LANES == 0) return o->data + start * o->size;
    if (w->kernel->reads >> k & 1) {
        gather(w, o, start, n, buffer);
        repeat(w->kernel->type, buffer, buffer, n, round_up(n)); /* no lane holds what o does not */
    }
    return buffer;
}

static void put_back(const walk *w, int k, int64_t start, int64_t n, const void *x) {
    const operand *o = &w->operand[k];
    char *y = o->data + start * o->size;
    if (o->stream && n % BLOCK_LANES == 0) block_stream(y, x, n * o->size);
    else if (!o->direct || x != y) scatter(w, o, start, n, x);
}

/* Elements begin to end. A last block that is not whole vectors is cut in two, so that only its
 * end goes through the buffers. */
static void run_blocks(const walk *w, int64_t begin, int64_t end) {
    _Alignas(64) char buffers[BLOCK_OPERANDS][BLOCK_BYTES];
    const block_kernel *kernel = w->kernel;
    int64_t block = BLOCK_BYTES / type_size(kernel->type);
    void *p[BLOCK_OPERANDS] = {NULL};
    for (int k = 0; k < w->n; k++)
        if (w->operand[k].constant)
            CPU(block_load)(kernel->type, buffers[k], w->operand[k].data, w->operand[k].dtype, 0,
                            least(block, round_up(end - begin)));
    for (int64_t start = begin, n; start < end; start += n) {
        n = least(block, end - start);
        if (n > BLOCK_LANES) n -= n % BLOCK_LANES;
        for (int k = 0; k < w->n; k++) p[k] = fetch(w, k, start, n, buffers[k]);
        if (kernel->streamed != NULL && w->operand[0].stream && n % BLOCK_LANES == 0) {
            p[0] = w->operand[0].data + start * w->operand[0].size;
            kernel->streamed(p, n, start, kernel->context);
            continue;
        }
        if (kernel->body != NULL) kernel->body(p, round_up(n), start, kernel->context);
        else p[0] = p[1];
        for (int k = 0; k < w->n; k++)
            if (kernel->writes >> k & 1) put_back(w, k, start, n, p[k]);
    }
    _mm_sfence(); /* streamed stores are visible to the team before it parts */
}

static bool is_type(block_type type, int dtype) {
    static const int own[] = {
        [BLOCK_FLOAT] = LN_FLOAT32, [BLOCK_DOUBLE] = LN_FLOAT64, [BLOCK_INT64] = LN_INT64};
    return dtype == own[type];
}

/* Streaming suits a large result that nothing reads on the way. */
static bool streams(const walk *w, int k) {
    const operand *o = &w->operand[k];
    if (!(w->kernel->writes >> k & 1) || w->numel * o->size < STREAM_BYTES) return false;
    for (int j = 0; j < w->n; j++)
        if (w->kernel->reads >> j & 1 && w->operand[j].data == o->data) return false;
    return (uintptr_t)o->data % 32 == 0;
}

/* Whole vectors where they lie, then the rest in a vector of its own. */
static void run_few(const block_kernel *kernel, int n, const ln_tensor *const *operands) {
    _Alignas(64) char buffers[BLOCK_OPERANDS][BLOCK_LANES * sizeof(double)];
    int64_t numel = operands[0]->numel, whole = numel / BLOCK_LANES * BLOCK_LANES;
    size_t size = type_size(kernel->type), rest = (size_t)(numel - whole) * size;
    void *p[BLOCK_OPERANDS] = {NULL};
    for (int k = 0; k < n; k++) p[k] = operands[k]->data;
    if (whole > 0) kernel->body(p, whole, 0, kernel->context);
    if (rest == 0) return;
    for (int k = 0; k < n; k++) {
        p[k] = buffers[k];
        if (!(kernel->reads >> k & 1)) continue;
        const char *x = operands[k]->data + (size_t)whole * size;
        repeat(kernel->type, buffers[k], x, 0, BLOCK_LANES);
        if (rest > size) memcpy(buffers[k], x, rest);
    }
    kernel->body(p, BLOCK_LANES, whole, kernel->context);
    for (int k = 0; k < n; k++)
        if (kernel->writes >> k & 1)
            memcpy(operands[k]->data + (size_t)whole * size, buffers[k], rest);
}

/* The case that must start at once: not more than a block, which needs no walk. */
static bool is_few(const block_kernel *kernel, int n, const ln_tensor *const *operands) {
    if (operands[0]->numel > BLOCK_BYTES / (int64_t)sizeof(double)) return false;
    for (int k = 0; k < n; k++)
        if (!is_type(kernel->type, operands[k]->dtype) || !ln_is_contiguous(operands[k]))
            return false;
    return kernel->body != NULL;
}

void CPU(block_run)(const block_kernel *kernel, int n, const ln_tensor *const *operands) {
    if (is_few(kernel, n, operands)) {
        run_few(kernel, n, operands);
        return;
    }
    walk w;
    w.kernel = kernel;
    w.n = n;
    w.numel = operands[0]->numel;
    if (w.numel == 0) return;
    plan_order(&w, operands, kernel->row_major);
    plan_operands(&w, operands);
    for (int k = 0; k < n; k++) {
        operand *o = &w.operand[k];
        o->direct = o->packed && is_type(kernel->type, o->dtype);
        o->stream = o->direct && streams(&w, k);
    }
    int64_t shares = (w.numel + SHARE - 1) / SHARE;
    int team = ln_team(w.numel * kernel->cost);
    if (team > shares) team = (int)shares;
    if (team <= 1) {
        run_blocks(&w, 0, w.numel);
        return;
    }
#pragma omp parallel num_threads(team)
    {
        ln_take_place();
#pragma omp for schedule(static)
        for (int t = 0; t < team; t++)
            run_blocks(&w, shares * t / team * SHARE,
                       least(shares * (t + 1) / team * SHARE, w.numel));
    }
}

/* ---- Moving without conversion ---- */

/* The plane of a walk that a move goes through tile by tile: the last dimension, along which dst
 * is densest, and the one along which src is. */
typedef struct {
    int64_t rows, columns, tile_columns;
    int64_t dst[2], src[2]; /* strides by row and by column, in elements */
} plane;

#define MOVE(type)                                                                                 \
    case sizeof(type): {                                                                           \
        typedef type __attribute__((may_alias)) bits;                                              \
        for (int64_t i = 0; i < rows; i++)                                                         \
            for (int64_t j = 0; j < columns; j++)                                                  \
                ((bits *)dst)[i * p->dst[0] + j * p->dst[1]] =                                     \
                    ((const bits *)src)[i * p->src[0] + j * p->src[1]];                            \
        break;                                                                                     \
    }

static void move_tile(const plane *p, char *dst, const char *src, int64_t rows, int64_t columns,
                      int64_t size) {
    if (p->dst[1] == 1 && p->src[1] == 1) {
        for (int64_t i = 0; i < rows; i++)
            memcpy(dst + i * p->dst[0] * size, src + i * p->src[0] * size,
                   (size_t)(columns * size));
        return;
    }
    switch (size) {
        MOVE(uint8_t)
        MOVE(uint16_t)
        MOVE(uint32_t)
        MOVE(uint64_t)
    }
}

/* Takes the plane out of the walk, whose other dimensions stay. */
static plane take_plane(walk *w) {
    operand *dst = &w->operand[0], *src = &w->operand[1];
    int last = --w->ndim, row = last - 1;
    bool runs = dst->stride[last] == 1 && src->stride[last] == 1;
    for (int d = 0; d < last && !runs; d++)
        if (src->stride[d] < src->stride[row]) row = d;
    plane p = {.rows = 1,
               .columns = w->shape[last],
               .tile_columns = runs || row < 0 ? SHARE : TILE_COLUMNS,
               .dst[1] = dst->stride[last],
               .src[1] = src->stride[last]};
    if (row < 0) return p;
    p.rows = w->shape[row];
    p.dst[0] = dst->stride[row];
    p.src[0] = src->stride[row];
    w->ndim--;
    for (int d = row; d < w->ndim; d++) {
        w->shape[d] = w->shape[d + 1];
        dst->stride[d] = dst->stride[d + 1];
        src->stride[d] = src->stride[d + 1];
    }
    return p;
}

/* Tiles begin to end, counted along the columns, then the rows, then the rest of the walk. */
static void move_tiles(const walk *w, const plane *p, int64_t begin, int64_t end) {
    const operand *dst = &w->operand[0], *src = &w->operand[1];
    int64_t across = (p->columns + p->tile_columns - 1) / p->tile_columns;
    int64_t down = (p->rows + TILE_ROWS - 1) / TILE_ROWS, position[LN_MAX_DIMS];
    for (int64_t tile = begin; tile < end; tile++) {
        int64_t j = tile % across * p->tile_columns, i = tile / across % down * TILE_ROWS;
        int64_t rest = tile / across / down;
        int64_t to = locate(w, dst, rest, position) + i * p->dst[0] + j * p->dst[1];
        int64_t from = locate(w, src, rest, position) + i * p->src[0] + j * p->src[1];
        move_tile(p, dst->data + to * dst->size, src->data + from * src->size,
                  least(TILE_ROWS, p->rows - i), least(p->tile_columns, p->columns - j), dst->size);
    }
}

static void move_packed(const walk *w, const plane *p, int64_t begin, int64_t end) {
    (void)p;
    int64_t size = w->operand[0].size, bytes = (end - begin) * size;
    char *dst = w->operand[0].data + begin * size;
    const char *src = w->operand[1].data + begin * size;
    int64_t streamed = w->numel * size < STREAM_BYTES || (uintptr_t)dst % 32 ? 0 : bytes / 32 * 32;
    block_stream(dst, src, streamed);
    memcpy(dst + streamed, src + streamed, (size_t)(bytes - streamed));
}

void CPU(block_move)(ln_tensor *dst, const ln_tensor *src) {
    walk w = {.n = 2, .numel = dst->numel};
    const ln_tensor *operands[] = {dst, src};
    if (w.numel == 0 || dst->data == src->data) return;
    plan_order(&w, operands, false);
    plan_operands(&w, operands);
    bool packed = w.operand[0].packed && w.operand[1].packed;
    plane p = {0};
    int64_t items = w.numel;
    if (!packed) {
        p = take_plane(&w);
        items = w.numel / (p.rows * p.columns) * ((p.rows + TILE_ROWS - 1) / TILE_ROWS) *
                ((p.columns + p.tile_columns - 1) / p.tile_columns);
    }
    void (*move)(const walk *, const plane *, int64_t, int64_t) = packed ? move_packed : move_tiles;
    int team = ln_team(w.numel);
    if (team == 1) {
        move(&w, &p, 0, items);
        return;
    }
#pragma omp parallel for schedule(static) num_threads(team)
    for (int t = 0; t < team; t++) move(&w, &p, items * t / team, items * (t + 1) / team);
}
