/* The update rules of the CPU backend: one pass over a parameter, its gradient and its state, in
 * double whatever they are stored in (large ones wait for memory, not for arithmetic). Holds no
 * walks (block.c) and no checks (ops/update.c). */
#include "block.h"

typedef struct {
    double lr, momentum, dampening, weight_decay;
    bool nesterov, first;
} sgd;

static void sgd_blocks(void *const *operands, int64_t n, int64_t start, const void *context) {
    const sgd *s = context;
    double *p = operands[0];
    const double *g = operands[1];
    (void)start;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) p[i] -= s->lr * (g[i] + s->weight_decay * p[i]);
}

static void momentum_blocks(void *const *operands, int64_t n, int64_t start, const void *context) {
    const sgd *s = context;
    double *p = operands[0], *buf = operands[2];
    const double *g = operands[1];
    (void)start;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        double step = g[i] + s->weight_decay * p[i];
        double moved = s->momentum * buf[i] + (1 - s->dampening) * step;
        buf[i] = s->first ? step : moved;
        p[i] -= s->lr * (s->nesterov ? step + s->momentum * buf[i] : buf[i]);
    }
}

ln_status CPU(sgd_step)(ln_tensor *p, const ln_tensor *g, ln_tensor *buf, double lr,
                        double momentum, double dampening, double weight_decay, bool nesterov,
                        bool first, const ln_tensor *numbers) {
    (void)numbers;
    sgd s = {lr, momentum, dampening, weight_decay, nesterov, first};
    bool moves = momentum != 0;
    block_kernel kernel = {.body = moves ? momentum_blocks : sgd_blocks,
                           .context = &s,
                           .type = BLOCK_DOUBLE,
                           .cost = 2,
                           .reads = moves && !first ? 7 : 3,
                           .writes = moves ? 5 : 1};
    CPU(block_run)(&kernel, moves ? 3 : 2, (const ln_tensor *[]){p, g, buf});
    return LN_OK;
}

typedef struct {
    double decay, keep; /* weight decay added to the gradient; and the factor on p */
    double beta1, beta2, eps, step_size, correction2;
} adam;

static void adam_blocks(void *const *operands, int64_t n, int64_t start, const void *context) {
    const adam *s = context;
    double *p = operands[0], *m = operands[2], *v = operands[3];
    const double *g = operands[1];
    (void)start;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        double slope = g[i] + s->decay * p[i];
        m[i] = s->beta1 * m[i] + (1 - s->beta1) * slope;
        v[i] = s->beta2 * v[i] + (1 - s->beta2) * slope * slope;
        p[i] = s->keep * p[i] - s->step_size * m[i] / (sqrt(v[i] / s->correction2) + s->eps);
    }
}

ln_status CPU(adam_step)(ln_tensor *p, const ln_tensor *g, ln_tensor *m, ln_tensor *v, double decay,
                         double beta1, double beta2, double eps, const double *host,
                         const ln_tensor *numbers) {
    adam s = {.decay = decay,
              .keep = host[0],
              .beta1 = beta1,
              .beta2 = beta2,
              .eps = eps,
              .step_size = host[1],
              .correction2 = host[2]};
    (void)numbers;
    block_kernel kernel = {.body = adam_blocks,
                           .context = &s,
                           .type = BLOCK_DOUBLE,
                           .cost = 8,
                           .reads = 15,
                           .writes = 13};
    CPU(block_run)(&kernel, 4, (const ln_tensor *[]){p, g, m, v});
    return LN_OK;
}
