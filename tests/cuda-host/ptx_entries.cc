/* The shim's own kernels as PTX. Holds which file and entry a kernel of the shim is, by the shim's
 * table of symbols; the part of a file's PTX that one entry needs; and launches. The files lie in
 * the folder ptx/ beside the shim, made by nvcc of what the shim is made of. Invariants: a kernel
 * that has no PTX, or other parameters there, is a fault, never run otherwise; a part keeps its
 * lines' numbers.
 *
 * LUNCE_CUDA_HOST_PTX: "links" for kernels that are compiled at run time only; see compile.cc. */
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <fstream>
#include <set>
#include <sstream>

#include "host.h"
#include "ptx.h"

typedef std::vector<std::string> texts;

static std::string contents(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    std::stringstream all;
    all << file.rdbuf();
    return all.str();
}

/* ---- Which kernel ---- */

struct place {
    std::string file, name; /* of the source, without ".cu"; as nvcc has it */
};

/* Static functions have a mark that nvcc's kernels have not. */
static std::string entry_name(const std::string &symbol) {
    return symbol.compare(0, 3, "_ZL") == 0 ? "_Z" + symbol.substr(3) : symbol;
}

/* Local symbols come after their file's. */
static void read_symbols(std::map<uint64_t, place> &places, const char *image,
                         const Elf64_Shdr &table, const char *names) {
    const auto *symbols = (const Elf64_Sym *)(image + table.sh_offset);
    std::string file;
    for (size_t n = 0; n < table.sh_size / sizeof *symbols; n++) {
        const char *name = names + symbols[n].st_name;
        int type = ELF64_ST_TYPE(symbols[n].st_info);
        if (type == STT_FILE) file = name;
        if (type != STT_FUNC || strstr(name, "_kernel") == NULL) continue;
        size_t end = file.rfind(".cu");
        if (end != std::string::npos)
            places[symbols[n].st_value] = {file.substr(0, end), entry_name(name)};
    }
}

static std::map<uint64_t, place> places_of(const char *path) {
    std::map<uint64_t, place> places;
    std::string image = contents(path);
    if (image.size() < sizeof(Elf64_Ehdr)) return places;
    const auto *head = (const Elf64_Ehdr *)image.data();
    const auto *sections = (const Elf64_Shdr *)(image.data() + head->e_shoff);
    for (int n = 0; n < head->e_shnum; n++)
        if (sections[n].sh_type == SHT_SYMTAB)
            read_symbols(places, image.data(), sections[n],
                         image.data() + sections[sections[n].sh_link].sh_offset);
    return places;
}

/* ---- A file's text ---- */

/* A declaration, a function or an entry: its lines. */
struct chunk {
    size_t first, end;
    std::set<std::string> words;
};

struct file {
    texts lines, shown;                  /* as they are, and with their places in the source */
    std::map<std::string, chunk> chunks; /* by the names that they define */
};

static bool is_inside(char c) {
    return isalnum((unsigned char)c) || c == '_' || c == '$';
}

static texts names_in(const std::string &line) {
    texts all;
    for (size_t at = 0; at < line.size();) {
        size_t end = at;
        while (end < line.size() && is_inside(line[end])) end++;
        if (end > at && !isdigit((unsigned char)line[at])) all.push_back(line.substr(at, end - at));
        at = end + (end == at);
    }
    return all;
}

static std::string without_comment(const std::string &line) {
    return line.substr(0, line.find("//"));
}

static long count(const std::string &line, char c) {
    long n = 0;
    for (char x : line) n += x == c;
    return n;
}

/* What a declaration that begins with a point defines: a function's name stands before its
 * parameters and after its results, a variable's before its length. */
static std::string defined(const std::string &text) {
    size_t function = text.find(".func"), entry = text.find(".entry");
    size_t end = text.find_first_of("[=;");
    if (function != std::string::npos || entry != std::string::npos) {
        size_t from = function != std::string::npos ? function + 5 : entry + 6;
        from = text.find_first_not_of(" \t", from);
        if (text[from] == '(') from = text.find(')', from) + 1;
        end = text.find('(', from);
    }
    texts names = names_in(text.substr(0, end));
    return names.empty() ? "" : names.back();
}

/* Whether a declaration ends with the line. */
static bool ends(const std::string &line, long depth, bool braces) {
    if (depth != 0) return false;
    size_t last = line.find_last_not_of(" \t");
    return last != std::string::npos && (line[last] == ';' || (braces && line[last] == '}'));
}

