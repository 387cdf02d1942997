/* The team of threads that kernels share: its size, its start, and the processors it runs on. Does
 * no work of kernels. Invariant: the thread that starts regions may run wherever the process may,
 * and what it starts inherits that. */
#define _GNU_SOURCE /* sched_getaffinity */
#include "backend.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

enum { MOST_THREADS = 256 };

static int team = 1, processors = 1; /* those the process might run on when it began */

__attribute__((constructor)) static void choose(void) {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) processors = CPU_COUNT(&allowed);
    team = processors < MOST_THREADS ? processors : MOST_THREADS;
    omp_set_dynamic(0);
    omp_set_num_threads(team);
}

/* ---- Places ---- */

/* A kernel may wake a thread on the waker's processor although another is idle, as virtual machines
 * do, and parts the two only after many milliseconds: the helpers of a team keep off the processor
 * of the thread that starts its regions. Where several threads start some, or the team has more
 * members than there are processors, helpers go anywhere. */
enum { ANYWHERE = -1 };
static atomic_int starter = ANYWHERE, starters;

static void note_starter(void) {
    bool apart = team <= processors && atomic_load_explicit(&starters, memory_order_relaxed) == 1;
    atomic_store_explicit(&starter, apart ? sched_getcpu() : ANYWHERE, memory_order_relaxed);
}

static void keep_off(int processor) {
    cpu_set_t allowed;
    if (sched_getaffinity(getpid(), sizeof allowed, &allowed) != 0) return;
    if (processor >= 0 && processor < CPU_SETSIZE) CPU_CLR(processor, &allowed);
    sched_setaffinity(0, sizeof allowed, &allowed); /* fails, and changes nothing, for none */
}

void ln_take_place(void) {
    static _Thread_local int kept_off = ANYWHERE;
    int processor = atomic_load_explicit(&starter, memory_order_relaxed);
    if (processor == kept_off || omp_get_thread_num() == 0) return;
    kept_off = processor;
    keep_off(processor);
}

/* ---- Size ---- */

int ln_threads(void) {
    return team;
}

ln_status ln_threads_set(int n) {
    if (n < 1 || n > MOST_THREADS)
        return ln_fail(LN_BAD_ARGUMENT, "threads: got %d; a team has 1 to %d members", n,
                       MOST_THREADS);
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
    if (started == 0) atomic_fetch_add(&starters, 1);
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
    note_starter();
    return team;
}
