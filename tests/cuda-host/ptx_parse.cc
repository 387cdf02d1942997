/* PTX's text: words, declarations, functions. Holds no instruction. Invariants: all that is read is
 * understood or refused; a module's shared variables lie one after another, then what a launch
 * adds; parameters of functions, and what calls pass, are local variables, since no function calls
 * itself. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "ptx_text.h"

/* ---- Words ---- */

static bool is_inside(char c) {
    return isalnum((unsigned char)c) || strchr("_.%$", c) != NULL;
}

/* Past a comment, or 0. */
static size_t comment_end(const std::string &t, size_t at) {
    if (t.compare(at, 2, "//") == 0) return t.find('\n', at);
    if (t.compare(at, 2, "/*") == 0) return t.find("*/", at) + 2;
    return 0;
}

static size_t word_end(const std::string &t, size_t at) {
    size_t end = at + 1;
    if (t[at] == '"') return t.find('"', end) + 1;
    if (!is_inside(t[at])) return end;
    while (end < t.size() && (is_inside(t[end]) || t.compare(end, 2, "::") == 0))
        end += is_inside(t[end]) ? 1 : 2;
    return end;
}

static std::vector<ptx_word> words_of(const std::string &t) {
    std::vector<ptx_word> words;
    int line = 1;
    for (size_t at = 0; at < t.size() && t[at] != '\0';) {
        size_t past = comment_end(t, at);
        if (past == 0 && !isspace((unsigned char)t[at])) {
            size_t end = word_end(t, at);
            words.push_back({t[at] == '"' ? "" : t.substr(at, end - at), line});
            at = end;
            continue;
        }
        if (past == 0) past = at + 1;
        for (; at < past && at < t.size(); at++) line += t[at] == '\n';
    }
    return words;
}

static const std::string &peek(ptx_reader &r) {
    if (r.next >= r.words.size()) r.fail("the text ends");
    r.line = r.words[r.next].line;
    return r.words[r.next].text;
}

static std::string take(ptx_reader &r) {
    std::string word = peek(r);
    r.next++;
    return word;
}

static bool skip(ptx_reader &r, const char *word) {
    if (peek(r) != word) return false;
    r.next++;
    return true;
}

static void need(ptx_reader &r, const char *word) {
    if (!skip(r, word)) r.fail("'" + peek(r) + "' where " + word + " is expected");
}

static int64_t number(ptx_reader &r) {
    bool negative = skip(r, "-");
    std::string word = take(r);
    bool bits = word.size() > 2 && word[0] == '0' && strchr("fFdD", word[1]) != NULL;
    char *end;
    const char *from = word.c_str() + (bits ? 2 : 0);
    uint64_t n = strtoull(from, &end, bits ? 16 : 0);
    if (*from == '\0' || (*end != '\0' && strcmp(end, "U") != 0)) r.fail("no number: " + word);
    return (int64_t)(negative ? 0 - n : n);
}

/* ---- Declarations ---- */

/* .b8, .f64 and the like; 0 otherwise. */
static int bytes_of(const std::string &type) {
    if (type.size() < 3 || type[0] != '.' || strchr("busf", type[1]) == NULL) return 0;
    int bits = atoi(type.c_str() + 2);
    return bits == 8 || bits == 16 || bits == 32 || bits == 64 ? bits / 8 : 0;
}

/* [.align N] .TYPE NAME [N]...: a variable without its place; -1 bytes where no length is given. */
static ptx_symbol variable(ptx_reader &r, ptx_space space, std::string *name, int64_t *alignment) {
    ptx_symbol s = {ptx_symbol::PLACE, PTX_NONE, space, 0, 0};
    int64_t given = skip(r, ".align") ? number(r) : 0;
    int bytes = bytes_of(take(r));
    if (bytes == 0) r.fail("a variable of unknown type");
    *alignment = given > 0 ? given : bytes;
    *name = take(r);
    s.bytes = bytes;
    while (skip(r, "[")) {
        if (skip(r, "]")) {
            s.bytes = -1;
        } else {
            s.bytes *= number(r);
            need(r, "]");
        }
    }
    return s;
}

static int64_t place(int64_t *end, int64_t bytes, int64_t alignment) {
    int64_t at = (*end + alignment - 1) / alignment * alignment;
    *end = at + bytes;
    return at;
}

static void global_values(ptx_reader &r, char *to, int64_t bytes, int each) {
    need(r, "{");
    for (int64_t at = 0; !skip(r, "}"); at += each) {
        int64_t n = number(r);
        if (at + each > bytes) r.fail("more values than the variable has");
        memcpy(to + at, &n, (size_t)each);
        skip(r, ",");
    }
}

