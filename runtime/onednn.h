/* What the CPU kernels ask of oneDNN, in plain pointers: float32 products and convolutions. Holds
 * no oneDNN type: onednn.c is the only includer of dnnl.h. Invariant: every array named here is
 * float32 and, for convolutions, dense in row-major order. */
#ifndef LN_ONEDNN_H
#define LN_ONEDNN_H
#include "ln.h"

/* A float32 matrix whose element (i, j) is data[i * stride + j], or data[j * stride + i] when
 * transposed. */
typedef struct {
    float *data;
    int64_t stride;
    bool transposed;
} ln_matrix;

/* z (n,m) = x (n,k) y (k,m), or z += x y; z is not transposed. team: as from ln_team. */
ln_status ln_onednn_matmul(ln_matrix z, ln_matrix x, ln_matrix y, int64_t n, int64_t m, int64_t k,
                           bool add, int team);

/* x (N,C,H,W), w (O,C/groups,kh,kw), y (N,O,oh,ow); no extent is 0. */
typedef struct {
    int64_t N, C, H, W, O, kh, kw, oh, ow;
    ln_conv_params p;
} ln_conv_shape;

/* bias may be NULL. */
ln_status ln_onednn_conv2d(float *y, const float *x, const float *w, const float *bias,
                           const ln_conv_shape *shape);
/* Any of dx, dw, db may be NULL: not wanted. */
ln_status ln_onednn_conv2d_backward(float *dx, float *dw, float *db, const float *dy,
                                    const float *x, const float *w, const ln_conv_shape *shape);

#endif
