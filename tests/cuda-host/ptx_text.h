/* PTX's text while it is read: words, symbols, operands as they are written. Between ptx_parse.cc,
 * which reads declarations, and ptx_decode.cc, which makes instructions. */
#ifndef LN_CUDA_HOST_PTX_TEXT_H
#define LN_CUDA_HOST_PTX_TEXT_H
#include <unordered_map>

#include "ptx.h"

struct ptx_word {
    std::string text; /* a name, a number or one character; a string without its marks is "" */
    int line;
};

/* A register, a variable, a function's parameter. */
struct ptx_symbol {
    enum { ROW, WIDE, PREDICATE, PLACE } kind;
    ptx_row row;
    ptx_space space; /* of a PLACE */
    int64_t at, bytes;
};

struct ptx_operand {
    enum { NAME, NUMBER, ADDRESS, LIST } kind;
    std::string name;   /* or that of an address's base, or "" */
    std::string second; /* after | */
    int64_t number;     /* bits, or an address's offset */
    bool negated;       /* by ! */
    std::vector<ptx_operand> list;
};

/* An instruction as it is written. */
struct ptx_statement {
    std::string opcode, guard; /* "" where there is none */
    bool negated;
    std::vector<ptx_operand> operands;
    int line;
};

struct ptx_function {
    int first;
    std::vector<ptx_symbol> results, parameters;
};

/* A call of a function that may be defined later: an instruction, and what it passes. */
struct ptx_use {
    size_t instruction;
    std::string name;
    std::vector<ptx_symbol> results, parameters;
};

/* A module while it is made. */
struct ptx_reader {
    ptx_module *module;
    std::vector<ptx_word> words;
    size_t next;
    std::vector<std::unordered_map<std::string, ptx_symbol>> scopes;
    std::map<std::string, ptx_function> functions;
    std::vector<ptx_use> uses;
    std::map<std::string, int> labels;                 /* of the function at hand */
    std::vector<std::pair<size_t, std::string>> jumps; /* instructions and their labels */
    std::map<std::pair<bool, uint64_t>, ptx_row> constants;
    ptx_table table;
    int64_t dynamic; /* where dynamic shared memory begins */
    int line;

    [[noreturn]] void fail(const std::string &what) const {
        throw "line " + std::to_string(line) + " of the PTX: " + what;
    }
    const ptx_symbol *find(const std::string &name) const {
        for (size_t n = scopes.size(); n-- > 0;) {
            auto found = scopes[n].find(name);
            if (found != scopes[n].end()) return &found->second;
        }
        return NULL;
    }
};

void ptx_decode(ptx_reader &r, const ptx_statement &s);
/* Gives calls their functions, when all are known. */
void ptx_link_calls(ptx_reader &r);

/* Handlers of moves, in ptx_integers.cc. */
void ptx_pack(ptx_warp &w, const ptx_instruction &i, uint32_t lanes);
void ptx_unpack(ptx_warp &w, const ptx_instruction &i, uint32_t lanes);
void ptx_move_by(ptx_warp &w, const ptx_instruction &i, uint32_t lanes);

#endif
