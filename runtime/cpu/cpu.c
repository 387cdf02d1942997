/* The CPU backend: one table of kernels for each instruction set, the choice between them, and the
 * size of the team. Holds no kernels. Invariant: the chosen table is one
 * that the processor can run. */
#define _GNU_SOURCE /* sched_getaffinity */
#include "backend.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
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
static int team = 1;

static bool runs(int i) {
    __builtin_cpu_init();
    if (i == 1) return __builtin_cpu_supports("x86-64-v3");
    if (i == 2) return __builtin_cpu_supports("x86-64-v4");
    return true;
}

__attribute__((constructor)) static void choose(void) {
    for (int i = 0; i < 3; i++)
        if (runs(i)) isa = i;
    cpu_set_t cores;
    if (sched_getaffinity(0, sizeof cores, &cores) == 0) team = CPU_COUNT(&cores);
    if (team > 256) team = 256;
    omp_set_dynamic(0);
    omp_set_num_threads(team);
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

int ln_threads(void) {
    return team;
}

ln_status ln_threads_set(int n) {
    if (n < 1 || n > 256)
        return ln_fail(LN_BAD_ARGUMENT, "threads: got %d; a team has 1 to 256 members", n);
    team = n;
    omp_set_num_threads(n);
    return LN_OK;
}

/* The runtime makes its threads in the first parallel region, with the signal mask of the thread
 * that enters it: signals are blocked there once, so that only the program's own threads see them.
 * The count keeps the compiler from dropping the region as empty. */
static void start_team(void) {
    static _Thread_local int started;
    atomic_int present = 0;
    if (started >= team) return;
    started = team;
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
#pragma omp parallel num_threads(team)
    atomic_fetch_add(&present, 1);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

/* Below this, some 30 us for one thread, a fork and join saves little: 2 us where the team spins,
 * but on a busy machine the wait for a thread that is not running. */
enum { WORK_WORTH_A_TEAM = 1 << 17 };

int ln_team(int64_t work) {
    if (team == 1 || work < WORK_WORTH_A_TEAM) return 1;
    start_team();
    return team;
}

const ln_backend *ln_cpu_backend(void) {
    return isas[isa].table;
}
