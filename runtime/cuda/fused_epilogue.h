/* Kernels that never write a tile, for tiles in halves and rows of up to 256 features: this file is
 * their text, after that of epilogue.h and mma.h. A block owns some rows of x and goes along the
 * rows of y, whose similarities it takes from tensor cores, through the link and, for gradients, on
 * to the next product, in registers; of a symmetric matrix it sums each tile's columns too. It
 * includes nothing. Invariants: what a block sums, it alone sums, in a fixed order; rows past the
 * end are zeros, and their entries are not used.
 *
 * LN_WIDTH is the width of rows in memory, a multiple of 16; zeros fill it. */
#if LN_EPILOGUE >= EPILOGUE_FUSED_SUMS
enum {
    WIDTH = LN_WIDTH,
    PITCH = 2 * WIDTH + 16,   /* bytes between rows in shared memory: eight of them share no bank */
    DOWN = FUSED_DOWN(WIDTH), /* times 16 rows of a warp */
    COLUMNS = FUSED_COLUMNS(LN_EPILOGUE, WIDTH),
    ACROSS = COLUMNS / 8, /* times 8 columns */
    FEATURES = WIDTH / 8, /* times 8 features */
    BLOCK_ROWS = FUSED_ROWS(WIDTH),
    BOTH = FUSED_IS_BOTH(LN_EPILOGUE),
    RUNNING = LN_RUNNING
};

/* A lane's sums of products: see mma.h. */
typedef float fragment[ACROSS][4];

/* ---- Sums of columns ---- */

/* Of the tile's columns, (FUSED_WARPS, COLUMNS), after the rows and tiles. */
static __device__ epilogue_part *column_parts(void) {
    return (epilogue_part *)(block_memory() + (BLOCK_ROWS + 2 * COLUMNS) * PITCH);
}

/* The warp's part of the tile's 8 columns from `first` on. A lane brings 2 * DOWN rows of two that
 * eight lanes have, half of which go on with either. */
static __device__ void add_columns(int first, real v[2][2 * DOWN]) {
    int lane = threadIdx.x % LANES, odd = lane / 4 % 2;
    real most[2] = {}, sum[2] = {};
#pragma unroll
    for (int e = 0; e < 2; e++) {
        if (RUNNING) {
            most[e] = v[e][0];
#pragma unroll
            for (int r = 1; r < 2 * DOWN; r++) most[e] = MATH(fmax)(most[e], v[e][r]);
#pragma unroll
            for (int distance = 4; distance < LANES; distance *= 2)
                most[e] = MATH(fmax)(most[e], __shfl_xor_sync(0xffffffffu, most[e], distance));
        }
#pragma unroll
        for (int r = 0; r < 2 * DOWN; r++)
            sum[e] += RUNNING ? exp_below(v[e][r], most[e]) : v[e][r];
    }
    real own = odd ? sum[1] : sum[0];
    own += __shfl_xor_sync(0xffffffffu, odd ? sum[0] : sum[1], 4);
    own += __shfl_xor_sync(0xffffffffu, own, 8);
    own += __shfl_xor_sync(0xffffffffu, own, 16);
    epilogue_part *to = column_parts() + threadIdx.x / LANES * COLUMNS + first;
    if (lane < 8) to[lane % 4 * 2 + odd] = {odd ? most[1] : most[0], own};
}

/* The block's sums of a tile's columns, which begin at `first`. */
static __device__ void store_columns(const epilogue &a, long long block, long long first) {
    const epilogue_part *parts = column_parts() + threadIdx.x;
    epilogue_part all = {NOTHING, 0};
    if (threadIdx.x >= COLUMNS || first + threadIdx.x >= a.columns) return;
#pragma unroll
    for (int w = 0; w < FUSED_WARPS; w++)
        if (RUNNING) all.most = MATH(fmax)(all.most, parts[w * COLUMNS].most);
#pragma unroll
    for (int w = 0; w < FUSED_WARPS; w++) {
        epilogue_part p = parts[w * COLUMNS];
        all.sum += RUNNING ? p.sum * exp_below(p.most, all.most) : p.sum;
    }
    a.below[block * a.columns + first + threadIdx.x] = all;
}

