/* Writing the source of link kernels: a statement for each step that is needed, a test for each
 * mask, and the text of epilogue.h. Holds no kernels. */
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

/* A statement takes no more than LINE; the texts come whole. */
enum {
    LINE = 160,
    ROOM = (SOURCE_STEPS + 2 * LN_MAX_MASKS + 16) * LINE + sizeof TEXT + sizeof MMA_TEXT +
           sizeof FUSED_TEXT
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
    case LN_LINK_SIGMOID: write(w, "1 / (1 + MATH(exp)(-v%d))", x); break;
    default: /* SOFTPLUS */
        write(w, "(v%d > 0 ? v%d : 0) + MATH(log1p)(MATH(exp)(-MATH(fabs)(v%d)))", x, x, x);
    }
}

static const char *sign_of(int op) {
    switch (op) {
    case LN_LINK_ADD: return "+";
    case LN_LINK_SUB: return "-";
    case LN_LINK_MUL: return "*";
    case LN_LINK_DIV: return "/";
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
    case LN_LINK_MIN: write(w, "v%d < v%d ? v%d : v%d", y, x, y, x); break;
    case LN_LINK_MAX: write(w, "v%d > v%d ? v%d : v%d", y, x, y, x); break;
    default: write(w, "v%d %s v%d", x, sign_of(op), y);
    }
}

/* `numbers` counts what the arguments have already. */
static void write_leaf(writer *w, epilogue *a, const link_steps *l, const ln_link_step &s,
                       int *numbers) {
    if (s.op == LN_LINK_S) {
        write(w, "s");
    } else if (s.op == LN_LINK_NUMBER) {
        a->numbers[*numbers] = s.number;
        write(w, "(real)a.numbers[%d]", (*numbers)++);
    } else {
        int kind = l->parameters[s.a].kind;
        a->parameters[s.a] = l->parameters[s.a].values;
        write(w, "((const real *)a.parameters[%d])[%s]", s.a,
              kind == LN_PARAMETER_ROW      ? "row"
              : kind == LN_PARAMETER_COLUMN ? "column"
                                            : "0");
    }
}

static void write_link(writer *w, epilogue *a, const link_steps *l, int step) {
    bool needed[SOURCE_STEPS];
    int numbers = 0;
    find_needed(needed, l, step);
    write(w, "static __device__ real link(const epilogue &a, real s, long long row,\n"
             "                              long long column) {\n");
    for (int i = 0; i <= step; i++) {
        const ln_link_step &s = l->steps[i];
        if (!needed[i]) continue;
        write(w, "    const real v%d = ", i);
        switch (operands_of(s.op)) {
        case 0: write_leaf(w, a, l, s, &numbers); break;
        case 1: write_unary(w, s.op, s.a); break;
        case 2: write_binary(w, s.op, s.a, s.b); break;
        default: write(w, "v%d != 0 ? v%d : v%d", s.a, s.b, s.c); /* WHERE */
        }
        write(w, ";\n");
    }
    write(w, "    return v%d;\n}\n", step);
}

static void write_masks(writer *w, epilogue *a, const ln_reduction *r) {
    write(w, "static __device__ bool admitted(const epilogue &a, long long row,\n"
             "                                long long column) {\n");
    for (int i = 0; i < r->n_masks; i++) {
        const ln_mask &m = r->masks[i];
        a->masks[i].row = m.row != NULL ? (const long long *)m.row->data : NULL;
        a->masks[i].column = m.column != NULL ? (const long long *)m.column->data : NULL;
        switch (m.kind) {
        case LN_MASK_SELF: write(w, "    if (row == column) return false;\n"); break;
        case LN_MASK_TRIANGLE: write(w, "    if (column <= row) return false;\n"); break;
        case LN_MASK_INDEX:
            write(w, "    if (a.masks[%d].row[row] - 1 == column) return false;\n", i);
            break;
        default:
            write(w, "    if (a.masks[%d].row[row] %s a.masks[%d].column[column]) return false;\n",
                  i, m.kind == LN_MASK_SAME ? "!=" : "==", i);
        }
    }
    write(w, "    return true;\n}\n");
}

ln_status source_new(char **out, epilogue *arguments, const source_kind &kind, const link_steps *l,
                     int step, const ln_reduction *r) {
    bool wide = kind.dtype == LN_FLOAT64;
    writer w = {(char *)ln_scratch_new(ROOM, "similarity"), 0};
    if (w.text == NULL) return LN_OUT_OF_MEMORY;
    write(&w, "#define LN_EPILOGUE %d\n", kind.kernel);
    write(&w, "#define MATH(name) name%s\n", wide ? "" : "##f");
    write(&w, "typedef %s real;\n", wide ? "double" : "float");
    write_text(&w, TEXT, sizeof TEXT - 1);
    if (kind.kernel >= EPILOGUE_FUSED_SUMS) {
        write(&w, "#define LN_WIDTH %d\n%s", kind.width,
              kind.half == LN_BFLOAT16 ? "#define LN_BFLOAT16\n" : "");
        write_text(&w, MMA_TEXT, sizeof MMA_TEXT - 1);
        write_text(&w, FUSED_TEXT, sizeof FUSED_TEXT - 1);
    }
    write_link(&w, arguments, l, step);
    write_masks(&w, arguments, r);
    *out = w.text;
    return LN_OK;
}
