/* The source of a kernel of epilogue.h that computes a step of a link: what the host makes of the
 * link's steps, and the arguments that go with it. Knows no tiles and no reductions. Invariant:
 * numbers, parameters and masks are arguments, so that other values need no other kernel. */
#ifndef LN_CUDA_SOURCE_H
#define LN_CUDA_SOURCE_H
#include "cuda.h"
#include "epilogue.h"

enum {
    SOURCE_STEPS = LN_LINK_STEPS + 8,          /* a link's, and what a pass makes of them */
    SOURCE_PARAMETERS = LN_LINK_PARAMETERS + 4 /* likewise */
};

/* Steps as ln.h has them, whose parameters lie in device memory. */
typedef struct {
    int n_steps, n_parameters;
    ln_link_step steps[SOURCE_STEPS];
    struct {
        int kind;
        const void *values;
    } parameters[SOURCE_PARAMETERS];
} link_steps;

link_steps link_steps_of(const ln_reduction *r);
/* Append a step, or one that reads a new parameter, and return its number. */
int link_step(link_steps *l, int op, int a, int b);
int link_parameter(link_steps *l, int kind, const void *values);

/* Which kernel: EPILOGUE_SUMS or its neighbours, for float32 or float64; of fused ones, which are
 * for float32, the dtype of halves, the width of rows, whether x's rows are the matrix's columns,
 * and whether a gradient's weights have those of the transposed matrix too. */
typedef struct {
    int kernel, dtype, half, width;
    bool flipped, mirrored;
} source_kind;

/* The source of a kernel of what one step computes under the reduction's masks; fills what of its
 * arguments comes from them. The caller frees *out with ln_scratch_release. */
ln_status source_new(char **out, epilogue *arguments, const source_kind &kind, const link_steps *l,
                     int step, const ln_reduction *r);

#endif
