/* Running the register machine of machine.h: the loops of each operation, over the rows of a run.
 * Knows no tiles and no reductions. */
#include "machine.h"

#include <string.h>

#include "cpu/vector_math.h" /* after all other headers: it defines exp */

/* Where a step's rows go. */
typedef struct {
    real *first;
    int64_t apart, rows, n;
} target;

static inline operand at(const run_values *x, int64_t row) {
    return machine_operand(x, row);
}

static inline operand negative(operand x) {
    return (operand){x.array, -x.scale, -x.offset, x.limit};
}

/* y[i] of every row: `taken` takes the operands of a row, `element` computes. */
#define LOOPS(taken, element)                                                                      \
    for (int64_t row = 0; row < to->rows; row++) {                                                 \
        real *restrict y = to->first + row * to->apart;                                            \
        taken;                                                                                     \
        _Pragma("omp simd") for (int64_t i = 0; i < to->n; i++) {                                  \
            element;                                                                               \
        }                                                                                          \
    }
#define VALUE(o) (o.scale * o.array[i] + o.offset)
#define LIMITED(o) (o.scale * (o.limit < o.array[i] ? o.limit : o.array[i]) + o.offset)

#define UNARY(op, expression)                                                                      \
    case op: LOOPS(operand o = at(X, row), real x = LIMITED(o); y[i] = (expression)) break;

/* y = x op z elementwise; at least one of them is an array. */
#define BINARY_OF(READ, expression)                                                                \
    if (X->base != NULL && Z->base != NULL) {                                                      \
        LOOPS(operand o = at(X, row); operand p = at(Z, row), real x = READ(o); real z = READ(p);  \
              y[i] = (expression))                                                                 \
    } else if (X->base != NULL) {                                                                  \
        LOOPS(operand o = at(X, row); real z = at(Z, row).offset, real x = READ(o);                \
              y[i] = (expression))                                                                 \
    } else {                                                                                       \
        LOOPS(real x = at(X, row).offset; operand p = at(Z, row), real z = READ(p);                \
              y[i] = (expression))                                                                 \
    }
#define BINARY(expression) BINARY_OF(LIMITED, expression)

static void run_unary(int op, const target *to, const run_values *X) {
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

/* a - b, of which one is a number. */
static inline operand one_array(operand a, operand b) {
    if (b.array == NULL) return (operand){a.array, a.scale, a.offset - b.offset, a.limit};
    return (operand){b.array, -b.scale, a.offset - b.offset, b.limit};
}

/* y = EXP(a - b), where the offset of both is one number. */
#define DIFFERENCE(EXP)                                                                            \
    if (A->base != NULL && B->base != NULL) {                                                      \
        LOOPS(operand a = at(A, row); operand b = at(B, row);                                      \
              real offset = a.offset - b.offset,                                                   \
              y[i] = EXP((a.scale * a.array[i] + offset) - b.scale * b.array[i]))                  \
    } else {                                                                                       \
        LOOPS(operand o = one_array(at(A, row), at(B, row)), y[i] = EXP(VALUE(o)))                 \
    }

static void exp_difference(const target *to, const run_values *A, const run_values *B) {
    DIFFERENCE(exp)
}

static void exp_difference_inside(const target *to, const run_values *A, const run_values *B) {
    DIFFERENCE(exp_inside)
}

static void run_binary(int op, const target *to, const run_values *X, const run_values *Z) {
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
    case EXP_DIFFERENCE: exp_difference(to, X, Z); break;
    case EXP_DIFFERENCE + INSIDE: exp_difference_inside(to, X, Z); break;
    case EXP_TIMES: BINARY_OF(VALUE, exp(x) * z); break;
    default: BINARY_OF(VALUE, exp_inside(x) * z); break; /* EXP_TIMES */
    }
}

static inline real element(operand o, int64_t i) {
    return o.array != NULL ? LIMITED(o) : o.offset;
}

static void run_where(const target *to, const run_values *const *x) {
    LOOPS(operand c = at(x[0], row); operand a = at(x[1], row);
          operand b = at(x[2], row), y[i] = element(c, i) != 0 ? element(a, i) : element(b, i))
}

/* Whether three operands are arrays as they are, which loops of their own read faster. */
static inline bool are_plain(const run_values *const *x) {
    return x[0]->plain && x[1]->plain && x[2]->plain;
}

