/* Devices by their numbers: the CPU, and those of the CUDA backend, a shared object that is loaded
 * when one of them is first asked for. Holds no kernels. Invariant: a device whose number
 * ln_device_check has let through has a backend for as long as the process lives. */
#define _GNU_SOURCE /* dladdr */
#include "backend.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct {
    pthread_mutex_t lock;
    bool tried;
    char refusal[640]; /* why there is no driver, once tried */
} loading = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* Written under the lock, once: a device's driver is there before it is ready. */
static const ln_driver *_Atomic cuda;
static atomic_bool ready[LN_MOST_DEVICES];
static atomic_bool tf32, without_cudnn;
static atomic_int ready_below = 1; /* one past the largest number of a ready device */

/* ---- Loading ---- */

/* Where the backend lies: where LUNCE_CUDA says, else beside this library. */
static bool find_backend(char path[PATH_MAX]) {
    const char *given = getenv("LUNCE_CUDA");
    Dl_info self;
    if (given != NULL) {
        snprintf(path, PATH_MAX, "%s", given);
    } else {
        if (dladdr((void *)&loading, &self) == 0) return false;
        const char *slash = strrchr(self.dli_fname, '/');
        int length = slash == NULL ? 0 : (int)(slash - self.dli_fname + 1);
        snprintf(path, PATH_MAX, "%.*sliblunce_cuda.so", length, self.dli_fname);
    }
    return access(path, R_OK) == 0;
}

static ln_status open_driver(const ln_driver **out) {
    char path[PATH_MAX];
    if (!find_backend(path))
        return ln_fail(LN_NO_DEVICE, "lunce was built without CUDA (there is no %s)", path);
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (object == NULL) return ln_fail(LN_NO_DEVICE, "%s", dlerror());
    ln_status (*open)(const ln_driver **);
    *(void **)&open = dlsym(object, "ln_driver_open");
    if (open == NULL) return ln_fail(LN_NO_DEVICE, "%s is not lunce's", path);
    ln_status status = open(out);
    if (status == LN_OK && (*out)->version != LN_DRIVER_VERSION)
        return ln_fail(LN_NO_DEVICE, "%s is of another build", path);
    return status;
}

/* The driver, loaded at the first call; NULL where there is none. Under the lock. */
static const ln_driver *load(void) {
    const ln_driver *driver;
    if (loading.tried) return cuda;
    loading.tried = true;
    if (open_driver(&driver) == LN_OK) cuda = driver;
    else snprintf(loading.refusal, sizeof loading.refusal, "%s", ln_error());
    return cuda;
}

/* ---- Asking for devices ---- */

int ln_devices(void) {
    return ready_below;
}

ln_status ln_driver_load(const ln_driver **out, const char *what) {
    pthread_mutex_lock(&loading.lock);
    *out = load();
    pthread_mutex_unlock(&loading.lock);
    if (*out != NULL) return LN_OK;
    return ln_fail(LN_NO_DEVICE, "%s: no cuda device: %s", what, loading.refusal);
}

ln_status ln_cuda_devices(int *out) {
    const ln_driver *driver;
    ln_status status = ln_driver_load(&driver, "cuda");
    if (status == LN_OK) *out = driver->devices;
    return status;
}

/* Counts the device's memory, which wakes it: devices that are not asked for stay asleep. */
static ln_status make_ready(const ln_driver *driver, int device) {
    int64_t total, available, cached;
    ln_status status = driver->memory(&total, &available, &cached, device);
    if (status != LN_OK) return status;
    ln_memory_open(device, total, available);
    ready[device] = true;
    if (device >= ready_below) ready_below = device + 1;
    return LN_OK;
}

ln_status ln_device_check(int device, const char *what) {
    if (device == LN_CPU) return LN_OK;
    if (device < LN_CPU) return ln_fail(LN_BAD_ARGUMENT, "%s: there is no device %d", what, device);
    if (device < LN_MOST_DEVICES && ready[device]) return LN_OK;
    ln_status status = LN_NO_DEVICE;
    pthread_mutex_lock(&loading.lock);
    const ln_driver *driver = load();
    if (driver == NULL) ln_fail(status, "%s: no cuda device: %s", what, loading.refusal);
    else if (device - LN_CUDA >= driver->devices || device >= LN_MOST_DEVICES)
        ln_fail(status, "%s: there is no %s; cuda devices here: %d", what, ln_text_device(device),
                driver->devices);
    else status = make_ready(driver, device);
    pthread_mutex_unlock(&loading.lock);
    return status;
}

const ln_driver *ln_driver_of(int device) {
    (void)device; /* all come from one driver */
    return cuda;
}

const ln_backend *ln_backend_of(int device) {
    return device == LN_CPU ? ln_cpu_backend() : ln_driver_of(device)->backend;
}

ln_status ln_transfer(void *dst, int dst_device, const void *src, int src_device, size_t n) {
    int device = dst_device == LN_CPU ? src_device : dst_device;
    if (device != LN_CPU)
        return ln_driver_of(device)->transfer(dst, dst_device, src, src_device, n);
    memcpy(dst, src, n);
    return LN_OK;
}

ln_status ln_synchronize(int device) {
    ln_status status = ln_device_check(device, "synchronize");
    if (status == LN_OK && device != LN_CPU)
        status = ln_capture_refuses("synchronize", "wait for the device after the step");
    if (status != LN_OK || device == LN_CPU) return status;
    return ln_driver_of(device)->synchronize(device);
}

ln_status ln_cuda_name(const char **out, int device) {
    if (device == LN_CPU) return ln_fail(LN_BAD_ARGUMENT, "name: the cpu is not a cuda device");
    ln_status status = ln_device_check(device, "name");
    return status != LN_OK ? status : ln_driver_of(device)->name(out, device);
}

bool ln_cuda_tf32(void) {
    return tf32;
}

void ln_cuda_tf32_set(bool allowed) {
    tf32 = allowed;
}

bool ln_cuda_cudnn_allowed(void) {
    return !without_cudnn;
}

void ln_cuda_cudnn_set(bool allowed) {
    without_cudnn = !allowed;
}

ln_status ln_cuda_cudnn(int *version, const char **why) {
    const ln_driver *driver;
    ln_status status = ln_driver_load(&driver, "cudnn");
    if (status != LN_OK) return status;
    *why = "it is not allowed";
    *version = without_cudnn ? 0 : driver->cudnn(why);
    return LN_OK;
}

bool ln_device_lost(void) {
    const ln_driver *d = cuda;
    return d != NULL && d->lost();
}
