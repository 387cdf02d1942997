/* Instructions of PTX from their text to the compact form. Holds what each family's operands and
 * modifiers mean. Invariant: a modifier that is not known here is refused. */
#include <stdlib.h>
#include <string.h>

#include "ptx_text.h"

typedef std::vector<std::string> parts;

static parts parts_of(const std::string &opcode) {
    parts all;
    for (size_t at = 0, end; at <= opcode.size(); at = end + 1) {
        end = opcode.find('.', at);
        if (end == std::string::npos) end = opcode.size();
        all.push_back(opcode.substr(at, end - at));
    }
    return all;
}

[[noreturn]] static void unknown(ptx_reader &r, const ptx_statement &s) {
    r.fail("an instruction that the interpreter does not know: " + s.opcode);
}

/* ---- Operands ---- */

static ptx_row constant(ptx_reader &r, bool wide, uint64_t bits) {
    auto &row = r.constants[{wide, bits}];
    if (row != 0) return row;
    auto &all = r.module->constants;
    row = (ptx_row)(all.size() / (PTX_ROW_BYTES / 8)) | PTX_CONSTANT;
    uint64_t twice = (bits & 0xffffffff) | bits << 32;
    all.insert(all.end(), (wide ? 2 : 1) * PTX_ROW_BYTES / 8, wide ? bits : twice);
    return row;
}

static ptx_row special(const std::string &name) {
    static const struct {
        const char *name;
        ptx_row row;
    } known[] = {
        {"%tid", PTX_TID}, {"%ntid", PTX_NTID}, {"%ctaid", PTX_CTAID}, {"%nctaid", PTX_NCTAID}};
    if (name == "%laneid") return PTX_LANEID;
    for (auto &k : known) {
        size_t n = strlen(k.name);
        if (name.compare(0, n, k.name) == 0 && name.size() == n + 2 && name[n] == '.')
            return k.row + (ptx_row)(name[n + 1] - 'x');
    }
    return PTX_NONE;
}

/* As the form's character wants it: 'p', 'w' or 'l'. */
static ptx_row row_of(ptx_reader &r, const ptx_operand &o, char form) {
    if (o.kind == ptx_operand::NUMBER) {
        if (form == 'p') return constant(r, false, o.number != 0 ? ~0ull : 0);
        return constant(r, form == 'l', (uint64_t)o.number);
    }
    if (o.kind != ptx_operand::NAME || o.negated) r.fail("an operand of another kind");
    if (o.name == "_") return PTX_SINK;
    ptx_row named = special(o.name);
    if (named != PTX_NONE && form == 'w') return named;
    const ptx_symbol *s = r.find(o.name);
    if (s == NULL) r.fail("no register " + o.name);
    if (s->kind == ptx_symbol::PLACE) return constant(r, form == 'l', (uint64_t)s->at);
    static const char forms[] = "wlp";
    if (forms[s->kind] != form) r.fail("another kind of register: " + o.name);
    return s->row;
}

/* 'w' or 'l', as a register is. */
static char form_of(ptx_reader &r, const ptx_operand &o) {
    const ptx_symbol *s = o.kind == ptx_operand::NAME ? r.find(o.name) : NULL;
    if (o.name == "_") return 'w';
    if (s == NULL || s->kind > ptx_symbol::WIDE) r.fail("an operand that is no register");
    return s->kind == ptx_symbol::WIDE ? 'l' : 'w';
}

static void add_out(ptx_reader &r, ptx_instruction *i, const ptx_operand &o, char form) {
    ptx_row row = row_of(r, o, form);
    if (i->n_out == 4 || row & PTX_CONSTANT || row < PTX_SINK) r.fail("a result of another kind");
    i->out[i->n_out++] = row;
}

static void add_in(ptx_reader &r, ptx_instruction *i, const ptx_operand &o, char form) {
    if (i->n_in == 10) r.fail("too many operands");
    i->in[i->n_in++] = row_of(r, o, form);
}

