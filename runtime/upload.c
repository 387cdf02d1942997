/* Uploads and downloads: copies between pinned memory and a CUDA device that go on beside the work
 * of the host and of the device. What the thread that asked for one then asks of the end on the
 * device comes after the copy, what other threads ask only after that thread's ln_synchronize; what
 * would write the source of an upload, or look at what a download writes, first waits for the copy.
 * Holds no elements. Invariants: a storage is marked while a copy that has not been settled reads
 * or writes it; nobody else writes a marked storage, or reads one that a copy writes. */
#include "backend.h"

static void *take_mark(ln_storage *s, void *next) {
    return __atomic_exchange_n(&s->upload, next, __ATOMIC_ACQ_REL);
}

void ln_settle(ln_storage *s) {
    if (__atomic_load_n(&s->upload, __ATOMIC_RELAXED) == NULL) return;
    void *mark = take_mark(s, NULL);
    if (mark == NULL) return;
    if (s->device != LN_CPU) {
        ln_driver_of(s->device)->follow(mark, s->device);
        return;
    }
    bool ended = ln_driver_of(LN_CUDA)->wait(mark);
    if (s->arrival == LN_EXPECTED) s->arrival = ended ? LN_ARRIVED : LN_LOST;
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

/* The same for a download; x was settled. */
static ln_status begin_down(ln_tensor *y, const ln_tensor *x) {
    const ln_driver *driver = ln_driver_of(ln_device(x));
    size_t bytes = (size_t)x->numel * ln_dtype_size(x->dtype);
    void *written, *read;
    ln_status status = driver->download(&written, &read, y->data, x->data, ln_device(x), bytes);
    if (status != LN_OK) return status;
    y->storage->arrival = LN_EXPECTED;
    y->storage->upload = written;
    read = take_mark(x->storage, read);
    if (read != NULL) driver->follow(read, ln_device(x));
    return LN_OK;
}

/* x (on a CUDA device) to pinned memory; what is not in one piece is packed first. */
static ln_status download(ln_tensor **out, const ln_tensor *x) {
    ln_tensor *made = NULL, *packed = NULL;
    bool channels_last = ln_is_channels_last(x);
    ln_status status;
    LN_TRY(ln_check_inputs("download", 1, &x));
    if (!ln_is_contiguous(x) && !channels_last) {
        LN_TRY(ln_contiguous(&packed, x));
        x = packed;
    }
    LN_TRY(ln_tensor_new(&made, x->dtype, LN_CPU, LN_PINNED, x->ndim, x->shape, "download"));
    if (channels_last) ln_set_channels_last(made);
    LN_TRY(begin_down(made, x));
    *out = made;
    made = NULL;
fail:
    ln_tensor_release(packed);
    ln_tensor_release(made);
    return status;
}

static ln_status upload(ln_tensor **out, const ln_tensor *x, int device) {
    ln_tensor *made = NULL;
    bool channels_last = ln_is_channels_last(x);
    ln_status status;
    LN_TRY(ln_tensor_new(&made, x->dtype, device, LN_AHEAD, x->ndim, x->shape, "upload"));
    if (channels_last) ln_set_channels_last(made);
    LN_TRY(begin(made, x));
    *out = made;
    return LN_OK;
fail:
    ln_tensor_release(made);
    return status;
}

/* Aside only where *out is NULL and there is something to copy: to a device from pinned memory, x
 * being row-major or channels-last, or from a device to the CPU; else as ln_to_device. */
ln_status ln_upload(ln_tensor **out, const ln_tensor *x, int device) {
    const char *instead = device == LN_CPU ? "return the tensor, and copy it after the step"
                                           : "give it the batch as an argument";
    ln_status status = ln_check_handles("upload", 1, &x);
    if (status == LN_OK) status = ln_device_check(device, "upload");
    if (status == LN_OK)
        status = ln_capture_refuses(device == LN_CPU ? "download" : "upload", instead);
    if (status != LN_OK) return status;
    bool apart = *out == NULL && x->numel > 0;
    bool whole = ln_is_contiguous(x) || ln_is_channels_last(x);
    if (apart && device == LN_CPU && ln_device(x) != LN_CPU) return download(out, x);
    if (apart && device != LN_CPU && ln_is_pinned(x) && whole) return upload(out, x, device);
    return ln_to_device(out, x, device);
}
