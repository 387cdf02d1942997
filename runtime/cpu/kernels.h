/* Shared by the CPU kernels, which are compiled once for each instruction set with LN_ISA naming
 * it. Holds the naming of their functions and the declarations that let loops call the vector
 * mathematics library; no kernels. Invariant: every function with external linkage in cpu/ is
 * named through CPU(), so that the three compilations live side by side. */
#ifndef LN_CPU_KERNELS_H
#define LN_CPU_KERNELS_H
#include "backend.h"

#include <math.h>

#define LN_PASTE_(a, b) a##_##b
#define LN_PASTE(a, b) LN_PASTE_(a, b)
#define CPU(name) LN_PASTE(name, LN_ISA)

#define OP(name, arguments) ln_status CPU(name) arguments;
#include "ops.def"
#undef OP

/* Loops may call the vector forms that glibc's libmvec has of these: at most 4 ulp off, with the
 * scalar forms' special values. const lets the compiler call once what is named twice. */
#define LN_VECTOR __attribute__((simd("notinbranch"), const))
LN_VECTOR float expf(float);
LN_VECTOR float expm1f(float);
LN_VECTOR float logf(float);
LN_VECTOR float log1pf(float);
LN_VECTOR float sinf(float);
LN_VECTOR float cosf(float);
LN_VECTOR float tanhf(float);
LN_VECTOR float erff(float);
LN_VECTOR float erfcf(float);
LN_VECTOR float powf(float, float);
LN_VECTOR double exp(double);
LN_VECTOR double expm1(double);
LN_VECTOR double log(double);
LN_VECTOR double log1p(double);
LN_VECTOR double sin(double);
LN_VECTOR double cos(double);
LN_VECTOR double tanh(double);
LN_VECTOR double erf(double);
LN_VECTOR double erfc(double);
LN_VECTOR double pow(double, double);

#endif
