/* Kernels compiled at run time by NVRTC, for the device at hand, and kept on disk: in
 * XDG_CACHE_HOME/lunce, or ~/.cache/lunce, a file a kernel, which holds its source and its binary.
 * Holds no kernels. Invariants: a file is used where its source is the one that was asked for, and
 * written whole or not at all; without a place to keep it, or where what was kept does not load, a
 * kernel is compiled all the same. */
#include "compile.h"

#include <errno.h>
#include <nvrtc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct compiled {
    compiled *next;
    int device;
    uint64_t hash; /* of the source */
    cudaKernel_t kernel;
    char source[];
};

static struct {
    pthread_mutex_t lock;
    compiled *first;
} known = {PTHREAD_MUTEX_INITIALIZER, NULL};

/* ---- Files ---- */

typedef struct {
    char *bytes;
    size_t n;
} blob;

static blob blob_new(size_t n) {
    return {(char *)malloc(n + 1), n};
}

/* FNV-1a. */
static uint64_t hash_of(const char *text) {
    uint64_t hash = 0xcbf29ce484222325;
    for (; *text != '\0'; text++) hash = (hash ^ (unsigned char)*text) * 0x100000001b3;
    return hash;
}

enum { PATH = 1024 };

/* Makes the folder. */
static bool path_of(char path[PATH], const char *architecture, const char *source) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    bool given = cache != NULL && cache[0] == '/';
    int major, minor, n;
    if (!given && (home == NULL || home[0] != '/')) return false;
    if (nvrtcVersion(&major, &minor) != NVRTC_SUCCESS) return false;
    if (given) n = snprintf(path, PATH, "%s", cache);
    else n = snprintf(path, PATH, "%s/.cache", home);
    if (n < 0 || n > PATH - 128) return false;
    mkdir(path, 0700);
    n += snprintf(path + n, (size_t)(PATH - n), "/lunce");
    if (mkdir(path, 0700) != 0 && errno != EEXIST) return false;
    snprintf(path + n, (size_t)(PATH - n), "/%016llx-%s-%d.%d.cubin",
             (unsigned long long)hash_of(source), architecture, major, minor);
    return true;
}

/* What a file of the user's own holds after the source and its end; bytes NULL where it is not of
 * that source. */
static blob load(const char *path, const char *source) {
    size_t ours = strlen(source) + 1;
    blob found = {NULL, 0};
    struct stat about;
    FILE *file = fopen(path, "rb");
    if (file == NULL) return found;
    if (fstat(fileno(file), &about) == 0 && about.st_uid == geteuid() &&
        (size_t)about.st_size > ours)
        found = blob_new((size_t)about.st_size);
    if (found.bytes != NULL && (fread(found.bytes, 1, found.n, file) != found.n ||
                                memcmp(found.bytes, source, ours) != 0)) {
        free(found.bytes);
        found.bytes = NULL;
    }
    fclose(file);
    if (found.bytes == NULL) return found;
    found.n -= ours;
    memmove(found.bytes, found.bytes + ours, found.n);
    return found;
}

static void store(const char *path, const char *source, blob binary) {
    char part[PATH + 32];
    snprintf(part, sizeof part, "%s.%d", path, (int)getpid());
    FILE *file = fopen(part, "wb");
    if (file == NULL) return;
    size_t ours = strlen(source) + 1;
    bool written = fwrite(source, 1, ours, file) == ours &&
                   fwrite(binary.bytes, 1, binary.n, file) == binary.n;
    written = fclose(file) == 0 && written;
    if (!written || rename(part, path) != 0) remove(part);
}

/* ---- Compiling ---- */

static ln_status compile_fail(nvrtcProgram program, nvrtcResult error, const char *what) {
    size_t n = 0;
    if (program != NULL && nvrtcGetProgramLogSize(program, &n) == NVRTC_SUCCESS && n > 1) {
        blob log = blob_new(n);
        if (log.bytes != NULL && nvrtcGetProgramLog(program, log.bytes) == NVRTC_SUCCESS)
            ln_fail(LN_INTERNAL, "%s: NVRTC: %s: %.300s", what, nvrtcGetErrorString(error),
                    log.bytes);
        else ln_fail(LN_INTERNAL, "%s: NVRTC: %s", what, nvrtcGetErrorString(error));
        free(log.bytes);
        return LN_INTERNAL;
    }
    return ln_fail(LN_INTERNAL, "%s: NVRTC: %s", what, nvrtcGetErrorString(error));
}