/* After .shared, .local, .global or .const. */
static void declare(ptx_reader &r, ptx_space space) {
    std::string name;
    int64_t alignment;
    size_t type = r.next + (peek(r) == ".align" ? 2 : 0);
    ptx_symbol s = variable(r, space, &name, &alignment);
    if (space == PTX_LOCAL) {
        s.at = place(&r.module->local_bytes, s.bytes, alignment);
    } else if (space == PTX_GLOBAL) {
        auto values = std::make_unique<std::vector<uint64_t>>((size_t)(s.bytes + 7) / 8);
        s.at = (int64_t)values->data();
        if (skip(r, "="))
            global_values(r, (char *)values->data(), s.bytes, bytes_of(r.words[type].text));
        r.module->globals.push_back(std::move(values));
    } else {
        s.at = s.bytes < 0 ? r.dynamic : place(&r.module->shared_bytes, s.bytes, alignment);
    }
    r.scopes.back()[name] = s;
    need(r, ";");
}

/* How many bytes the shared variables of the text take together. */
static int64_t shared_bytes(ptx_reader &r) {
    int64_t end = 0, alignment;
    std::string name;
    for (r.next = 0; r.next + 1 < r.words.size();) {
        if (take(r) != ".shared" || peek(r)[0] != '.') continue;
        ptx_symbol s = variable(r, PTX_SHARED, &name, &alignment);
        if (s.bytes > 0) place(&end, s.bytes, alignment);
    }
    r.next = 0;
    return (end + 15) / 16 * 16;
}

/* .reg .TYPE NAME, NAME<N>, ...; */
static void declare_registers(ptx_reader &r) {
    std::string type = take(r);
    int bytes = type == ".pred" ? 4 : bytes_of(type);
    if (bytes == 0) r.fail("registers of unknown type " + type);
    ptx_symbol s = {bytes == 8        ? ptx_symbol::WIDE
                    : type == ".pred" ? ptx_symbol::PREDICATE
                                      : ptx_symbol::ROW,
                    0, PTX_GENERIC, 0, 0};
    do {
        std::string name = take(r);
        int64_t count = 0;
        if (skip(r, "<")) {
            count = number(r);
            need(r, ">");
        }
        for (int64_t n = 0; n < (count == 0 ? 1 : count); n++) {
            s.row = r.module->rows;
            r.module->rows += bytes == 8 ? 2 : 1;
            r.scopes.back()[count == 0 ? name : name + std::to_string(n)] = s;
        }
    } while (skip(r, ","));
    need(r, ";");
}

/* ---- Instructions ---- */

static ptx_operand operand(ptx_reader &r);

static ptx_operand list(ptx_reader &r, const char *end) {
    ptx_operand o = {ptx_operand::LIST, "", "", 0, false, {}};
    r.next++;
    while (!skip(r, end)) {
        o.list.push_back(operand(r));
        skip(r, ",");
    }
    return o;
}

static bool is_number(const std::string &word) {
    return word == "-" || isdigit((unsigned char)word[0]);
}

static ptx_operand address(ptx_reader &r) {
    ptx_operand o = {ptx_operand::ADDRESS, "", "", 0, false, {}};
    need(r, "[");
    if (!is_number(peek(r))) o.name = take(r);
    skip(r, "+");
    if (peek(r) != "]") o.number = number(r);
    need(r, "]");
    return o;
}

static ptx_operand operand(ptx_reader &r) {
    const std::string &word = peek(r);
    if (word == "{") return list(r, "}");
    if (word == "(") return list(r, ")");
    if (word == "[") return address(r);
    ptx_operand o = {ptx_operand::NUMBER, "", "", 0, false, {}};
    if (is_number(word)) {
        o.number = number(r);
        return o;
    }
    o.kind = ptx_operand::NAME;
    o.negated = skip(r, "!");
    o.name = take(r);
    if (skip(r, "|")) o.second = take(r);
    return o;
}

static void instruction(ptx_reader &r) {
    ptx_statement s = {};
    if (skip(r, "@")) {
        s.negated = skip(r, "!");
        s.guard = take(r);
    }
    s.opcode = take(r);
    s.line = r.line;
    while (!skip(r, ";")) {
        s.operands.push_back(operand(r));
        skip(r, ",");
    }
    r.line = s.line;
    ptx_decode(r, s);
}

/* ---- Functions ---- */