/* An address, the instruction's operand 0 or 1. Parameters of functions and of calls are local
 * variables. */
static void add_address(ptx_reader &r, ptx_instruction *i, const ptx_operand &o) {
    int n = i->n_in;
    if (o.kind != ptx_operand::ADDRESS || n > 1) r.fail("no address");
    const ptx_symbol *s = o.name.empty() ? NULL : r.find(o.name);
    if (!o.name.empty() && s == NULL) r.fail("no name " + o.name);
    i->offset[n] = o.number;
    i->wide[n] = false;
    i->in[i->n_in++] = PTX_NONE;
    if (s != NULL && s->kind == ptx_symbol::PLACE) {
        i->offset[n] += s->at;
        if (i->space == PTX_PARAM) i->space = s->space;
        else if (i->space != s->space) r.fail("a variable of another space: " + o.name);
    } else if (s != NULL) {
        if (s->kind == ptx_symbol::PREDICATE) r.fail("an address of a predicate");
        i->wide[n] = s->kind == ptx_symbol::WIDE;
        i->in[n] = s->row;
    }
}

static const ptx_operand &at(ptx_reader &r, const ptx_statement &s, size_t n) {
    if (n >= s.operands.size()) r.fail("too few operands");
    return s.operands[n];
}

/* A single operand is a list of one. */
static std::vector<ptx_operand> list_of(const ptx_operand &o) {
    return o.kind == ptx_operand::LIST ? o.list : std::vector<ptx_operand>{o};
}

/* ---- Memory ---- */

static int bytes_of(const std::string &type) {
    if (type.empty() || strchr("busf", type[0]) == NULL) return 0;
    int bits = atoi(type.c_str() + 1);
    return bits == 8 || bits == 16 || bits == 32 || bits == 64 ? bits / 8 : 0;
}

static bool take_space(ptx_instruction *i, const std::string &part) {
    static const std::map<std::string, ptx_space> spaces = {{"param", PTX_PARAM},
                                                            {"global", PTX_GLOBAL},
                                                            {"const", PTX_GLOBAL},
                                                            {"shared", PTX_SHARED},
                                                            {"local", PTX_LOCAL}};
    auto found = spaces.find(part);
    if (found != spaces.end()) i->space = found->second;
    return found != spaces.end();
}

static void remember_granule(ptx_reader &r, const ptx_instruction &i) {
    bool counts = i.space != PTX_PARAM && i.space != PTX_LOCAL;
    if (counts && i.bytes < r.module->granule) r.module->granule = i.bytes;
}

/* ld or st, with a space, a width and hints for caches. */
static void decode_access(ptx_reader &r, ptx_instruction *i, const ptx_statement &s,
                          const parts &p) {
    bool loads = p[0] == "ld";
    const std::string &type = p.back();
    i->space = PTX_GENERIC;
    i->count = 1;
    i->bytes = bytes_of(type);
    for (size_t n = 1; n + 1 < p.size(); n++) {
        if (p[n] == "v2" || p[n] == "v4") i->count = p[n][1] - '0';
        else if (p[n] != "nc" && p[n] != "ca" && p[n] != "cg" && p[n] != "cs" &&
                 !take_space(i, p[n]))
            unknown(r, s);
    }
    auto registers = list_of(at(r, s, loads ? 0 : 1));
    add_address(r, i, at(r, s, loads ? 1 : 0));
    if ((int)registers.size() != i->count) unknown(r, s);
    char form = registers[0].kind == ptx_operand::NUMBER ? (i->bytes == 8 ? 'l' : 'w')
                                                         : form_of(r, registers[0]);
    for (auto &o : registers) {
        if (loads) add_out(r, i, o, form);
        else add_in(r, i, o, form);
    }
    int wide = form == 'l' ? 2 : 1;
    i->run = loads ? ptx_load_handler(type, wide) : ptx_store_handler(i->bytes, wide);
    remember_granule(r, *i);
}

