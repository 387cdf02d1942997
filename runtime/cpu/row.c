/* Rows of elements to cells and back, and row-major copies: see row.h. Knows dtypes, but no
 * operator. */
#include "row.h"

/* Loops over the dtypes that are the same for both readings of an integer. */
static void load_integers(int64_t *restrict row, const void *x, int dtype, int64_t n,
                          int64_t stride) {
    switch (dtype) {
    case LN_INT64:
        for (int64_t i = 0; i < n; i++) row[i] = ((const int64_t *)x)[i * stride];
        break;
    case LN_INT32:
        for (int64_t i = 0; i < n; i++) row[i] = ((const int32_t *)x)[i * stride];
        break;
    default: /* uint8 and bool */
        for (int64_t i = 0; i < n; i++) row[i] = ((const uint8_t *)x)[i * stride];
    }
}

void CPU(row_load)(void *restrict row, const void *x, int dtype, int64_t n, int64_t stride,
                   bool integer) {
    double *f = row;
    ln_cell *cell = row;
    const uint16_t *half = x;
    switch (dtype) {
    case LN_FLOAT32:
        for (int64_t i = 0; i < n; i++) f[i] = ((const float *)x)[i * stride];
        break;
    case LN_FLOAT64:
        for (int64_t i = 0; i < n; i++) f[i] = ((const double *)x)[i * stride];
        break;
    case LN_BFLOAT16:
        for (int64_t i = 0; i < n; i++) f[i] = ln_bfloat16_to_float(half[i * stride]);
        break;
    case LN_FLOAT16:
        for (int64_t i = 0; i < n; i++) f[i] = ln_float16_to_float(half[i * stride]);
        break;
    default:
        load_integers(row, x, dtype, n, stride);
        if (integer) return;
        for (int64_t i = 0; i < n; i++) cell[i].f = (double)cell[i].i;
    }
}

void CPU(row_store)(void *y, const void *restrict row, int dtype, int64_t n, int64_t stride) {
    const double *f = row;
    const int64_t *whole = row;
    uint16_t *half = y;
    switch (dtype) {
    case LN_FLOAT32:
        for (int64_t i = 0; i < n; i++) ((float *)y)[i * stride] = (float)f[i];
        break;
    case LN_FLOAT64:
        for (int64_t i = 0; i < n; i++) ((double *)y)[i * stride] = f[i];
        break;
    case LN_BFLOAT16:
        for (int64_t i = 0; i < n; i++) half[i * stride] = ln_float_to_bfloat16((float)f[i]);
        break;
    case LN_FLOAT16:
        for (int64_t i = 0; i < n; i++) half[i * stride] = ln_float_to_float16((float)f[i]);
        break;
    case LN_INT64:
        for (int64_t i = 0; i < n; i++) ((int64_t *)y)[i * stride] = whole[i];
        break;
    case LN_INT32:
        for (int64_t i = 0; i < n; i++) ((int32_t *)y)[i * stride] = (int32_t)whole[i];
        break;
    case LN_UINT8:
        for (int64_t i = 0; i < n; i++) ((uint8_t *)y)[i * stride] = (uint8_t)whole[i];
        break;
    default: /* bool */
        for (int64_t i = 0; i < n; i++) ((uint8_t *)y)[i * stride] = whole[i] != 0;
    }
}

double CPU(row_sum)(const double *row, int64_t n) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += row[i];
    return sum;
}

/* Rounds up to whole vectors, filling the rest of the last with zeros. */
static int64_t pad_floats(float *x, int64_t n) {
    int64_t padded = ceil_div(n, ROW_MULTIPLE) * ROW_MULTIPLE;
    for (int64_t i = n; i < padded; i++) x[i] = 0;
    return padded;
}

static void exp_floats(float *x, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) x[i] = expf(x[i]);
}

static void exp_single(double *row, int64_t n) {
    float x[ROW];
    for (int64_t start = 0; start < n; start += ROW) {
        int64_t count = smaller(ROW, n - start);
        for (int64_t i = 0; i < count; i++) x[i] = (float)row[start + i];
        exp_floats(x, pad_floats(x, count));
        for (int64_t i = 0; i < count; i++) row[start + i] = x[i];
    }
}

void CPU(row_exp)(double *row, int64_t n, bool single) {
    if (single) {
        exp_single(row, n);
        return;
    }
    int64_t padded = ceil_div(n, ROW_MULTIPLE) * ROW_MULTIPLE;
    for (int64_t i = n; i < padded; i++) row[i] = 0;
#pragma omp simd
    for (int64_t i = 0; i < padded; i++) row[i] = exp(row[i]);
}

/* Four neighbours of each lane are added in float32 first: a conversion to double costs as much as
 * two additions, and the error of so few is far below that of the result's own rounding. */
double CPU(float_sum)(const float *x, int64_t n) {
    enum { LANES = 8, STEP = 4 * LANES };
    double lanes[LANES] = {0}, sum = 0;
    int64_t whole = n - n % STEP;
    for (int64_t i = 0; i < whole; i += STEP)
#pragma omp simd
        for (int k = 0; k < LANES; k++)
            lanes[k] +=
                (x[i + k] + x[i + k + LANES]) + (x[i + k + 2 * LANES] + x[i + k + 3 * LANES]);
    for (int64_t i = whole; i < n; i++) sum += x[i];
    for (int k = 0; k < LANES; k++) sum += lanes[k];
    return sum;
}

double CPU(float_squares)(const float *x, int64_t n) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sum;
}

float CPU(float_max)(const float *x, int64_t n) {
    float most = -INFINITY;
    int nan = 0;
#pragma omp simd reduction(max : most) reduction(| : nan)
    for (int64_t i = 0; i < n; i++) {
        most = x[i] > most ? x[i] : most;
        nan |= x[i] != x[i];
    }
    return nan ? NAN : most;
}

double CPU(float_exp)(float *y, const float *x, float shift, int64_t n) {
    float block[ROW];
    double sum = 0;
    for (int64_t start = 0; start < n; start += ROW) {
        int64_t count = smaller(ROW, n - start);
        for (int64_t i = 0; i < count; i++) block[i] = x[start + i] - shift;
        exp_floats(block, pad_floats(block, count));
        sum += CPU(float_sum)(block, count);
        if (y != NULL) memcpy(y + start, block, (size_t)count * sizeof *y);
    }
    return sum;
}

static ln_status row_major_like(ln_tensor **made, const ln_tensor *t, const char *what) {
    return ln_out(made, t->dtype, ln_device(t), t->ndim, t->shape, what);
}

ln_status CPU(row_major)(ln_tensor **made, const ln_tensor **x, const char *what) {
    if (*x == NULL || ln_is_contiguous(*x)) return LN_OK;
    ln_status status = row_major_like(made, *x, what);
    if (status == LN_OK) status = CPU(copy)(*made, *x);
    if (status == LN_OK) *x = *made;
    return status;
}

ln_status CPU(row_major_out)(ln_tensor **made, ln_tensor **y, const char *what) {
    if (*y == NULL || ln_is_contiguous(*y)) return LN_OK;
    ln_status status = row_major_like(made, *y, what);
    if (status == LN_OK) *y = *made;
    return status;
}

ln_status CPU(row_major_end)(ln_tensor *y, ln_tensor *made) {
    return made == NULL ? LN_OK : CPU(copy)(y, made);
}
