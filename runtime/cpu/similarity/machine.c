/* The register machine of machine.h: placing steps in registers, and the loops of each operation.
 * Knows no tiles and no reductions. */
#include "machine.h"
#include "cpu/vector_math.h"
#include <string.h>

int REAL(machine_step)(machine *m, int op, int a, int b) {
    m->steps[m->n_steps] = (machine_step){.op = op, .operand = {a, b}};
    m->inside[m->n_steps] = false;
    return m->n_steps++;
}

void REAL(machine_link)(machine *m, int n_steps, const ln_link_step *steps) {
    for (int i = 0; i < n_steps; i++) {
        const ln_link_step *s = &steps[i];
        m->steps[i] = (machine_step){s->op, {s->a, s->b, s->c}, s->number};
    }
    m->n_steps = n_steps;
}

int REAL(machine_parameter)(machine *m, int kind, const real *values) {
    m->parameters[m->n_parameters] = (machine_parameter){values, kind};
    return REAL(machine_step)(m, LN_LINK_PARAMETER, m->n_parameters++, 0);
}

/* Steps that prepare makes of several: what is read as often as it is written costs as much as it
 * computes. */
enum {
    MULTIPLY_ADD = LN_LINK_WHERE + 1, /* a b + c */
    MULTIPLY_SUBTRACT,                /* a b - c */
    SUBTRACT_PRODUCT,                 /* c - a b */
    LE_DIVIDE,                        /* (a <= b) / c */
    EXP_DIFFERENCE,                   /* exp(a - b) */
    EXP_TIMES,                        /* exp(a) b */
    EXP_DIFFERENCE_TIMES,             /* exp(a - b) c */
    EXP_DIFFERENCE_TIMES_ADD,         /* exp(a - b) c + d */
    EXP_PRODUCT_DIFFERENCE,           /* exp(a b - c) */
    EXP_PRODUCT_DIFFERENCE_TIMES,     /* exp(a b - c) d */
    INSIDE = 64                       /* added to an operation whose operand is inside */
};

static int operands_of(int op) {
    static const int made[] = {3, 3, 3, 3, 2, 2, 3, 4, 3, 4};
    return op <= LN_LINK_WHERE ? ln_link_operands(op) : made[op - MULTIPLY_ADD];
}

/* ---- Both orientations ---- */

static int mirror_leaf(machine *m, int step) {
    if (m->steps[step].op != LN_LINK_PARAMETER) return step;
    machine_parameter p = m->parameters[m->steps[step].operand[0]];
    if (p.kind == LN_PARAMETER_SCALAR) return step;
    int kind = p.kind == LN_PARAMETER_ROW ? LN_PARAMETER_COLUMN : LN_PARAMETER_ROW;
    return REAL(machine_parameter)(m, kind, p.values);
}

void REAL(machine_mirror)(machine *m, int *mirrored, const int *values, int n) {
    bool needed[MACHINE_STEPS] = {false};
    int own[MACHINE_STEPS], n_steps = m->n_steps;
    for (int i = 0; i < n; i++) needed[values[i]] = true;
    for (int i = n_steps - 1; i >= 0; i--)
        for (int j = 0; needed[i] && j < operands_of(m->steps[i].op); j++)
            needed[m->steps[i].operand[j]] = true;
    for (int i = 0; i < n_steps; i++) {
        if (!needed[i]) continue;
        machine_step s = m->steps[i];
        int operands = operands_of(s.op), moved[4] = {0};
        bool any = false;
        own[i] = operands == 0 ? mirror_leaf(m, i) : i;
        for (int j = 0; j < operands; j++) {
            moved[j] = own[s.operand[j]];
            any |= moved[j] != s.operand[j];
        }
        if (!any) continue;
        own[i] = REAL(machine_step)(m, s.op, 0, 0);
        memcpy(m->steps[own[i]].operand, moved, sizeof moved);
        m->inside[own[i]] = m->inside[i];
    }
    for (int i = 0; i < n; i++) mirrored[i] = own[values[i]];
}

/* ---- Placing ---- */

static bool leaf_varies(const machine *m, const machine_step *s) {
    return s->op == LN_LINK_S ||
           (s->op == LN_LINK_PARAMETER && m->parameters[s->operand[0]].kind == LN_PARAMETER_COLUMN);
}

/* Whether the step's value is a multiple of its one varying operand plus a number. Not where that
 * operand has a number added already: of (1 - s) + epsilon, 1 + epsilon would lose the epsilon. */
