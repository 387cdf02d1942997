/* Random numbers as functions of an address: Philox4x32-10 and the distributions drawn from it, as
 * inline functions for CPU kernels, loader threads and, with LN_INLINE defined before inclusion,
 * device code. Holds no state. Invariants: a number depends on (seed, stream, index) alone; every
 * floating-point step here is correctly rounded, so a file that includes this one and is compiled
 * without fused multiply-add gives the same bits on every instruction set.
 *
 * The address: index i of a stream owns 64 bits, words 2 (i mod 2) and 2 (i mod 2) + 1 (low word
 * first) of the block at the counter (i / 2, stream) under the key `seed`. All distributions and
 * dtypes draw from those bits; a normal pair takes both halves of its block. */
#ifndef LN_RANDOM_H
#define LN_RANDOM_H
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifndef LN_INLINE
#define LN_INLINE static inline
#endif

/* The four words at one counter, as two pairs of low and high. In the order of Philox's own
 * definition, the counter is (block low, block high, stream low, stream high) and the key (seed
 * low, seed high). */
typedef struct {
    uint64_t even, odd;
} ln_philox_block;

LN_INLINE ln_philox_block ln_philox_at(uint64_t seed, uint64_t stream, uint64_t block) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    uint32_t c0 = (uint32_t)block, c1 = (uint32_t)(block >> 32);
    uint32_t c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    ln_philox_block b = {c0 | (uint64_t)c1 << 32, c2 | (uint64_t)c3 << 32};
    return b;
}

/* The 64 bits of one index. */
LN_INLINE uint64_t ln_random_bits(uint64_t seed, uint64_t stream, uint64_t index) {
    ln_philox_block b = ln_philox_at(seed, stream, index / 2);
    return index % 2 ? b.odd : b.even;
}

/* [0, 1), all multiples of 2^-53. Converted in two halves, as vector units convert 32 bits. */
LN_INLINE double ln_uniform(uint64_t bits) {
    return (double)(int32_t)(bits >> 37) * 0x1p-27 +
           (double)(int32_t)(bits >> 11 & 0x3ffffff) * 0x1p-53;
}

/* 0 <= integer < n, for 1 <= n <= 2^53: the high half of bits * n. No value's probability is off
 * by more than n / 2^64 of itself. */
LN_INLINE uint64_t ln_integer(uint64_t bits, uint64_t n) {
    uint64_t low = (bits & 0xffffffff) * (n & 0xffffffff) >> 32;
    uint64_t a = (bits >> 32) * (n & 0xffffffff), b = (bits & 0xffffffff) * (n >> 32);
    uint64_t carry = (low + (a & 0xffffffff) + (b & 0xffffffff)) >> 32;
    return (bits >> 32) * (n >> 32) + (a >> 32) + (b >> 32) + carry;
}

/* log x for normal x > 0: x = 2^e m with m in [sqrt(1/2), sqrt(2)), and log m = 2 artanh(s) for
 * s = (m-1)/(m+1), whose series in s^2 < 0.0295 is cut below 2^-55. */
LN_INLINE double ln_random_log(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int32_t e = ((int32_t)(bits >> 32) - 0x3fe6a09e) >> 20;
    bits -= (uint64_t)(uint32_t)e << 52;
    double m;
    memcpy(&m, &bits, sizeof m);
    double s = (m - 1) / (m + 1), z = s * s, series = 1.0 / 19;
    series = series * z + 1.0 / 17;
    series = series * z + 1.0 / 15;
    series = series * z + 1.0 / 13;
    series = series * z + 1.0 / 11;
    series = series * z + 1.0 / 9;
    series = series * z + 1.0 / 7;
    series = series * z + 1.0 / 5;
    series = series * z + 1.0 / 3;
    return e * 0.69314718055994531 + (2 * s + 2 * s * (z * series));
}

/* Taylor's series of cos x and sin x / x in z = x^2, for |x| <= pi/4: cut below 2^-53. */
LN_INLINE double ln_random_cos(double z) {
    double series = 1.0 / 20922789888000;
    series = series * z - 1.0 / 87178291200;
    series = series * z + 1.0 / 479001600;
    series = series * z - 1.0 / 3628800;
    series = series * z + 1.0 / 40320;
    series = series * z - 1.0 / 720;
    series = series * z + 1.0 / 24;
    series = series * z - 0.5;
    return series * z + 1;
}

LN_INLINE double ln_random_sinc(double z) {
    double series = -1.0 / 1307674368000;
    series = series * z + 1.0 / 6227020800;
    series = series * z - 1.0 / 39916800;
    series = series * z + 1.0 / 362880;
    series = series * z - 1.0 / 5040;
    series = series * z + 1.0 / 120;
    series = series * z - 1.0 / 6;
    return series * z + 1;
}

/* Two independent standard normals from the bits of an even index and of the next one, by
 * Box-Muller: the radius from the first, the angle from the second. */
LN_INLINE void ln_normal_pair(double *even, double *odd, uint64_t first, uint64_t second) {
    double radius = sqrt(-2 * ln_random_log(1 - ln_uniform(first)));
    double turns = 4 * ln_uniform(second); /* in quarters; split into the nearest and a rest */
    int32_t quarter = (int32_t)(turns + 0.5);
    double x = (turns - quarter) * 1.5707963267948966, z = x * x;
    double c = radius * ln_random_cos(z), s = radius * (x * ln_random_sinc(z));
    double a = quarter & 1 ? s : c, b = quarter & 1 ? c : s;
    *even = (quarter + 1) & 2 ? -a : a;
    *odd = quarter & 2 ? -b : b;
}

/* Fisher-Yates: p[i] trades places with one of p[0..i], drawn at index i. */
LN_INLINE void ln_shuffle(int64_t *p, int64_t n, uint64_t seed, uint64_t stream) {
    for (int64_t i = n - 1; i > 0; i--) {
        uint64_t bits = ln_random_bits(seed, stream, (uint64_t)i);
        int64_t j = (int64_t)ln_integer(bits, (uint64_t)i + 1), held = p[i];
        p[i] = p[j];
        p[j] = held;
    }
}

#endif
