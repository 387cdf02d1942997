/* What a progress line and a timing ask of the operating system. Holds no state and no tensor. */
#include "ln.h"

#include <time.h>
#include <unistd.h>

double ln_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

bool ln_is_terminal(int descriptor) {
    return isatty(descriptor) == 1;
}