static void statement(ptx_reader &r);

static void block(ptx_reader &r) {
    need(r, "{");
    r.scopes.emplace_back();
    while (!skip(r, "}")) statement(r);
    r.scopes.pop_back();
}

static void statement(ptx_reader &r) {
    const std::string &word = peek(r);
    if (word == "{") {
        block(r);
    } else if (r.next + 1 < r.words.size() && r.words[r.next + 1].text == ":") {
        r.labels[take(r)] = (int)r.module->code.size();
        r.next++;
    } else if (skip(r, ".reg")) {
        declare_registers(r);
    } else if (skip(r, ".shared")) {
        declare(r, PTX_SHARED);
    } else if (word == ".local" || word == ".param") {
        r.next++;
        declare(r, PTX_LOCAL);
    } else if (skip(r, ".pragma")) {
        while (take(r) != ";") continue;
    } else if (word[0] == '.') {
        r.fail("unknown: " + word);
    } else {
        instruction(r);
    }
}

/* (.param ..., ...): of a kernel one after another, of a function local variables. */
static std::vector<ptx_symbol> parameters(ptx_reader &r, ptx_space space, int64_t *end) {
    std::vector<ptx_symbol> all;
    if (!skip(r, "(")) return all;
    while (!skip(r, ")")) {
        std::string name;
        int64_t alignment;
        need(r, ".param");
        ptx_symbol s = variable(r, space, &name, &alignment);
        s.at = place(end, s.bytes, alignment);
        all.push_back(s);
        r.scopes.back()[name] = s;
        skip(r, ",");
    }
    return all;
}

static void body(ptx_reader &r) {
    r.labels.clear();
    r.jumps.clear();
    block(r);
    for (auto &[at, label] : r.jumps) {
        auto found = r.labels.find(label);
        r.line = r.module->code[at].line;
        if (found == r.labels.end()) r.fail("no label " + label);
        r.module->code[at].target = found->second;
    }
}

static void kernel(ptx_reader &r) {
    ptx_kernel k;
    k.name = take(r);
    k.first = (int)r.module->code.size();
    k.argument_bytes = 0;
    r.scopes.emplace_back();
    for (const ptx_symbol &s : parameters(r, PTX_PARAM, &k.argument_bytes))
        k.arguments.push_back(s.at);
    while (peek(r) != "{") r.next++; /* what it asks of the hardware */
    body(r);
    r.scopes.pop_back();
    r.module->kernels[k.name] = k;
}

static void function(ptx_reader &r) {
    ptx_function f;
    r.scopes.emplace_back();
    f.results = parameters(r, PTX_LOCAL, &r.module->local_bytes);
    std::string name = take(r);
    f.parameters = parameters(r, PTX_LOCAL, &r.module->local_bytes);
    f.first = (int)r.module->code.size();
    while (peek(r) != "{" && peek(r) != ";") r.next++;
    if (!skip(r, ";")) {
        r.functions[name] = f;
        body(r);
    }
    r.scopes.pop_back();
}

static void declaration(ptx_reader &r) {
    std::string word = take(r);
    if (word == ".version" || word == ".target" || word == ".address_size")
        while (r.next < r.words.size() && r.words[r.next].line == r.line) r.next++;
    else if (word == ".visible" || word == ".extern" || word == ".weak") return;
    else if (word == ".entry") kernel(r);
    else if (word == ".func") function(r);
    else if (word == ".shared") declare(r, PTX_SHARED);
    else if (word == ".global" || word == ".const") declare(r, PTX_GLOBAL);
    else r.fail("unknown: " + word);
}

static void split_lines(std::vector<std::string> &lines, const std::string &text) {
    for (size_t at = 0, end; at < text.size(); at = end + 1) {
        end = text.find('\n', at);
        if (end == std::string::npos) end = text.size();
        lines.push_back(text.substr(at, end - at));
    }
}

std::unique_ptr<ptx_module> ptx_parse(const std::string &text) {
    auto module = std::make_unique<ptx_module>();
    ptx_reader r = {};
    r.module = module.get();
    module->rows = PTX_SPECIALS;
    module->granule = 4;
    r.words = words_of(text);
    split_lines(module->lines, text);
    ptx_add_integers(r.table);
    ptx_add_floats(r.table);
    ptx_add_conversions(r.table);
    r.dynamic = shared_bytes(r);
    r.scopes.emplace_back();
    while (r.next < r.words.size()) declaration(r);
    ptx_link_calls(r);
    module->shared_bytes = r.dynamic;
    return module;
}