/* Where the source is of what follows. */
static bool is_place(const std::string &line, int *file, int *at) {
    return sscanf(line.c_str(), " .loc %d %d", file, at) == 2;
}

/* Reads the chunk that begins at the line; where it ends. */
static size_t add_chunk(file &f, size_t first) {
    chunk c = {first, first, {}};
    std::string text;
    long depth = 0;
    bool braces = false, ended = false;
    while (!ended && c.end < f.lines.size()) {
        std::string line = without_comment(f.lines[c.end++]);
        for (const std::string &name : names_in(line)) c.words.insert(name);
        if (!braces) text += line + "\n";
        braces |= line.find('{') != std::string::npos;
        depth += count(line, '{') - count(line, '}');
        ended = ends(line, depth, braces);
    }
    std::string name = defined(text);
    if (name.empty()) throw "line " + std::to_string(first + 1) + ": unknown: " + text;
    if (braces || text.find(".func") == std::string::npos) f.chunks[name] = c;
    return c.end;
}

/* Before what a line says, its source: "norm.cu:12:". */
static void add_sources(file &f, const std::map<int, std::string> &names) {
    std::string source;
    int number, at;
    for (const std::string &line : f.lines) {
        if (is_place(line, &number, &at) && names.count(number) > 0)
            source = names.at(number) + ":" + std::to_string(at) + ":";
        f.shown.push_back(source + line);
    }
}

static std::map<int, std::string> sources_of(const texts &lines, size_t from) {
    std::map<int, std::string> names;
    for (size_t n = from; n < lines.size(); n++) {
        int number;
        char path[512];
        if (sscanf(lines[n].c_str(), " .file %d \"%511[^\"]\"", &number, path) != 2) continue;
        const char *base = strrchr(path, '/');
        names[number] = base == NULL ? path : base + 1;
    }
    return names;
}

static bool is_heading(const std::string &line) {
    return line.compare(0, 8, ".version") == 0 || line.compare(0, 7, ".target") == 0 ||
           line.compare(0, 8, ".address") == 0;
}

/* Throws a std::string where there is none. */
static file read_file(const std::string &path) {
    file f;
    std::string text = contents(path), line;
    if (text.empty()) throw path + " is not there: make ptx-files";
    std::stringstream all(text);
    while (std::getline(all, line)) f.lines.push_back(line);
    size_t end = 0;
    while (end < f.lines.size() && f.lines[end].find("\t.file") != 0 &&
           f.lines[end].find("\t.section") != 0)
        end++;
    std::map<int, std::string> names = sources_of(f.lines, end);
    f.lines.resize(end);
    for (size_t n = 0; n < end;) {
        std::string first = without_comment(f.lines[n]);
        bool empty = first.find_first_not_of(" \t") == std::string::npos;
        n = empty || is_heading(first) ? n + 1 : add_chunk(f, n);
    }
    add_sources(f, names);
    return f;
}

/* What is named there, and what that needs. */
static void need(const file &f, std::set<std::string> &needed, const std::string &name) {
    auto found = f.chunks.find(name);
    if (found == f.chunks.end() || !needed.insert(name).second) return;
    for (const std::string &word : found->second.words) need(f, needed, word);
}

static std::string part_of(const file &f, const std::string &entry) {
    std::set<std::string> needed;
    std::vector<bool> kept(f.lines.size());
    std::string text;
    int number, at;
    need(f, needed, entry);
    for (const std::string &name : needed)
        for (size_t n = f.chunks.at(name).first; n < f.chunks.at(name).end; n++) kept[n] = true;
    for (size_t n = 0; n < f.lines.size(); n++)
        text += (kept[n] && !is_place(f.lines[n], &number, &at) ? f.lines[n] : "") + "\n";
    return text;
}

/* ---- Kernels that are known ---- */

struct known_kernel {
    std::unique_ptr<ptx_module> module;
    const ptx_kernel *entry;
};

struct known_kernels {
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    std::map<std::string, file> files;
    std::map<const void *, known_kernel> kernels;
};
static known_kernels &known = *new known_kernels;

static place place_of(const void *kernel, std::string *folder) {
    Dl_info self;
    if (dladdr(kernel, &self) == 0) throw std::string("a kernel of no library");
    static const auto &places = *new std::map<uint64_t, place>(places_of(self.dli_fname));
    std::string path = self.dli_fname;
    *folder = path.substr(0, path.rfind('/')) + "/ptx/";
    auto found = places.find((uint64_t)kernel - (uint64_t)self.dli_fbase);
    if (found == places.end()) throw std::string("a kernel without a symbol");
    return found->second;
}

