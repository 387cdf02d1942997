/* The CPU backend: one table of kernels for each instruction set, and the choice between them.
 * Holds no kernels. Invariant: the chosen table is one that the processor can run. */
#include "backend.h"

#include <string.h>

#define OP(name, arguments) ln_status name##_baseline arguments;
#include "ops.def"
#undef OP
#define OP(name, arguments) ln_status name##_avx2 arguments;
#include "ops.def"
#undef OP
#define OP(name, arguments) ln_status name##_avx512 arguments;
#include "ops.def"
#undef OP

static const ln_backend baseline = {
#define OP(name, arguments) .name = name##_baseline,
#include "ops.def"
#undef OP
};
static const ln_backend avx2 = {
#define OP(name, arguments) .name = name##_avx2,
#include "ops.def"
#undef OP
};
static const ln_backend avx512 = {
#define OP(name, arguments) .name = name##_avx512,
#include "ops.def"
#undef OP
};

/* Narrowest first: the widest that runs is the default. */
static const struct {
    const char *name;
    const ln_backend *table;
} isas[] = {{"baseline", &baseline}, {"avx2", &avx2}, {"avx512", &avx512}};

static int isa;

static bool runs(int i) {
    __builtin_cpu_init();
    if (i == 1) return __builtin_cpu_supports("x86-64-v3");
    if (i == 2) return __builtin_cpu_supports("x86-64-v4");
    return true;
}

__attribute__((constructor)) static void choose(void) {
    for (int i = 0; i < 3; i++)
        if (runs(i)) isa = i;
}

const char *ln_isa(void) {
    return isas[isa].name;
}

ln_status ln_isa_set(const char *name) {
    for (int i = 0; i < 3; i++)
        if (name != NULL && strcmp(name, isas[i].name) == 0) {
            if (!runs(i)) return ln_fail(LN_NO_DEVICE, "isa: this processor has no %s", name);
            isa = i;
            return LN_OK;
        }
    return ln_fail(LN_BAD_ARGUMENT, "isa: got \"%s\"; baseline, avx2 and avx512 are taken",
                   name == NULL ? "" : name);
}

const ln_backend *ln_cpu_backend(void) {
    return isas[isa].table;
}
