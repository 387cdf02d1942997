/* The functions of links of similarities in halves, from the device's special function units: this
 * file is their text, for kernels that are compiled at run time. It includes nothing. Invariants:
 * errors stay below 1e-5 of the value, or of 1 where the value is a logarithm, while exponents and
 * powers are below some 40: little beside what halves leave of a similarity; and nothing branches,
 * since a tile has each of them 16 times. */

/* A unit's instruction, and what it computes. */
#ifdef __CUDACC__
#define UNIT(name, instruction, computed)                                                          \
    static __device__ float name(float x) {                                                        \
        float y;                                                                                   \
        asm(instruction ".f32 %0, %1;" : "=f"(y) : "f"(x));                                        \
        return y;                                                                                  \
    }
#else
#define UNIT(name, instruction, computed)                                                          \
    static float name(float x) {                                                                   \
        return computed;                                                                           \
    }
#endif
UNIT(unit_exp2, "ex2.approx.ftz", exp2f(x)) /* results below 2^-126 are 0 */
UNIT(unit_log2, "lg2.approx", log2f(x))
UNIT(unit_reciprocal, "rcp.approx.ftz", 1 / x) /* 0 of numbers above 2^126 */
UNIT(special_sqrt, "sqrt.approx", sqrtf(x))

static __device__ float special_fabs(float x) {
    return fabsf(x);
}

static __device__ float special_fmax(float x, float y) {
    return fmaxf(x, y);
}

/* The reciprocal of a number that all entries share is taken once. */
static __device__ float quotient(float x, float y) {
    return x * unit_reciprocal(y);
}

static __device__ float special_exp(float x) {
    return unit_exp2(x * 1.44269504f);
}

static __device__ float special_log(float x) {
    return unit_log2(x) * 0.693147181f;
}

/* Near 0, where 1 + x would lose what x has, by the series. */
static __device__ float special_log1p(float x) {
    float near = 1 / 5.0f - x * (1 / 6.0f - x * (1 / 7.0f));
    near = 1 - x * (1 / 2.0f - x * (1 / 3.0f - x * (1 / 4.0f - x * near)));
    float far = special_log(1 + x);
    return fabsf(x) < 0.125f ? x * near : far;
}

static __device__ float special_expm1(float x) {
    float near = 1 + x * (1 / 2.0f + x * (1 / 6.0f + x * (1 / 24.0f + x * (1 / 120.0f))));
    float far = special_exp(x) - 1;
    return fabsf(x) < 0.125f ? x * near : far;
}

static __device__ float special_tanh(float x) {
    float square = x * x;
    float near = 1 - square * (1 / 3.0f - square * (2 / 15.0f - square * (17 / 315.0f)));
    float far = 1 - 2 * unit_reciprocal(special_exp(2 * x) + 1);
    return fabsf(x) < 0.25f ? x * near : far;
}

/* Of a number below 0 a whole power is one, an odd one negative. */
static __device__ float special_pow(float x, float y) {
    float size = unit_exp2(y * unit_log2(fabsf(x))), half = y / 2;
    float below = truncf(half) == half ? size : -size;
    below = truncf(y) == y ? below : unit_log2(-1);
    return y == 0 ? 1 : x < 0 ? below : size;
}
