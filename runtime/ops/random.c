/* Checks for random numbers, then dispatch; and Philox's words themselves. Holds no element loops
 * and no state: see random.h for what is drawn where. */
#include "random.h"

#include "backend.h"

void ln_philox(uint32_t out[4], uint64_t seed, uint64_t stream, uint64_t block) {
    ln_philox_block b = ln_philox_at(seed, stream, block);
    out[0] = (uint32_t)b.even;
    out[1] = (uint32_t)(b.even >> 32);
    out[2] = (uint32_t)b.odd;
    out[3] = (uint32_t)(b.odd >> 32);
}

/* Whether a dtype holds the integers a to b - 1 (floating types round). */
static bool holds_integers(int dtype, double a, double b) {
    switch (dtype) {
    case LN_INT32: return a >= -0x1p31 && b <= 0x1p31;
    case LN_UINT8: return a >= 0 && b <= 256;
    case LN_BOOL: return a >= 0 && b <= 2;
    default: return true;
    }
}

static ln_status check_parameters(const ln_tensor *dst, int distribution, double a, double b) {
    const char *type = ln_text_dtype(dst->dtype);
    switch (distribution) {
    case LN_UNIFORM:
        if (ln_dtype_is_float(dst->dtype) && a < b && isfinite(b - a)) return LN_OK;
        return ln_fail(LN_BAD_ARGUMENT,
                       "uniform: [%g, %g) in %s; a finite range that is not empty and a floating "
                       "dtype are taken",
                       a, b, type);
    case LN_NORMAL:
        if (ln_dtype_is_float(dst->dtype) && isfinite(a) && b >= 0 && isfinite(b)) return LN_OK;
        return ln_fail(LN_BAD_ARGUMENT,
                       "normal: mean %g, standard deviation %g in %s; finite numbers, the second "
                       "not negative, and a floating dtype are taken",
                       a, b, type);
    case LN_BERNOULLI:
        if (a >= 0 && a <= 1) return LN_OK;
        return ln_fail(LN_BAD_ARGUMENT, "bernoulli: probability %g; 0 to 1 is taken", a);
    case LN_INTEGERS:
        if (a == floor(a) && b == floor(b) && a < b && fabs(a) <= 0x1p53 && fabs(b) <= 0x1p53 &&
            b - a <= 0x1p53 && holds_integers(dst->dtype, a, b))
            return LN_OK;
        return ln_fail(LN_BAD_ARGUMENT,
                       "integers: %.17g <= x < %.17g in %s; whole numbers up to 2^53 that the "
                       "dtype holds are taken, the first the smaller",
                       a, b, type);
    default: return ln_fail(LN_BAD_ARGUMENT, "random: no distribution %d", distribution);
    }
}

ln_status ln_random(ln_tensor *dst, int distribution, double a, double b, uint64_t seed,
                    uint64_t stream, uint64_t offset, const ln_tensor *address) {
    const ln_tensor *inputs[] = {dst, address};
    ln_status status = ln_check_inputs("random", address == NULL ? 1 : 2, inputs);
    if (status == LN_OK) status = check_parameters(dst, distribution, a, b);
    if (status == LN_OK && address != NULL &&
        (ln_device(dst) == LN_CPU || address->dtype != LN_INT64 || address->numel != 2 ||
         !ln_is_contiguous(address)))
        status = ln_fail(LN_BAD_ARGUMENT,
                         "random: an address is %s on %s; (2) int64 on a cuda device is taken",
                         ln_text(address), ln_text_device(ln_device(dst)));
    if (status == LN_OK)
        status = ln_out(&dst, dst->dtype, ln_device(dst), dst->ndim, dst->shape, "random");
    if (status != LN_OK) return status;
    return ln_backend_of(ln_device(dst))
        ->random(dst, distribution, a, b, seed, stream, offset, address);
}

ln_status ln_randperm(ln_tensor *dst, uint64_t seed, uint64_t stream) {
    const ln_tensor *input = dst;
    ln_status status = ln_check_inputs("randperm", 1, &input);
    if (status != LN_OK) return status;
    if (dst->ndim != 1 || dst->dtype != LN_INT64)
        return ln_fail(LN_BAD_ARGUMENT,
                       "randperm: the destination is %s; one dimension of int64 is taken",
                       ln_text(dst));
    status = ln_out(&dst, dst->dtype, ln_device(dst), dst->ndim, dst->shape, "randperm");
    if (status != LN_OK) return status;
    return ln_backend_of(ln_device(dst))->randperm(dst, seed, stream);
}