static bool is_affine(const machine_step *s, const bool *varies, const bool *shifted) {
    int a = s->operand[0], b = s->operand[1];
    switch (s->op) {
    case LN_LINK_NEG: return true;
    case LN_LINK_ADD:
    case LN_LINK_SUB: return varies[a] != varies[b] && !shifted[a] && !shifted[b];
    case LN_LINK_MUL: return varies[a] != varies[b];
    case LN_LINK_DIV: return !varies[b];
    default: return false;
    }
}

static void find_places(machine *m) {
    bool varies[MACHINE_STEPS], shifted[MACHINE_STEPS] = {false}, output[MACHINE_STEPS] = {false};
    for (int i = 0; i < m->n_outputs; i++) output[m->outputs[i]] = true;
    for (int i = 0; i < m->n_steps; i++) {
        const machine_step *s = &m->steps[i];
        int operands = operands_of(s->op);
        varies[i] = operands == 0 && leaf_varies(m, s);
        for (int j = 0; j < operands; j++) varies[i] |= varies[s->operand[j]];
        m->place[i] = operands == 0 ? PLACE_LEAF : PLACE_NUMBER;
        if (operands == 0 || !varies[i]) continue;
        bool view = !output[i] && is_affine(s, varies, shifted);
        m->place[i] = view ? PLACE_VIEW : 0;
        shifted[i] = view && (s->op == LN_LINK_ADD || s->op == LN_LINK_SUB);
        for (int j = 0; view && j < operands; j++) shifted[i] |= shifted[s->operand[j]];
    }
}

/* What is the same for all rows of a tile. */
static void find_early(const machine *m, bool *early) {
    for (int i = 0; i < m->n_steps; i++) {
        const machine_step *s = &m->steps[i];
        early[i] = s->op != LN_LINK_S;
        if (s->op == LN_LINK_PARAMETER)
            early[i] = m->parameters[s->operand[0]].kind != LN_PARAMETER_ROW;
        for (int j = 0; j < operands_of(s->op); j++) early[i] &= early[s->operand[j]];
    }
}

/* A step joined with `first`, its operand number j, which is computed for it alone; op -1: not. */
static machine_step joined(const machine_step *s, const machine_step *first, int j) {
    machine_step made = {.op = -1};
    if (operands_of(first->op) > 3) return made;
    memcpy(made.operand, first->operand, sizeof made.operand);
    int with = s->operand[1 - j], *next = &made.operand[operands_of(first->op)];
    bool adds = s->op == LN_LINK_ADD, left = j == 0;
    *next = with;
    if ((adds || s->op == LN_LINK_SUB) && first->op == LN_LINK_MUL)
        made.op = adds ? MULTIPLY_ADD : left ? MULTIPLY_SUBTRACT : SUBTRACT_PRODUCT;
    if (s->op == LN_LINK_DIV && first->op == LN_LINK_LE && left) made.op = LE_DIVIDE;
    if (s->op == LN_LINK_EXP && first->op == LN_LINK_SUB) made.op = EXP_DIFFERENCE;
    if (s->op == LN_LINK_EXP && first->op == MULTIPLY_SUBTRACT) made.op = EXP_PRODUCT_DIFFERENCE;
    if (s->op == LN_LINK_MUL && first->op == LN_LINK_EXP) made.op = EXP_TIMES;
    if (s->op == LN_LINK_MUL && first->op == EXP_DIFFERENCE) made.op = EXP_DIFFERENCE_TIMES;
    if (s->op == LN_LINK_MUL && first->op == EXP_PRODUCT_DIFFERENCE)
        made.op = EXP_PRODUCT_DIFFERENCE_TIMES;
    if (adds && first->op == EXP_DIFFERENCE_TIMES) made.op = EXP_DIFFERENCE_TIMES_ADD;
    return made;
}

static bool is_array(const machine *m, int step) {
    if (m->place[step] == PLACE_LEAF) return leaf_varies(m, &m->steps[step]);
    return m->place[step] != PLACE_NUMBER;
}

static void count_readers(const machine *m, int *readers) {
    memset(readers, 0, (size_t)m->n_steps * sizeof *readers);
    for (int i = 0; i < m->n_outputs; i++) readers[m->outputs[i]] = 2;
    for (int i = 0; i < m->n_steps; i++)
        for (int j = 0; j < operands_of(m->steps[i].op); j++) readers[m->steps[i].operand[j]]++;
}

