/* Single elements of any dtype, to and from host doubles, and the formats of half precision. Knows
 * no tensor. Invariant: what a dtype holds exactly comes back unchanged; other values are rounded
 * to the nearest, integers saturate. */
#include "backend.h"

#include <math.h>
#include <string.h>

float ln_bfloat16_to_float(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

uint16_t ln_float_to_bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float ln_float16_to_float(uint16_t x) {
    uint32_t sign = (uint32_t)(x & 0x8000) << 16, exponent = x >> 10 & 31, fraction = x & 0x3ff;
    float f;
    if (exponent == 0) { /* zero and subnormals: fraction * 2^-24 */
        f = (float)fraction * 0x1p-24f;
        return sign ? -f : f;
    }
    uint32_t bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
    memcpy(&f, &bits, sizeof f);
    return f;
}

uint16_t ln_float_to_float16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return (uint16_t)(sign | 0x7e00);  /* NaN */
    if (bits >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* rounds to infinity */
    if (bits < 0x38800000) {                                  /* subnormal: the adder rounds */
        float magnitude;
        memcpy(&magnitude, &bits, sizeof magnitude);
        magnitude += 0.5f; /* the last place of [0.5, 1) is 2^-24, float16's smallest step */
        memcpy(&bits, &magnitude, sizeof bits);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    return (uint16_t)(sign | ((bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13));
}

double ln_element_get(int dtype, const void *p) {
    switch (dtype) {
    case LN_FLOAT32: return *(const float *)p;
    case LN_FLOAT64: return *(const double *)p;
    case LN_BFLOAT16: return ln_bfloat16_to_float(*(const uint16_t *)p);
    case LN_FLOAT16: return ln_float16_to_float(*(const uint16_t *)p);
    case LN_INT64: return (double)*(const int64_t *)p;
    case LN_INT32: return *(const int32_t *)p;
    default: return *(const uint8_t *)p; /* uint8 and bool */
    }
}

static int64_t saturate(double v, double low, double high, int64_t lowest, int64_t highest) {
    if (v != v) return 0;
    return v <= low ? lowest : v >= high ? highest : (int64_t)v;
}

void ln_element_set(int dtype, void *p, double v) {
    switch (dtype) {
    case LN_FLOAT32: *(float *)p = (float)v; break;
    case LN_FLOAT64: *(double *)p = v; break;
    case LN_BFLOAT16: *(uint16_t *)p = ln_float_to_bfloat16((float)v); break;
    case LN_FLOAT16: *(uint16_t *)p = ln_float_to_float16((float)v); break;
    case LN_INT64: *(int64_t *)p = saturate(v, -0x1p63, 0x1p63, INT64_MIN, INT64_MAX); break;
    case LN_INT32:
        *(int32_t *)p = (int32_t)saturate(v, INT32_MIN, INT32_MAX, INT32_MIN, INT32_MAX);
        break;
    case LN_UINT8: *(uint8_t *)p = (uint8_t)saturate(v, 0, 255, 0, 255); break;
    default: *(uint8_t *)p = v != 0; break; /* bool */
    }
}

double ln_element_below(int dtype, double b) {
    if (dtype == LN_FLOAT64) return nextafter(b, -INFINITY);
    if (dtype == LN_FLOAT32) return (float)b < b ? (float)b : nextafterf((float)b, -INFINITY);
    uint16_t x; /* sign and magnitude: the value below is one magnitude less, or more */
    ln_element_set(dtype, &x, b);
    if (ln_element_get(dtype, &x) >= b) x = x == 0 ? 0x8001 : x & 0x8000 ? x + 1 : x - 1;
    return ln_element_get(dtype, &x);
}
