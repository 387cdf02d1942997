/* Kernels that never write a tile, for tiles in halves and rows of up to 256 features: this file is
 * their text, after those of epilogue.h, mma.h and special.h. A block owns some rows of x, 16 a
 * warp, and goes along the rows of y, whose similarities it takes from tensor cores, through the
 * link and, for gradients, on to the next product, in registers; of a symmetric matrix it sums each
 * tile's columns too. It includes nothing. Invariants: what a block sums, it alone sums, in a fixed
 * order; rows past the end are zeros, and their entries are not used. Code is unrolled over one
 * tile of 16 x 32 entries a warp and no further, for the time that it takes to compile.
 *
 * LN_WIDTH is the width of rows in memory, a multiple of 16; zeros fill it. LN_FLIPPED: x's rows
 * are the matrix's columns; LN_MIRRORED: a gradient's weights are those of the matrix and of the
 * transposed one. */
#if LN_EPILOGUE >= EPILOGUE_FUSED_SUMS
enum {
    WIDTH = LN_WIDTH,
    PITCH = 2 * WIDTH + 16, /* bytes between rows in shared memory: eight of them share no bank */
    BLOCK_WARPS = FUSED_WARPS(WIDTH),
    BLOCK_THREADS = FUSED_THREADS(WIDTH),
    BLOCK_ROWS = FUSED_ROWS(WIDTH),
    WARP_ROWS = 16,
    OWN = 2, /* rows of a lane */
    COLUMNS = FUSED_COLUMNS,
    ACROSS = COLUMNS / 8, /* times 8 columns */
    FEATURES = WIDTH / 8, /* times 8 features */
    STEPS = WIDTH / 16,
    GRADIENT = LN_EPILOGUE == EPILOGUE_FUSED_GRADIENT,
    BOTH = FUSED_IS_BOTH(LN_EPILOGUE),
    RUNNING = LN_RUNNING,
    FLIPPED = LN_FLIPPED,
    TWO = BOTH || LN_MIRRORED,      /* entries serve both ways round */
    KEPT = !GRADIENT || WIDTH <= 64 /* registers have room for the block's rows */
};

/* A lane's sums of products: see mma.h. Of row r and the lane's column k: [k / 2][2 r + k % 2]. */
typedef float fragment[ACROSS][4];

/* The tile's column that the lane's column k is. */
static __device__ int column_at(int k) {
    return k / 2 * 8 + threadIdx.x % 4 * 2 + k % 2;
}

static __device__ bool lies_in(place at, place first, place count) {
    return (unsigned)(at - first) < (unsigned)count;
}

static __device__ bool touched(const mask_row &row, place first, place count);
static __device__ link_row link_row_from(const link_row &own, int lane);
static __device__ link_column link_column_from(const link_column &own, int lane);
static __device__ mask_row mask_row_from(const mask_row &own, int lane);
static __device__ mask_column mask_column_from(const mask_column &own, int lane);

/* ---- What entries read ---- */

/* One of x's rows or of y's, as a row and as a column of the matrix; either may be unused. */
typedef struct {
    link_row row;
    link_column column;
} link_place;
typedef struct {
    mask_row row;
    mask_column column;
} mask_place;

/* Whether x's rows are wanted as rows of the matrix and y's as columns, or the other way round. */
enum { STRAIGHT = !FLIPPED || TWO, CROSSED = FLIPPED || TWO };

static __device__ link_place link_place_of(const epilogue &a, place at, bool row, bool column) {
    link_place p;
    if (row) p.row = link_row_of(a, at);
    if (column) p.column = link_column_of(a, at);
    return p;
}

static __device__ mask_place mask_place_of(const epilogue &a, place at, bool row, bool column) {
    mask_place p;
    if (row) p.row = mask_row_of(a, at);
    if (column) p.column = mask_column_of(a, at);
    return p;
}

/* Of a column of the tile, from the lane that has read it. */
static __device__ link_place link_place_from(const link_place &lanes, int from) {
    link_place p;
    if (CROSSED) p.row = link_row_from(lanes.row, from);
    if (STRAIGHT) p.column = link_column_from(lanes.column, from);
    return p;
}

