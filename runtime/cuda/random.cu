/* The random slots of the CUDA backend: random.h's distributions, a thread a block of Philox, which
 * two elements share. Compiled without fused multiply-add, so that the bits are the CPU's. */
#include "walk.h"

#define LN_INLINE static inline __device__ __host__
#include "random.h"

typedef struct {
    int distribution;
    double a, b, limit; /* limit: the largest value of the result's dtype below b */
    uint64_t seed, stream, offset;
    const int64_t *address; /* NULL; or the seed, and what the stream counts from */
} draw;

static __device__ double value_of(const draw &d, uint64_t bits) {
    if (d.distribution == LN_UNIFORM) {
        double value = d.a + (d.b - d.a) * ln_uniform(bits);
        return value < d.limit ? value : d.limit;
    }
    if (d.distribution == LN_BERNOULLI) return ln_uniform(bits) < d.a ? 1 : 0;
    return d.a + (double)(int64_t)ln_integer(bits, (uint64_t)(d.b - d.a));
}

/* Threads go over the blocks from offset / 2 on; the first and the last may be half used. */
static __global__ void random_kernel(walk w, draw d) {
    if (d.address != NULL) {
        d.seed = (uint64_t)d.address[0];
        d.stream += (uint64_t)d.address[1];
    }
    int64_t odd = (int64_t)(d.offset % 2), blocks = (w.numel + odd + 1) / 2;
    for (int64_t t = grid_thread(); t < blocks; t += grid_threads()) {
        ln_philox_block bits = ln_philox_at(d.seed, d.stream, d.offset / 2 + (uint64_t)t);
        double value[2];
        if (d.distribution == LN_NORMAL) {
            ln_normal_pair(&value[0], &value[1], bits.even, bits.odd);
            for (int k = 0; k < 2; k++) value[k] = d.a + d.b * value[k];
        } else {
            value[0] = value_of(d, bits.even);
            value[1] = value_of(d, bits.odd);
        }
        for (int k = 0; k < 2; k++) {
            int64_t i = 2 * t + k - odd, offset[1];
            if (i < 0 || i >= w.numel) continue;
            walk_offsets<1>(w, i, offset);
            walk_store(w, 0, offset[0], value[k]);
        }
    }
}

ln_status CUDA(random)(ln_tensor *dst, int distribution, double a, double b, uint64_t seed,
                       uint64_t stream, uint64_t offset, const ln_tensor *address) {
    ln_status status = cuda_enter(dst, "random");
    if (status != LN_OK || dst->numel == 0) return status;
    const int64_t *at = address != NULL ? (const int64_t *)address->data : NULL;
    draw d = {distribution, a, b, 0, seed, stream, offset, at};
    if (distribution == LN_UNIFORM) d.limit = ln_element_below(dst->dtype, b);
    const ln_tensor *operands[] = {dst};
    walk w = walk_over(1, operands, ROW_MAJOR);
    return launch("random", random_kernel, blocks_for(w.numel / 2 + 1), THREADS, w, d);
}

/* Drawn on the host: each of Fisher-Yates' exchanges needs the one before. */
ln_status CUDA(randperm)(ln_tensor *dst, uint64_t seed, uint64_t stream) {
    ln_tensor *drawn = NULL;
    ln_status status = ln_out(&drawn, LN_INT64, LN_CPU, 1, dst->shape, "randperm");
    if (status == LN_OK) status = ln_cpu_backend()->randperm(drawn, seed, stream);
    if (status == LN_OK) status = ln_copy(dst, drawn);
    ln_tensor_release(drawn);
    return status;
}
