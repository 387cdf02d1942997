/* Checks for the update rules, then dispatch. Holds no element loops. */
#include "backend.h"

#include <math.h>

/* p and the tensors that go with it: one shape, floating dtypes, the `written` ones writable. */
static ln_status check(const char *what, int n, const ln_tensor *const *t, unsigned written) {
    ln_status status = ln_check_inputs(what, n, t);
    if (status != LN_OK) return status;
    for (int i = 0; i < n; i++)
        if (!ln_same_shape(t[0], t[i]) || !ln_dtype_is_float(t[i]->dtype))
            return ln_fail(LN_BAD_ARGUMENT,
                           "%s: the parameter is %s, tensor %d is %s; equal shapes and floating "
                           "dtypes are taken",
                           what, ln_text(t[0]), i + 1, ln_text(t[i]));
    for (int i = 0; i < n && status == LN_OK; i++) {
        ln_tensor *out = (ln_tensor *)t[i];
        if (written >> i & 1)
            status = ln_out(&out, out->dtype, ln_device(out), out->ndim, out->shape, what);
    }
    return status;
}

/* Numbers that a step is to read where it is made. */
static ln_status check_numbers(const char *what, const ln_tensor *numbers, int64_t n,
                               const ln_tensor *p) {
    if (numbers == NULL) return LN_OK;
    ln_status status = ln_check_inputs(what, 2, (const ln_tensor *[]){p, numbers});
    if (status != LN_OK) return status;
    if (ln_device(p) != LN_CPU && numbers->dtype == LN_FLOAT64 && numbers->numel == n &&
        ln_is_contiguous(numbers))
        return LN_OK;
    return ln_fail(LN_BAD_ARGUMENT, "%s: numbers are %s on %s; (%lld) float64 on a cuda device",
                   what, ln_text(numbers), ln_text_device(ln_device(p)), (long long)n);
}

ln_status ln_sgd_step(ln_tensor *p, const ln_tensor *g, ln_tensor *buf, double lr, double momentum,
                      double dampening, double weight_decay, bool nesterov, bool first,
                      const ln_tensor *numbers) {
    bool moves = momentum != 0;
    ln_status status =
        check("sgd_step", moves ? 3 : 2, (const ln_tensor *[]){p, g, buf}, moves ? 5 : 1);
    if (status == LN_OK) status = check_numbers("sgd_step", numbers, 2, p);
    if (status != LN_OK) return status;
    return ln_backend_of(ln_device(p))
        ->sgd_step(p, g, buf, lr, momentum, dampening, weight_decay, nesterov, first, numbers);
}

void ln_adam_numbers(double numbers[3], double lr, double beta1, double beta2, double weight_decay,
                     int64_t step, bool decoupled) {
    numbers[0] = decoupled ? 1 - lr * weight_decay : 1;
    numbers[1] = lr / (1 - pow(beta1, (double)step));
    numbers[2] = 1 - pow(beta2, (double)step);
}

ln_status ln_adam_step(ln_tensor *p, const ln_tensor *g, ln_tensor *m, ln_tensor *v, double lr,
                       double beta1, double beta2, double eps, double weight_decay, int64_t step,
                       bool decoupled, const ln_tensor *numbers) {
    double host[3];
    ln_status status = check("adam_step", 4, (const ln_tensor *[]){p, g, m, v}, 13);
    if (status == LN_OK) status = check_numbers("adam_step", numbers, 4, p);
    if (status != LN_OK) return status;
    if (step < 1)
        return ln_fail(LN_BAD_ARGUMENT, "adam_step: step %lld; steps count from 1",
                       (long long)step);
    ln_adam_numbers(host, lr, beta1, beta2, weight_decay, step, decoupled);
    return ln_backend_of(ln_device(p))
        ->adam_step(p, g, m, v, decoupled ? 0 : weight_decay, beta1, beta2, eps, host, numbers);
}