static __device__ mask_place mask_place_from(const mask_place &lanes, int from) {
    mask_place p;
    if (CROSSED) p.row = mask_row_from(lanes.row, from);
    if (STRAIGHT) p.column = mask_column_from(lanes.column, from);
    return p;
}

/* What a warp knows of its rows and of a tile: i and j are the first of them in x and y, which have
 * so many rows, at these places of the matrix. */
typedef struct {
    place i, rows, row, j, columns, column;
    link_all all;
    link_place own[OWN], others; /* of the lane's rows; of the lane's column */
    mask_row masks[OWN];         /* of its rows as the matrix's */
    unsigned straight, crossed;  /* bit k OWN + r: whether the lane's entry is used */
} warp_tile;

static __device__ place row_in(const warp_tile &c, int r) {
    return c.i + threadIdx.x % LANES / 4 + 8 * r;
}

/* The link's value of an entry of the lane, or NOTHING. */
static __device__ real value(const epilogue &a, const warp_tile &c, const link_place &other, real s,
                             int r, int bit, bool crossed) {
    const link_place &own = c.own[r];
    real v = crossed ? link(a, c.all, s, other.row, own.column)
                     : link(a, c.all, s, own.row, other.column);
    return (crossed ? c.crossed : c.straight) >> bit & 1 ? v : NOTHING;
}

/* Which entries of the lane are used: all, or what the masks say, of which little but whether they
 * touch the tile stays in registers: the rest is read again. */
static __device__ void admit(const epilogue &a, warp_tile *c, place other, bool mixed) {
    mask_place own[OWN], lanes;
    c->straight = c->crossed = 0xffffffffu;
    mixed |= c->i + WARP_ROWS > c->rows || c->j + COLUMNS > c->columns;
    if (__ballot_sync(0xffffffffu, mixed) == 0) return;
    lanes = mask_place_of(a, other, CROSSED, STRAIGHT);
#pragma unroll
    for (int r = 0; r < OWN; r++) {
        place at = row_in(*c, r);
        own[r] = mask_place_of(a, c->row + (at < c->rows ? at : 0), STRAIGHT, CROSSED);
    }
    c->straight = c->crossed = 0;
#pragma unroll 1
    for (int k = 0; k < 2 * ACROSS; k++) {
        mask_place p = mask_place_from(lanes, column_at(k));
        bool inside = c->j + column_at(k) < c->columns;
#pragma unroll
        for (int r = 0; r < OWN; r++) {
            bool used = inside && row_in(*c, r) < c->rows;
            int bit = k * OWN + r;
            if (STRAIGHT) c->straight |= (unsigned)(used && admitted(own[r].row, p.column)) << bit;
            if (CROSSED) c->crossed |= (unsigned)(used && admitted(p.row, own[r].column)) << bit;
        }
    }
}

/* ---- Products ---- */

/* The warp's rows as left operands. */
typedef struct {
    unsigned at[KEPT ? STEPS : 1][4];
} left;

/* Of 16 rows in shared memory, those that the lane gives the places of: as left operands, or of 16
 * columns as right ones. */
static __device__ shared_place left_place(const char *rows) {
    int lane = threadIdx.x % LANES;
    return shared_place_of(rows + lane % 16 * PITCH + lane / 16 * 16);
}

static __device__ shared_place right_place(const char *columns) {
    int lane = threadIdx.x % LANES;
    return shared_place_of(columns + (lane / 16 * 8 + lane % 8) * PITCH + lane / 8 % 2 * 16);
}

static __device__ void keep(left *x, const char *rows) {
    shared_place own = left_place(rows);
#pragma unroll
    for (int step = 0; KEPT && step < STEPS; step++) fragment_rows(x->at[step], own + 32 * step);
}