/* (x y) z, of which y and z are early, as x (y z): the latter is computed once a tile. */
static void regroup(machine *m, bool *early) {
    int readers[MACHINE_STEPS];
    count_readers(m, readers);
    for (int i = 0; i < m->n_steps; i++) {
        int *outer = m->steps[i].operand;
        if (m->steps[i].op != LN_LINK_MUL || early[i] || early[outer[0]] == early[outer[1]])
            continue;
        int product = early[outer[0]] ? outer[1] : outer[0], z = outer[0] + outer[1] - product;
        int *inner = m->steps[product].operand;
        if (m->steps[product].op != LN_LINK_MUL || readers[product] != 1 || z > product ||
            early[inner[0]] == early[inner[1]])
            continue;
        int x = early[inner[0]] ? inner[1] : inner[0], y = inner[0] + inner[1] - x;
        m->steps[product] = (machine_step){.op = LN_LINK_MUL, .operand = {y, z}};
        m->steps[i] = (machine_step){.op = LN_LINK_MUL, .operand = {x, product}};
        early[product] = true;
    }
}

/* An early step is not taken into one that runs for every row. */
static void fuse(machine *m, const bool *early) {
    int readers[MACHINE_STEPS];
    count_readers(m, readers);
    for (int i = 0; i < m->n_steps; i++) {
        machine_step *s = &m->steps[i], made = {.op = -1};
        int first = -1;
        for (int j = 0; j < 2 && made.op < 0 && m->place[i] == 0 && j < operands_of(s->op); j++) {
            first = s->operand[j];
            if (m->place[first] != 0 || readers[first] != 1 || early[first] != early[i]) continue;
            made = joined(s, &m->steps[first], j);
        }
        bool arrays = true; /* what takes three operands takes no numbers, but as a limit */
        for (int j = 0; made.op >= 0 && j < operands_of(made.op); j++)
            arrays &= is_array(m, made.operand[j]) || (made.op == LE_DIVIDE && j == 1);
        if (made.op < 0 || (!arrays && operands_of(made.op) > 2)) continue;
        *s = made;
        m->inside[i] |= m->inside[first];
    }
}

/* The last step that reads each step, n_steps for an output, -1 for what nothing reads. Who reads a
 * view reads what it views. */
static void find_last(const machine *m, int *last) {
    for (int i = 0; i < m->n_steps; i++) last[i] = -1;
    for (int i = 0; i < m->n_outputs; i++) last[m->outputs[i]] = m->n_steps;
    for (int i = m->n_steps - 1; i >= 0; i--)
        for (int j = 0; last[i] >= 0 && j < operands_of(m->steps[i].op); j++) {
            int from = m->steps[i].operand[j];
            int reader = m->place[i] == PLACE_VIEW ? last[i] : i;
            if (last[from] < reader) last[from] = reader;
        }
}

/* Registers are given out in the order of the steps and taken back after their last reader; those
 * of the early steps come first, and stay. */
void REAL(machine_prepare)(machine *m) {
    int last[MACHINE_STEPS], held[MACHINE_STEPS];
    bool early[MACHINE_STEPS];
    find_early(m, early);
    regroup(m, early);
    find_places(m);
    fuse(m, early);
    find_last(m, last);
    m->n_registers = m->n_live = m->n_early = 0;
    for (int i = 0; i < m->n_steps; i++) {
        if (last[i] < 0 || !early[i]) continue;
        m->early[m->n_early++] = i;
        if (m->place[i] == 0) m->place[i] = m->n_registers++;
    }
    int kept = m->n_registers;
    for (int r = 0; r < MACHINE_STEPS; r++) held[r] = -1;
    for (int i = 0; i < m->n_steps; i++) {
        if (last[i] < 0 || early[i]) continue;
        m->live[m->n_live++] = i;
        if (m->place[i] < 0) continue;
        int r = kept; /* a register is free once its step was last read before this one */
        while (held[r] >= 0 && last[held[r]] >= i) r++;
        held[r] = i;
        m->place[i] = r;
        if (r >= m->n_registers) m->n_registers = r + 1;
    }
}

/* ---- Running ---- */

#define UNARY(op, expression)                                                                      \
    case op:                                                                                       \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                      \
            real x = a.scale * a.array[i] + a.offset;                                              \
            y[i] = (expression);                                                                   \
        }                                                                                          \
        break;

