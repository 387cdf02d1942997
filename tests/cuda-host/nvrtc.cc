/* nvrtc ARCHITECTURE FILE...: compiles what the shim has kept of kernels compiled at run time (see
 * compile.cc) with NVRTC, and prints the bytes of each binary. Fails with the compiler's words. */
#include <nvrtc.h>

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

int main(int count, char **arguments) {
    for (int i = 2; i < count; i++) {
        std::string source = device_source(text_of(arguments[i]));
        std::string architecture = std::string("-arch=") + arguments[1];
        const char *options[] = {architecture.c_str(), "-std=c++17"};
        nvrtcProgram program;
        size_t size = 0;
        nvrtcResult error = nvrtcCreateProgram(&program, source.c_str(), "link.cu", 0, NULL, NULL);
        if (error == NVRTC_SUCCESS) error = nvrtcCompileProgram(program, 2, options);
        if (error != NVRTC_SUCCESS) {
            std::string log;
            if (nvrtcGetProgramLogSize(program, &size) == NVRTC_SUCCESS) log.resize(size);
            nvrtcGetProgramLog(program, &log[0]);
            std::cerr << arguments[i] << ": " << nvrtcGetErrorString(error) << "\n" << log;
            return 1;
        }
        nvrtcGetCUBINSize(program, &size);
        std::cout << size << "\n";
        nvrtcDestroyProgram(&program);
    }
    return 0;
}