/* The similarities of the warp's rows and the tile's columns. */
static __device__ void multiply(fragment s, left *x, const char *rows, const char *columns) {
    shared_place own = left_place(rows), other = right_place(columns);
#pragma unroll
    for (int n = 0; n < ACROSS; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) s[n][e] = 0;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        int k = KEPT ? step : 0;
        unsigned y[4];
        if (!KEPT) fragment_rows(x->at[k], own + 32 * step);
#pragma unroll
        for (int n = 0; n < ACROSS; n += 2) {
            fragment_rows(y, other + 8 * n * PITCH + 32 * step);
            mma(s[n], x->at[k], y);
            mma(s[n + 1], x->at[k], y + 2);
        }
    }
}

/* ---- Sums ---- */

#if LN_EPILOGUE != EPILOGUE_FUSED_GRADIENT
typedef struct {
    struct {
        real most;
        double sum;
    } of[OWN];
} state;

static __device__ void state_begin(state *t) {
#pragma unroll
    for (int r = 0; r < OWN; r++) {
        t->of[r].most = NOTHING;
        t->of[r].sum = 0;
    }
}

/* exp(v - most), where most is not below v; 0 of -inf. */
static __device__ real exp_below(real v, real most) {
    real e = MATH(exp)(v - most);
    return v == -INFINITY ? 0 : v == most ? 1 : e;
}

/* The warp's part of the tile's 8 columns to which `to` belongs. A lane brings OWN rows of two that
 * eight lanes have, half of which go on with either. */
static __device__ void add_columns(epilogue_part *to, real v[2][OWN]) {
    int lane = threadIdx.x % LANES, odd = lane / 4 % 2;
    real most[2] = {}, sum[2] = {};
#pragma unroll
    for (int e = 0; e < 2; e++) {
        if (RUNNING) {
            most[e] = MATH(fmax)(v[e][0], v[e][1]);
#pragma unroll
            for (int distance = 4; distance < LANES; distance *= 2)
                most[e] = MATH(fmax)(most[e], __shfl_xor_sync(0xffffffffu, most[e], distance));
        }
        sum[e] =
            RUNNING ? exp_below(v[e][0], most[e]) + exp_below(v[e][1], most[e]) : v[e][0] + v[e][1];
    }
    real own = odd ? sum[1] : sum[0];
    own += __shfl_xor_sync(0xffffffffu, odd ? sum[0] : sum[1], 4);
    own += __shfl_xor_sync(0xffffffffu, own, 8);
    own += __shfl_xor_sync(0xffffffffu, own, 16);
    if (lane < 8) to[lane % 4 * 2 + odd] = {odd ? most[1] : most[0], own};
}

/* The block's sums of a tile's columns, which begin at `first`, from the warps' parts. */
static __device__ void store_columns(const epilogue &a, const epilogue_part *parts, long long block,
                                     place first) {
    epilogue_part all = {NOTHING, 0};
    if (threadIdx.x >= COLUMNS || first + (place)threadIdx.x >= a.columns) return;
    parts += threadIdx.x;
#pragma unroll
    for (int w = 0; w < BLOCK_WARPS; w++)
        if (RUNNING) all.most = MATH(fmax)(all.most, parts[w * COLUMNS].most);
#pragma unroll
    for (int w = 0; w < BLOCK_WARPS; w++) {
        epilogue_part p = parts[w * COLUMNS];
        all.sum += RUNNING ? p.sum * exp_below(p.most, all.most) : p.sum;
    }
    a.below[block * a.columns + first + threadIdx.x] = all;
}

/* Adds a row's values of the tile, in the lane, with one raise of the row's maximum. */
static __device__ void add_row(state *t, const fragment s, int r, real most) {
    real sum = 0;
    if (RUNNING) {
        most = MATH(fmax)(most, t->of[r].most);
        t->of[r].sum *= (double)exp_below(t->of[r].most, most);
        t->of[r].most = most;
    }
#pragma unroll
    for (int n = 0; n < ACROSS; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            real v = s[n][2 * r + e];
            sum += RUNNING ? exp_below(v, most) : v;
        }
    t->of[r].sum += (double)sum;
}

/* Of both, the sums of columns go to the warp's parts; where the tile is on the diagonal, in vain.
 */