static nvrtcResult compile_text(nvrtcProgram *program, blob *binary, const char *architecture,
                                const char *source) {
    const char *options[] = {architecture, "-std=c++17"};
    size_t n;
    nvrtcResult error = nvrtcCreateProgram(program, source, "link.cu", 0, NULL, NULL);
    if (error == NVRTC_SUCCESS) error = nvrtcCompileProgram(*program, 2, options);
    if (error == NVRTC_SUCCESS) error = nvrtcGetCUBINSize(*program, &n);
    if (error != NVRTC_SUCCESS) return error;
    *binary = blob_new(n);
    if (binary->bytes == NULL) return NVRTC_ERROR_OUT_OF_MEMORY;
    return nvrtcGetCUBIN(*program, binary->bytes);
}

static ln_status compile(blob *binary, const char *architecture, const char *source,
                         const char *what) {
    char option[64];
    nvrtcProgram program = NULL;
    ln_status status = LN_OK;
    snprintf(option, sizeof option, "-arch=%s", architecture);
    nvrtcResult error = compile_text(&program, binary, option, source);
    if (error != NVRTC_SUCCESS) status = compile_fail(program, error, what);
    if (program != NULL) nvrtcDestroyProgram(&program);
    return status;
}

/* ---- Kernels ---- */

static ln_status load_kernel(compiled *k, blob binary, const char *what) {
    cudaLibrary_t library = NULL;
    ln_status status;
    LN_TRY(cuda_check(cudaLibraryLoadData(&library, binary.bytes, NULL, NULL, 0, NULL, NULL, 0),
                      what));
    status = cuda_check(cudaLibraryGetKernel(&k->kernel, library, "epilogue_kernel"), what);
fail:
    return status;
}

/* The architecture that NVRTC compiles for on a device: sm_90. */
static ln_status architecture_of(char name[16], int device, const char *what) {
    int major, minor;
    ln_status status;
    LN_TRY(cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
                      what));
    LN_TRY(cuda_check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
                      what));
    snprintf(name, 16, "sm_%d%d", major, minor);
fail:
    return status;
}

/* From disk, or compiled and put there. */
static ln_status find_kernel(compiled *k, const char *what) {
    char path[PATH], architecture[16];
    blob binary = {NULL, 0};
    bool kept;
    ln_status status;
    LN_TRY(architecture_of(architecture, k->device, what));
    kept = path_of(path, architecture, k->source);
    if (kept) binary = load(path, k->source);
    if (binary.bytes != NULL && load_kernel(k, binary, what) == LN_OK) goto fail;
    free(binary.bytes);
    binary.bytes = NULL;
    LN_TRY(compile(&binary, architecture, k->source, what));
    if (kept) store(path, k->source, binary);
    status = load_kernel(k, binary, what);
fail:
    free(binary.bytes);
    return status;
}

static ln_status compiled_new(compiled **out, int device, const char *source, const char *what) {
    size_t n = strlen(source) + 1;
    compiled *made = (compiled *)malloc(sizeof *made + n);
    if (made == NULL) return ln_fail(LN_OUT_OF_MEMORY, "%s: out of memory", what);
    memcpy(made->source, source, n);
    made->device = device;
    made->hash = hash_of(source);
    ln_status status = find_kernel(made, what);
    if (status == LN_OK) *out = made;
    else free(made);
    return status;
}

ln_status cuda_compile(const compiled **out, const char *source, const char *what) {
    int device;
    uint64_t hash = hash_of(source);
    ln_status status = cuda_check(cudaGetDevice(&device), what);
    if (status != LN_OK) return status;
    pthread_mutex_lock(&known.lock);
    compiled *k = known.first;
    while (k != NULL && (k->device != device || k->hash != hash || strcmp(k->source, source) != 0))
        k = k->next;
    if (k == NULL) {
        status = compiled_new(&k, device, source, what);
        if (status == LN_OK) {
            k->next = known.first;
            known.first = k;
        }
    }
    pthread_mutex_unlock(&known.lock);
    *out = k;
    return status;
}

ln_status cuda_run(const compiled *kernel, unsigned blocks, unsigned threads, size_t shared,
                   const void *argument, size_t, const char *what) {
    void *arguments[] = {(void *)argument};
    cudaLaunchConfig_t config = {};
    cudaError_t error = cudaSuccess;
    if (shared > PLAIN_SHARED)
        error = cudaKernelSetAttributeForDevice(kernel->kernel,
                                                cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                (int)shared, kernel->device);
    if (error != cudaSuccess) return cuda_fail(error, what);
    config.dynamicSmemBytes = shared;
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(threads);
    config.stream = cudaStreamPerThread;
    return cuda_check(cudaLaunchKernelExC(&config, (const void *)kernel->kernel, arguments), what);
}
