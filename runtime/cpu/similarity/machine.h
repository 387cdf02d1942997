/* The register machine that runs a link function along segments of a tile's rows, compiled once
 * for each element type (LN_REAL) and instruction set. Internal to cpu/.
 *
 * Segments run along the columns, those of a few rows together. What depends on numbers and the
 * columns' parameters alone is computed once a tile; on numbers and the rows' parameters, once a
 * run, as a number for each of its rows; what is a multiple of an array, or of its minimum with a
 * number, plus a number is not computed at all, but by the loop that reads it; the rest runs over
 * registers that stay in L1. Invariant: a step's operands are numbers, registers written before it,
 * or arrays of at least the segment's length. */
#ifndef LN_CPU_MACHINE_H
#define LN_CPU_MACHINE_H
#include "cpu/kernels.h"
#include "link.h"

typedef LN_REAL real;
#define REAL(name) CPU(LN_PASTE(name, LN_REAL))

enum {
    SEGMENT = 384,
    REGISTER = 4 * SEGMENT,                  /* elements: so many rows run together as fit it, */
    RUN_ROWS = 8,                            /* but no more than these */
    MACHINE_STEPS = 2 * LN_LINK_STEPS + 128, /* a link in both orientations, and its weights */
    MACHINE_PARAMETERS = 2 * (LN_LINK_PARAMETERS + 4)
};

/* A value along a segment: scale * min(array[i], limit) + offset, or (array NULL) the number
 * offset. Only machine.limited steps have a limit. */
typedef struct {
    const real *array;
    real scale, offset, limit;
} operand;

/* The values of a step in the rows of a run: those of row r from scale[r], limit[r] and offset[r],
 * where base has the array; NULL: numbers. What is an array as it is (plain) is its own base. */
typedef struct run_values {
    const struct run_values *base;
    const real *array; /* row r's lies r * apart elements further */
    int64_t apart;
    bool plain;
    real scale[RUN_ROWS], offset[RUN_ROWS], limit[RUN_ROWS];
} run_values;

typedef struct {
    const real *values;
    int kind; /* ln_parameter_kind */
} machine_parameter;

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
    EXP_PRODUCTS,                     /* exp(a b - (c d + e)), of arrays as they are */
    EXP_PRODUCTS_TIMES,               /* exp(a b - (c d + e)) (f g + h), likewise */
    INSIDE = 64                       /* added to an operation whose operand is inside */
};

/* An ln_link_step, or one of these. */
enum { MOST_OPERANDS = 8 };
typedef struct {
    int op, operand[MOST_OPERANDS];
    double number;
} machine_step;

typedef struct {
    int n_steps, n_parameters, n_outputs;
    machine_step steps[MACHINE_STEPS];
    bool inside[MACHINE_STEPS]; /* of an EXP, LOG, LOG1P...: what it takes is in the range of
                                   exp_inside, log_inside, log1p_inside (vector_math.h) */
    machine_parameter parameters[MACHINE_PARAMETERS];
    int outputs[2 * (LN_LINK_PARAMETERS + 1)]; /* steps whose values are wanted */
    /* Set by prepare: the steps to run once a tile, and in each run, and where the values of all
     * lie: in a register, or one of the places below. */
    int n_early, early[MACHINE_STEPS], n_live, live[MACHINE_STEPS];
    int similarity; /* the step that is s; -1: none is read */
    int place[MACHINE_STEPS], n_registers;
    int n_operands[MACHINE_STEPS];
    bool limited[MACHINE_STEPS]; /* views of a minimum, which some loops take */
} machine;

enum { PLACE_LEAF = -1, PLACE_NUMBER = -2, PLACE_VIEW = -3 };

/* Adds steps to a program: one, which is returned; a link's to an empty program; a parameter's. The
 * caller keeps below MACHINE_STEPS. */
int REAL(machine_step)(machine *m, int op, int a, int b);
void REAL(machine_link)(machine *m, int n_steps, const ln_link_step *steps);
int REAL(machine_parameter)(machine *m, int kind, const real *values);
/* Adds what n steps are in the transposed matrix, where rows' parameters are columns' and the other
 * way round. mirrored[i]: the step for values[i], itself where it depends on neither. */
void REAL(machine_mirror)(machine *m, int *mirrored, const int *values, int n);
/* Places every step that an output needs. */
void REAL(machine_prepare)(machine *m);
/* Prepares values, room for MACHINE_STEPS, for the segments of n <= SEGMENT columns from `column`
 * on. registers holds n_registers of them, some of which are kept from here to the runs. */
void REAL(machine_start)(const machine *m, run_values *values, real *registers, int64_t column,
                         int64_t n);

/* The tile's rows that run together: n similarities each from s on, s_apart elements apart; the
 * first is row `row` of the matrix. */
typedef struct {
    const real *s;
    int64_t s_apart, row, rows, n;
} machine_rows;

static inline int64_t machine_rows_of(int64_t n) {
    int64_t rows = REGISTER / (n > 0 ? n : 1);
    return rows < RUN_ROWS ? rows : RUN_ROWS;
}

/* Runs over as many rows as machine_rows_of(n) at most. first (NULL: its register): where to write
 * output 0 where it is not an array by itself, first_apart elements from row to row. */
void REAL(machine_run)(const machine *m, run_values *values, real *registers, real *first,
                       int64_t first_apart, machine_rows rows);

static inline operand machine_operand(const run_values *x, int64_t row) {
    const run_values *base = x->base;
    const real *array = base != NULL ? base->array + row * base->apart : NULL;
    return (operand){array, x->scale[row], x->offset[row], x->limit[row]};
}

/* Output i in row `row` of the last run: an array (scale 1, offset 0) or a number, valid until the
 * next run. */
static inline operand machine_output(const machine *m, const run_values *values, int i,
                                     int64_t row) {
    return machine_operand(&values[m->outputs[i]], row);
}

#endif