/* MULTIPLY_ADD, MULTIPLY_SUBTRACT and SUBTRACT_PRODUCT. */
static void multiply_add(int op, const target *to, const run_values *const *x) {
    if (are_plain(x) && op == MULTIPLY_ADD)
        LOOPS(operand a = at(x[0], row); operand b = at(x[1], row);
              operand c = at(x[2], row), y[i] = a.array[i] * b.array[i] + c.array[i])
    else
        LOOPS(operand a = at(x[0], row); operand b = at(x[1], row); operand c = at(x[2], row);
              if (op == MULTIPLY_SUBTRACT) c = negative(c);
              if (op == SUBTRACT_PRODUCT) a = negative(a), real u = VALUE(a); real v = VALUE(b);
              y[i] = u * v + VALUE(c))
}

/* y = an expression of E = exp(a - b), C and D, whose operands are arrays. */
#define OF_DIFFERENCE(name, EXP, expression)                                                       \
    static void name(const target *to, const run_values *const *x) {                               \
        LOOPS(operand a = at(x[0], row); operand b = at(x[1], row); operand c = at(x[2], row);     \
              OPERAND_D; real offset = a.offset - b.offset,                                        \
                         real E = EXP((a.scale * a.array[i] + offset) - b.scale * b.array[i]);     \
              y[i] = (expression))                                                                 \
    }
#define C VALUE(c)
#define D VALUE(d)
#define OPERAND_D
OF_DIFFERENCE(exp_difference_times, exp, E *C)
OF_DIFFERENCE(exp_difference_times_inside, exp_inside, E *C)
#undef OPERAND_D
#define OPERAND_D operand d = at(x[3], row)
OF_DIFFERENCE(exp_difference_times_add, exp, E *C + D)
OF_DIFFERENCE(exp_difference_times_add_inside, exp_inside, E *C + D)
#undef OPERAND_D

/* y = an expression of E = exp(a b - c) and D. */
#define OF_PRODUCT(name, EXP, expression)                                                          \
    static void name(const target *to, const run_values *const *x) {                               \
        if (are_plain(x))                                                                          \
            LOOPS(operand a = at(x[0], row); operand b = at(x[1], row); operand c = at(x[2], row); \
                  OPERAND_D, real E = EXP(a.array[i] * b.array[i] - c.array[i]);                   \
                  y[i] = (expression))                                                             \
        else                                                                                       \
            LOOPS(operand a = at(x[0], row); operand b = at(x[1], row); operand c = at(x[2], row); \
                  OPERAND_D, real u = VALUE(a); real v = VALUE(b); real E = EXP(u * v - C);        \
                  y[i] = (expression))                                                             \
    }
#define OPERAND_D
OF_PRODUCT(exp_product_difference, exp, E)
OF_PRODUCT(exp_product_difference_inside, exp_inside, E)
#undef OPERAND_D
#define OPERAND_D operand d = at(x[3], row)
OF_PRODUCT(exp_product_difference_times, exp, E *D)
OF_PRODUCT(exp_product_difference_times_inside, exp_inside, E *D)
#undef OPERAND_D
#undef C
#undef D

/* y = exp(a b - (c d + e)), and that times f g + h, where all are arrays as they are. */
#define ROW_OF(v, j) const real *v = x[j]->array + row * x[j]->apart
#define FIVE                                                                                       \
    ROW_OF(a, 0);                                                                                  \
    ROW_OF(b, 1);                                                                                  \
    ROW_OF(c, 2);                                                                                  \
    ROW_OF(d, 3);                                                                                  \
    ROW_OF(e, 4)
#define OF_PRODUCTS(name, EXP)                                                                     \
    static void name(const target *to, const run_values *const *x) {                               \
        LOOPS(FIVE, y[i] = EXP(a[i] * b[i] - (c[i] * d[i] + e[i])))                                \
    }                                                                                              \
    static void name##_times(const target *to, const run_values *const *x) {                       \
        LOOPS(FIVE; ROW_OF(f, 5); ROW_OF(g, 6);                                                    \
              ROW_OF(h, 7), real E = EXP(a[i] * b[i] - (c[i] * d[i] + e[i]));                      \
              y[i] = E * (f[i] * g[i] + h[i]))                                                     \
    }
OF_PRODUCTS(exp_products, exp)
OF_PRODUCTS(exp_products_inside, exp_inside)