/* atom.SPACE.OP.TYPE, and red, which gives nothing. */
static void decode_atom(ptx_reader &r, ptx_instruction *i, const ptx_statement &s, const parts &p) {
    size_t n = 1;
    i->space = PTX_GENERIC;
    if (p.size() > 3 && take_space(i, p[1])) n = 2;
    if (p.size() != n + 2) unknown(r, s);
    char form = bytes_of(p[n + 1]) == 8 ? 'l' : 'w';
    size_t from = p[0] == "atom" ? 1 : 0;
    if (from == 1) add_out(r, i, at(r, s, 0), form);
    add_address(r, i, at(r, s, from));
    for (size_t k = from + 1; k < s.operands.size(); k++) add_in(r, i, s.operands[k], form);
    i->bytes = bytes_of(p[n + 1]);
    i->run = ptx_atom_handler(p[n] + "." + p[n + 1]);
    remember_granule(r, *i);
}

static void decode_copy(ptx_reader &r, ptx_instruction *i, const ptx_statement &s) {
    if (s.opcode == "cp.async.commit_group") {
        i->run = ptx_copy_group;
    } else if (s.opcode == "cp.async.wait_group") {
        i->run = ptx_copy_wait;
        i->offset[0] = at(r, s, 0).number;
    } else if (s.opcode == "cp.async.cg.shared.global" || s.opcode == "cp.async.ca.shared.global") {
        i->run = ptx_copy_begin;
        i->space = PTX_SHARED;
        add_address(r, i, at(r, s, 0));
        i->space = PTX_GLOBAL;
        add_address(r, i, at(r, s, 1));
        i->bytes = (int)at(r, s, 2).number;
        bool fits = i->bytes == 16 ||
                    (s.opcode[9] == 'c' && s.opcode[10] == 'a' && (i->bytes == 4 || i->bytes == 8));
        if (s.operands.size() > 3) add_in(r, i, s.operands[3], 'w');
        if (!fits) r.fail("a copy of another size");
    }
}

/* ---- Lanes ---- */

static void decode_lanes(ptx_reader &r, ptx_instruction *i, const ptx_statement &s,
                         const parts &p) {
    i->run = ptx_lanes_handler(s.opcode);
    i->meeting = p[0] == "mma" || p[0] == "ldmatrix" ? PTX_ALIGNED : PTX_MASKED;
    if (p[0] == "shfl") {
        add_out(r, i, at(r, s, 0), 'w');
        ptx_operand second = s.operands[0];
        second.name = second.second;
        if (!second.name.empty()) add_out(r, i, second, 'p');
        for (size_t n = 1; n < 5; n++) add_in(r, i, at(r, s, n), 'w');
    } else if (p[0] == "vote") {
        add_out(r, i, at(r, s, 0), p[2] == "ballot" ? 'w' : 'p');
        add_in(r, i, at(r, s, 1), 'p');
        add_in(r, i, at(r, s, 2), 'w');
    } else if (p[0] == "activemask") {
        add_out(r, i, at(r, s, 0), 'w');
        i->meeting = PTX_ALONE;
    } else if (p[0] == "ldmatrix") {
        for (auto &o : list_of(at(r, s, 0))) add_out(r, i, o, 'w');
        i->space = PTX_SHARED;
        add_address(r, i, at(r, s, 1));
        if (p[4] != "x" + std::to_string(i->n_out)) unknown(r, s);
    } else {
        static const size_t counts[] = {4, 4, 2, 4};
        for (size_t n = 0; n < 4; n++) {
            auto list = list_of(at(r, s, n));
            if (list.size() != counts[n]) unknown(r, s);
            for (auto &o : list) {
                if (n == 0) add_out(r, i, o, 'w');
                else add_in(r, i, o, 'w');
            }
        }
    }
}