/* ---- What a warp makes of a tile ---- */

/* i: the lane's first row, from which each `m` and `h` is 16 and 8 further down; j: its first
 * column, from which each `n` and `e` is 8 and 1 further on. */

#if LN_EPILOGUE != EPILOGUE_FUSED_GRADIENT
typedef struct {
    epilogue_total of[DOWN][2];
} state;

static __device__ void state_begin(state *t) {
#pragma unroll
    for (int r = 0; r < 2 * DOWN; r++) {
        t->of[r / 2][r % 2].most = NOTHING;
        t->of[r / 2][r % 2].sum = 0;
    }
}

/* Raises the row's maximum to that of the tile, once, and gives the sum of exponentials below it.
 * Of the lane's values, those of row h. */
static __device__ real sum_below(epilogue_total *to, const fragment s, int h, real most) {
    real sum = 0;
    if ((double)most > to->most) {
        if (to->sum != 0) to->sum *= exp(to->most - (double)most);
        to->most = (double)most;
    }
    most = (real)to->most;
#pragma unroll
    for (int n = 0; n < ACROSS; n++)
        sum += exp_below(s[n][2 * h], most) + exp_below(s[n][2 * h + 1], most);
    return sum;
}

/* Of both, the sums of columns go to shared memory; where the tile is on the diagonal, in vain. */
static __device__ void state_take(state *t, const epilogue &a, fragment *s, const char *,
                                  long long i, long long j) {
    real along[2 * DOWN], most[2 * DOWN];
#pragma unroll
    for (int r = 0; r < 2 * DOWN; r++) {
        along[r] = 0;
        most[r] = NOTHING;
    }
#pragma unroll
    for (int n = 0; n < ACROSS; n++) {
        real below[2][2 * DOWN];
#pragma unroll
        for (int r = 0; r < 2 * DOWN; r++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                long long own = i + 8 * r, other = j + 8 * n + e;
                real *x = &s[r / 2][n][r % 2 * 2 + e], v = NOTHING, mirrored = NOTHING;
                if (own < a.rows && other < a.columns) {
                    v = value(a, *x, own, other, a.flipped);
                    if (BOTH) mirrored = value(a, *x, own, other, !a.flipped);
                }
                if (RUNNING) most[r] = MATH(fmax)(most[r], v);
                else along[r] += v;
                *x = v;
                below[e][r] = mirrored;
            }
        if (BOTH) add_columns(8 * n, below);
    }
#pragma unroll
    for (int r = 0; r < 2 * DOWN; r++) {
        epilogue_total *to = &t->of[r / 2][r % 2];
        if (RUNNING) along[r] = sum_below(to, s[r / 2], r % 2, most[r]);
        to->sum += (double)along[r];
    }
}

/* The lanes of a row have its columns between them. */
static __device__ void state_end(state *t, const epilogue &a, long long i, long long split) {
#pragma unroll
    for (int r = 0; r < 2 * DOWN; r++) {
        epilogue_total own = t->of[r / 2][r % 2];
        for (int distance = 1; distance < 4; distance *= 2) {
            epilogue_total other;
            other.most = __shfl_xor_sync(0xffffffffu, own.most, distance);
            other.sum = __shfl_xor_sync(0xffffffffu, own.sum, distance);
            epilogue_add(&own, other);
        }
        if (threadIdx.x % 4 == 0 && i + 8 * r < a.rows) a.totals[split * a.rows + i + 8 * r] = own;
    }
}
#endif

#if LN_EPILOGUE == EPILOGUE_FUSED_GRADIENT
/* A row's sums are those of weights times its power of two, which falls when a weight asks for it:
 * then no weight leaves float16's range, and the largest keep their precision. */
typedef struct {
    float sums[DOWN][FEATURES][4], power[DOWN][2];
} state;

static __device__ void state_begin(state *t) {
#pragma unroll
    for (int m = 0; m < DOWN; m++) {
        t->power[m][0] = t->power[m][1] = 0x1p115f;
#pragma unroll
        for (int f = 0; f < FEATURES; f++)
#pragma unroll
            for (int e = 0; e < 4; e++) t->sums[m][f][e] = 0;
    }
}

