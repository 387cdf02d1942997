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

/* Of a granule of global memory: blocks, counted from 1, and of the last accesses their block's
 * epoch, thread, and the tick of the thread's clock. */
enum { PTX_SEVERAL = 0xffff };
struct ptx_touch {
    uint32_t writer, reader; /* ~0: several */
    uint32_t write_epoch, write_tick, read_epoch, read_tick;
    uint16_t write_thread, read_thread; /* or PTX_SEVERAL */
    bool atomic;
};

/* By granules of 4 bytes or, where a module has smaller accesses, of bytes. */
enum { PTX_PAGE = 512 };
struct ptx_page {
    ptx_touch touches[PTX_PAGE];
};

#endif
