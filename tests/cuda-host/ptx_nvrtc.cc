/* NVRTC, which is loaded when a kernel is to be compiled to PTX: what builds the shim need not have
 * it. Holds its functions' types. Invariant: options are those of runtime/cuda/compile.cu but for
 * the architecture, which is a virtual one, and for the shim's own sizes.
 *
 * LUNCE_CUDA_HOST_PTX_ARCH: the architecture, compute_90 where not given. */
#include <dlfcn.h>
#include <stdlib.h>

#include "ptx.h"

typedef struct nvrtc_program *program;
static struct {
    int (*create)(program *p, const char *source, const char *name, int headers,
                  const char *const *texts, const char *const *names);
    int (*compile)(program p, int options, const char *const *list);
    int (*log_size)(program p, size_t *bytes);
    int (*log)(program p, char *text);
    int (*size)(program p, size_t *bytes);
    int (*ptx)(program p, char *text);
    int (*destroy)(program *p);
} nvrtc;

static bool find(void *library, const char *name, void *to) {
    *(void **)to = dlsym(library, name);
    return *(void **)to != NULL;
}

static bool load(std::string *error) {
    if (nvrtc.destroy != NULL) return true;
    void *library = dlopen(CUDA_HOST_NVRTC, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        *error = std::string("PTX asks for NVRTC: ") + dlerror();
        return false;
    }
    bool all = find(library, "nvrtcCreateProgram", &nvrtc.create) &&
               find(library, "nvrtcCompileProgram", &nvrtc.compile) &&
               find(library, "nvrtcGetProgramLogSize", &nvrtc.log_size) &&
               find(library, "nvrtcGetProgramLog", &nvrtc.log) &&
               find(library, "nvrtcGetPTXSize", &nvrtc.size) &&
               find(library, "nvrtcGetPTX", &nvrtc.ptx) &&
               find(library, "nvrtcDestroyProgram", &nvrtc.destroy);
    if (!all) *error = "PTX asks for NVRTC: another version of it";
    return all;
}

static std::string text_of(program p, int (*size)(program, size_t *), int (*get)(program, char *)) {
    size_t n = 0;
    if (size(p, &n) != 0 || n == 0) return "";
    std::string text(n, '\0');
    if (get(p, &text[0]) != 0) return "";
    text.resize(n - 1);
    return text;
}

std::string ptx_compile(const std::string &source, std::string *error) {
    const char *asked = getenv("LUNCE_CUDA_HOST_PTX_ARCH");
    std::string architecture = std::string("-arch=") + (asked == NULL ? "compute_90" : asked);
    const char *options[] = {architecture.c_str(), "-std=c++17", CUDA_HOST_PARTS};
    int count = (int)(sizeof options / sizeof *options);
    program p = NULL;
    std::string text;
    if (!load(error)) return text;
    if (nvrtc.create(&p, source.c_str(), "link.cu", 0, NULL, NULL) != 0) return text;
    if (nvrtc.compile(p, count, options) == 0) text = text_of(p, nvrtc.size, nvrtc.ptx);
    else *error = text_of(p, nvrtc.log_size, nvrtc.log);
    nvrtc.destroy(&p);
    return text;
}