/* The limit b is an array or a number. */
static void le_divide(const target *to, const run_values *const *x) {
    if (x[1]->base != NULL) {
        LOOPS(operand a = at(x[0], row); operand b = at(x[1], row);
              operand c = at(x[2], row), real u = VALUE(a); real v = VALUE(b);
              y[i] = (u <= v) / LIMITED(c))
    } else {
        LOOPS(operand a = at(x[0], row); operand b = at(x[1], row);
              operand c = at(x[2], row), y[i] = (VALUE(a) <= b.offset) / LIMITED(c))
    }
}

static void run_several(int op, const target *to, const run_values *const *x) {
    switch (op) {
    case MULTIPLY_ADD:
    case MULTIPLY_SUBTRACT:
    case SUBTRACT_PRODUCT: multiply_add(op, to, x); break;
    case LE_DIVIDE: le_divide(to, x); break;
    case EXP_DIFFERENCE_TIMES: exp_difference_times(to, x); break;
    case EXP_DIFFERENCE_TIMES + INSIDE: exp_difference_times_inside(to, x); break;
    case EXP_DIFFERENCE_TIMES_ADD: exp_difference_times_add(to, x); break;
    case EXP_DIFFERENCE_TIMES_ADD + INSIDE: exp_difference_times_add_inside(to, x); break;
    case EXP_PRODUCT_DIFFERENCE: exp_product_difference(to, x); break;
    case EXP_PRODUCT_DIFFERENCE + INSIDE: exp_product_difference_inside(to, x); break;
    case EXP_PRODUCT_DIFFERENCE_TIMES: exp_product_difference_times(to, x); break;
    case EXP_PRODUCT_DIFFERENCE_TIMES + INSIDE: exp_product_difference_times_inside(to, x); break;
    case EXP_PRODUCTS: exp_products(to, x); break;
    case EXP_PRODUCTS + INSIDE: exp_products_inside(to, x); break;
    case EXP_PRODUCTS_TIMES: exp_products_times(to, x); break;
    case EXP_PRODUCTS_TIMES + INSIDE: exp_products_inside_times(to, x); break;
    default: run_where(to, x);
    }
}

static void run_step(int op, int count, bool inside, const target *to, const run_values *const *x) {
    op = inside ? op + INSIDE : op;
    if (count == 1) run_unary(op, to, x[0]);
    else if (count == 2) run_binary(op, to, x[0], x[1]);
    else run_several(op, to, x);
}

static void constant(real *y, real x) {
    for (int64_t r = 0; r < RUN_ROWS; r++) y[r] = x;
}

/* y[r] for all rows: their numbers are as wide as a vector. */
#define EACH(expression)                                                                           \
    do {                                                                                           \
        for (int64_t r = 0; r < RUN_ROWS; r++) y[r] = (expression);                                \
    } while (0)

/* A step whose operands are numbers: as arrays, where it is none of the common. */
static void run_number(int op, int count, real *y, const run_values *const *x) {
    const real *a = x[0]->offset, *b = count > 1 ? x[1]->offset : a;
    run_values arrays[MOST_OPERANDS];
    const run_values *given[MOST_OPERANDS];
    switch (op) {
    case LN_LINK_ADD: EACH(a[r] + b[r]); return;
    case LN_LINK_SUB: EACH(a[r] - b[r]); return;
    case LN_LINK_MUL: EACH(a[r] * b[r]); return;
    case LN_LINK_DIV: EACH(a[r] / b[r]); return;
    default: break;
    }
    for (int j = 0; j < count; j++) {
        arrays[j] = (run_values){
            .base = &arrays[j], .array = x[j]->offset, .scale = {1}, .limit = {INFINITY}};
        given[j] = &arrays[j];
    }
    const target to = {y, 0, 1, RUN_ROWS};
    run_step(op, count, false, &to, given);
}

/* x with its scale and offset changed. */
#define SCALE_OFFSET(new_scale, new_offset)                                                        \
    do {                                                                                           \
        for (int64_t r = 0; r < RUN_ROWS; r++) {                                                   \
            real scale = x->scale[r], offset = x->offset[r];                                       \
            v->scale[r] = (new_scale);                                                             \
            v->offset[r] = (new_offset);                                                           \
        }                                                                                          \
    } while (0)