static __device__ void state_take(state *t, const epilogue &a, const warp_tile &c, fragment s,
                                  const char *, epilogue_part *parts) {
    real most[OWN];
#pragma unroll
    for (int r = 0; r < OWN; r++) most[r] = NOTHING;
#pragma unroll
    for (int n = 0; n < ACROSS; n++) {
        real below[2][OWN];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int k = 2 * n + e;
            link_place other = link_place_from(c.others, column_at(k));
#pragma unroll
            for (int r = 0; r < OWN; r++) {
                real *x = &s[n][2 * r + e];
                real v = value(a, c, other, *x, r, k * OWN + r, FLIPPED);
                if (BOTH) below[e][r] = value(a, c, other, *x, r, k * OWN + r, !FLIPPED);
                if (RUNNING) most[r] = MATH(fmax)(most[r], v);
                *x = v;
            }
        }
        if (BOTH) add_columns(parts + 8 * n, below);
    }
#pragma unroll
    for (int r = 0; r < OWN; r++) add_row(t, s, r, most[r]);
}

/* The lanes of a row have its columns between them. */
static __device__ void state_end(state *t, const epilogue &a, place first, char *,
                                 long long split) {
    place i = first + threadIdx.x / LANES * WARP_ROWS + threadIdx.x % LANES / 4;
#pragma unroll
    for (int r = 0; r < OWN; r++) {
        real most = t->of[r].most;
        double sum = t->of[r].sum;
        if (RUNNING) {
            most = MATH(fmax)(most, __shfl_xor_sync(0xffffffffu, most, 1));
            most = MATH(fmax)(most, __shfl_xor_sync(0xffffffffu, most, 2));
            sum *= (double)exp_below(t->of[r].most, most);
        }
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (threadIdx.x % 4 == 0 && i + 8 * r < a.rows)
            a.totals[split * a.rows + i + 8 * r] = {(double)most, sum};
    }
}
#endif

/* ---- Gradients ---- */

#if LN_EPILOGUE == EPILOGUE_FUSED_GRADIENT
/* A row's sums are those of weights times its power of two, which falls when a weight asks for it:
 * then no weight leaves float16's range, and the largest keep their precision. */
typedef struct {
    float sums[FEATURES][4], power[OWN];
} state;

/* 2^exponent, and from it 2^-exponent, of normal numbers. */
static __device__ float power_of_two(int exponent) {
    return __int_as_float((exponent + 127) << 23);
}

static __device__ float inverse_of(float power) {
    return __int_as_float((254 << 23) - __float_as_int(power));
}

static __device__ void state_begin(state *t) {
#pragma unroll
    for (int r = 0; r < OWN; r++) t->power[r] = power_of_two(115);
#pragma unroll
    for (int f = 0; f < FEATURES; f++)
#pragma unroll
        for (int e = 0; e < 4; e++) t->sums[f][e] = 0;
}

/* Whether a weight of this size leaves the range with that power; not where it is infinite. */
static __device__ bool leaves(float most, float power) {
    return most * power >= 0x1p15f && most < INFINITY;
}

/* Lowers the powers of the rows whose largest weights of the tile ask for it. */
static __device__ void lower_powers(state *t, const float most[OWN]) {
#pragma unroll
    for (int r = 0; r < OWN; r++) {
        float row = most[r];
        row = fmaxf(row, __shfl_xor_sync(0xffffffffu, row, 1));
        row = fmaxf(row, __shfl_xor_sync(0xffffffffu, row, 2));
        float inverse = inverse_of(t->power[r]);
        if (!leaves(row, t->power[r])) row = 0x1p14f * inverse; /* the power stays */
        int exponent = (__float_as_int(row) >> 23) - 127;       /* row < 2^(exponent + 1) */
        float power = power_of_two(14 - exponent), factor = power * inverse;
        t->power[r] = power;
#pragma unroll
        for (int f = 0; f < FEATURES; f++) {
            t->sums[f][2 * r] *= factor;
            t->sums[f][2 * r + 1] *= factor;
        }
    }
}

