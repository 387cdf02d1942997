/* The random slots of the CPU backend: random.h's distributions in loops over blocks. Compiled
 * without fused multiply-add, so that every instruction set draws the same bits. */
#pragma GCC optimize("fp-contract=off")
#include "random.h"
#include "block.h"

enum { BLOCK = BLOCK_BYTES / sizeof(double) };

typedef struct {
    double a, b, limit; /* limit: the largest value of the result's dtype below b */
    uint64_t seed, stream, offset;
} draw;

/* Fills bits with those of n (even) indices and two more, from an even index on; returns where
 * the start-th of the draw are. */
static const uint64_t *draw_bits(uint64_t *bits, const draw *d, int64_t start, int64_t n) {
    uint64_t first = d->offset + (uint64_t)start;
#pragma omp simd
    for (int64_t i = 0; i < n / 2 + 1; i++) {
        ln_philox_block block = ln_philox_at(d->seed, d->stream, first / 2 + (uint64_t)i);
        bits[2 * i] = block.even;
        bits[2 * i + 1] = block.odd;
    }
    return bits + first % 2;
}

static void uniform_blocks(void *const *p, int64_t n, int64_t start, const void *context) {
    const draw *d = context;
    uint64_t buffer[BLOCK + 2];
    const uint64_t *bits = draw_bits(buffer, d, start, n);
    double *y = p[0];
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        double value = d->a + (d->b - d->a) * ln_uniform(bits[i]);
        y[i] = value < d->limit ? value : d->limit;
    }
}

static void normal_blocks(void *const *p, int64_t n, int64_t start, const void *context) {
    const draw *d = context;
    uint64_t buffer[BLOCK + 2];
    int64_t odd = draw_bits(buffer, d, start, n) - buffer;
    double normal[BLOCK + 2], *y = p[0];
#pragma omp simd
    for (int64_t i = 0; i < n + 2; i += 2)
        ln_normal_pair(&normal[i], &normal[i + 1], buffer[i], buffer[i + 1]);
    for (int64_t i = 0; i < n; i++) y[i] = d->a + d->b * normal[i + odd];
}

static void bernoulli_blocks(void *const *p, int64_t n, int64_t start, const void *context) {
    const draw *d = context;
    uint64_t buffer[BLOCK + 2];
    const uint64_t *bits = draw_bits(buffer, d, start, n);
    double *y = p[0];
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = ln_uniform(bits[i]) < d->a ? 1 : 0;
}

static void integer_blocks(void *const *p, int64_t n, int64_t start, const void *context) {
    const draw *d = context;
    uint64_t buffer[BLOCK + 2];
    const uint64_t *bits = draw_bits(buffer, d, start, n);
    double *y = p[0];
    for (int64_t i = 0; i < n; i++)
        y[i] = d->a + (double)(int64_t)ln_integer(bits[i], (uint64_t)(d->b - d->a));
}

ln_status CPU(random)(ln_tensor *dst, int distribution, double a, double b, uint64_t seed,
                      uint64_t stream, uint64_t offset, const ln_tensor *address) {
    (void)address;
    static block_body *const bodies[] = {[LN_UNIFORM] = uniform_blocks,
                                         [LN_NORMAL] = normal_blocks,
                                         [LN_BERNOULLI] = bernoulli_blocks,
                                         [LN_INTEGERS] = integer_blocks};
    draw d = {a, b, 0, seed, stream, offset};
    if (distribution == LN_UNIFORM) d.limit = ln_element_below(dst->dtype, b);
    block_kernel kernel = {.body = bodies[distribution],
                           .context = &d,
                           .type = BLOCK_DOUBLE,
                           .cost = 16,
                           .writes = 1,
                           .row_major = true};
    CPU(block_run)(&kernel, 1, (const ln_tensor *[]){dst});
    return LN_OK;
}

ln_status CPU(randperm)(ln_tensor *dst, uint64_t seed, uint64_t stream) {
    int64_t n = dst->numel, *p = ln_scratch_new((size_t)n * sizeof *p, "randperm");
    if (p == NULL) return LN_OUT_OF_MEMORY;
    for (int64_t i = 0; i < n; i++) p[i] = i + 1;
    ln_shuffle(p, n, seed, stream);
    ln_tensor row = *dst;
    row.data = (char *)p;
    row.stride[0] = 1;
    ln_status status = CPU(copy)(dst, &row);
    ln_scratch_release(p);
    return status;
}