/* y = x op z elementwise; at least one of them is an array. */
#define BINARY(expression)                                                                         \
    if (a.array != NULL && b.array != NULL) {                                                      \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                      \
            real x = a.scale * a.array[i] + a.offset, z = b.scale * b.array[i] + b.offset;         \
            y[i] = (expression);                                                                   \
        }                                                                                          \
    } else if (a.array != NULL) {                                                                  \
        real z = b.offset;                                                                         \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                      \
            real x = a.scale * a.array[i] + a.offset;                                              \
            y[i] = (expression);                                                                   \
        }                                                                                          \
    } else {                                                                                       \
        real x = a.offset;                                                                         \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                      \
            real z = b.scale * b.array[i] + b.offset;                                              \
            y[i] = (expression);                                                                   \
        }                                                                                          \
    }

static void run_unary(int op, real *restrict y, operand a, int64_t n) {
    switch (op) {
        UNARY(LN_LINK_NEG, -x)
        UNARY(LN_LINK_ABS, fabs(x))
        UNARY(LN_LINK_SQUARE, x * x)
        UNARY(LN_LINK_SQRT, sqrt(x))
        UNARY(LN_LINK_EXP, exp(x))
        UNARY(LN_LINK_EXP + INSIDE, exp_inside(x))
        UNARY(LN_LINK_EXPM1, expm1(x))
        UNARY(LN_LINK_LOG, log(x))
        UNARY(LN_LINK_LOG + INSIDE, log_inside(x))
        UNARY(LN_LINK_LOG1P, log1p(x))
        UNARY(LN_LINK_LOG1P + INSIDE, log1p_inside(x))
        UNARY(LN_LINK_TANH, tanh(x))
        UNARY(LN_LINK_SIGMOID, 1 / (1 + exp(-x)))
        UNARY(LN_LINK_SIGMOID + INSIDE, 1 / (1 + exp_inside(-x)))
        UNARY(LN_LINK_SOFTPLUS, (x > 0 ? x : 0) + log1p(exp(-fabs(x))))
        UNARY(LN_LINK_SOFTPLUS + INSIDE, (x > 0 ? x : 0) + log1p_inside(exp_inside(-fabs(x))))
    }
}

static operand negative(operand x) {
    return (operand){x.array, -x.scale, -x.offset};
}

static operand plus(operand x, real number) {
    return (operand){x.array, x.scale, x.offset + number};
}

/* y = exp(a - b), where the offset of both is one number. */
#define DIFFERENCE(name, EXP)                                                                      \
    static void name(real *restrict y, operand a, operand b, int64_t n) {                          \
        real offset = a.offset - b.offset;                                                         \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) y[i] =                                 \
            EXP((a.scale * a.array[i] + offset) - b.scale * b.array[i]);                           \
    }
DIFFERENCE(exp_difference, exp)
DIFFERENCE(exp_difference_inside, exp_inside)

static void run_difference(bool inside, real *y, operand a, operand b, int64_t n) {
    int op = inside ? LN_LINK_EXP + INSIDE : LN_LINK_EXP;
    if (a.array == NULL) run_unary(op, y, plus(negative(b), a.offset), n);
    else if (b.array == NULL) run_unary(op, y, plus(a, -b.offset), n);
    else if (inside) exp_difference_inside(y, a, b, n);
    else exp_difference(y, a, b, n);
}

static void run_binary(int op, real *restrict y, operand a, operand b, int64_t n) {
    switch (op) {
    case LN_LINK_ADD: BINARY(x + z); break;
    case LN_LINK_SUB: BINARY(x - z); break;
    case LN_LINK_MUL: BINARY(x * z); break;
    case LN_LINK_DIV: BINARY(x / z); break;
    case LN_LINK_POW: BINARY(pow(x, z)); break;
    case LN_LINK_MIN: BINARY(z < x ? z : x); break; /* a NaN similarity stays one */
    case LN_LINK_MAX: BINARY(z > x ? z : x); break;
    case LN_LINK_LT: BINARY(x < z); break;
    case LN_LINK_LE: BINARY(x <= z); break;
    case LN_LINK_GT: BINARY(x > z); break;
    case LN_LINK_GE: BINARY(x >= z); break;
    case LN_LINK_EQ: BINARY(x == z); break;
    case EXP_DIFFERENCE: run_difference(false, y, a, b, n); break;
    case EXP_DIFFERENCE + INSIDE: run_difference(true, y, a, b, n); break;
    case EXP_TIMES: BINARY(exp(x) * z); break;
    default: BINARY(exp_inside(x) * z); break; /* EXP_TIMES */
    }
}

