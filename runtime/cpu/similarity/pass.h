/* What is compiled for each element type behind the similarity slots of ops.def: the same names and
 * arguments, with the type. Internal to cpu/. */
#ifndef LN_CPU_PASS_H
#define LN_CPU_PASS_H
#include "cpu/kernels.h"

#define SIMILARITY(name, arguments)                                                                \
    ln_status CPU(name##_float) arguments;                                                         \
    ln_status CPU(name##_double) arguments;
#include "similarity.def"
#undef SIMILARITY

#endif
