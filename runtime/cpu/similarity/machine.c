/* The register machine of machine.h: placing steps in registers, and the loops of each operation.
 * Knows no tiles and no reductions. */
#include "machine.h"
#include "cpu/vector_math.h"

int REAL(machine_step)(machine *m, int op, int a, int b) {
    m->steps[m->n_steps] = (ln_link_step){.op = op, .a = a, .b = b};
    return m->n_steps++;
}

int REAL(machine_parameter)(machine *m, int kind, const real *values) {
    m->parameters[m->n_parameters] = (machine_parameter){values, kind};
    return REAL(machine_step)(m, LN_LINK_PARAMETER, m->n_parameters++, 0);
}

/* ---- Placing ---- */

static bool runs(const machine *m, int parameter) {
    int kind = m->parameters[parameter].kind;
    return kind == (m->flipped ? LN_PARAMETER_ROW : LN_PARAMETER_COLUMN);
}

static int place_leaf(const machine *m, const ln_link_step *s) {
    if (s->op == LN_LINK_S) return PLACE_SIMILARITY;
    if (s->op == LN_LINK_PARAMETER && runs(m, s->a)) return PLACE_ARRAY;
    return PLACE_NUMBER;
}

static int operand_step(const ln_link_step *s, int j) {
    return j == 0 ? s->a : j == 1 ? s->b : s->c;
}

/* Registers are given out in the order of the steps and taken back after their last reader. */
void REAL(machine_prepare)(machine *m) {
    int last[MACHINE_STEPS], held[MACHINE_STEPS];
    for (int i = 0; i < m->n_steps; i++) last[i] = -1;
    for (int i = 0; i < m->n_outputs; i++) last[m->outputs[i]] = m->n_steps;
    for (int i = m->n_steps - 1; i >= 0; i--)
        for (int j = 0; last[i] >= 0 && j < ln_link_operands(m->steps[i].op); j++) {
            int from = operand_step(&m->steps[i], j);
            if (last[from] < i) last[from] = i;
        }
    m->n_registers = 0;
    for (int r = 0; r < MACHINE_STEPS; r++) held[r] = -1;
    for (int i = 0; i < m->n_steps; i++) {
        const ln_link_step *s = &m->steps[i];
        int operands = ln_link_operands(s->op);
        m->place[i] = last[i] < 0 ? PLACE_DEAD : PLACE_NUMBER;
        if (last[i] < 0) continue;
        if (operands == 0) m->place[i] = place_leaf(m, s);
        bool varies = false;
        for (int j = 0; j < operands; j++) varies |= m->place[operand_step(s, j)] != PLACE_NUMBER;
        if (!varies) continue;
        int r = 0; /* a register is free once its step was last read before this one */
        while (held[r] >= 0 && last[held[r]] >= i) r++;
        held[r] = i;
        m->place[i] = r;
        if (r >= m->n_registers) m->n_registers = r + 1;
    }
}

/* ---- Running ---- */

#define UNARY(name, expression)                                                                    \
    case LN_LINK_##name:                                                                           \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                      \
            real x = given[i];                                                                     \
            y[i] = (expression);                                                                   \
        }                                                                                          \
        break;

/* y = x op z elementwise, each side an array or a number; at least one is an array unless n = 1. */
#define BINARY(expression)                                                                         \
    if (a.array != NULL && b.array != NULL) {                                                      \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                      \
            real x = a.array[i], z = b.array[i];                                                   \
            y[i] = (expression);                                                                   \
        }                                                                                          \
    } else if (a.array != NULL) {                                                                  \
        real z = b.number;                                                                         \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                      \
            real x = a.array[i];                                                                   \
            y[i] = (expression);                                                                   \
        }                                                                                          \
    } else {                                                                                       \
        real x = a.number;                                                                         \
        for (int64_t i = 0; i < n; i++) {                                                          \
            real z = b.array != NULL ? b.array[i] : b.number;                                      \
            y[i] = (expression);                                                                   \
        }                                                                                          \
    }

