/* The update rules of the CUDA backend: a thread an element of a parameter, its gradient and its
 * state, in double as the CPU does. Holds no checks (ops/update.c). */
#include "walk.h"

typedef struct {
    double lr, momentum, dampening, weight_decay;
    bool moves, nesterov, first;
    const double *at; /* NULL; or where lr lies, and 0 for no step */
} sgd;

static __global__ void sgd_kernel(walk w, sgd s) {
    enum { P, G, BUF };
    if (s.at != NULL) s.lr = s.at[0];
    if (s.at != NULL && s.at[1] == 0) return;
    for (int64_t i = grid_thread(); i < w.numel; i += grid_threads()) {
        int64_t offset[3];
        walk_offsets<3>(w, i, offset);
        double p = walk_load<double>(w, P, offset[P]);
        double step = walk_load<double>(w, G, offset[G]) + s.weight_decay * p;
        if (s.moves) {
            double buf = step;
            if (!s.first)
                buf =
                    s.momentum * walk_load<double>(w, BUF, offset[BUF]) + (1 - s.dampening) * step;
            walk_store(w, BUF, offset[BUF], buf);
            step = s.nesterov ? step + s.momentum * buf : buf;
        }
        walk_store(w, P, offset[P], p - s.lr * step);
    }
}

ln_status CUDA(sgd_step)(ln_tensor *p, const ln_tensor *g, ln_tensor *buf, double lr,
                         double momentum, double dampening, double weight_decay, bool nesterov,
                         bool first, const ln_tensor *numbers) {
    ln_status status = cuda_enter(p, "sgd_step");
    if (status != LN_OK || p->numel == 0) return status;
    const double *at = numbers != NULL ? (const double *)numbers->data : NULL;
    sgd s = {lr, momentum, dampening, weight_decay, momentum != 0, nesterov, first, at};
    const ln_tensor *operands[] = {p, g, buf};
    walk w = walk_over(s.moves ? 3 : 2, operands, 0);
    return launch("sgd_step", sgd_kernel, blocks_for(w.numel), THREADS, w, s);
}

typedef struct {
    double decay, keep; /* weight decay added to the gradient; and the factor on p */
    double beta1, beta2, eps, step_size, correction2;
    const double *at; /* NULL; or where keep, step_size and correction2 lie, and 0 for no step */
} adam;

static __global__ void adam_kernel(walk w, adam s) {
    enum { P, G, M, V };
    if (s.at != NULL) {
        s.keep = s.at[0];
        s.step_size = s.at[1];
        s.correction2 = s.at[2];
        if (s.at[3] == 0) return;
    }
    for (int64_t i = grid_thread(); i < w.numel; i += grid_threads()) {
        int64_t offset[4];
        walk_offsets<4>(w, i, offset);
        double p = walk_load<double>(w, P, offset[P]);
        double slope = walk_load<double>(w, G, offset[G]) + s.decay * p;
        double m = s.beta1 * walk_load<double>(w, M, offset[M]) + (1 - s.beta1) * slope;
        double v = s.beta2 * walk_load<double>(w, V, offset[V]) + (1 - s.beta2) * slope * slope;
        walk_store(w, M, offset[M], m);
        walk_store(w, V, offset[V], v);
        walk_store(w, P, offset[P],
                   s.keep * p - s.step_size * m / (sqrt(v / s.correction2) + s.eps));
    }
}

ln_status CUDA(adam_step)(ln_tensor *p, const ln_tensor *g, ln_tensor *m, ln_tensor *v,
                          double decay, double beta1, double beta2, double eps, const double *host,
                          const ln_tensor *numbers) {
    ln_status status = cuda_enter(p, "adam_step");
    if (status != LN_OK || p->numel == 0) return status;
    const double *at = numbers != NULL ? (const double *)numbers->data : NULL;
    adam s = {decay, host[0], beta1, beta2, eps, host[1], host[2], at};
    const ln_tensor *operands[] = {p, g, m, v};
    walk w = walk_over(4, operands, 0);
    return launch("adam_step", adam_kernel, blocks_for(w.numel), THREADS, w, s);
}
