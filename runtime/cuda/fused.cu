/* The launches of fused kernels: how many blocks share the columns, and the adding up of what each
 * of them made. Invariants: that is added in a fixed order; it is bounded, whatever the matrix. */
#include "fused.h"

static const char *const WHAT = "similarity";

/* Limits that the tests' build shrinks. */
#ifndef LN_FUSED_EXTENT
#define LN_FUSED_BYTES (1 << 25) /* of a side's block: less than a large device's cache */
#define LN_FUSED_BLOCKS 264      /* as many keep a large device busy: fewer rows share columns */
#define LN_FUSED_PARTS (1 << 24) /* bytes for the sums of columns in blocks of rows */
#endif

/* The most tiles that a block takes of a symmetric matrix. Its rows differ in length, so they are
 * cut to pieces that are small beside what a large device has to do. */
static const int64_t FUSED_RUN = 16;

int64_t fused_extent(int64_t width) {
#ifdef LN_FUSED_EXTENT
    (void)width;
    return LN_FUSED_EXTENT;
#else
    return LN_FUSED_BYTES / (2 * width);
#endif
}

/* 32 anchors a block, 8 threads each, which share its parts: the totals (n) += the parts (.., n).
 * An anchor has `count` parts or, where each is that of `step` rows, those of the rows above. */
template <typename T>
static __global__ void add_totals_kernel(epilogue_total *totals, const T *parts, int64_t count,
                                         int64_t n, int64_t step) {
    __shared__ epilogue_total sums[THREADS];
    int lane = threadIdx.x / WARP;
    for (int64_t first = (int64_t)blockIdx.x * WARP; first < n; first += gridDim.x * WARP) {
        int64_t i = first + threadIdx.x % WARP;
        int64_t own = step > 0 && i / step < count ? i / step : count;
        epilogue_total t = {-INFINITY, 0};
        for (int64_t p = lane; i < n && p < own; p += THREADS / WARP)
            epilogue_add(&t, {parts[p * n + i].most, parts[p * n + i].sum});
        sums[threadIdx.x] = t;
        __syncthreads(); /* all sums are there */
        for (int l = 0; lane == 0 && i < n && l < THREADS / WARP; l++)
            epilogue_add(&totals[i], sums[threadIdx.x + l * WARP]);
        __syncthreads(); /* they are read */
    }
}

/* A thread an element: dx (n) += the splits' (splits, n). */
static __global__ void add_gradients_kernel(float *dx, const float *parts, int64_t splits,
                                            int64_t n) {
    for (int64_t i = grid_thread(); i < n; i += grid_threads()) {
        float sum = 0;
        for (int64_t s = 0; s < splits; s++) sum += parts[s * n + i];
        dx[i] += sum;
    }
}

/* The tile's place and its rows. */
static void place(epilogue *a, const side *x, const side *y) {
    a->row = x->first;
    a->rows = x->count;
    a->column = y->first;
    a->columns = y->count;
    a->x = x->block;
    a->y = y->block;
    a->features = x->x->shape[1];
}

/* How many blocks share the columns of each part of the tile. */
static int64_t splits_of(const epilogue *a, int64_t width) {
    int64_t tiles = ceil_div(a->columns, FUSED_COLUMNS);
    int64_t splits = ceil_div(LN_FUSED_BLOCKS, ceil_div(a->rows, FUSED_ROWS(width)));
    return splits < tiles ? splits : tiles;
}

/* The same of a kernel of both, from the number of tiles that it takes. */
static int64_t splits_of_both(const epilogue *a, int64_t width) {
    int64_t down = ceil_div(a->rows, FUSED_ROWS(width));
    int64_t tiles = ceil_div(a->columns, FUSED_COLUMNS), all = down * tiles;
    if (a->row == a->column) all -= down * (down - 1) / 2 * (FUSED_ROWS(width) / FUSED_COLUMNS);
    int64_t each = ceil_div(all, LN_FUSED_BLOCKS);
    return ceil_div(tiles, each < FUSED_RUN ? each : FUSED_RUN);
}

static ln_status run(const compiled *kernel, const epilogue *a, int kind, int64_t width) {
    int64_t blocks = ceil_div(a->rows, FUSED_ROWS(width)) * a->splits;
    return cuda_run(kernel, blocks_for(blocks, 1), FUSED_THREADS(width),
                    (size_t)FUSED_BYTES(kind, width), a, sizeof *a, WHAT);
}

