/* Writing the source of link kernels: a statement for each step that is needed, a test for each
 * mask, the structures of what these read, and the texts of epilogue.h and, where a kernel is
 * fused, of the files that go with fused_epilogue.h. Holds no kernels. */
#include "source.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char TEXT[] =
#include "cuda/epilogue.text"
    ;
static const char MMA_TEXT[] =
#include "cuda/mma.text"
    ;
static const char SPECIAL_TEXT[] =
#include "cuda/special.text"
    ;
static const char FUSED_TEXT[] =
#include "cuda/fused_epilogue.text"
    ;

/* ---- Steps ---- */

link_steps link_steps_of(const ln_reduction *r) {
    link_steps l = {};
    l.n_steps = r->n_steps;
    l.n_parameters = r->n_parameters;
    for (int i = 0; i < r->n_steps; i++) l.steps[i] = r->steps[i];
    for (int p = 0; p < r->n_parameters; p++)
        l.parameters[p] = {r->parameters[p].kind, r->parameters[p].value->data};
    return l;
}

int link_step(link_steps *l, int op, int a, int b) {
    l->steps[l->n_steps] = {op, a, b, 0, 0};
    return l->n_steps++;
}

int link_parameter(link_steps *l, int kind, const void *values) {
    l->parameters[l->n_parameters] = {kind, values};
    return link_step(l, LN_LINK_PARAMETER, l->n_parameters++, 0);
}

/* ORDER LINK */
static int operands_of(int op) {
    if (op < LN_LINK_NEG) return 0;
    return op < LN_LINK_ADD ? 1 : op < LN_LINK_WHERE ? 2 : 3;
}

static void find_needed(bool *needed, const link_steps *l, int step) {
    for (int i = 0; i < l->n_steps; i++) needed[i] = i == step;
    for (int i = step; i >= 0; i--) {
        const int from[] = {l->steps[i].a, l->steps[i].b, l->steps[i].c};
        for (int j = 0; needed[i] && j < operands_of(l->steps[i].op); j++) needed[from[j]] = true;
    }
}

/* ---- Text ---- */

static_assert(+SOURCE_STEPS <= +EPILOGUE_NUMBERS && +SOURCE_PARAMETERS <= +EPILOGUE_PARAMETERS &&
                  +LN_MAX_MASKS <= +EPILOGUE_MASKS,
              "the arguments have room");

/* A statement takes no more than LINE; the texts come whole. A parameter or a mask's side has a
 * field, which is declared, read and moved. */
enum {
    LINE = 160,
    FIELDS = SOURCE_PARAMETERS + 2 * LN_MAX_MASKS,
    ROOM = (SOURCE_STEPS + 3 * FIELDS + 3 * LN_MAX_MASKS + 64) * LINE + sizeof TEXT +
           sizeof MMA_TEXT + sizeof SPECIAL_TEXT + sizeof FUSED_TEXT
};

typedef struct {
    char *text;
    size_t n;
} writer;

