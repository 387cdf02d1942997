/* Rounding for the interpreter of PTX: see ptx_round.h. Invariant: errors of approximations are
 * those of the ISA's tables, in units of the last place or of the value. */
#include "ptx_round.h"

#include <fenv.h>
#include <math.h>
#include <string.h>

#include <vector>

void ptx_round_to(ptx_direction direction) {
    static const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
    fesetround(modes[direction]);
}

/* ---- Halves ---- */

/* Bits of the fraction, and the exponent of the smallest normal number. */
static const struct { int fraction, least; } shapes[] = {{10, -14}, {7, -126}};

static float half_value(ptx_half kind, uint16_t bits) {
    int fraction = shapes[kind].fraction, least = shapes[kind].least;
    int exponent = (bits & 0x7fff) >> fraction, rest = bits & ((1 << fraction) - 1);
    double size = exponent == 0 ? ldexp(rest, least - fraction)
                                : ldexp((1 << fraction) + rest, exponent - 1 + least - fraction);
    if (exponent == (0x7fff >> fraction)) size = rest == 0 ? INFINITY : NAN;
    return ptx_canonical((float)(bits & 0x8000 ? -size : size));
}

float ptx_half_value(ptx_half kind, uint16_t bits) {
    static const std::vector<float> values = [] {
        std::vector<float> all(2 << 16);
        for (size_t n = 0; n < all.size(); n++)
            all[n] = half_value((ptx_half)(n >> 16), (uint16_t)n);
        return all;
    }();
    return values[(size_t)kind << 16 | bits];
}

uint16_t ptx_half_bits(ptx_half kind, float x) {
    int fraction = shapes[kind].fraction, least = shapes[kind].least;
    uint16_t sign = signbit(x) ? 0x8000 : 0, infinite = (uint16_t)(0x7fff >> fraction << fraction);
    if (x != x) return 0x7fff;
    if (isinf(x)) return sign | infinite;
    if (x == 0) return sign;
    int exponent = ilogb((double)x) > least ? ilogb((double)x) : least;
    /* The fraction carries into the exponent where it rounds up to the next power of two. */
    double units = nearbyint(ldexp(fabs((double)x), fraction - exponent));
    double bits = units + ldexp(exponent - least, fraction);
    return sign | (bits < infinite ? (uint16_t)bits : infinite);
}

/* ---- Special function units ---- */

float ptx_flushed(float x) {
    return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x;
}

/* 1 or -1, by the bits. */
static double side_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits ^ bits >> 15) * 0x2c1b3c6du;
    return (bits ^ bits >> 13) & 1 ? 1 : -1;
}

static float off_by(double exact, double relative, float x) {
    return (float)(exact * (1 + relative * side_of(x)));
}

/* So many units of the last place beside the nearest. */
static float off_by_units(double exact, int units, float x) {
    float y = (float)exact, to = side_of(x) > 0 ? INFINITY : -INFINITY;
    if (y == 0 || isinf(y) || y != y) return ptx_canonical(y);
    for (int n = 0; n < units; n++) y = nextafterf(y, to);
    return y;
}

/* Of a whole number exact, on which CUDA's own tanh of float64 relies. */
float ptx_ex2(float x) {
    double exact = exp2((double)x);
    return x != x || truncf(x) == x ? ptx_canonical((float)exact) : off_by(exact, 0x1p-22, x);
}

/* The error is absolute between 1/2 and 2. */
float ptx_lg2(float x) {
    double exact = log2((double)x);
    if (x < 0 || x != x) return ptx_canonical(NAN);
    if (isinf(exact)) return (float)exact;
    return x > 0.5f && x < 2 ? (float)(exact + 0x1p-22 * side_of(x)) : off_by(exact, 0x1p-22, x);
}

float ptx_rcp(float x) {
    return off_by_units(1 / (double)x, 1, x);
}

float ptx_sqrt(float x) {
    return x == 0 ? x : ptx_canonical(off_by(sqrt((double)x), 0x1p-23, x));
}

float ptx_rsqrt(float x) {
    return ptx_canonical(off_by(1 / sqrt((double)x), 0x1.12p-23, x));
}

float ptx_tanh(float x) {
    float y = off_by(tanh((double)x), 0x1p-11, x);
    return ptx_canonical(y > 1 ? 1 : y < -1 ? -1 : y);
}

float ptx_sin(float x) {
    return ptx_canonical((float)(sin((double)x) + 0x1.6p-21 * side_of(x)));
}

float ptx_cos(float x) {
    return ptx_canonical((float)(cos((double)x) + 0x1.6p-21 * side_of(x)));
}

/* Where y is too large for its reciprocal, the documentation promises 0 of finite numbers. */
float ptx_div(float x, float y) {
    if (fabsf(y) > 0x1p126f && !isinf(x)) return x != x || y != y ? ptx_canonical(NAN) : x * 0;
    return off_by_units((double)x / (double)y, 2, x);
}

double ptx_rcp_ftz(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits &= ~0xffffffffull;
    memcpy(&x, &bits, sizeof bits);
    double y = fabs(x) < 0x1p-1022 ? copysign(INFINITY, x) : 1 / x;
    memcpy(&bits, &y, sizeof bits);
    bits &= ~0xffffffffull;
    memcpy(&y, &bits, sizeof bits);
    return fabs(y) < 0x1p-1022 ? copysign(0, y) : y;
}