template <typename T>
static ln_status add_totals(epilogue_total *totals, const T *parts, int64_t count, int64_t n,
                            int64_t step) {
    return launch(WHAT, add_totals_kernel<T>, blocks_for(n, WARP), THREADS, totals, parts, count, n,
                  step);
}

/* ---- Sums ---- */

ln_status fused_sums(const compiled *kernel, epilogue a, const side *x, const side *y) {
    epilogue_total *totals = a.totals + x->first;
    void *parts = NULL;
    ln_status status;
    place(&a, x, y);
    a.splits = splits_of(&a, x->width);
    LN_TRY(cuda_scratch(&parts, (size_t)(a.splits * a.rows) * sizeof *totals, WHAT));
    a.totals = (epilogue_total *)parts;
    LN_TRY(run(kernel, &a, EPILOGUE_FUSED_SUMS, x->width));
    status = add_totals(totals, a.totals, a.splits, a.rows, 0);
fail:
    cuda_scratch_release(parts);
    return status;
}

/* A tile whose columns' sums fit the scratch. */
static ln_status sum_both(const compiled *kernel, epilogue a, int64_t width) {
    epilogue_total *totals = a.totals;
    int64_t step = a.row == a.column ? FUSED_ROWS(width) : 0;
    int64_t down = ceil_div(a.rows, FUSED_ROWS(width));
    void *parts = NULL, *below = NULL;
    ln_status status;
    a.splits = splits_of_both(&a, width);
    LN_TRY(cuda_scratch(&parts, (size_t)(a.splits * a.rows) * sizeof *a.totals, WHAT));
    LN_TRY(cuda_scratch(&below, (size_t)(down * a.columns) * sizeof *a.below, WHAT));
    a.totals = (epilogue_total *)parts;
    a.below = (epilogue_part *)below;
    LN_TRY(run(kernel, &a, EPILOGUE_FUSED_BOTH, width));
    LN_TRY(add_totals(totals + a.row, a.totals, a.splits, a.rows, 0));
    status = add_totals(totals + a.column, a.below, down, a.columns, step);
fail:
    cuda_scratch_release(below);
    cuda_scratch_release(parts);
    return status;
}

/* A column has a sum in each block of rows: all of them would grow with the matrix, so those of as
 * many rows as fit the scratch, of a block at least, are made and added up before the next. Of a
 * large matrix a launch has 2^15 tiles, which keep a device busy. On the diagonal it begins there.
 */
ln_status fused_both(const compiled *kernel, const epilogue &a, const side *x, const side *y) {
    int64_t block = FUSED_ROWS(x->width), step;
    ln_status status = LN_OK;
    for (int64_t row = 0; row < x->count; row += step) {
        epilogue part = a;
        place(&part, x, y);
        part.row += row;
        part.x = (const char *)x->block + 2 * row * x->width;
        if (x->first == y->first) {
            part.column += row;
            part.columns -= row;
            part.y = (const char *)y->block + 2 * row * y->width;
        }
        int64_t down = LN_FUSED_PARTS / (part.columns * (int64_t)sizeof *part.below);
        step = down > 1 ? down * block : block;
        part.rows = row + step < x->count ? step : x->count - row;
        LN_TRY(sum_both(kernel, part, x->width));
    }
fail:
    return status;
}

/* ---- Gradients ---- */

ln_status fused_gradient(ln_tensor *dx, const compiled *kernel, epilogue a, const side *x,
                         const side *y) {
    void *parts = NULL;
    ln_status status;
    place(&a, x, y);
    a.splits = splits_of(&a, x->width);
    float *rows = (float *)dx->data + x->first * a.features;
    int64_t n = a.rows * a.features;
    a.adds = a.splits == 1;
    if (!a.adds) LN_TRY(cuda_scratch(&parts, (size_t)(a.splits * n) * sizeof *rows, WHAT));
    a.w = a.adds ? rows : parts;
    LN_TRY(run(kernel, &a, EPILOGUE_FUSED_GRADIENT, x->width));
    if (!a.adds)
        status = launch(WHAT, add_gradients_kernel, blocks_for(n), THREADS, rows,
                        (const float *)parts, (int64_t)a.splits, n);
fail:
    cuda_scratch_release(parts);
    return status;
}