/* Lowers the power of row (m, h) to what a weight of this size takes. */
static __device__ void lower_power(state *t, int m, int h, float most) {
    int exponent;
    frexpf(most, &exponent);
    float power = ldexpf(1, 15 - exponent), factor = power / t->power[m][h];
    t->power[m][h] = power;
#pragma unroll
    for (int f = 0; f < FEATURES; f++) {
        t->sums[m][f][2 * h] *= factor;
        t->sums[m][f][2 * h + 1] *= factor;
    }
}

/* From similarities to weights times their row's power. */
static __device__ void weigh(state *t, const epilogue &a, fragment *s, long long i, long long j) {
#pragma unroll
    for (int m = 0; m < DOWN; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            long long own = i + 16 * m + 8 * h;
            float most = 0;
#pragma unroll
            for (int n = 0; n < ACROSS; n++)
#pragma unroll
                for (int e = 2 * h; e < 2 * h + 2; e++) {
                    long long other = j + 8 * n + e % 2;
                    real v = 0;
                    if (own < a.rows && other < a.columns) {
                        v = value(a, s[m][n][e], own, other, a.flipped);
                        if (a.mirrored) v += value(a, s[m][n][e], own, other, !a.flipped);
                    }
                    s[m][n][e] = v;
                    most = fmaxf(most, MATH(fabs)(v));
                }
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
            if (most * t->power[m][h] >= 0x1p15f && most < INFINITY) lower_power(t, m, h, most);
#pragma unroll
            for (int n = 0; n < ACROSS; n++) {
                s[m][n][2 * h] *= t->power[m][h];
                s[m][n][2 * h + 1] *= t->power[m][h];
            }
        }
}

/* The weights, as they lie, are the left operand of 16 columns at a time. */
static __device__ void state_take(state *t, const epilogue &a, fragment *s, const char *columns,
                                  long long i, long long j) {
    int lane = threadIdx.x % LANES, row = lane % 16, feature = lane / 16 * 8;
    weigh(t, a, s, i, j);
#pragma unroll
    for (int k = 0; k < ACROSS / 2; k++) {
        unsigned w[DOWN][4], y[4];
#pragma unroll
        for (int m = 0; m < DOWN; m++)
#pragma unroll
            for (int p = 0; p < 4; p++) {
                const float *pair = &s[m][2 * k + p / 2][p % 2 * 2];
                w[m][p] = half_pair(pair[0], pair[1]);
            }
#pragma unroll
        for (int f = 0; f < FEATURES / 2; f++) {
            fragment_columns(y, columns + (16 * k + row) * PITCH + 2 * (16 * f + feature));
#pragma unroll
            for (int m = 0; m < DOWN; m++) {
                mma(t->sums[m][2 * f], w[m], y);
                mma(t->sums[m][2 * f + 1], w[m], y + 2);
            }
        }
    }
}

static __device__ void state_end(state *t, const epilogue &a, long long i, long long split) {
#pragma unroll
    for (int m = 0; m < DOWN; m++)
#pragma unroll
        for (int f = 0; f < FEATURES; f++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                long long own = i + 16 * m + e / 2 * 8;
                int feature = 8 * f + threadIdx.x % 4 * 2 + e % 2;
                if (own >= a.rows || feature >= a.features) continue;
                float *to = (float *)a.w + (split * a.rows + own) * a.features + feature;
                float v = t->sums[m][f][e] / t->power[m][e / 2];
                *to = a.adds ? *to + v : v;
            }
}
#endif

/* ---- A block ---- */

/* Begins to copy so many rows from `first` on, of `count`, to shared memory, in pieces of 16 bytes.
 * Not unrolled: addresses of pieces to come would take registers from the tile. */
static __device__ void fetch(char *to, const void *from, long long first, long long count,
                             int rows) {
#pragma unroll 1
    for (int t = threadIdx.x; t < rows * FEATURES; t += FUSED_THREADS) {
        int row = t / FEATURES; /* rows are a piece further apart there */
        bool given = first + row < count;
        const char *piece = (const char *)from + 16 * (first * FEATURES + t);
        copy_begin(to + 16 * (t + row), given ? piece : from, given);
    }
}

