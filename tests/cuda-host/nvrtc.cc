/* nvrtc ARCHITECTURE FILE...: compiles what the shim has kept of kernels compiled at run time (see
 * compile.cc) with NVRTC, and prints the bytes of each binary and the milliseconds that it took.
 * Fails with the compiler's words. */
#include <nvrtc.h>

#include <chrono>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>

static std::string text_of(const char *path) {
    std::stringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
}

/* Without what the shim puts before and after it. */
static std::string device_source(const std::string &text) {
    size_t begin = text.find("#define LN_EPILOGUE");
    size_t end = text.rfind("extern \"C\" __attribute__");
    if (begin == std::string::npos || end == std::string::npos) return "#error no kernel\n";
    return text.substr(begin, end - begin);
}

/* The bytes of the binary, or 0 where it does not compile, which it says. */
static size_t compile(const char *name, const std::string &source, const char *architecture) {
    std::string option = std::string("-arch=") + architecture;
    const char *options[] = {option.c_str(), "-std=c++17"};
    nvrtcProgram program;
    size_t size = 0;
    nvrtcResult error = nvrtcCreateProgram(&program, source.c_str(), "link.cu", 0, NULL, NULL);
    if (error == NVRTC_SUCCESS) error = nvrtcCompileProgram(program, 2, options);
    if (error != NVRTC_SUCCESS) {
        std::string log;
        if (nvrtcGetProgramLogSize(program, &size) == NVRTC_SUCCESS) log.resize(size);
        nvrtcGetProgramLog(program, &log[0]);
        std::cerr << name << ": " << nvrtcGetErrorString(error) << "\n" << log;
        return 0;
    }
    nvrtcGetCUBINSize(program, &size);
    nvrtcDestroyProgram(&program);
    return size;
}

/* A first one takes the compiler's start. */
int main(int count, char **arguments) {
    if (count < 3) return 2;
    if (compile("a first one", "extern \"C\" __global__ void f() {}\n", arguments[1]) == 0)
        return 1;
    for (int i = 2; i < count; i++) {
        auto begin = std::chrono::steady_clock::now();
        size_t size = compile(arguments[i], device_source(text_of(arguments[i])), arguments[1]);
        std::chrono::duration<double, std::milli> taken = std::chrono::steady_clock::now() - begin;
        if (size == 0) return 1;
        std::cout << size << " " << (int)taken.count() << "\n";
    }
    return 0;
}
