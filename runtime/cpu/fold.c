/* Maps and folds of rows: see fold.h. Loops over cells only; knows no tensor and no operator. */
#include "fold.h"

void CPU(map_row)(map_kind map, ln_cell *restrict x, const double *restrict centre, int64_t n,
                  bool single) {
    double *f = &x->f;
    int64_t *whole = &x->i;
    switch (map) {
    case SAME: break;
    case NEGATIVE:
        for (int64_t i = 0; i < n; i++) f[i] = -f[i];
        break;
    case INVERSE:
        for (int64_t i = 0; i < n; i++) whole[i] = ~whole[i];
        break;
    case NONZERO:
        for (int64_t i = 0; i < n; i++) f[i] = f[i] != 0;
        break;
    case ZERO:
        for (int64_t i = 0; i < n; i++) f[i] = f[i] == 0;
        break;
    case ABSOLUTE:
        for (int64_t i = 0; i < n; i++) f[i] = fabs(f[i]);
        break;
    case SQUARE:
        for (int64_t i = 0; i < n; i++) f[i] *= f[i];
        break;
    case DEVIATION:
        for (int64_t i = 0; i < n; i++) f[i] = (f[i] - centre[i]) * (f[i] - centre[i]);
        break;
    case EXPONENTIAL:
        for (int64_t i = 0; i < n; i++) f[i] -= centre[i];
        CPU(row_exp)(f, n, single);
    }
}

void CPU(fold_row)(fold_kind fold, ln_cell *restrict a, const ln_cell *restrict x, int64_t n) {
    double *af = &a->f;
    const double *xf = &x->f;
    uint64_t *au = &a->u;
    const uint64_t *xu = &x->u;
    switch (fold) {
    case ADD:
        for (int64_t i = 0; i < n; i++) af[i] += xf[i];
        break;
    case MULTIPLY:
        for (int64_t i = 0; i < n; i++) af[i] *= xf[i];
        break;
    case MAXIMUM:
        for (int64_t i = 0; i < n; i++) af[i] = (xf[i] > af[i]) | (xf[i] != xf[i]) ? xf[i] : af[i];
        break;
    case ADD_INTEGER:
        for (int64_t i = 0; i < n; i++) au[i] += xu[i];
        break;
    case MULTIPLY_INTEGER:
        for (int64_t i = 0; i < n; i++) au[i] *= xu[i];
        break;
    case MAXIMUM_INTEGER:
        for (int64_t i = 0; i < n; i++) au[i] = (int64_t)xu[i] > (int64_t)au[i] ? xu[i] : au[i];
    }
}

static ln_cell start_of(fold_kind fold) {
    switch (fold) {
    case MULTIPLY: return (ln_cell){.f = 1};
    case MULTIPLY_INTEGER: return (ln_cell){.i = 1};
    case MAXIMUM: return (ln_cell){.f = -INFINITY};
    case MAXIMUM_INTEGER: return (ln_cell){.i = INT64_MIN};
    default: return (ln_cell){.i = 0}; /* 0.0 too */
    }
}

void CPU(fold_start)(fold_kind fold, ln_cell *lanes, int64_t n) {
    uint64_t *u = &lanes->u, start = start_of(fold).u;
    for (int64_t i = 0; i < n; i++) u[i] = start;
}

void CPU(fold_lanes)(fold_kind fold, ln_cell *lanes, int64_t columns, int64_t replicas) {
    for (int64_t width = replicas, half; width > 1; width = half) {
        half = (width + 1) / 2;
        CPU(fold_row)(fold, lanes, lanes + half * columns, (width - half) * columns);
    }
}

static void extremes_of_integers(int64_t *restrict a, int64_t *restrict a_at,
                                 const int64_t *restrict x, const int64_t *restrict x_at,
                                 int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        bool take = (x[i] > a[i]) | ((x[i] == a[i]) & (x_at[i] < a_at[i]));
        a[i] = take ? x[i] : a[i];
        a_at[i] = take ? x_at[i] : a_at[i];
    }
}

static void extremes_of_doubles(double *restrict a, int64_t *restrict a_at,
                                const double *restrict x, const int64_t *restrict x_at, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        bool x_nan = x[i] != x[i], a_nan = a[i] != a[i];
        bool above = (x[i] > a[i]) | (x_nan & !a_nan);
        bool level = (x[i] == a[i]) | (x_nan & a_nan);
        bool take = above | (level & (x_at[i] < a_at[i]));
        a[i] = take ? x[i] : a[i];
        a_at[i] = take ? x_at[i] : a_at[i];
    }
}

void CPU(fold_extremes)(bool integer, ln_cell *a, ln_cell *a_at, const ln_cell *x,
                        const ln_cell *x_at, int64_t n) {
    if (integer) extremes_of_integers(&a->i, &a_at->i, &x->i, &x_at->i, n);
    else extremes_of_doubles(&a->f, &a_at->i, &x->f, &x_at->i, n);
}

/* ---- Packed float32 ---- */

static bool has_nan(const float *x, int64_t n) {
    int found = 0;
    for (int64_t i = 0; i < n; i++) found |= x[i] != x[i];
    return found;
}

bool CPU(map_fold_floats)(map_kind map, fold_kind fold, double *restrict lanes, const float *x,
                          int64_t n) {
    if (map == SAME && fold == ADD)
        for (int64_t i = 0; i < n; i++) lanes[i] += x[i];
    else if (map == SQUARE && fold == ADD)
        for (int64_t i = 0; i < n; i++) lanes[i] += (double)x[i] * x[i];
    else if (map == SAME && fold == MAXIMUM && !has_nan(x, n))
        for (int64_t i = 0; i < n; i++) lanes[i] = x[i] > lanes[i] ? x[i] : lanes[i];
    else return false;
    return true;
}

bool CPU(can_fold_floats)(map_kind map, fold_kind fold) {
    if (fold == MAXIMUM) return map == SAME;
    return fold == ADD && (map == SAME || map == SQUARE || map == EXPONENTIAL);
}

void CPU(fold_floats)(map_kind map, fold_kind fold, double *a, const float *x, double centre,
                      int64_t n) {
    if (fold == MAXIMUM) {
        double most = CPU(float_max)(x, n);
        *a = most > *a || most != most ? most : *a;
    } else if (map == SAME) {
        *a += CPU(float_sum)(x, n);
    } else if (map == SQUARE) {
        *a += CPU(float_squares)(x, n);
    } else {
        *a += CPU(float_exp)(NULL, x, (float)centre, n);
    }
}

/* What the rows add to a lane is added up in float32: its error in so few terms is far below that
 * of the result's own rounding. */
void CPU(add_four_floats)(double *restrict lanes, const float *x, int64_t pitch, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        lanes[i] += (x[i] + x[i + pitch]) + (x[i + 2 * pitch] + x[i + 3 * pitch]);
}