/* bar.sync 0 of all threads, or bar.warp.sync of a mask. */
static void decode_barrier(ptx_reader &r, ptx_instruction *i, const ptx_statement &s) {
    if (s.opcode == "bar.warp.sync") {
        i->run = ptx_lanes_handler(s.opcode);
        i->meeting = PTX_MASKED;
        add_in(r, i, at(r, s, 0), 'w');
        return;
    }
    bool whole = s.operands.size() == 1 && s.operands[0].kind == ptx_operand::NUMBER &&
                 s.operands[0].number == 0;
    if ((s.opcode != "bar.sync" && s.opcode != "barrier.sync.aligned") || !whole) unknown(r, s);
    i->control = PTX_BARRIER;
}

/* ---- Control ---- */

static std::vector<ptx_symbol> places_of(ptx_reader &r, const std::vector<ptx_operand> &list) {
    std::vector<ptx_symbol> all;
    for (const ptx_operand &o : list) {
        const ptx_symbol *s = r.find(o.name);
        if (s == NULL || s->kind != ptx_symbol::PLACE) r.fail("a parameter of another kind");
        all.push_back(*s);
    }
    return all;
}

/* call (RESULTS), NAME, (PARAMETERS): either list may be left out. */
static void decode_call(ptx_reader &r, ptx_instruction *i, const ptx_statement &s) {
    ptx_use use = {r.module->code.size(), "", {}, {}};
    size_t n = 0;
    if (at(r, s, 0).kind == ptx_operand::LIST) use.results = places_of(r, s.operands[n++].list);
    use.name = at(r, s, n).name;
    if (n + 1 < s.operands.size()) use.parameters = places_of(r, s.operands[n + 1].list);
    i->control = PTX_CALL;
    r.uses.push_back(use);
}

static void copy_places(ptx_reader &r, std::vector<ptx_copy> *copies,
                        const std::vector<ptx_symbol> &to, const std::vector<ptx_symbol> &from) {
    if (to.size() != from.size()) r.fail("a call with another number of parameters");
    for (size_t n = 0; n < to.size(); n++) {
        if (to[n].bytes != from[n].bytes) r.fail("a call's parameter of another size");
        copies->push_back({to[n].at, from[n].at, (int)to[n].bytes});
    }
}

void ptx_link_calls(ptx_reader &r) {
    for (const ptx_use &use : r.uses) {
        ptx_instruction &i = r.module->code[use.instruction];
        auto found = r.functions.find(use.name);
        ptx_call call;
        r.line = i.line;
        if (found == r.functions.end()) r.fail("no function " + use.name);
        copy_places(r, &call.before, found->second.parameters, use.parameters);
        copy_places(r, &call.after, use.results, found->second.results);
        i.target = found->second.first;
        i.offset[0] = (int64_t)r.module->calls.size();
        r.module->calls.push_back(call);
    }
}

static bool decode_control(ptx_reader &r, ptx_instruction *i, const ptx_statement &s) {
    if (s.opcode == "bra" || s.opcode == "bra.uni") {
        i->control = PTX_BRANCH;
        r.jumps.push_back({r.module->code.size(), at(r, s, 0).name});
    } else if (s.opcode == "call" || s.opcode == "call.uni") {
        decode_call(r, i, s);
    } else if (s.opcode == "ret") {
        i->control = PTX_RETURN;
    } else if (s.opcode == "exit") {
        i->control = PTX_EXIT;
    } else {
        return false;
    }
    return true;
}

/* ---- The rest ---- */

/* A list of parts, and the whole. */
static bool decode_parts(ptx_reader &r, ptx_instruction *i, const ptx_statement &s) {
    bool into = at(r, s, 0).kind == ptx_operand::LIST;
    if (s.opcode.compare(0, 5, "mov.b") != 0 || s.operands.size() != 2) return false;
    if (!into && s.operands[1].kind != ptx_operand::LIST) return false;
    auto list = s.operands[into ? 0 : 1].list;
    i->bytes = bytes_of(s.opcode.substr(4));
    i->count = (int)list.size();
    char part = i->bytes / (i->count == 0 ? 1 : i->count) == 8 ? 'l' : 'w';
    char whole = i->bytes == 8 ? 'l' : 'w';
    i->run = into ? ptx_unpack : ptx_pack;
    if (i->count != 2 && i->count != 4) unknown(r, s);
    for (auto &o : list) {
        if (into) add_out(r, i, o, part);
        else add_in(r, i, o, part);
    }
    if (into) add_in(r, i, s.operands[1], whole);
    else add_out(r, i, s.operands[0], whole);
    return true;
}

