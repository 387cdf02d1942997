/* Kernels that are compiled at run time as PTX, for an interpreter on the host: the compact form of
 * a module, and what a block and its warps are while it runs. Holds structures and what the files
 * ptx_*.cc give each other. Invariants: semantics are those of the PTX ISA's documentation, never
 * those of the shim's own device functions; what is not known here is refused by name and line;
 * what the ISA leaves undefined is a fault, or a value that nothing may use: a lane's register
 * without a value can be moved and computed with, but not be an address, a condition, or stored
 * where others see it.
 *
 * A register is a row: 32 lanes of 4 bytes, or two rows: of 8 bytes. A predicate's row holds its
 * lanes as the bits of its first word. */
#ifndef LN_CUDA_HOST_PTX_H
#define LN_CUDA_HOST_PTX_H
#include <stdint.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cuda_runtime.h"

enum { PTX_LANES = 32, PTX_ALL = -1, PTX_ROW_BYTES = 4 * PTX_LANES };
enum { PTX_MOST_WARPS = 32, PTX_MOST_SHARED = 227 << 10 };

struct ptx_warp;
struct ptx_instruction;

/* A row's number: of the warp's file or, with this bit, of the module's constants. */
typedef uint32_t ptx_row;
enum : ptx_row { PTX_CONSTANT = 1u << 31, PTX_NONE = ~(ptx_row)0 };

/* The first rows of every file. */
enum {
    PTX_TID,
    PTX_NTID = 3,
    PTX_CTAID = 6,
    PTX_NCTAID = 9,
    PTX_LANEID = 12,
    PTX_SINK,
    PTX_SPECIALS = 15
};

enum ptx_space { PTX_GENERIC, PTX_PARAM, PTX_GLOBAL, PTX_SHARED, PTX_LOCAL };

/* Where generic addresses of shared and local memory begin. */
constexpr uint64_t PTX_SHARED_WINDOW = 0x200000000000, PTX_LOCAL_WINDOW = 0x210000000000;

enum ptx_control { PTX_PLAIN, PTX_BRANCH, PTX_CALL, PTX_RETURN, PTX_EXIT, PTX_BARRIER };
/* Whom an instruction waits for: nobody, the lanes of a mask, all lanes of the warp. */
enum ptx_meeting { PTX_ALONE, PTX_MASKED, PTX_ALIGNED };

typedef void (*ptx_handler)(ptx_warp &w, const ptx_instruction &i, uint32_t lanes);

struct ptx_instruction {
    ptx_handler run;
    ptx_row out[4], in[10];
    uint8_t n_out, n_in;
    ptx_row guard; /* or PTX_NONE */
    bool negated;  /* the guard */
    ptx_control control;
    ptx_meeting meeting;
    ptx_space space;
    int bytes, count;  /* of an element; elements */
    bool wide[2];      /* addresses are of two rows */
    int64_t offset[2]; /* what is added to them */
    int target, line;
};

/* What a call passes: bytes from one local variable to another; see ptx_parse.cc. */
struct ptx_copy {
    int64_t to, from;
    int bytes;
};
struct ptx_call {
    std::vector<ptx_copy> before, after;
};

struct ptx_kernel {
    std::string name;
    int first;                      /* instruction */
    std::vector<int64_t> arguments; /* where each begins */
    int64_t argument_bytes;
};

struct ptx_module {
    std::vector<std::string> lines; /* of the text */
    std::vector<ptx_instruction> code;
    std::vector<ptx_call> calls;
    std::vector<uint64_t> constants; /* 16 words a row */
    std::map<std::string, ptx_kernel> kernels;
    std::vector<std::unique_ptr<std::vector<uint64_t>>> globals;
    uint32_t rows;                     /* of a warp's file */
    int64_t shared_bytes, local_bytes; /* static */
    int granule;                       /* the smallest access to shared or global memory */
};

/* Throws a std::string where the text is not what is known here. */
std::unique_ptr<ptx_module> ptx_parse(const std::string &text);

/* ---- How instructions are found ---- */

/* Operands, a character each, those that are written before '=': 'p' a predicate, 'w' a row, 'l'
 * two rows. The name of a conversion of whole numbers ends with ":wide" where the register is wider
 * than the type. */
struct ptx_form {
    ptx_handler run;
    const char *operands;
};
typedef std::map<std::string, ptx_form> ptx_table;
void ptx_add_integers(ptx_table &table);
void ptx_add_floats(ptx_table &table);
void ptx_add_conversions(ptx_table &table);

ptx_handler ptx_load_handler(const std::string &type, int registers);
ptx_handler ptx_store_handler(int bytes, int registers);
ptx_handler ptx_atom_handler(const std::string &what);
ptx_handler ptx_lanes_handler(const std::string &what);
void ptx_copy_begin(ptx_warp &w, const ptx_instruction &i, uint32_t lanes);
void ptx_copy_group(ptx_warp &w, const ptx_instruction &i, uint32_t lanes);
void ptx_copy_wait(ptx_warp &w, const ptx_instruction &i, uint32_t lanes);

