/* Uploads: copies from pinned memory to a CUDA device that go on beside the work of the host and of
 * the device. What the thread that asked for one then asks of the result comes after the copy, what
 * other threads ask only after that thread's ln_synchronize; what would write the source first
 * waits for the copy. Holds no elements. Invariants: a storage is marked while an upload that has
 * not been settled reads or writes it; nobody else writes a marked storage, or reads one on a
 * device. */
#include "backend.h"

static void *take_mark(ln_storage *s, void *next) {
    return __atomic_exchange_n(&s->upload, next, __ATOMIC_ACQ_REL);
}

void ln_settle(ln_storage *s) {
    if (__atomic_load_n(&s->upload, __ATOMIC_RELAXED) == NULL) return;
    void *mark = take_mark(s, NULL);
    if (mark == NULL) return;
    if (s->device == LN_CPU) ln_driver_of(LN_CUDA)->wait(mark);
    else ln_driver_of(s->device)->follow(mark, s->device);
}

/* Another thread may read x too, and upload it: then its mark is met after the copy. */
static ln_status begin(ln_tensor *y, const ln_tensor *x) {
    const ln_driver *driver = ln_driver_of(ln_device(y));
    size_t bytes = (size_t)x->numel * ln_dtype_size(x->dtype);
    void *written, *read, *before = take_mark(x->storage, NULL);
    ln_status status =
        driver->upload(&written, &read, y->data, ln_device(y), x->data, bytes, before);
    if (status != LN_OK) return status;
    y->storage->upload = written;
    before = take_mark(x->storage, read);
    if (before != NULL) driver->wait(before);
    return LN_OK;
}

/* Aside only where *out is NULL and x is row-major or channels-last; else as ln_to_device. */
ln_status ln_upload(ln_tensor **out, const ln_tensor *x, int device) {
    ln_tensor *made = NULL;
    ln_status status;
    LN_TRY(ln_check_handles("upload", 1, &x));
    LN_TRY(ln_device_check(device, "upload"));
    LN_TRY(ln_capture_refuses("upload", "give it the batch as an argument"));
    bool channels_last = ln_is_channels_last(x);
    bool apart = ln_is_pinned(x) && (ln_is_contiguous(x) || channels_last) && x->numel > 0;
    if (*out != NULL || device == LN_CPU || !apart) return ln_to_device(out, x, device);
    LN_TRY(ln_tensor_new(&made, x->dtype, device, LN_AHEAD, x->ndim, x->shape, "upload"));
    if (channels_last) ln_set_channels_last(made);
    LN_TRY(begin(made, x));
    *out = made;
    return LN_OK;
fail:
    ln_tensor_release(made);
    return status;
}
