/* Races, and memory that nobody has written. Holds what is remembered of shared and of global
 * memory, within a block and, of the latter, between the blocks of a launch. Invariants: what the
 * memory model orders are barriers of the block and bar.warp.sync, and nothing else: shuffles,
 * votes and matrix instructions promise no order of memory; two accesses to a granule, one of which
 * is a plain write, are a race unless ordered, whatever order the interpreter has run them in. An
 * asynchronous copy writes from its begin until its thread has waited for it. */
#include "ptx_shadow.h"

#include "host.h"

std::unique_ptr<ptx_shadow> ptx_shadow_new(int granule, int64_t bytes) {
    auto made = std::make_unique<ptx_shadow>();
    made->granule = granule;
    made->cells.resize((size_t)((bytes + granule - 1) / granule));
    return made;
}

void ptx_meet(ptx_warp &w, uint32_t lanes) {
    uint32_t known[PTX_LANES] = {};
    for (int l = 0; l < PTX_LANES; l++)
        for (int m = 0; lanes >> l & 1 && m < PTX_LANES; m++)
            if (w.clock[l][m] > known[m]) known[m] = w.clock[l][m];
    for (int l = 0; l < PTX_LANES; l++) {
        if (!(lanes >> l & 1)) continue;
        for (int m = 0; m < PTX_LANES; m++) w.clock[l][m] = known[m];
        w.clock[l][l]++;
    }
}

/* Whether the lane's access comes after what a lane of a warp did at a tick of its clock. */
static bool is_after(const ptx_warp &w, int lane, uint32_t epoch, int warp, int other,
                     uint32_t tick) {
    if (epoch < w.block->epoch) return true;
    return warp == w.number && (other == lane || w.clock[lane][other] >= tick);
}

/* By a lane of a warp, or one that is not known. */
[[noreturn]] static void race(ptx_warp &w, const ptx_instruction &i, int lane, int64_t at,
                              const char *what, int warp, int other) {
    std::string who = other < 0 ? "" : "lane " + std::to_string(other) + " of ";
    w.fault(i, lane, "a race: %s at byte %lld of shared memory, by %swarp %d", what, (long long)at,
            who.c_str(), warp);
}

static void check_reads(ptx_warp &w, const ptx_instruction &i, int lane, int64_t at,
                        const ptx_cell &c) {
    if (c.read_epoch != w.block->epoch) return;
    uint32_t others = c.read_warps & ~(1u << w.number);
    if (others != 0)
        race(w, i, lane, at, "a write over what is read", __builtin_ctz(others), PTX_ALL);
    for (int l = 0; c.read_warp == w.number && l < PTX_LANES; l++)
        if (c.read_lanes >> l & 1 && !is_after(w, lane, c.read_epoch, w.number, l, c.read_tick))
            race(w, i, lane, at, "a write over what is read", w.number, l);
}

static void remember_read(ptx_warp &w, int lane, ptx_cell &c) {
    uint32_t tick = w.clock[lane][lane];
    if (c.read_epoch != w.block->epoch) c.read_warps = 0;
    if (c.read_epoch != w.block->epoch || c.read_warp != w.number || c.read_tick != tick)
        c.read_lanes = 0;
    c.read_epoch = w.block->epoch;
    c.read_tick = tick;
    c.read_warp = (uint8_t)w.number;
    c.read_warps |= 1u << w.number;
    c.read_lanes |= 1u << lane;
}

static void remember_write(ptx_warp &w, int lane, ptx_cell &c, ptx_access access, bool valued) {
    c.write_epoch = w.block->epoch;
    c.write_tick = w.clock[lane][lane];
    c.write_warp = (uint8_t)w.number;
    c.write_lane = (uint8_t)lane;
    c.written = valued;
    c.coming = access == PTX_COPY;
    c.atomic = access == PTX_ATOMIC;
}

static void check_cell(ptx_warp &w, const ptx_instruction &i, int lane, int64_t at, ptx_cell &c,
                       ptx_access access, bool valued) {
    bool ordered = (access == PTX_ATOMIC && c.atomic) ||
                   is_after(w, lane, c.write_epoch, c.write_warp, c.write_lane, c.write_tick);
    if (c.coming)
        race(w, i, lane, at, "a use of what is still being copied", c.write_warp, c.write_lane);
    if (!ordered)
        race(w, i, lane, at, access == PTX_READ ? "a read of what is written" : "two writes",
             c.write_warp, c.write_lane);
    if ((access == PTX_READ || access == PTX_ATOMIC) && !c.written)
        w.fault(i, lane, "a read of byte %lld of shared memory, which nobody has written",
                (long long)at);
    if (access == PTX_READ) {
        remember_read(w, lane, c);
        return;
    }
    check_reads(w, i, lane, at, c);
    remember_write(w, lane, c, access, valued);
}

void ptx_check_shared(ptx_warp &w, const ptx_instruction &i, int lane, int64_t at, int bytes,
                      ptx_access access, bool valued) {
    int64_t end = (int64_t)w.block->shared.size();
    if (at < 0 || at + bytes > end)
        w.fault(i, lane, "%d bytes at %lld of %lld bytes of shared memory", bytes, (long long)at,
                (long long)end);
    ptx_shadow &s = *w.block->shadow;
    for (int64_t b = at / s.granule; b <= (at + bytes - 1) / s.granule; b++)
        check_cell(w, i, lane, b * s.granule, s.cells[(size_t)b], access, valued);
}

