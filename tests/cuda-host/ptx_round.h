/* Numbers as PTX's instructions round them: directions, halves, and what special function units
 * give. Holds no instructions. Invariant: an approximation is off by as much as the ISA's
 * documentation allows, upwards or downwards as the bits of its operand decide: code that needs
 * more than the unit promises fails here, whatever a particular device's unit gives. */
#ifndef LN_CUDA_HOST_PTX_ROUND_H
#define LN_CUDA_HOST_PTX_ROUND_H
#include <stdint.h>

#include <type_traits>

/* ---- Halves ---- */

enum ptx_half { PTX_FLOAT16, PTX_BFLOAT16 };
float ptx_half_value(ptx_half kind, uint16_t bits);
/* Nearest even. */
uint16_t ptx_half_bits(ptx_half kind, float x);

/* ---- Special function units ---- */

float ptx_flushed(float x); /* 0 of its sign where x is subnormal */
float ptx_ex2(float x);
float ptx_lg2(float x);
float ptx_rcp(float x);
float ptx_sqrt(float x);
float ptx_rsqrt(float x);
float ptx_tanh(float x);
float ptx_sin(float x);
float ptx_cos(float x);
float ptx_div(float x, float y);
double ptx_rcp_ftz(double x); /* of its upper word: 20 bits */

/* ---- Directions ---- */

enum ptx_direction { PTX_NEAREST, PTX_ZERO, PTX_DOWN, PTX_UP };

/* Sets the direction that arithmetic rounds in; the compiler must see `held` values before. */
void ptx_round_to(ptx_direction direction);

/* A value that the compiler computes here, and not elsewhere. */
template <typename T> static inline T ptx_held(T x) {
    asm volatile("" : "+m"(x) : : "memory");
    return x;
}

/* The NaN that a device makes. */
static inline float ptx_canonical(float x) {
    union {
        uint32_t bits;
        float x;
    } nan = {0x7fffffff};
    return x == x ? x : nan.x;
}

static inline double ptx_canonical(double x) {
    return x;
}

#endif