static void view(int op, run_values *restrict v, const run_values *a, const run_values *b) {
    bool first = a->base != NULL;
    const run_values *restrict x = first ? a : b;
    const real *restrict c = first ? b->offset : a->offset;
    v->base = x->base;
    v->plain = false;
    memcpy(v->limit, op == LN_LINK_MIN ? c : x->limit, sizeof v->limit);
    switch (op) {
    case LN_LINK_MIN: SCALE_OFFSET(scale, offset); break;
    case LN_LINK_NEG: SCALE_OFFSET(-scale, -offset); break;
    case LN_LINK_ADD: SCALE_OFFSET(scale, offset + c[r]); break;
    case LN_LINK_SUB:
        if (first) SCALE_OFFSET(scale, offset - c[r]);
        else SCALE_OFFSET(-scale, c[r] - offset);
        break;
    case LN_LINK_MUL: SCALE_OFFSET(scale * c[r], offset * c[r]); break;
    default: SCALE_OFFSET(scale / c[r], offset / c[r]);
    }
}

static void plain(run_values *v, const real *array, int64_t apart) {
    v->base = v;
    v->array = array;
    v->apart = apart;
    v->plain = true;
    constant(v->scale, 1);
    constant(v->offset, 0);
    constant(v->limit, INFINITY);
}

static void numbers(run_values *v) {
    v->base = NULL;
    v->plain = false;
    constant(v->scale, 0);
}

/* All but s. rows NULL: no row's. */
static void leaf(const machine *m, const machine_step *s, run_values *v, const machine_rows *rows,
                 int64_t column) {
    const machine_parameter *p = &m->parameters[s->operand[0]];
    if (s->op == LN_LINK_PARAMETER && p->kind == LN_PARAMETER_COLUMN) {
        plain(v, p->values + column, 0);
        return;
    }
    numbers(v);
    if (s->op == LN_LINK_NUMBER) constant(v->offset, (real)s->number);
    else if (p->kind == LN_PARAMETER_SCALAR) constant(v->offset, p->values[0]);
    else
        for (int64_t r = 0; r < RUN_ROWS; r++)
            v->offset[r] = p->values[rows->row + (r < rows->rows ? r : 0)];
}

/* A step; where it takes a loop, its rows go to `to`. */
static void run_one(const machine *m, int i, run_values *values, const machine_rows *rows,
                    int64_t column, const target *to) {
    const machine_step *s = &m->steps[i];
    run_values *v = &values[i];
    const run_values *x[MOST_OPERANDS];
    int count = m->n_operands[i];
    for (int j = 0; j < count; j++) x[j] = &values[s->operand[j]];
    switch (m->place[i]) {
    case PLACE_LEAF: leaf(m, s, v, rows, column); break;
    case PLACE_VIEW: view(s->op, v, x[0], x[count - 1]); break;
    case PLACE_NUMBER:
        numbers(v);
        run_number(s->op, count, v->offset, x);
        break;
    default: run_step(s->op, count, m->inside[i], to, x);
    }
}

static real *register_of(const machine *m, int i, real *registers) {
    return registers + (int64_t)m->place[i] * REGISTER;
}

void REAL(machine_start)(const machine *m, run_values *values, real *registers, int64_t column,
                         int64_t n) {
    if (m->similarity >= 0) plain(&values[m->similarity], NULL, 0);
    for (int l = 0; l < m->n_live; l++) {
        int i = m->live[l];
        if (m->place[i] >= 0) plain(&values[i], register_of(m, i, registers), n);
    }
    for (int l = 0; l < m->n_early; l++) {
        int i = m->early[l];
        bool loops = m->place[i] >= 0;
        target to = {loops ? register_of(m, i, registers) : NULL, 0, 1, n};
        run_one(m, i, values, NULL, column, &to);
        if (loops) plain(&values[i], to.first, 0);
    }
}

void REAL(machine_run)(const machine *m, run_values *values, real *registers, real *first,
                       int64_t first_apart, machine_rows rows) {
    if (m->similarity >= 0) {
        values[m->similarity].array = rows.s;
        values[m->similarity].apart = rows.s_apart;
    }
    for (int l = 0; l < m->n_live; l++) {
        int i = m->live[l];
        target to = {NULL, rows.n, rows.rows, rows.n};
        if (m->place[i] >= 0) to.first = register_of(m, i, registers);
        if (first != NULL && i == m->outputs[0]) {
            values[i].array = to.first = first;
            values[i].apart = to.apart = first_apart;
        }
        run_one(m, i, values, &rows, 0, &to);
    }
}
