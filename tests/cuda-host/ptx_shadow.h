/* What is remembered of memory: see ptx_shadow.cc. */
#ifndef LN_CUDA_HOST_PTX_SHADOW_H
#define LN_CUDA_HOST_PTX_SHADOW_H
#include "ptx.h"

/* Of a granule of shared memory. Epochs count from 1. */
struct ptx_cell {
    uint32_t write_epoch, write_tick, read_epoch, read_tick, read_lanes;
    uint32_t read_warps; /* of the epoch */
    uint8_t write_warp, write_lane, read_warp;
    bool written, coming, atomic;
};

struct ptx_shadow {
    int granule;
    std::vector<ptx_cell> cells;
};

/* Of a page of global memory, by granules of 4 bytes or, where a module has smaller accesses, of
 * bytes: the blocks that have touched them, counted from 1. */
enum { PTX_PAGE = 512 };
struct ptx_page {
    uint32_t writer[PTX_PAGE], reader[PTX_PAGE];
    bool atomic[PTX_PAGE];
};

#endif
