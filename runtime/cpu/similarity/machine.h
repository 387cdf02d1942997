/* The register machine that runs a link function along segments of a tile's rows, compiled once
 * for each element type (LN_REAL) and instruction set. Internal to cpu/.
 *
 * A program is prepared for an orientation, which says what stays fixed along a segment: what
 * depends on numbers and fixed parameters alone is computed once a segment, as a number; the rest
 * runs over registers of SEGMENT elements that stay in L1. Invariant: a step's operands are
 * numbers, registers written before it, or arrays of at least the segment's length. */
#ifndef LN_CPU_MACHINE_H
#define LN_CPU_MACHINE_H
#include "cpu/kernels.h"
#include "link.h"

typedef LN_REAL real;
#define REAL(name) CPU(LN_PASTE(name, LN_REAL))

enum {
    SEGMENT = 288,
    MACHINE_STEPS = LN_LINK_STEPS + 64,
    MACHINE_PARAMETERS = LN_LINK_PARAMETERS + 4
};

/* Where a step's value lies: in an array that runs along the segment, or (NULL) in a number. */
typedef struct {
    const real *array;
    real number;
} operand;

typedef struct {
    const real *values;
    int kind; /* ln_parameter_kind */
} machine_parameter;

typedef struct {
    bool flipped; /* segments run along the rows' parameters, the columns' stay fixed */
    int n_steps, n_parameters, n_outputs, n_registers;
    ln_link_step steps[MACHINE_STEPS];
    machine_parameter parameters[MACHINE_PARAMETERS];
    int outputs[LN_LINK_PARAMETERS + 2]; /* steps whose values are wanted */
    int place[MACHINE_STEPS]; /* set by prepare: a register, or one of the places below */
} machine;

enum { PLACE_DEAD = -1, PLACE_NUMBER = -2, PLACE_SIMILARITY = -3, PLACE_ARRAY = -4 };

/* Adds steps to a program; each returns its step. The caller keeps below MACHINE_STEPS. */
int REAL(machine_step)(machine *m, int op, int a, int b);
int REAL(machine_parameter)(machine *m, int kind, const real *values);
/* Places every step that an output needs. Fails only when more than MACHINE_STEPS live at once. */
void REAL(machine_prepare)(machine *m);
/* Runs over n <= SEGMENT similarities of row `row`, columns from `column`. registers holds
 * n_registers segments. results[i]: where output i lies, valid until the next run. */
void REAL(machine_run)(const machine *m, operand *results, real *registers, const real *s,
                       int64_t row, int64_t column, int64_t n);

#endif