void ptx_copy_came(ptx_warp &w, const ptx_instruction &, int lane, int64_t at, int bytes) {
    ptx_shadow &s = *w.block->shadow;
    for (int64_t b = at / s.granule; b <= (at + bytes - 1) / s.granule; b++)
        remember_write(w, lane, s.cells[(size_t)b], PTX_WRITE, true);
}

/* ---- Global memory ---- */

ptx_launch::ptx_launch() : found(0), found_end(0), last_page(0), page(NULL) {
}

ptx_launch::~ptx_launch() {
}

static ptx_page &page_of(ptx_launch &launch, uint64_t at) {
    uint64_t number = at / PTX_PAGE + 1;
    if (number != launch.last_page) {
        auto &page = launch.pages[number];
        if (!page) page.reset(new ptx_page());
        launch.last_page = number;
        launch.page = page.get();
    }
    return *launch.page;
}

/* Whether the lane's access comes after what a thread of its block did. */
static bool follows(const ptx_warp &w, int lane, uint32_t epoch, uint16_t thread, uint32_t tick) {
    return is_after(w, lane, epoch, thread / PTX_LANES, thread % PTX_LANES, tick);
}

/* Within a block: barriers order global memory as they do shared. */
static void check_block(ptx_warp &w, const ptx_instruction &i, int lane, uint64_t at,
                        const ptx_touch &t, ptx_access access) {
    uint32_t me = w.block->index + 1;
    bool atomic = access == PTX_ATOMIC && t.atomic;
    if (t.writer == me && !atomic && !follows(w, lane, t.write_epoch, t.write_thread, t.write_tick))
        w.fault(i, lane, "a race: global memory that lane %d of warp %d has written, at %p",
                t.write_thread % PTX_LANES, t.write_thread / PTX_LANES, (void *)at);
    if (access == PTX_READ || t.reader != me || t.read_epoch < w.block->epoch) return;
    if (t.read_thread == PTX_SEVERAL || !follows(w, lane, t.read_epoch, t.read_thread, t.read_tick))
        w.fault(i, lane, "a race: global memory that other threads of the block have read, at %p",
                (void *)at);
}

static void remember_global(ptx_warp &w, int lane, ptx_touch &t, ptx_access access) {
    uint32_t me = w.block->index + 1, epoch = w.block->epoch;
    uint16_t thread = (uint16_t)(w.number * PTX_LANES + lane);
    if (access != PTX_READ) {
        t.writer = me;
        t.write_epoch = epoch;
        t.write_tick = w.clock[lane][lane];
        t.write_thread = thread;
        t.atomic = access == PTX_ATOMIC;
        return;
    }
    bool first = t.reader != me || t.read_epoch < epoch || t.read_thread == thread;
    t.reader = t.reader == 0 || t.reader == me ? me : ~0u;
    t.read_thread = first ? thread : (uint16_t)PTX_SEVERAL;
    t.read_epoch = epoch;
    t.read_tick = w.clock[lane][lane];
}

static void check_granule(ptx_warp &w, const ptx_instruction &i, int lane, uint64_t at,
                          ptx_access access) {
    ptx_touch &t = page_of(*w.block->launch, at).touches[at % PTX_PAGE];
    uint32_t me = w.block->index + 1, writer = t.writer, reader = t.reader;
    bool writes = access != PTX_READ;
    bool clash = (writer != 0 && writer != me && !(access == PTX_ATOMIC && t.atomic)) ||
                 (writes && reader != 0 && reader != me);
    if (clash)
        w.fault(i, lane, "a race: global memory that block %u has %s, at %p",
                (writer != 0 && writer != me ? writer : reader) - 1,
                writer != 0 && writer != me ? "written" : "read", (void *)at);
    check_block(w, i, lane, at, t, access);
    remember_global(w, lane, t, access);
}

/* Whether they lie in one of the module's own variables, which nobody writes. */
static bool is_own(const ptx_module &m, uint64_t at, int bytes) {
    for (const auto &values : m.globals) {
        uint64_t begin = (uint64_t)values->data();
        if (at >= begin && at + (uint64_t)bytes <= begin + 8 * values->size()) return true;
    }
    return false;
}

char *ptx_check_global(ptx_warp &w, const ptx_instruction &i, int lane, uint64_t at, int bytes,
                       ptx_access access) {
    ptx_launch &launch = *w.block->launch;
    if (access == PTX_READ && is_own(*launch.module, at, bytes)) return (char *)at;
    if (at < launch.found || at + (uint64_t)bytes > launch.found_end) {
        const void *begin;
        size_t size;
        if (!cuda_host_find((const void *)at, &begin, &size) ||
            at + (uint64_t)bytes > (uint64_t)begin + size)
            w.fault(i, lane, "%d bytes at %p of global memory, where no block has them", bytes,
                    (void *)at);
        launch.found = (uint64_t)begin;
        launch.found_end = (uint64_t)begin + size;
    }
    int granule = launch.module->granule;
    for (uint64_t b = at; b < at + (uint64_t)bytes; b += (uint64_t)granule)
        check_granule(w, i, lane, b, access);
    return (char *)at;
}
