/* exp, log and log1p of float as inline code without branches, which the compiler vectorises into
 * the loop around it; every other function is <tgmath.h>'s. Included in its place by loops over
 * many floats: calls of a vector library for every vector take longer. Error: below 1 ulp for exp,
 * 2 for the logarithms; zeros, infinities and NaN as C has them, and subnormals but for what exp
 * gives.
 * Polynomials are minimax in the relative error of the whole result, and computed by pairs of
 * terms, which wait less for each other than one after the other. Internal to cpu/. */
#ifndef LN_CPU_VECTOR_MATH_H
#define LN_CPU_VECTOR_MATH_H
#include <stdbool.h>
#include <stdint.h>
#include <tgmath.h>

#define LN2_HIGH 0x1.62e4p-1f /* k times it is exact */
#define LN2_LOW 0x1.7f7d1cp-20f
#define LN2 0x1.62e43p-1f /* off by 2e-9; serves where products are not rounded */
#ifdef __FMA__
#define FUSED true
#else
#define FUSED false
#endif

typedef union {
    float value;
    int32_t bits;
} float_bits;

static inline float power_of_two(int32_t k) {
    return (float_bits){.bits = (int32_t)((uint32_t)(k + 127) << 23)}.value;
}

/* e^x = 2^k e^r, |r| <= log(2) / 2, as k added to the exponent of e^r. in_one: by LN2, with e^x off
 * by what that is off times k. */
static inline float float_exp_parts(float x, bool in_one) {
    const float shift = 0x1.8p23f; /* adding it rounds to a whole number, in the low bits */
    float_bits whole = {.value = x * 0x1.715476p+0f + shift};
    float k = whole.value - shift;
    float r = in_one ? x - k * LN2 : x - k * LN2_HIGH - k * LN2_LOW;
    float p = 0x1.6a108p-10f * r + 0x1.1245c8p-7f, square = r * r;
    p = p * square + (0x1.55593cp-5f * r + 0x1.555482p-3f);
    p = p * square + (0x1.fffffcp-2f * r + 1);
    float_bits y = {.value = p * r + 1};
    y.bits = (int32_t)((uint32_t)y.bits + ((uint32_t)whole.bits << 23));
    return y.value;
}

/* Below the least normal number it is 0. */
static inline float float_exp(float x) {
    float normal = x < -87.33f ? 0 : float_exp_parts(x, false);
    return x < 88.72284f ? normal : x + INFINITY; /* a NaN stays one */
}

static inline float float_exp_inside(float x) {
    return float_exp_parts(x, FUSED);
}

#define LOG_LEAST 0x3f3504f3 /* sqrt(1/2): 1 + f lies between it and its double */

/* log(2^k (1 + f)). */
static inline float float_log_sum(int32_t k, float f) {
    float exponent = (float)k, square = f * f, rest = 0.08700436f * f - 0.14267487f;
    rest = rest * square + (0.14914768f * f - 0.16577585f);
    rest = rest * square + (0.19963064f * f - 0.25001337f);
    rest = rest * square + (0.33333910f * f - 0.5f);
    if (FUSED) return exponent * LN2 + (square * rest + f);
    return f + (square * rest + exponent * LN2_LOW) + exponent * LN2_HIGH;
}

/* log(x + rest), where rest is what rounding took from x: x = 2^k (1 + f) of the positive number
 * 2^-raised x. */
static inline float float_log_parts(float x, int32_t raised, float rest) {
    int32_t bits = (int32_t)((uint32_t)(float_bits){.value = x}.bits - (uint32_t)LOG_LEAST);
    int32_t k = bits >> 23;
    float f = (float_bits){.bits = (bits & 0x7fffff) + LOG_LEAST}.value - 1;
    f += rest * power_of_two(k > 127 ? -127 : -k);
    return float_log_sum(k - raised, f);
}

static inline float float_log_ends(float x, float y) {
    float below = x == 0 ? -INFINITY : NAN;
    y = x < INFINITY ? y : x;
    return x > 0 ? y : below;
}

/* A subnormal is told by bits, for of a condition that comes twice the compiler makes two paths. */
static inline float float_log(float x) {
    int32_t raised = -(x < 0x1p-126f) & 23;
    return float_log_ends(x, float_log_parts(x * power_of_two(raised), raised, 0));
}

static inline float float_log1p(float x) {
    float sum = 1 + x;
    return float_log_ends(sum, float_log_parts(sum, 0, x - (sum - 1)));
}

/* log(less + x), of a positive sum: with s = 2^-k, f = s x + (s less - 1), rounded once. */
static inline float float_log_plus(float x, float less) {
    int32_t bits = (int32_t)((uint32_t)(float_bits){.value = less + x}.bits - (uint32_t)LOG_LEAST);
    float s = (float_bits){.bits = 0x3f800000 - (bits & (int32_t)0xff800000)}.value;
    return float_log_sum(bits >> 23, s * x + (s * less - 1));
}

static inline float float_log_inside(float x) {
    return float_log_plus(x, 0);
}

static inline float float_log1p_inside(float x) {
    return float_log_plus(x, 1);
}

#undef exp
#undef log
#undef log1p
#define exp(x) _Generic((x), float : float_exp, double : (exp))(x)
#define log(x) _Generic((x), float : float_log, double : (log))(x)
#define log1p(x) _Generic((x), float : float_log1p, double : (log1p))(x)

/* The same, faster, of arguments that are known: from -87 to 88 for exp; for log, and 1 + x for
 * log1p, positive and neither subnormal nor near the largest number. exp_inside is off by 1.5 ulp
 * up to |x| = 20, and by 5 at the ends, where rounding x makes e^x differ by more. */
#define exp_inside(x) _Generic((x), float : float_exp_inside, double : (exp))(x)
#define log_inside(x) _Generic((x), float : float_log_inside, double : (log))(x)
#define log1p_inside(x) _Generic((x), float : float_log1p_inside, double : (log1p))(x)

#endif
