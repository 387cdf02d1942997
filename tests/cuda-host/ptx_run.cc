/* Launches of kernels that are interpreted as PTX. Holds a grid's blocks, one after another, and
 * the order in which a block's warps run: one of them at a time, for a random number of
 * instructions. Invariant: a barrier lets its warps go when all have come, and it is a fault where
 * one has ended.
 *
 * LUNCE_CUDA_HOST_PTX_SEED: another order of warps; LUNCE_CUDA_HOST_REVERSE: the last block first.
 */
#include <stdlib.h>
#include <string.h>

#include "ptx_shadow.h"

static void fill_specials(ptx_warp &w, const unsigned place[3]) {
    const ptx_launch &launch = *w.block->launch;
    for (int l = 0; l < PTX_LANES; l++) {
        unsigned t = (unsigned)(w.number * PTX_LANES + l);
        unsigned tid[3] = {t % launch.block[0], t / launch.block[0] % launch.block[1],
                           t / launch.block[0] / launch.block[1]};
        for (unsigned k = 0; k < 3; k++) {
            w.row<uint32_t>(PTX_TID + k)[l] = tid[k];
            w.row<uint32_t>(PTX_NTID + k)[l] = launch.block[k];
            w.row<uint32_t>(PTX_CTAID + k)[l] = place[k];
            w.row<uint32_t>(PTX_NCTAID + k)[l] = launch.grid[k];
        }
        w.row<uint32_t>(PTX_LANEID)[l] = (uint32_t)l;
    }
    for (ptx_row r = 0; r < PTX_SPECIALS; r++) w.values[r] = ~0u;
}

static void begin_warp(ptx_warp &w, int number, unsigned threads, const unsigned place[3]) {
    const ptx_module &m = *w.block->module;
    unsigned left = threads - (unsigned)(number * PTX_LANES);
    w.number = number;
    size_t words = (size_t)m.rows * PTX_ROW_BYTES / 8;
    if (w.file.size() < words) w.file.resize(words);
    w.values.assign(m.rows, 0);
    w.local.assign((size_t)m.local_bytes * PTX_LANES, (char)0xff);
    w.live = left < PTX_LANES ? (1u << left) - 1 : ~0u;
    w.paths = {{w.block->launch->kernel->first, w.live, false, {}}};
    w.at_barrier = false;
    memset(w.clock, 0, sizeof w.clock);
    for (int l = 0; l < PTX_LANES; l++) {
        w.clock[l][l] = 1;
        w.open[l].clear();
        w.groups[l].clear();
    }
    fill_specials(w, place);
}

static void begin_block(ptx_block &b, const unsigned place[3]) {
    ptx_launch &launch = *b.launch;
    unsigned threads = launch.block[0] * launch.block[1] * launch.block[2];
    int64_t bytes = b.module->shared_bytes + launch.dynamic_bytes;
    b.index = place[0] + launch.grid[0] * (place[1] + launch.grid[1] * place[2]);
    b.epoch = 1;
    b.shared.assign((size_t)bytes, (char)0xff);
    b.shadow = ptx_shadow_new(b.module->granule, bytes);
    b.warps.resize((threads + PTX_LANES - 1) / PTX_LANES);
    for (size_t n = 0; n < b.warps.size(); n++) {
        b.warps[n].block = &b;
        begin_warp(b.warps[n], (int)n, threads, place);
    }
}

/* ---- Order ---- */

static uint32_t draw(ptx_launch &launch, uint32_t below) {
    launch.seed = launch.seed * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(launch.seed >> 33) % below;
}

static bool may_run(const ptx_warp &w) {
    return !w.at_barrier && !w.paths.empty();
}

/* One of the warps that may run, or NULL. */
static ptx_warp *next_warp(ptx_block &b) {
    uint32_t all = (uint32_t)b.warps.size(), first = draw(*b.launch, all);
    for (uint32_t n = 0; n < all; n++) {
        ptx_warp &w = b.warps[(first + n) % all];
        if (may_run(w)) return &w;
    }
    return NULL;
}

/* Lets all warps pass the barrier; false where none waits. */
static bool pass_barrier(ptx_block &b) {
    ptx_warp *waits = NULL, *ended = NULL;
    for (ptx_warp &w : b.warps) {
        if (w.at_barrier) waits = &w;
        unsigned threads = b.launch->block[0] * b.launch->block[1] * b.launch->block[2];
        unsigned left = threads - (unsigned)(w.number * PTX_LANES);
        uint32_t full = left < PTX_LANES ? (1u << left) - 1 : ~0u;
        if (w.live != full) ended = &w;
    }
    if (waits == NULL) return false;
    if (ended != NULL)
        waits->fault(b.module->code[(size_t)waits->paths[0].pc], PTX_ALL,
                     "a barrier that not all threads reach: warp %d has the lanes %08x left",
                     ended->number, ended->live);
    for (ptx_warp &w : b.warps) {
        w.at_barrier = w.paths[0].waits = false;
        w.paths[0].pc++;
    }
    b.epoch++;
    return true;
}

static void run_block(ptx_block &b, const unsigned place[3]) {
    begin_block(b, place);
    do
        for (ptx_warp *w = next_warp(b); w != NULL; w = next_warp(b))
            ptx_run_warp(*w, (int)draw(*b.launch, 512) + 1);
    while (pass_barrier(b));
}

static uint64_t seed(void) {
    const char *given = getenv("LUNCE_CUDA_HOST_PTX_SEED");
    return given == NULL ? 1 : strtoull(given, NULL, 10);
}

/* Launches come one after another, and what warps hold is large: the next one has it. */
std::string ptx_run(ptx_launch &launch, const void *argument) {
    static std::vector<ptx_warp> &kept = *new std::vector<ptx_warp>;
    ptx_block b = {};
    b.warps.swap(kept);
    uint64_t bytes = (uint64_t)launch.kernel->argument_bytes;
    uint64_t blocks = (uint64_t)launch.grid[0] * launch.grid[1] * launch.grid[2];
    bool reverse = getenv("LUNCE_CUDA_HOST_REVERSE") != NULL;
    b.module = launch.module;
    b.launch = &launch;
    b.argument.resize((bytes + 7) / 8);
    memcpy(b.argument.data(), argument, bytes);
    launch.seed = seed();
    try {
        for (uint64_t n = 0; n < blocks; n++) {
            uint64_t k = reverse ? blocks - 1 - n : n;
            unsigned place[3] = {(unsigned)(k % launch.grid[0]),
                                 (unsigned)(k / launch.grid[0] % launch.grid[1]),
                                 (unsigned)(k / launch.grid[0] / launch.grid[1])};
            run_block(b, place);
        }
    } catch (const std::string &what) {
        return launch.kernel->name + ": " + what;
    }
    b.warps.swap(kept);
    return "";
}
