/* Link programs on a device: what the host makes of a link's steps, and running it for one entry of
 * the matrix. Knows no tiles and no reductions. Invariants: a program reads only registers that an
 * earlier instruction wrote; it never takes more than PROGRAM_REGISTERS of them. */
#ifndef LN_CUDA_MACHINE_H
#define LN_CUDA_MACHINE_H
#include "cuda.h"

enum {
    PROGRAM_STEPS = LN_LINK_STEPS + 8,           /* a link's, and what a pass makes of them */
    PROGRAM_PARAMETERS = LN_LINK_PARAMETERS + 2, /* likewise */
    PROGRAM_REGISTERS = 64
};

/* ---- Making a program ---- */

/* Steps as ln.h has them, whose parameters lie in device memory. */
typedef struct {
    int n_steps, n_parameters;
    ln_link_step steps[PROGRAM_STEPS];
    struct {
        int kind;
        const void *values;
    } parameters[PROGRAM_PARAMETERS];
} link_steps;

link_steps link_steps_of(const ln_reduction *r);
/* Append a step, or one that reads a new parameter, and return its number. */
int link_step(link_steps *l, int op, int a, int b);
int link_parameter(link_steps *l, int kind, const ln_tensor *values);

/* What needs no register. */
typedef struct {
    int op, kind; /* LN_LINK_S, NUMBER or PARAMETER; the parameter's kind */
    const void *values;
    double number;
} leaf;

typedef struct {
    int op, to;
    int operands[3]; /* registers from 0, or ~leaf */
} instruction;

typedef struct {
    int n, result;
    instruction instructions[PROGRAM_STEPS];
    leaf leaves[PROGRAM_STEPS];
} program;

/* The program that computes one step; refuses one that needs too many registers. */
ln_status program_new(program *p, const link_steps *l, int step);

/* ---- Running one ---- */

template <typename T>
static __device__ T leaf_value(const leaf &l, T s, int64_t row, int64_t column) {
    if (l.op == LN_LINK_S) return s;
    if (l.op == LN_LINK_NUMBER) return (T)l.number;
    const T *values = (const T *)l.values;
    if (l.kind == LN_PARAMETER_SCALAR) return values[0];
    return values[l.kind == LN_PARAMETER_ROW ? row : column];
}

template <typename T> static __device__ T run_step(int op, T x, T y, T z) {
    switch (op) {
    case LN_LINK_NEG: return -x;
    case LN_LINK_ABS: return fabs(x);
    case LN_LINK_SQUARE: return x * x;
    case LN_LINK_SQRT: return sqrt(x);
    case LN_LINK_EXP: return exp(x);
    case LN_LINK_EXPM1: return expm1(x);
    case LN_LINK_LOG: return log(x);
    case LN_LINK_LOG1P: return log1p(x);
    case LN_LINK_TANH: return tanh(x);
    case LN_LINK_SIGMOID: return 1 / (1 + exp(-x));
    case LN_LINK_SOFTPLUS: return (x > 0 ? x : 0) + log1p(exp(-fabs(x)));
    case LN_LINK_ADD: return x + y;
    case LN_LINK_SUB: return x - y;
    case LN_LINK_MUL: return x * y;
    case LN_LINK_DIV: return x / y;
    case LN_LINK_POW: return pow(x, y);
    case LN_LINK_MIN: return y < x ? y : x; /* a NaN similarity stays one */
    case LN_LINK_MAX: return y > x ? y : x;
    case LN_LINK_LT: return x < y;
    case LN_LINK_LE: return x <= y;
    case LN_LINK_GT: return x > y;
    case LN_LINK_GE: return x >= y;
    case LN_LINK_EQ: return x == y;
    default: return x != 0 ? y : z; /* WHERE */
    }
}

/* Its value where the similarity of a row and a column of the whole matrix is s. */
template <typename T>
static __device__ T program_run(const program *p, T s, int64_t row, int64_t column) {
    T registers[PROGRAM_REGISTERS], x[3];
    for (int i = 0; i < p->n; i++) {
        const instruction &step = p->instructions[i];
        for (int j = 0; j < 3; j++) {
            int from = step.operands[j];
            x[j] = from >= 0 ? registers[from] : leaf_value(p->leaves[~from], s, row, column);
        }
        registers[step.to] = run_step(step.op, x[0], x[1], x[2]);
    }
    return p->result >= 0 ? registers[p->result]
                          : leaf_value(p->leaves[~p->result], s, row, column);
}

#endif