/* Between spaces and generic addresses. */
static void decode_window(ptx_reader &r, ptx_instruction *i, const ptx_statement &s,
                          const parts &p) {
    bool to = p.size() > 1 && p[1] == "to";
    if (p.size() != (to ? 4u : 3u) || p.back() != "u64" || !take_space(i, p[to ? 2 : 1]))
        unknown(r, s);
    int64_t window = i->space == PTX_SHARED  ? (int64_t)PTX_SHARED_WINDOW
                     : i->space == PTX_LOCAL ? (int64_t)PTX_LOCAL_WINDOW
                                             : 0;
    if (i->space == PTX_PARAM) unknown(r, s);
    add_out(r, i, at(r, s, 0), 'l');
    add_in(r, i, at(r, s, 1), 'l');
    i->offset[0] = to ? -window : window;
    i->run = ptx_move_by;
}

static void decode_table(ptx_reader &r, ptx_instruction *i, const ptx_statement &s) {
    auto found = r.table.find(s.opcode);
    if (found == r.table.end()) unknown(r, s);
    bool narrow = strcmp(strchr(found->second.operands, '='), "=w") == 0;
    if (s.opcode.compare(0, 4, "cvt.") == 0 && narrow && form_of(r, at(r, s, 1)) == 'l')
        found = r.table.find(s.opcode + ":wide");
    if (found == r.table.end()) unknown(r, s);
    const char *form = found->second.operands;
    bool out = true;
    size_t n = 0;
    for (; *form != '\0'; form++) {
        if (*form == '=') {
            out = false;
            continue;
        }
        const ptx_operand &o = at(r, s, n++);
        if (!o.second.empty()) unknown(r, s);
        if (out) add_out(r, i, o, *form);
        else add_in(r, i, o, *form);
    }
    if (n != s.operands.size()) unknown(r, s);
    i->run = found->second.run;
}

static void decode_family(ptx_reader &r, ptx_instruction *i, const ptx_statement &s) {
    parts p = parts_of(s.opcode);
    if (p[0] == "ld" || p[0] == "st") decode_access(r, i, s, p);
    else if (p[0] == "atom" || p[0] == "red") decode_atom(r, i, s, p);
    else if (p[0] == "cp") decode_copy(r, i, s);
    else if (p[0] == "shfl" || p[0] == "vote" || p[0] == "ldmatrix" || p[0] == "mma" ||
             p[0] == "activemask")
        decode_lanes(r, i, s, p);
    else if (p[0] == "bar" || p[0] == "barrier") decode_barrier(r, i, s);
    else if (p[0] == "cvta") decode_window(r, i, s, p);
    else if (p[0] != "mov" || !decode_parts(r, i, s)) decode_table(r, i, s);
    if (i->run == NULL && i->control == PTX_PLAIN) unknown(r, s);
}

void ptx_decode(ptx_reader &r, const ptx_statement &s) {
    ptx_instruction i = {};
    i.line = s.line;
    i.guard = PTX_NONE;
    i.negated = s.negated;
    i.control = PTX_PLAIN;
    i.meeting = PTX_ALONE;
    if (!s.guard.empty()) {
        ptx_operand o = {ptx_operand::NAME, s.guard, "", 0, false, {}};
        i.guard = row_of(r, o, 'p');
    }
    if (!decode_control(r, &i, s)) decode_family(r, &i, s);
    r.module->code.push_back(i);
}