static real element(operand o, int64_t i) {
    return o.array != NULL ? o.scale * o.array[i] + o.offset : o.offset;
}

static void run_where(real *restrict y, operand c, operand a, operand b, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = element(c, i) != 0 ? element(a, i) : element(b, i);
}

static void multiply_add(real *restrict y, operand a, operand b, operand c, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        real x = a.scale * a.array[i] + a.offset, z = b.scale * b.array[i] + b.offset;
        y[i] = x * z + (c.scale * c.array[i] + c.offset);
    }
}

/* y = an expression of E = exp(a - b), C and D, whose operands are arrays. */
#define OF_DIFFERENCE(name, EXP, expression)                                                       \
    static void name(real *restrict y, const operand *x, int64_t n) {                              \
        operand a = x[0], b = x[1], c = x[2], d = x[3];                                            \
        real offset = a.offset - b.offset;                                                         \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                      \
            real E = EXP((a.scale * a.array[i] + offset) - b.scale * b.array[i]);                  \
            y[i] = (expression);                                                                   \
        }                                                                                          \
        (void)c, (void)d;                                                                          \
    }
#define C (c.scale * c.array[i] + c.offset)
#define D (d.scale * d.array[i] + d.offset)
OF_DIFFERENCE(exp_difference_times, exp, E *C)
OF_DIFFERENCE(exp_difference_times_inside, exp_inside, E *C)
OF_DIFFERENCE(exp_difference_times_add, exp, E *C + D)
OF_DIFFERENCE(exp_difference_times_add_inside, exp_inside, E *C + D)

/* y = an expression of E = exp(a b - c) and D. */
#define OF_PRODUCT(name, EXP, expression)                                                          \
    static void name(real *restrict y, const operand *x, int64_t n) {                              \
        operand a = x[0], b = x[1], c = x[2], d = x[3];                                            \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                      \
            real u = a.scale * a.array[i] + a.offset, v = b.scale * b.array[i] + b.offset;         \
            real E = EXP(u * v - C);                                                               \
            y[i] = (expression);                                                                   \
        }                                                                                          \
        (void)d;                                                                                   \
    }
OF_PRODUCT(exp_product_difference, exp, E)
OF_PRODUCT(exp_product_difference_inside, exp_inside, E)
OF_PRODUCT(exp_product_difference_times, exp, E *D)
OF_PRODUCT(exp_product_difference_times_inside, exp_inside, E *D)
#undef C
#undef D

/* The limit b is an array or a number. */
static void le_divide(real *restrict y, operand a, operand b, operand c, int64_t n) {
    if (b.array == NULL) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            y[i] =
                (a.scale * a.array[i] + a.offset <= b.offset) / (c.scale * c.array[i] + c.offset);
        return;
    }
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        real x = a.scale * a.array[i] + a.offset, z = b.scale * b.array[i] + b.offset;
        y[i] = (x <= z) / (c.scale * c.array[i] + c.offset);
    }
}

static void run_several(int op, real *y, const operand *x, int64_t n) {
    switch (op) {
    case MULTIPLY_ADD: multiply_add(y, x[0], x[1], x[2], n); break;
    case MULTIPLY_SUBTRACT: multiply_add(y, x[0], x[1], negative(x[2]), n); break;
    case SUBTRACT_PRODUCT: multiply_add(y, negative(x[0]), x[1], x[2], n); break;
    case LE_DIVIDE: le_divide(y, x[0], x[1], x[2], n); break;
    case EXP_DIFFERENCE_TIMES: exp_difference_times(y, x, n); break;
    case EXP_DIFFERENCE_TIMES + INSIDE: exp_difference_times_inside(y, x, n); break;
    case EXP_DIFFERENCE_TIMES_ADD: exp_difference_times_add(y, x, n); break;
    case EXP_DIFFERENCE_TIMES_ADD + INSIDE: exp_difference_times_add_inside(y, x, n); break;
    case EXP_PRODUCT_DIFFERENCE: exp_product_difference(y, x, n); break;
    case EXP_PRODUCT_DIFFERENCE + INSIDE: exp_product_difference_inside(y, x, n); break;
    case EXP_PRODUCT_DIFFERENCE_TIMES: exp_product_difference_times(y, x, n); break;
    case EXP_PRODUCT_DIFFERENCE_TIMES + INSIDE: exp_product_difference_times_inside(y, x, n); break;
    default: run_where(y, x[0], x[1], x[2], n);
    }
}