/* The similarities of the warp's rows and the tile's columns. */
static __device__ void multiply(fragment *s, const char *rows, const char *columns) {
    int lane = threadIdx.x % LANES, place = lane % 8, odd = lane / 8 % 2, upper = lane / 16;
#pragma unroll
    for (int m = 0; m < DOWN; m++)
#pragma unroll
        for (int n = 0; n < ACROSS; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[m][n][e] = 0;
#pragma unroll
    for (int k = 0; k < WIDTH; k += 16) {
        unsigned x[DOWN][4], y[4];
#pragma unroll
        for (int m = 0; m < DOWN; m++)
            fragment_rows(x[m], rows + (16 * m + 8 * odd + place) * PITCH + 2 * (k + 8 * upper));
#pragma unroll
        for (int n = 0; n < ACROSS; n += 2) {
            fragment_rows(y, columns + (8 * n + 8 * upper + place) * PITCH + 2 * (k + 8 * odd));
#pragma unroll
            for (int m = 0; m < DOWN; m++) {
                mma(s[m][n], x[m], y);
                mma(s[m][n + 1], x[m], y + 2);
            }
        }
    }
}

/* The rows from `first` on, with the split's share of the columns; the next tile comes while one is
 * used. Of both, where the diagonal begins at (0, 0), the tiles left of the block's own rows are
 * another's, those of its own rows have both halves, and those right of them are mirrored. */
static __device__ void take_block(const epilogue &a, long long first, long long split) {
    char *rows = block_memory(), *tiles = rows + BLOCK_ROWS * PITCH;
    int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    long long count = (a.columns + COLUMNS - 1) / COLUMNS;
    long long each = (count + a.splits - 1) / a.splits, begin = split * each;
    long long end = begin + each < count ? begin + each : count;
    bool diagonal = BOTH && a.row == a.column;
    long long right = diagonal ? (first + BLOCK_ROWS) / COLUMNS : 0;
    if (diagonal && begin < first / COLUMNS) begin = first / COLUMNS;
    long long i = first + 16 * DOWN * warp + lane / 4;
    state t;
    state_begin(&t);
    if (begin < end) {
        fetch(rows, a.x, first, a.rows, BLOCK_ROWS);
        fetch(tiles, a.y, begin * COLUMNS, a.columns, COLUMNS);
    }
    copy_group();
    for (long long tile = begin; tile < end; tile++) {
        const char *columns = tiles + (tile - begin) % 2 * COLUMNS * PITCH;
        char *next = tiles + (tile + 1 - begin) % 2 * COLUMNS * PITCH;
        fragment s[DOWN];
        if (tile + 1 < end) fetch(next, a.y, (tile + 1) * COLUMNS, a.columns, COLUMNS);
        copy_group();
        copy_wait(1);
        __syncthreads(); /* the tile is there, of all threads */
        multiply(s, rows + 16 * DOWN * warp * PITCH, columns);
        state_take(&t, a, s, columns, i, tile * COLUMNS + lane % 4 * 2);
        __syncthreads(); /* it is read; all warps' sums of its columns are there */
        if (BOTH && tile >= right) store_columns(a, first / BLOCK_ROWS, tile * COLUMNS);
    }
    copy_wait(0);
    __syncthreads(); /* the memory serves the next block */
    state_end(&t, a, i, split);
}

/* Of wide rows shared memory holds two or three blocks: unless told, the compiler would spill
 * registers for the sake of more. 0 leaves it to the compiler. */
enum { RESIDENT = WIDTH > 128 && LN_EPILOGUE != EPILOGUE_FUSED_GRADIENT ? 2 : 0 };

extern "C" __global__ void __launch_bounds__(FUSED_THREADS, RESIDENT) epilogue_kernel(epilogue a) {
    long long down = (a.rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    for (long long block = blockIdx.x; block < down * a.splits; block += gridDim.x)
        take_block(a, block % down * BLOCK_ROWS, block / down);
}
#endif
