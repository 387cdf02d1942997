/* Fitting two lines to the largest entries of a row. Compiled once for each element type and
 * instruction set. Internal to cpu/. */
#ifndef LN_CPU_TAIL_H
#define LN_CPU_TAIL_H
#include "machine.h"

#define TAIL_SHORTFALL 1e-6 /* the least 1 - s */
#define TAIL_SUM 1e-12      /* below it a sum of squares is rounding */

/* What is fitted: the points after the first `burnt`, against log F (Weibull) and log(-log F)
 * (Gumbel) of their ranks. */
typedef struct {
    int64_t points, burnt;
    double *line[2]; /* centred, points - burnt each */
    double square[2];
} tail_lines;

/* out: rho, and slope and SSE of the Weibull and of the Gumbel line. x: the points, largest first;
 * they are changed. */
void REAL(tail_fit)(double *out, const tail_lines *lines, real *x);

#endif