/* One step into y, which holds n elements. */
static void run_step(const machine_step *s, bool inside, real *y, const operand *values,
                     int64_t n) {
    int op = inside ? s->op + INSIDE : s->op, count = operands_of(s->op);
    operand x[4] = {{0}};
    for (int j = 0; j < count; j++) x[j] = values[s->operand[j]];
    if (count == 1) run_unary(op, y, x[0], n);
    else if (count == 2) run_binary(op, y, x[0], x[1], n);
    else run_several(op, y, x, n);
}

static operand number(real x) {
    return (operand){NULL, 0, x};
}

/* A step whose operands are numbers: as arrays of one element, where it is none of the common. */
static operand run_number(const machine_step *s, const operand *values) {
    real first = values[s->operand[0]].offset, second = values[s->operand[1]].offset;
    switch (s->op) {
    case LN_LINK_ADD: return number(first + second);
    case LN_LINK_SUB: return number(first - second);
    case LN_LINK_MUL: return number(first * second);
    case LN_LINK_DIV: return number(first / second);
    default: break;
    }
    real x[4], y;
    operand given[4];
    machine_step step = {.op = s->op, .operand = {0, 1, 2, 3}};
    for (int j = 0; j < operands_of(s->op); j++) {
        x[j] = values[s->operand[j]].offset;
        given[j] = (operand){&x[j], 1, 0};
    }
    run_step(&step, false, &y, given, 1);
    return number(y);
}

static inline operand view(const machine_step *s, const operand *values) {
    operand a = values[s->operand[0]];
    if (s->op == LN_LINK_NEG) return negative(a);
    operand b = values[s->operand[1]];
    bool first = a.array != NULL;
    operand x = first ? a : b;
    real c = first ? b.offset : a.offset;
    switch (s->op) {
    case LN_LINK_ADD: return (operand){x.array, x.scale, x.offset + c};
    case LN_LINK_SUB:
        if (first) return (operand){x.array, x.scale, x.offset - c};
        return (operand){x.array, -x.scale, c - x.offset};
    case LN_LINK_MUL: return (operand){x.array, x.scale * c, x.offset * c};
    default: return (operand){x.array, x.scale / c, x.offset / c};
    }
}

static operand leaf(const machine *m, const machine_step *s, const real *similarities, int64_t row,
                    int64_t column) {
    if (s->op == LN_LINK_S) return (operand){similarities, 1, 0};
    if (s->op == LN_LINK_NUMBER) return number((real)s->number);
    const machine_parameter *p = &m->parameters[s->operand[0]];
    if (p->kind == LN_PARAMETER_COLUMN) return (operand){p->values + column, 1, 0};
    return number(p->values[p->kind == LN_PARAMETER_ROW ? row : 0]);
}

/* A step that takes no loop. */
static operand short_step(const machine *m, const machine_step *s, int place, const operand *values,
                          const real *similarities, int64_t row, int64_t column) {
    if (place == PLACE_LEAF) return leaf(m, s, similarities, row, column);
    return place == PLACE_VIEW ? view(s, values) : run_number(s, values);
}

/* A step with a loop, into its register or `direct`. */
static operand long_step(const machine *m, int i, const operand *values, real *registers,
                         real *direct, int64_t n) {
    real *y = direct != NULL ? direct : registers + (int64_t)m->place[i] * SEGMENT;
    run_step(&m->steps[i], m->inside[i], y, values, n);
    return (operand){y, 1, 0};
}

void REAL(machine_start)(const machine *m, operand *values, real *registers, int64_t column,
                         int64_t n) {
    for (int l = 0; l < m->n_early; l++) {
        int i = m->early[l], place = m->place[i];
        if (place < 0) values[i] = short_step(m, &m->steps[i], place, values, NULL, 0, column);
        else values[i] = long_step(m, i, values, registers, NULL, n);
    }
}

void REAL(machine_run)(const machine *m, operand *results, operand *values, real *registers,
                       real *first, const real *s, int64_t row, int64_t n) {
    for (int l = 0; l < m->n_live; l++) {
        int i = m->live[l], place = m->place[i];
        bool direct = first != NULL && i == m->outputs[0];
        if (place < 0) values[i] = short_step(m, &m->steps[i], place, values, s, row, 0);
        else values[i] = long_step(m, i, values, registers, direct ? first : NULL, n);
    }
    for (int i = 0; i < m->n_outputs; i++) results[i] = values[m->outputs[i]];
}
