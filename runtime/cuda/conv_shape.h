/* The extents of a convolution as kernels take them, and which places lie under which taps. Holds
 * no kernels. */
#ifndef LN_CUDA_CONV_SHAPE_H
#define LN_CUDA_CONV_SHAPE_H
#include "products.h"
#include "walk.h"

typedef struct {
    int64_t N, C, H, W, O, kh, kw, oh, ow;
    ln_conv_params p;
    int64_t places, taps; /* oh ow; C / groups kh kw: the rows of a group's columns */
} shape;

static inline shape shape_of(const ln_tensor *x, const ln_tensor *w, const ln_tensor *y,
                             const ln_conv_params *p) {
    shape s = {x->shape[0], x->shape[1], x->shape[2], x->shape[3], w->shape[0], w->shape[2],
               w->shape[3], y->shape[2], y->shape[3], *p,          0,           0};
    s.places = s.oh * s.ow;
    s.taps = s.C / p->groups * s.kh * s.kw;
    return s;
}

/* The input position under a tap at output position i, along one axis. */
static inline __device__ int64_t under(const shape &s, int axis, int64_t i, int64_t tap) {
    return i * s.p.stride[axis] - s.p.padding[axis] + tap * s.p.dilation[axis];
}

/* The output position whose tap lies at input position y, along one axis; -1 where there is none.
 */
static inline __device__ int64_t over(const shape &s, int axis, int64_t y, int64_t tap,
                                      int64_t extent) {
    int64_t from = y + s.p.padding[axis] - tap * s.p.dilation[axis];
    if (from < 0) return -1;
    int64_t i = divide(from, s.p.stride[axis]);
    return i * s.p.stride[axis] == from && i < extent ? i : -1;
}

#endif
