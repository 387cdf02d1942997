/* Link-function programs, as similarity.c plans them and the backends run them. Internal. */
#ifndef LN_LINK_H
#define LN_LINK_H
#include "backend.h"

typedef struct {
    double low, high;
} ln_interval;

int ln_link_operands(int op); /* 0 to 3 */
ln_status ln_link_check(int n_steps, const ln_link_step *steps, int n_parameters);
/* ln_link_bounds on intervals, for a checked program. */
ln_status ln_link_bound(ln_interval *bounds, int n_steps, const ln_link_step *steps, ln_interval s,
                        const ln_interval *parameters);

#endif