static void write(writer *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void write(writer *w, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    w->n += (size_t)vsnprintf(w->text + w->n, LINE, format, arguments);
    va_end(arguments);
}

static void write_text(writer *w, const char *text, size_t n) {
    memcpy(w->text + w->n, text, n);
    w->n += n;
}

static void write_unary(writer *w, int op, int x) {
    switch (op) {
    case LN_LINK_NEG: write(w, "-v%d", x); break;
    case LN_LINK_ABS: write(w, "MATH(fabs)(v%d)", x); break;
    case LN_LINK_SQUARE: write(w, "v%d * v%d", x, x); break;
    case LN_LINK_SQRT: write(w, "MATH(sqrt)(v%d)", x); break;
    case LN_LINK_EXP: write(w, "MATH(exp)(v%d)", x); break;
    case LN_LINK_EXPM1: write(w, "MATH(expm1)(v%d)", x); break;
    case LN_LINK_LOG: write(w, "MATH(log)(v%d)", x); break;
    case LN_LINK_LOG1P: write(w, "MATH(log1p)(v%d)", x); break;
    case LN_LINK_TANH: write(w, "MATH(tanh)(v%d)", x); break;
    case LN_LINK_SIGMOID: write(w, "quotient(1, 1 + MATH(exp)(-v%d))", x); break;
    default: /* SOFTPLUS */
        write(w, "(v%d > 0 ? v%d : 0) + MATH(log1p)(MATH(exp)(-MATH(fabs)(v%d)))", x, x, x);
    }
}

static const char *sign_of(int op) {
    switch (op) {
    case LN_LINK_ADD: return "+";
    case LN_LINK_SUB: return "-";
    case LN_LINK_MUL: return "*";
    case LN_LINK_LT: return "<";
    case LN_LINK_LE: return "<=";
    case LN_LINK_GT: return ">";
    case LN_LINK_GE: return ">=";
    default: return "=="; /* EQ */
    }
}

static void write_binary(writer *w, int op, int x, int y) {
    switch (op) { /* of a minimum or maximum, a NaN similarity stays one */
    case LN_LINK_POW: write(w, "MATH(pow)(v%d, v%d)", x, y); break;
    case LN_LINK_DIV: write(w, "quotient(v%d, v%d)", x, y); break;
    case LN_LINK_MIN: write(w, "v%d < v%d ? v%d : v%d", y, x, y, x); break;
    case LN_LINK_MAX: write(w, "v%d > v%d ? v%d : v%d", y, x, y, x); break;
    default: write(w, "v%d %s v%d", x, sign_of(op), y);
    }
}

/* ---- What a link and the masks read ---- */

/* A structure of the source, and of what it is made at a place of the matrix. */
typedef struct {
    const char *name;
    bool placed; /* it has its place too */
    int n;
    struct {
        const char *type;
        int number;
        char value[72];
    } field[FIELDS];
} record;

static void record_add(record *r, const char *type, int number, const char *format, int from) {
    auto *field = &r->field[r->n++];
    field->type = type;
    field->number = number;
    snprintf(field->value, sizeof field->value, format, from);
}

static void write_record(writer *w, const record &r) {
    write(w, "typedef struct {\n%s", r.placed ? "    place at;\n" : "");
    for (int i = 0; i < r.n; i++) write(w, "    %s x%d;\n", r.field[i].type, r.field[i].number);
    write(w, "} %s;\n", r.name);
}

/* NAME_of a place of the matrix and, where lanes take from each other, NAME_from another lane. */
static void write_readers(writer *w, const record &r, bool shared) {
    write(w, "static __device__ %s %s_of(const epilogue &a, place at) {\n    %s r;\n", r.name,
          r.name, r.name);
    if (r.placed) write(w, "    r.at = at;\n");
    for (int i = 0; i < r.n; i++)
        write(w, "    r.x%d = %s;\n", r.field[i].number, r.field[i].value);
    write(w, "    return r;\n}\n");
    if (!shared) return;
    write(w, "static __device__ %s %s_from(const %s &own, int lane) {\n    %s r;\n", r.name, r.name,
          r.name, r.name);
    if (r.placed) write(w, "    r.at = __shfl_sync(0xffffffffu, own.at, lane);\n");
    for (int i = 0; i < r.n; i++)
        write(w, "    r.x%d = __shfl_sync(0xffffffffu, own.x%d, lane);\n", r.field[i].number,
              r.field[i].number);
    write(w, "    return r;\n}\n");
}

/* Of a link's parameters, those of all entries, of a row and of a column; of the masks, the sides
 * of rows and of columns. */
enum { READ_ALL, READ_ROW, READ_COLUMN, READ_MASK_ROW, READ_MASK_COLUMN, RECORDS };
static const char *const RECORD_NAMES[] = {"link_all", "link_row", "link_column", "mask_row",
                                           "mask_column"};

static int reader_of(int parameter) {
    if (parameter == LN_PARAMETER_SCALAR) return READ_ALL;
    return parameter == LN_PARAMETER_ROW ? READ_ROW : READ_COLUMN;
}

static void find_parameters(record *records, epilogue *a, const link_steps *l, const bool *needed) {
    bool found[SOURCE_PARAMETERS] = {};
    for (int i = 0; i < l->n_steps; i++) {
        int p = l->steps[i].a;
        if (!needed[i] || l->steps[i].op != LN_LINK_PARAMETER || found[p]) continue;
        int reader = reader_of(l->parameters[p].kind);
        found[p] = true;
        a->parameters[p] = l->parameters[p].values;
        record_add(&records[reader], "real", p,
                   reader == READ_ALL ? "((const real *)a.parameters[%d])[0]"
                                      : "((const real *)a.parameters[%d])[at]",
                   p);
    }
}

static void find_masks(record *records, epilogue *a, const ln_reduction *r) {
    for (int i = 0; i < r->n_masks; i++) {
        const ln_mask &m = r->masks[i];
        a->masks[i].row = m.row != NULL ? (const long long *)m.row->data : NULL;
        a->masks[i].column = m.column != NULL ? (const long long *)m.column->data : NULL;
        if (m.kind == LN_MASK_INDEX)
            record_add(&records[READ_MASK_ROW], "place", i, "place_of(a.masks[%d].row[at])", i);
        if (m.kind != LN_MASK_SAME && m.kind != LN_MASK_DIFFERENT) continue;
        record_add(&records[READ_MASK_ROW], "long long", i, "a.masks[%d].row[at]", i);
        record_add(&records[READ_MASK_COLUMN], "long long", i, "a.masks[%d].column[at]", i);
    }
}

/* ---- The link and the masks ---- */

/* The arguments of link() that have what is read. */
static const char *const READ_NAMES[] = {"all", "row", "column"};

/* `numbers` counts what the arguments have already. */
static void write_leaf(writer *w, epilogue *a, const link_steps *l, const ln_link_step &s,
                       bool wide, int *numbers) {
    if (s.op == LN_LINK_S) {
        write(w, "s");
    } else if (s.op == LN_LINK_NUMBER) {
        if (wide) a->numbers.wide[*numbers] = s.number;
        else a->numbers.narrow[*numbers] = (float)s.number;
        write(w, "a.numbers.%s[%d]", wide ? "wide" : "narrow", (*numbers)++);
    } else {
        write(w, "%s.x%d", READ_NAMES[reader_of(l->parameters[s.a].kind)], s.a);
    }
}

static void write_link(writer *w, epilogue *a, const link_steps *l, int step, const bool *needed,
                       bool wide) {
    int numbers = 0;
    write(w, "static __device__ real link(const epilogue &a, const link_all &all, real s,\n"
             "                            const link_row &row, const link_column &column) {\n");
    for (int i = 0; i <= step; i++) {
        const ln_link_step &s = l->steps[i];
        if (!needed[i]) continue;
        write(w, "    const real v%d = ", i);
        switch (operands_of(s.op)) {
        case 0: write_leaf(w, a, l, s, wide, &numbers); break;
        case 1: write_unary(w, s.op, s.a); break;
        case 2: write_binary(w, s.op, s.a, s.b); break;
        default: write(w, "v%d != 0 ? v%d : v%d", s.a, s.b, s.c); /* WHERE */
        }
        write(w, ";\n");
    }
    write(w, "    return v%d;\n}\n", step);
}

static void write_admitted(writer *w, const ln_reduction *r) {
    write(w, "static __device__ bool admitted(const mask_row &row, const mask_column &column) {\n");
    for (int i = 0; i < r->n_masks; i++) {
        switch (r->masks[i].kind) {
        case LN_MASK_SELF: write(w, "    if (row.at == column.at) return false;\n"); break;
        case LN_MASK_TRIANGLE: write(w, "    if (column.at <= row.at) return false;\n"); break;
        case LN_MASK_INDEX: write(w, "    if (row.x%d == column.at) return false;\n", i); break;
        default:
            write(w, "    if (row.x%d %s column.x%d) return false;\n", i,
                  r->masks[i].kind == LN_MASK_SAME ? "!=" : "==", i);
        }
    }
    write(w, "    return true;\n}\n");
}

static void write_touched(writer *w, const ln_reduction *r) {
    write(w, "static __device__ bool touched(const mask_row &row, place first, place count) {\n");
    for (int i = 0; i < r->n_masks; i++) {
        switch (r->masks[i].kind) {
        case LN_MASK_SELF: write(w, "    if (lies_in(row.at, first, count)) return true;\n"); break;
        case LN_MASK_TRIANGLE: write(w, "    if (first <= row.at) return true;\n"); break;
        case LN_MASK_INDEX:
            write(w, "    if (lies_in(row.x%d, first, count)) return true;\n", i);
            break;
        default: write(w, "    return true;\n");
        }
    }
    write(w, "    return false;\n}\n");
}

static void write_fused_texts(writer *w, const source_kind &kind) {
    write(w, "#define LN_WIDTH %d\n#define LN_FLIPPED %d\n#define LN_MIRRORED %d\n%s", kind.width,
          kind.flipped, kind.mirrored, kind.half == LN_BFLOAT16 ? "#define LN_BFLOAT16\n" : "");
    write_text(w, MMA_TEXT, sizeof MMA_TEXT - 1);
    write_text(w, SPECIAL_TEXT, sizeof SPECIAL_TEXT - 1);
    write_text(w, FUSED_TEXT, sizeof FUSED_TEXT - 1);
}

static void write_source(writer *w, epilogue *a, const source_kind &kind, const link_steps *l,
                         int step, const ln_reduction *r) {
    bool wide = kind.dtype == LN_FLOAT64, fused = kind.kernel >= EPILOGUE_FUSED_SUMS;
    bool needed[SOURCE_STEPS];
    record records[RECORDS] = {};
    for (int i = 0; i < RECORDS; i++) records[i].name = RECORD_NAMES[i];
    records[READ_MASK_ROW].placed = records[READ_MASK_COLUMN].placed = true;
    find_needed(needed, l, step);
    find_parameters(records, a, l, needed);
    find_masks(records, a, r);
    write(w, "#define LN_EPILOGUE %d\n", kind.kernel);
    write(w, "#define MATH(name) %s\n", fused ? "special_##name" : wide ? "name" : "name##f");
    write(w, "typedef %s real;\ntypedef %s place;\n", wide ? "double" : "float",
          fused ? "int" : "long long");
    for (int i = 0; i < RECORDS; i++) write_record(w, records[i]);
    write_text(w, TEXT, sizeof TEXT - 1);
    if (fused) write_fused_texts(w, kind);
    for (int i = 0; i < RECORDS; i++) write_readers(w, records[i], fused && i != READ_ALL);
    write_link(w, a, l, step, needed, wide);
    write_admitted(w, r);
    if (fused) write_touched(w, r);
}

ln_status source_new(char **out, epilogue *arguments, const source_kind &kind, const link_steps *l,
                     int step, const ln_reduction *r) {
    writer w = {(char *)ln_scratch_new(ROOM, "similarity"), 0};
    if (w.text == NULL) return LN_OUT_OF_MEMORY;
    write_source(&w, arguments, kind, l, step, r);
    *out = w.text;
    return LN_OK;
}
