/* What a reduction does to rows of cells: a map of each element, then a fold of rows into lanes.
 * Holds the interface of fold.c. Invariant: a fold is of whole rows, in the order of its calls. */
#ifndef LN_CPU_FOLD_H
#define LN_CPU_FOLD_H
#include "row.h"

/* Of double cells, but INVERSE of int64: reverses the order of integers, where a minus overflows.
 * DEVIATION: the square of x - centre; EXPONENTIAL: of x - centre. */
typedef enum {
    SAME,
    NEGATIVE,
    INVERSE,
    NONZERO,
    ZERO,
    ABSOLUTE,
    SQUARE,
    DEVIATION,
    EXPONENTIAL
} map_kind;

/* A NaN wins a maximum. */
typedef enum { ADD, MULTIPLY, MAXIMUM, ADD_INTEGER, MULTIPLY_INTEGER, MAXIMUM_INTEGER } fold_kind;

/* Maps n cells in place. centre: a value for each, or NULL where the map takes none; single:
 * exponentials in float32. */
void CPU(map_row)(map_kind map, ln_cell *x, const double *centre, int64_t n, bool single);
/* a[i] = a[i] folded with x[i], which do not overlap. */
void CPU(fold_row)(fold_kind fold, ln_cell *a, const ln_cell *x, int64_t n);
/* Fills lanes with what a fold starts from. */
void CPU(fold_start)(fold_kind fold, ln_cell *lanes, int64_t n);
/* Folds `replicas` groups of `columns` lanes into the first, in a halving tree. */
void CPU(fold_lanes)(fold_kind fold, ln_cell *lanes, int64_t columns, int64_t replicas);

/* Maxima and their positions, of int64 where `integer`: of equals, and of NaNs, the first. */
void CPU(fold_extremes)(bool integer, ln_cell *a, ln_cell *a_at, const ln_cell *x,
                        const ln_cell *x_at, int64_t n);

/* The same for packed float32, without the detour through cells. map_fold_floats: into lanes, false
 * where it cannot; fold_floats: into one result, for the pairs that can_fold_floats names. */
bool CPU(map_fold_floats)(map_kind map, fold_kind fold, double *lanes, const float *x, int64_t n);
bool CPU(can_fold_floats)(map_kind map, fold_kind fold);
void CPU(fold_floats)(map_kind map, fold_kind fold, double *a, const float *x, double centre,
                      int64_t n);
/* Adds four rows, pitch apart, to lanes. */
void CPU(add_four_floats)(double *lanes, const float *x, int64_t pitch, int64_t n);

#endif
