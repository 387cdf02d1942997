/* The thread's last failure, and the texts that messages are made of. Never prints, never exits.
 * Invariant: a message is one line, complete before ln_fail returns. */
#include "backend.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char message[1024];
static atomic_bool interrupted;

const char *ln_error(void) {
    return message;
}

int ln_abi_version(void) {
    return LN_ABI_VERSION;
}

ln_status ln_fail(ln_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    return status;
}

void ln_interrupt(void) {
    atomic_store(&interrupted, true);
}

void ln_interrupt_clear(void) {
    atomic_store(&interrupted, false);
}

bool ln_interrupted(void) {
    return atomic_load_explicit(&interrupted, memory_order_relaxed);
}

/* Texts rotate through a few buffers, so that one message can quote four tensors. */
static char *text_buffer(size_t *size) {
    static _Thread_local char buffers[4][192];
    static _Thread_local unsigned next;
    *size = sizeof buffers[0];
    return buffers[next++ % 4];
}

static size_t print_shape(char *text, size_t size, int ndim, const int64_t *shape) {
    size_t used = (size_t)snprintf(text, size, "(");
    for (int i = 0; i < ndim && used < size; i++)
        used +=
            (size_t)snprintf(text + used, size - used, i ? ",%lld" : "%lld", (long long)shape[i]);
    if (used < size) used += (size_t)snprintf(text + used, size - used, ")");
    return used < size ? used : size;
}

const char *ln_text_shape(int ndim, const int64_t *shape) {
    size_t size;
    char *text = text_buffer(&size);
    print_shape(text, size, ndim, shape);
    return text;
}

const char *ln_text_device(int device) {
    static _Thread_local char name[24];
    if (device == LN_CPU) return "cpu";
    snprintf(name, sizeof name, "cuda:%d", device - LN_CUDA);
    return name;
}

const char *ln_text(const ln_tensor *t) {
    size_t size;
    char *text = text_buffer(&size);
    size_t used = print_shape(text, size, t->ndim, t->shape);
    if (used < size) snprintf(text + used, size - used, " %s", ln_text_dtype(t->dtype));
    return text;
}
