/* The launches of fused kernels: how many blocks share the columns, and the adding up of what each
 * of them made. Invariant: that is added in the order of the columns. */
#include "fused.h"

static const char *const WHAT = "similarity";

/* Limits that the tests' build shrinks. */
#ifndef LN_FUSED_EXTENT
#define LN_FUSED_BYTES (1 << 26) /* of a side's block */
#define LN_FUSED_BLOCKS 264      /* as many keep a large device busy: fewer rows share columns */
#endif

int64_t fused_extent(int64_t width) {
#ifdef LN_FUSED_EXTENT
    (void)width;
    return LN_FUSED_EXTENT;
#else
    return LN_FUSED_BYTES / (2 * width);
#endif
}

/* A thread an anchor: the totals (splits, n) of its splits. */
static __global__ void add_totals_kernel(epilogue_total *totals, const epilogue_total *parts,
                                         int64_t splits, int64_t n) {
    for (int64_t i = grid_thread(); i < n; i += grid_threads())
        for (int64_t s = 0; s < splits; s++) epilogue_add(&totals[i], parts[s * n + i]);
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

/* The tile's place and its rows, and how many blocks share the columns of each of its parts. */
static void place(epilogue *a, int kernel, const side *x, const side *y) {
    int64_t down = ceil_div(x->count, FUSED_ROWS(x->width));
    int64_t tiles = ceil_div(y->count, FUSED_COLUMNS(kernel, x->width));
    int64_t splits = ceil_div(LN_FUSED_BLOCKS, down);
    a->row = x->first;
    a->rows = x->count;
    a->column = y->first;
    a->columns = y->count;
    a->x = x->block;
    a->y = y->block;
    a->features = x->x->shape[1];
    a->splits = splits < tiles ? splits : tiles;
}

static ln_status run(const compiled *kernel, const epilogue *a, size_t shared, int64_t width) {
    int64_t blocks = ceil_div(a->rows, FUSED_ROWS(width)) * a->splits;
    return cuda_run(kernel, blocks_for(blocks, 1), FUSED_THREADS, shared, a, sizeof *a, WHAT);
}

ln_status fused_sums(const compiled *kernel, epilogue a, const side *x, const side *y) {
    epilogue_total *totals = a.totals + x->first;
    void *parts = NULL;
    ln_status status;
    place(&a, EPILOGUE_FUSED_SUMS, x, y);
    LN_TRY(cuda_scratch(&parts, (size_t)(a.splits * a.rows) * sizeof *totals, WHAT));
    a.totals = (epilogue_total *)parts;
    LN_TRY(run(kernel, &a, (size_t)FUSED_BYTES(EPILOGUE_FUSED_SUMS, x->width), x->width));
    status = launch(WHAT, add_totals_kernel, blocks_for(a.rows), THREADS, totals, a.totals,
                    (int64_t)a.splits, (int64_t)a.rows);
fail:
    cuda_scratch_release(parts);
    return status;
}

ln_status fused_gradient(ln_tensor *dx, const compiled *kernel, epilogue a, const side *x,
                         const side *y) {
    void *parts = NULL;
    ln_status status;
    place(&a, EPILOGUE_FUSED_GRADIENT, x, y);
    float *rows = (float *)dx->data + x->first * a.features;
    int64_t n = a.rows * a.features;
    a.adds = a.splits == 1;
    if (!a.adds) LN_TRY(cuda_scratch(&parts, (size_t)(a.splits * n) * sizeof *rows, WHAT));
    a.w = a.adds ? rows : parts;
    LN_TRY(run(kernel, &a, (size_t)FUSED_BYTES(EPILOGUE_FUSED_GRADIENT, x->width), x->width));
    if (!a.adds)
        status = launch(WHAT, add_gradients_kernel, blocks_for(n), THREADS, rows,
                        (const float *)parts, (int64_t)a.splits, n);
fail:
    cuda_scratch_release(parts);
    return status;
}