/* From similarities to weights times their row's power. */
static __device__ void weigh(state *t, const epilogue &a, const warp_tile &c, fragment s) {
    float most[OWN] = {};
    bool left = false;
#pragma unroll
    for (int k = 0; k < 2 * ACROSS; k++) {
        link_place other = link_place_from(c.others, column_at(k));
#pragma unroll
        for (int r = 0; r < OWN; r++) {
            real *x = &s[k / 2][2 * r + k % 2];
            real v = value(a, c, other, *x, r, k * OWN + r, FLIPPED);
            if (TWO) v += value(a, c, other, *x, r, k * OWN + r, !FLIPPED);
            most[r] = fmaxf(most[r], fabsf(v));
            *x = v;
        }
    }
#pragma unroll
    for (int r = 0; r < OWN; r++) left |= leaves(most[r], t->power[r]);
    if (__ballot_sync(0xffffffffu, left) != 0) lower_powers(t, most);
#pragma unroll
    for (int r = 0; r < OWN; r++)
#pragma unroll
        for (int k = 0; k < 2 * ACROSS; k++) s[k / 2][2 * r + k % 2] *= t->power[r];
}

/* The weights, as they lie, are the left operand of 16 columns at a time. */
static __device__ void state_take(state *t, const epilogue &a, const warp_tile &c, fragment s,
                                  const char *columns, epilogue_part *) {
    shared_place rows = left_place(columns);
    weigh(t, a, c, s);
#pragma unroll
    for (int k = 0; k < ACROSS / 2; k++) {
        unsigned w[4], y[4];
#pragma unroll
        for (int p = 0; p < 4; p++) {
            const float *pair = &s[2 * k + p / 2][p % 2 * 2];
            w[p] = half_pair(pair[0], pair[1]);
        }
#pragma unroll
        for (int f = 0; f < FEATURES / 2; f++) {
            fragment_columns(y, rows + 16 * k * PITCH + 32 * f);
            mma(t->sums[2 * f], w, y);
            mma(t->sums[2 * f + 1], w, y + 2);
        }
    }
}