static void run_unary(int op, real *restrict y, const real *restrict given, int64_t n) {
    switch (op) {
        UNARY(NEG, -x)
        UNARY(ABS, fabs(x))
        UNARY(SQUARE, x * x)
        UNARY(SQRT, sqrt(x))
        UNARY(EXP, exp(x))
        UNARY(EXPM1, expm1(x))
        UNARY(LOG, log(x))
        UNARY(LOG1P, log1p(x))
        UNARY(TANH, tanh(x))
        UNARY(SIGMOID, 1 / (1 + exp(-x)))
        UNARY(SOFTPLUS, fmax(x, (real)0) + log1p(exp(-fabs(x))))
    }
}

static void run_binary(int op, real *restrict y, operand a, operand b, int64_t n) {
    switch (op) {
    case LN_LINK_ADD: BINARY(x + z); break;
    case LN_LINK_SUB: BINARY(x - z); break;
    case LN_LINK_MUL: BINARY(x * z); break;
    case LN_LINK_DIV: BINARY(x / z); break;
    case LN_LINK_POW: BINARY(pow(x, z)); break;
    case LN_LINK_MIN: BINARY(x < z ? x : z); break;
    case LN_LINK_MAX: BINARY(x > z ? x : z); break;
    case LN_LINK_LT: BINARY(x < z); break;
    case LN_LINK_LE: BINARY(x <= z); break;
    case LN_LINK_GT: BINARY(x > z); break;
    case LN_LINK_GE: BINARY(x >= z); break;
    default: BINARY(x == z); break; /* EQ */
    }
}

static real element(operand o, int64_t i) {
    return o.array != NULL ? o.array[i] : o.number;
}

static void run_where(real *restrict y, operand c, operand a, operand b, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = element(c, i) != 0 ? element(a, i) : element(b, i);
}

/* One step into y, which holds n elements. */
static void run_step(const ln_link_step *s, real *y, const operand *values, int64_t n) {
    operand a = values[s->a];
    switch (ln_link_operands(s->op)) {
    case 1: run_unary(s->op, y, a.array != NULL ? a.array : &a.number, n); break;
    case 2: run_binary(s->op, y, a, values[s->b], n); break;
    default: run_where(y, a, values[s->b], values[s->c], n);
    }
}

static operand leaf(const machine *m, const ln_link_step *s, const real *similarities, int64_t row,
                    int64_t column) {
    if (s->op == LN_LINK_S) return (operand){similarities, 0};
    if (s->op == LN_LINK_NUMBER) return (operand){NULL, (real)s->number};
    const machine_parameter *p = &m->parameters[s->a];
    if (p->kind == LN_PARAMETER_SCALAR) return (operand){NULL, p->values[0]};
    int64_t start = m->flipped == (p->kind == LN_PARAMETER_ROW) ? column : row;
    if (runs(m, s->a)) return (operand){p->values + start, 0};
    return (operand){NULL, p->values[start]};
}

void REAL(machine_run)(const machine *m, operand *results, real *registers, const real *s,
                       int64_t row, int64_t column, int64_t n) {
    operand values[MACHINE_STEPS];
    for (int i = 0; i < m->n_steps; i++) {
        int place = m->place[i];
        const ln_link_step *step = &m->steps[i];
        if (place == PLACE_DEAD) continue;
        if (ln_link_operands(step->op) == 0) {
            values[i] = leaf(m, step, s, row, column);
        } else if (place == PLACE_NUMBER) {
            values[i] = (operand){NULL, 0};
            run_step(step, &values[i].number, values, 1);
        } else {
            real *y = registers + (int64_t)place * SEGMENT;
            run_step(step, y, values, n);
            values[i] = (operand){y, 0};
        }
    }
    for (int i = 0; i < m->n_outputs; i++) results[i] = values[m->outputs[i]];
}
