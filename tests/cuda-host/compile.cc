/* Kernels that are compiled at run time, on the host: by the C++ compiler to a shared object, which
 * is kept in the folder kernels/ beside the shim and loaded; or by NVRTC to PTX, which is
 * interpreted. Holds no kernels. Invariant: an object is named by a hash of its source, and moved
 * to its place when it is whole.
 *
 * LUNCE_CUDA_HOST_PTX: "links" to have PTX, 1 to have that of the shim's own kernels too; see
 * ptx.h. */
#include "compile.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host.h"
#include "ptx.h"

struct compiled {
    compiled *next;
    uint64_t hash;
    void (*run)(const void *argument); /* or NULL */
    const ptx_module *ptx;
};

static struct {
    pthread_mutex_t lock;
    compiled *first;
} known = {PTHREAD_MUTEX_INITIALIZER, NULL};

/* The functions of a link are declared here: the header takes longer than the rest. */
#define FUNCTION(name) "double " #name "(double); float " #name "f(float);\n"
static const char BEGIN[] =
    "#include \"device.h\"\n"
    "#define INFINITY __builtin_inf()\n"
    "extern \"C\" {\n" FUNCTION(fabs) FUNCTION(sqrt) FUNCTION(exp) FUNCTION(expm1) FUNCTION(log)
        FUNCTION(log1p) FUNCTION(tanh) "double pow(double, double); float powf(float, float);\n"
                                       "float fmaxf(float, float); float truncf(float); "
                                       "float exp2f(float); float log2f(float);\n}\n";
static const char END[] =
    "extern \"C\" __attribute__((visibility(\"default\"))) void run(const void *a) {\n"
    "    epilogue_kernel(*(const epilogue *)a);\n"
    "}\n";

/* FNV-1a. */
static uint64_t hash_of(const char *text) {
    uint64_t hash = 0xcbf29ce484222325;
    for (; *text != '\0'; text++) hash = (hash ^ (unsigned char)*text) * 0x100000001b3;
    return hash;
}

static bool write_source(const char *path, const char *source) {
    FILE *file = fopen(path, "w");
    if (file == NULL) return false;
    bool written = fprintf(file, "%s%s%s", BEGIN, source, END) > 0;
    return fclose(file) == 0 && written;
}

/* Compiles the source to the object, which finds the shim's functions in the shim. The source stays
 * beside it. */
static bool compile(const char *object, const char *source, const char *shim) {
    char text[PATH_MAX + 32], part[PATH_MAX + 32], command[4 * PATH_MAX];
    snprintf(text, sizeof text, "%s.%d.cc", object, (int)getpid());
    snprintf(part, sizeof part, "%s.%d", object, (int)getpid());
    snprintf(command, sizeof command,
             CUDA_HOST_CXX " -std=c++17 -O0 -w -shared -fPIC -fvisibility=hidden -ffp-contract=off "
                           "-o '%s' '%s' '%s'",
             part, text, shim);
    if (!write_source(text, source) || system(command) != 0) return false;
    char kept[PATH_MAX + 32];
    snprintf(kept, sizeof kept, "%s.cc", object);
    return rename(text, kept) == 0 && rename(part, object) == 0;
}

static ln_status compiled_new(compiled **out, const char *source, uint64_t hash, const char *what) {
    char object[PATH_MAX];
    Dl_info self;
    if (dladdr((void *)&known, &self) == 0) return ln_fail(LN_INTERNAL, "%s: no shim", what);
    int folder = (int)(strrchr(self.dli_fname, '/') - self.dli_fname);
    snprintf(object, sizeof object, "%.*s/kernels", folder, self.dli_fname);
    mkdir(object, 0777);
    snprintf(object, sizeof object, "%.*s/kernels/%016llx.so", folder, self.dli_fname,
             (unsigned long long)hash);
    if (access(object, R_OK) != 0 && !compile(object, source, self.dli_fname))
        return ln_fail(LN_INTERNAL, "%s: a kernel does not compile: %s", what, object);
    void *library = dlopen(object, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) return ln_fail(LN_INTERNAL, "%s: %s", what, dlerror());
    compiled *made = new compiled();
    made->hash = hash;
    *(void **)&made->run = dlsym(library, "run");
    *out = made;
    return LN_OK;
}

static ln_status interpreted_new(compiled **out, const char *source, uint64_t hash,
                                 const char *what) {
    std::string error;
    try {
        std::string text = ptx_compile(source, &error);
        if (text.empty()) throw error;
        std::unique_ptr<ptx_module> module = ptx_parse(text);
        if (module->kernels.count("epilogue_kernel") == 0) throw std::string("no kernel");
        *out = new compiled();
        (*out)->hash = hash;
        (*out)->ptx = module.release();
        return LN_OK;
    } catch (const std::string &thrown) {
        return ln_fail(LN_INTERNAL, "%s: %.300s", what, thrown.c_str());
    }
}

ln_status cuda_compile(const compiled **out, const char *source, const char *what) {
    uint64_t hash = hash_of(source);
    ln_status status = LN_OK;
    pthread_mutex_lock(&known.lock);
    compiled *k = known.first;
    while (k != NULL && k->hash != hash) k = k->next;
    if (k == NULL) {
        bool interpreted = getenv("LUNCE_CUDA_HOST_PTX") != NULL;
        status = (interpreted ? interpreted_new : compiled_new)(&k, source, hash, what);
        if (status == LN_OK) {
            k->next = known.first;
            known.first = k;
        }
    }
    pthread_mutex_unlock(&known.lock);
    *out = k;
    return status;
}

typedef struct {
    const compiled *kernel;
    char argument[]; /* aligned as the pointer is */
} call;

static void run_thread(void *context) {
    const call *c = (const call *)context;
    c->kernel->run(c->argument);
}

/* The argument is copied, as a launch does. */
ln_status cuda_run(const compiled *kernel, unsigned blocks, unsigned threads, size_t shared,
                   const void *argument, size_t bytes, const char *what) {
    cudaLaunchConfig_t config = {};
    cudaError_t error = cudaSuccess;
    if (shared > PLAIN_SHARED)
        error = cudaFuncSetAttribute((const void *)kernel,
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (error != cudaSuccess) return cuda_fail(error, what);
    config.dynamicSmemBytes = shared;
    call *c = (call *)malloc(sizeof *c + bytes);
    if (c == NULL) return ln_fail(LN_OUT_OF_MEMORY, "%s: out of memory", what);
    c->kernel = kernel;
    memcpy(c->argument, argument, bytes);
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(threads);
    if (kernel->ptx != NULL)
        error = ptx_launch_entry(&config, (const void *)kernel, kernel->ptx,
                                 &kernel->ptx->kernels.at("epilogue_kernel"), argument);
    else error = cuda_host_launch(&config, (const void *)kernel, run_thread, c, sizeof *c + bytes);
    free(c);
    return cuda_check(error, what);
}