static std::string readable(const std::string &name) {
    int status;
    char *made = abi::__cxa_demangle(name.c_str(), NULL, NULL, &status);
    std::string text = made == NULL ? name : made;
    free(made);
    return text.substr(0, text.find('('));
}

static known_kernel made_of(const void *kernel) {
    std::string folder;
    place p = place_of(kernel, &folder);
    if (known.files.count(p.file) == 0) known.files[p.file] = read_file(folder + p.file + ".ptx");
    const file &f = known.files[p.file];
    std::string what = p.file + ".cu: " + readable(p.name);
    if (f.chunks.count(p.name) == 0) throw what + " is not in its PTX: make ptx-files";
    known_kernel made;
    try {
        made.module = ptx_parse(part_of(f, p.name));
    } catch (const std::string &error) {
        throw what + ": " + error;
    }
    made.module->lines = f.shown;
    made.module->kernels.at(p.name).name = what;
    made.entry = &made.module->kernels.at(p.name);
    return made;
}

/* Throws a std::string. */
static const known_kernel &find(const void *kernel) {
    struct guard {
        guard() {
            pthread_mutex_lock(&known.lock);
        }
        ~guard() {
            pthread_mutex_unlock(&known.lock);
        }
    } held;
    auto found = known.kernels.find(kernel);
    if (found == known.kernels.end()) found = known.kernels.emplace(kernel, made_of(kernel)).first;
    return found->second;
}

/* ---- Launches ---- */

bool cuda_host_interprets(void) {
    static const char *asked = getenv("LUNCE_CUDA_HOST_PTX");
    static const bool all = asked != NULL && strcmp(asked, "links") != 0;
    return all;
}

struct call {
    const ptx_module *module;
    const ptx_kernel *entry;
    uint64_t argument[];
};

static void run(const cudaLaunchConfig_t *config, void *context) {
    const call *c = (const call *)context;
    const dim3 grid = config->gridDim, block = config->blockDim;
    const unsigned blocks[] = {grid.x, grid.y, grid.z}, threads[] = {block.x, block.y, block.z};
    ptx_launch launch;
    launch.module = c->module;
    launch.kernel = c->entry;
    memcpy(launch.grid, blocks, sizeof blocks);
    memcpy(launch.block, threads, sizeof threads);
    launch.dynamic_bytes = (int64_t)config->dynamicSmemBytes;
    std::string error = ptx_run(launch, c->argument);
    if (!error.empty()) cuda_host_fault(cudaErrorLaunchFailure, "%s", error.c_str());
}

cudaError_t ptx_launch_entry(const cudaLaunchConfig_t *config, const void *kernel,
                             const ptx_module *module, const ptx_kernel *entry,
                             const void *argument) {
    std::vector<uint64_t> context((sizeof(call) + (size_t)entry->argument_bytes + 7) / 8);
    call *c = (call *)context.data();
    c->module = module;
    c->entry = entry;
    memcpy(c->argument, argument, (size_t)entry->argument_bytes);
    return cuda_host_launch_grid(config, kernel, run, c, context.size() * 8);
}

/* As the entry has them: each at its place, as large as the room there. */
static std::vector<char> packed(const ptx_kernel &entry, const void *const *places,
                                const size_t *bytes) {
    std::vector<char> all((size_t)entry.argument_bytes);
    size_t count = 0;
    for (; bytes[count] > 0; count++) {
        if (count >= entry.arguments.size()) throw entry.name + ": more arguments than parameters";
        size_t at = (size_t)entry.arguments[count];
        size_t end =
            count + 1 < entry.arguments.size() ? (size_t)entry.arguments[count + 1] : all.size();
        if (at + bytes[count] > end || end - at - bytes[count] > 15)
            throw entry.name + ": an argument of another size than the parameter";
        memcpy(all.data() + at, places[count], bytes[count]);
    }
    if (count != entry.arguments.size()) throw entry.name + ": fewer arguments than parameters";
    return all;
}

cudaError_t cuda_host_interpret(const cudaLaunchConfig_t *config, const void *kernel,
                                const void *const *places, const size_t *bytes) {
    if (cuda_host_dry()) return cudaSuccess;
    try {
        const known_kernel &k = find(kernel);
        return ptx_launch_entry(config, kernel, k.module.get(), k.entry,
                                packed(*k.entry, places, bytes).data());
    } catch (const std::string &error) {
        return cuda_host_fault(cudaErrorLaunchFailure, "%s", error.c_str());
    }
}