/* ---- While it runs ---- */

struct ptx_launch;
struct ptx_shadow;

/* 16 bytes that a thread has begun to copy. */
struct ptx_pending {
    uint32_t to;
    const char *from;
    int bytes, room; /* that are read; the rest of the room is 0 */
};

/* Lanes that are at one place. */
struct ptx_path {
    int pc;
    uint32_t lanes;
    bool waits; /* at a meeting or a barrier */
    std::vector<int> calls;
};

struct ptx_block {
    const ptx_module *module;
    ptx_launch *launch;
    unsigned index; /* of the block in its grid */
    std::vector<char> shared;
    std::vector<uint64_t> argument;
    std::unique_ptr<ptx_shadow> shadow;
    std::vector<ptx_warp> warps;
    uint32_t epoch; /* barriers passed */
};

struct ptx_warp {
    ptx_block *block;
    int number;
    std::vector<uint64_t> file;   /* rows */
    std::vector<uint32_t> values; /* of each row, the lanes that have one */
    std::vector<char> local;
    uint32_t carry;
    uint32_t live; /* lanes that have not ended */
    std::vector<ptx_path> paths;
    bool at_barrier;
    uint32_t clock[PTX_LANES][PTX_LANES]; /* of a lane, what it knows of each lane's */
    std::vector<ptx_pending> open[PTX_LANES];
    std::vector<std::vector<ptx_pending>> groups[PTX_LANES];

    template <typename T> T *row(ptx_row r) {
        uint64_t *from = file.data();
        if (r & PTX_CONSTANT) from = const_cast<uint64_t *>(block->module->constants.data());
        return (T *)(from + (size_t)(r & ~PTX_CONSTANT) * (PTX_ROW_BYTES / 8));
    }
    uint32_t has(ptx_row r) const {
        return r & PTX_CONSTANT ? ~0u : values[r];
    }
    /* The lanes get a value, or lose it. */
    void give(ptx_row r, uint32_t lanes, uint32_t valued) {
        values[r] = (values[r] & ~lanes) | (valued & lanes);
    }
    /* Ends the launch; lane -1: all. */
    [[noreturn]] void fault(const ptx_instruction &i, int lane, const char *format, ...)
        __attribute__((format(printf, 4, 5)));
    /* A fault where one of the lanes has no value there. */
    void need(const ptx_instruction &i, ptx_row r, uint32_t lanes, const char *use) {
        uint32_t without = lanes & ~has(r);
        if (without != 0) fault(i, __builtin_ctz(without), "%s without a value", use);
    }
};

/* ---- What is known of memory (ptx_shadow.cc) ---- */

enum ptx_access { PTX_READ, PTX_WRITE, PTX_ATOMIC, PTX_COPY };

std::unique_ptr<ptx_shadow> ptx_shadow_new(int granule, int64_t bytes);
/* A fault where the lane's access to shared memory races with another, or reads what nobody has
 * written. A write without a value leaves what it writes unwritten. */
void ptx_check_shared(ptx_warp &w, const ptx_instruction &i, int lane, int64_t at, int bytes,
                      ptx_access access, bool valued);
/* The copy that the lane began there has come. */
void ptx_copy_came(ptx_warp &w, const ptx_instruction &i, int lane, int64_t at, int bytes);
/* The host's address of global memory, where all of it is one block's; a fault otherwise, or where
 * blocks of one launch race. */
char *ptx_check_global(ptx_warp &w, const ptx_instruction &i, int lane, uint64_t at, int bytes,
                       ptx_access access);
/* The lanes know of each other what each knows: bar.warp.sync. */
void ptx_meet(ptx_warp &w, uint32_t lanes);

/* ---- A launch (ptx_run.cc) ---- */

struct ptx_page;
struct ptx_launch {
    const ptx_module *module;
    const ptx_kernel *kernel;
    unsigned grid[3], block[3];
    int64_t dynamic_bytes;
    uint64_t seed;                                       /* of the order of warps */
    std::map<uint64_t, std::unique_ptr<ptx_page>> pages; /* of global memory */
    uint64_t found, found_end;                           /* the last block of memory */
    uint64_t last_page;
    ptx_page *page;
    ptx_launch();
    ~ptx_launch();
};

/* Runs it; an empty text, or what went wrong. */
std::string ptx_run(ptx_launch &launch, const void *argument);

/* The same, asked of the stream; the arguments, as the entry has them, are copied
 * (ptx_entries.cc). */
cudaError_t ptx_launch_entry(const cudaLaunchConfig_t *config, const void *kernel,
                             const ptx_module *module, const ptx_kernel *entry,
                             const void *argument);

/* Runs the warp until it waits at a barrier, has ended or has executed so many instructions. */
void ptx_run_warp(ptx_warp &w, int quantum);

/* PTX of a kernel's text, by NVRTC (ptx_nvrtc.cc); an empty one and what went wrong otherwise. */
std::string ptx_compile(const std::string &source, std::string *error);

#endif
