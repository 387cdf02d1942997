/* What the machine gives without lunce: oneDNN's sgemm, and memcpy by a team of threads. The bench
 * compiles it and asks it by lines; nothing else uses it. Holds no checks of its results.
 *
 *   native <threads>                    says "ready", then answers each line with seconds a run:
 *   sgemm <rows> <columns> <inner> <runs>
 *   copy <bytes> <runs>
 */
#define _POSIX_C_SOURCE 200809L
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* dnnl.h stays with runtime/onednn.c; this is all that is asked of it here. */
int dnnl_sgemm(char transa, char transb, int64_t M, int64_t N, int64_t K, float alpha,
               const float *A, int64_t lda, const float *B, int64_t ldb, float beta, float *C,
               int64_t ldc);

enum { ALIGNMENT = 64 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* n floats of 1, written by the team that will read them. */
static float *ones(int64_t n) {
    size_t bytes = (size_t)n * sizeof(float);
    float *p = aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    if (p == NULL) exit(1);
#pragma omp parallel for
    for (int64_t i = 0; i < n; i++) p[i] = 1;
    return p;
}

static double sgemm(int64_t n, int64_t m, int64_t k, int runs) {
    float *a = ones(n * k), *b = ones(k * m), *c = ones(n * m);
    dnnl_sgemm('N', 'N', n, m, k, 1, a, k, b, m, 0, c, m);
    double start = now();
    for (int i = 0; i < runs; i++) dnnl_sgemm('N', 'N', n, m, k, 1, a, k, b, m, 0, c, m);
    double seconds = (now() - start) / runs;
    free(a);
    free(b);
    free(c);
    return seconds;
}

static void copy_once(char *dst, const char *src, int64_t bytes) {
#pragma omp parallel
    {
        int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
        int64_t from = bytes * me / team, to = bytes * (me + 1) / team;
        memcpy(dst + from, src + from, (size_t)(to - from));
    }
}

static double copy(int64_t bytes, int runs) {
    int64_t n = bytes / (int64_t)sizeof(float);
    float *src = ones(n), *dst = ones(n);
    double start = now();
    for (int i = 0; i < runs; i++) copy_once((char *)dst, (const char *)src, bytes);
    double seconds = (now() - start) / runs;
    free(src);
    free(dst);
    return seconds;
}

int main(int argc, char **argv) {
    char line[128];
    int64_t n, m, k;
    int runs;
    if (argc > 1) omp_set_num_threads(atoi(argv[1]));
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin) != NULL) {
        if (sscanf(line, "sgemm %ld %ld %ld %d", &n, &m, &k, &runs) == 4)
            printf("%.9g\n", sgemm(n, m, k, runs));
        else if (sscanf(line, "copy %ld %d", &n, &runs) == 2) printf("%.9g\n", copy(n, runs));
        else return 1;
    }
    return 0;
}
