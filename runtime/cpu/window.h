/* Where a sliding window meets its input, for convolutions and pools. */
#ifndef LN_CPU_WINDOW_H
#define LN_CPU_WINDOW_H
#include <stdint.h>

/* The outputs [*from, *to) whose input, output * stride + offset, lies inside. */
static inline void window_inside(int64_t *from, int64_t *to, int64_t outputs, int64_t inputs,
                                 int64_t stride, int64_t offset) {
    *from = offset < 0 ? (-offset + stride - 1) / stride : 0;
    *to = offset < inputs ? (inputs - 1 - offset) / stride + 1 : 0;
    if (*to > outputs) *to = outputs;
}

#endif
