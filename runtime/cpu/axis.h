/* Axes: the dimensions that a kernel walks through up to three tensors at once, ordered by stride
 * and joined where one step walks several. Index arithmetic only. Invariant: a list of axes reaches
 * each position of the dimensions it was made of once. */
#ifndef LN_CPU_AXIS_H
#define LN_CPU_AXIS_H
#include <stdbool.h>
#include <stdint.h>

enum { AXIS_TENSORS = 3 };
typedef struct {
    int64_t extent, step[AXIS_TENSORS]; /* steps in elements */
    bool apart;                         /* never joined with those of the other kind */
} axis;

/* Adds an axis to a list kept by falling step in the first tensor; of equal ones, the one added
 * later is the inner one. An axis of extent 1 is left out. Returns the new length. */
static inline int axis_insert(axis *axes, int n, axis a) {
    if (a.extent == 1) return n;
    int place = n;
    for (; place > 0 && axes[place - 1].step[0] < a.step[0]; place--) axes[place] = axes[place - 1];
    axes[place] = a;
    return n + 1;
}

static inline bool axis_joins(const axis *outer, const axis *inner) {
    for (int i = 0; i < AXIS_TENSORS; i++)
        if (outer->step[i] != inner->step[i] * inner->extent) return false;
    return outer->apart == inner->apart;
}

/* Joins neighbours in the list; returns the new length. */
static inline int axis_join(axis *axes, int n) {
    int joined = 0;
    for (int i = 0; i < n; i++) {
        axis a = axes[i];
        if (joined > 0 && axis_joins(&axes[joined - 1], &a)) a.extent *= axes[--joined].extent;
        axes[joined++] = a;
    }
    return joined;
}

static inline int64_t axis_positions(const axis *axes, int n) {
    int64_t positions = 1;
    for (int i = 0; i < n; i++) positions *= axes[i].extent;
    return positions;
}

/* The offset in a tensor of a position: the last axis varies fastest. */
static inline int64_t axis_offset(const axis *axes, int n, int64_t position, int tensor) {
    int64_t offset = 0;
    for (int i = n - 1; i > 0; i--) {
        offset += position % axes[i].extent * axes[i].step[tensor];
        position /= axes[i].extent;
    }
    return n == 0 ? 0 : offset + position * axes[0].step[tensor];
}

#endif