/* By way of shared memory, so that a warp writes rows. */
static __device__ void state_end(state *t, const epilogue &a, place first, char *memory,
                                 long long split) {
    enum { ROW = WIDTH + 8 };
    int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    float *sums = (float *)memory;
    float *own = sums + (warp * WARP_ROWS + lane / 4) * ROW + lane % 4 * 2;
#pragma unroll
    for (int r = 0; r < OWN; r++) {
        float inverse = inverse_of(t->power[r]);
#pragma unroll
        for (int f = 0; f < FEATURES; f++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                own[8 * r * ROW + 8 * f + e] = t->sums[f][2 * r + e] * inverse;
    }
    __syncthreads(); /* all rows are there */
#pragma unroll 1
    for (int i = warp; i < BLOCK_ROWS && first + i < a.rows; i += BLOCK_WARPS) {
        float *to = (float *)a.w + (split * a.rows + first + i) * a.features;
#pragma unroll 1
        for (int f = lane; f < a.features; f += LANES)
            to[f] = a.adds ? to[f] + sums[i * ROW + f] : sums[i * ROW + f];
    }
}
#endif

/* ---- A block ---- */

/* Begins to copy so many rows from `first` on, of `count`, to shared memory, in pieces of 16 bytes.
 * Not unrolled: addresses of pieces to come would take registers from the tile. */
static __device__ void fetch(char *to, const void *from, place first, long long count, int rows) {
    const char *source = (const char *)from + (long long)first * 2 * WIDTH;
    int left = (int)(count - first) * FEATURES;
#pragma unroll 1
    for (int t = threadIdx.x; t < rows * FEATURES; t += BLOCK_THREADS)
        copy_begin(to + 16 * (t + t / FEATURES), source + 16 * (t < left ? t : 0), t < left);
}

/* The tile's columns, which lie from j on: their similarities, and what the state makes of them. */
static __device__ void take_tile(state *t, const epilogue &a, warp_tile *c, left *x,
                                 const char *rows, const char *columns, epilogue_part *parts) {
    fragment s;
    place mine = c->j + threadIdx.x % LANES, other;
    bool mixed = false;
    other = c->column + (mine < c->columns ? mine : 0);
    c->others = link_place_of(a, other, CROSSED, STRAIGHT);
#pragma unroll
    for (int r = 0; STRAIGHT && r < OWN; r++)
        mixed |= touched(c->masks[r], c->column + c->j, COLUMNS);
    if (CROSSED) mixed |= touched(mask_row_of(a, other), c->row + c->i, WARP_ROWS);
    multiply(s, x, rows, columns);
    admit(a, c, other, mixed);
    state_take(t, a, *c, s, columns, parts);
}

static __device__ warp_tile warp_tile_of(const epilogue &a, place first) {
    warp_tile c;
    c.i = first + threadIdx.x / LANES * WARP_ROWS;
    c.rows = (place)a.rows;
    c.row = (place)a.row;
    c.columns = (place)a.columns;
    c.column = (place)a.column;
    c.all = link_all_of(a, 0);
#pragma unroll
    for (int r = 0; r < OWN; r++) {
        place at = row_in(c, r);
        at = c.row + (at < c.rows ? at : 0);
        c.own[r] = link_place_of(a, at, STRAIGHT, CROSSED);
        if (STRAIGHT) c.masks[r] = mask_row_of(a, at);
    }
    return c;
}

/* The rows from `first` on, with the split's share of the columns; the next tile comes while one is
 * used. Of both, where the diagonal begins at (0, 0), the tiles left of the block's own rows are
 * another's, those of its own rows have both halves, and those right of them are mirrored. The
 * warps' parts of a tile's columns are read while those of the next are made. */
static __device__ void take_block(const epilogue &a, place first, long long split) {
    char *rows = block_memory(), *tiles = rows + BLOCK_ROWS * PITCH;
    const char *own = rows + threadIdx.x / LANES * WARP_ROWS * PITCH;
    epilogue_part *parts = (epilogue_part *)(tiles + 2 * COLUMNS * PITCH);
    place count = (place)((a.columns + COLUMNS - 1) / COLUMNS);
    place each = (place)((count + a.splits - 1) / a.splits), begin = (place)split * each;
    place end = begin + each < count ? begin + each : count;
    bool diagonal = BOTH && a.row == a.column;
    place right = diagonal ? (first + BLOCK_ROWS) / COLUMNS : 0;
    if (diagonal && begin < first / COLUMNS) begin = first / COLUMNS;
    warp_tile c = warp_tile_of(a, first);
    left x;
    state t;
    state_begin(&t);
    if (begin < end) {
        fetch(rows, a.x, first, a.rows, BLOCK_ROWS);
        fetch(tiles, a.y, begin * COLUMNS, a.columns, COLUMNS);
    }
    copy_group();
    copy_wait(0);
    __syncthreads(); /* the block's rows and its first tile are there, of all threads */
    if (begin < end) keep(&x, own);
#pragma unroll 1
    for (place tile = begin; tile < end; tile++) {
        int turn = (tile - begin) % 2;
        epilogue_part *all = parts + turn * BLOCK_WARPS * COLUMNS;
        if (tile + 1 < end)
            fetch(tiles + (1 - turn) * COLUMNS * PITCH, a.y, (tile + 1) * COLUMNS, a.columns,
                  COLUMNS);
        copy_group();
        c.j = tile * COLUMNS;
        take_tile(&t, a, &c, &x, own, tiles + turn * COLUMNS * PITCH,
                  all + threadIdx.x / LANES * COLUMNS);
        copy_wait(0);
        __syncthreads(); /* the tile and its columns' parts are done; the next is there */
#if LN_EPILOGUE != EPILOGUE_FUSED_GRADIENT
        if (BOTH && tile >= right) store_columns(a, all, first / BLOCK_ROWS, tile * COLUMNS);
#endif
    }
    state_end(&t, a, first, rows, split);
    __syncthreads(); /* the memory serves the next block */
}

/* Of gradients, and of sums of wide rows, shared memory holds two or three blocks: unless told, the
 * compiler would spill registers for the sake of more. */
extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, 2) epilogue_kernel(epilogue a) {
    long long down = (a.rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    for (long long block = blockIdx.x; block < down * a.splits; block += gridDim.x)
        take_block(a, (place)(block % down * BLOCK_ROWS), block / down);
}
#endif
