/* Instructions of PTX on memory: loads, stores, atomics and asynchronous copies. Holds how an
 * address is found in its space. Invariants: what is accessed lies in its space as a whole, at a
 * multiple of its size; an asynchronous copy reads and writes nothing until its thread waits for
 * it. */
#include <tuple>

#include "ptx_lanes.h"

/* ---- Addresses ---- */

static uint64_t address_of(ptx_warp &w, const ptx_instruction &i, int operand, int lane) {
    ptx_row base = i.in[operand];
    if (base == PTX_NONE) return (uint64_t)i.offset[operand];
    uint64_t at = i.wide[operand] ? w.row<uint64_t>(base)[lane] : w.row<uint32_t>(base)[lane];
    return at + (uint64_t)i.offset[operand];
}

static char *in_argument(ptx_warp &w, const ptx_instruction &i, int lane, uint64_t at, int bytes) {
    if (at + (uint64_t)bytes > (uint64_t)w.block->launch->kernel->argument_bytes)
        w.fault(i, lane, "%d bytes at %lld of the kernel's arguments", bytes, (long long)at);
    return (char *)w.block->argument.data() + at;
}

static char *in_local(ptx_warp &w, const ptx_instruction &i, int lane, uint64_t at, int bytes) {
    uint64_t all = (uint64_t)w.block->module->local_bytes;
    if (at > all || at + (uint64_t)bytes > all)
        w.fault(i, lane, "%d bytes at %lld of %lld bytes of local memory", bytes, (long long)at,
                (long long)all);
    return w.local.data() + (uint64_t)lane * all + at;
}

static char *place_of(ptx_warp &w, const ptx_instruction &i, int lane, ptx_space space, uint64_t at,
                      int bytes, ptx_access access, bool valued) {
    if (space == PTX_GENERIC) {
        space = at < PTX_SHARED_WINDOW  ? PTX_GLOBAL
                : at < PTX_LOCAL_WINDOW ? PTX_SHARED
                                        : PTX_LOCAL;
        if (at >= PTX_LOCAL_WINDOW + (1ull << 32)) space = PTX_GLOBAL;
        if (space != PTX_GLOBAL) at &= 0xffffffff;
    }
    switch (space) {
    case PTX_PARAM: return in_argument(w, i, lane, at, bytes);
    case PTX_LOCAL: return in_local(w, i, lane, at, bytes);
    case PTX_SHARED:
        ptx_check_shared(w, i, lane, (int64_t)at, bytes, access, valued);
        return w.block->shared.data() + at;
    default: return ptx_check_global(w, i, lane, at, bytes, access);
    }
}

static void need_alignment(ptx_warp &w, const ptx_instruction &i, int lane, uint64_t at, int to) {
    if (at % (uint64_t)to != 0)
        w.fault(i, lane, "a misaligned address: 0x%llx is no multiple of %d",
                (unsigned long long)at, to);
}

static void need_base(ptx_warp &w, const ptx_instruction &i, int operand, uint32_t lanes) {
    if (i.in[operand] != PTX_NONE) w.need(i, i.in[operand], lanes, "an address");
}

/* ---- Loads and stores ---- */

/* A narrow T is widened to the registers, R. */
template <typename T, typename R>
static void load(ptx_warp &w, const ptx_instruction &i, uint32_t lanes) {
    need_base(w, i, 0, lanes);
    for (int l = 0; l < PTX_LANES; l++) {
        if (!(lanes >> l & 1)) continue;
        uint64_t at = address_of(w, i, 0, l);
        need_alignment(w, i, l, at, i.count * (int)sizeof(T));
        R made[4];
        for (int k = 0; k < i.count; k++) {
            if (i.out[k] == PTX_SINK) continue;
            T x;
            memcpy(
                &x,
                place_of(w, i, l, i.space, at + (uint64_t)k * sizeof x, sizeof x, PTX_READ, true),
                sizeof x);
            made[k] = (R)(std::make_signed_t<R>)x;
        }
        for (int k = 0; k < i.count; k++) w.row<R>(i.out[k])[l] = made[k];
    }
    for (int k = 0; k < i.count; k++) w.give(i.out[k], lanes, lanes);
}

/* Whether the lane writes what the lane before it does: CUDA leaves open which of
 * a warp's lanes one instruction writes for, so that these are one write and no race. */
template <typename R>
static bool is_repeated(ptx_warp &w, const ptx_instruction &i, uint32_t lanes, int lane) {
    uint32_t before = lanes & ((1u << lane) - 1);
    if (i.count > 1 || before == 0) return false;
    int other = 31 - __builtin_clz(before);
    uint64_t at = address_of(w, i, 0, lane);
    bool own = i.space == PTX_LOCAL || (i.space == PTX_GENERIC && at >= PTX_LOCAL_WINDOW &&
                                        at >> 32 == PTX_LOCAL_WINDOW >> 32);
    const R *values = w.row<R>(i.in[1]);
    return !own && at == address_of(w, i, 0, other) && values[lane] == values[other] &&
           (w.has(i.in[1]) >> lane & w.has(i.in[1]) >> other & 1);
}

/* The low bits of the registers, R, which follow the address. */
template <typename T, typename R>
static void store(ptx_warp &w, const ptx_instruction &i, uint32_t lanes) {
    need_base(w, i, 0, lanes);
    if (i.space == PTX_GLOBAL)
        for (int k = 0; k < i.count; k++) w.need(i, i.in[1 + k], lanes, "what is stored is");
    for (int l = 0; l < PTX_LANES; l++) {
        if (!(lanes >> l & 1) || is_repeated<R>(w, i, lanes, l)) continue;
        uint64_t at = address_of(w, i, 0, l);
        need_alignment(w, i, l, at, i.count * (int)sizeof(T));
        for (int k = 0; k < i.count; k++) {
            T x = (T)w.row<R>(i.in[1 + k])[l];
            char *to = place_of(w, i, l, i.space, at + (uint64_t)k * sizeof x, sizeof x, PTX_WRITE,
                                w.has(i.in[1 + k]) >> l & 1);
            memcpy(to, &x, sizeof x);
        }
    }
}

ptx_handler ptx_load_handler(const std::string &type, int registers) {
    static const std::map<std::string, ptx_handler> narrow = {
        {"u8", load<uint8_t, uint32_t>},   {"b8", load<uint8_t, uint32_t>},
        {"s8", load<int8_t, uint32_t>},    {"u16", load<uint16_t, uint32_t>},
        {"b16", load<uint16_t, uint32_t>}, {"s16", load<int16_t, uint32_t>},
        {"u32", load<uint32_t, uint32_t>}, {"b32", load<uint32_t, uint32_t>},
        {"s32", load<int32_t, uint32_t>},  {"f32", load<uint32_t, uint32_t>}};
    static const std::map<std::string, ptx_handler> wide = {
        {"u8", load<uint8_t, uint64_t>},   {"b8", load<uint8_t, uint64_t>},
        {"s8", load<int8_t, uint64_t>},    {"u16", load<uint16_t, uint64_t>},
        {"b16", load<uint16_t, uint64_t>}, {"s16", load<int16_t, uint64_t>},
        {"u32", load<uint32_t, uint64_t>}, {"b32", load<uint32_t, uint64_t>},
        {"s32", load<int32_t, uint64_t>},  {"u64", load<uint64_t, uint64_t>},
        {"b64", load<uint64_t, uint64_t>}, {"s64", load<uint64_t, uint64_t>},
        {"f64", load<uint64_t, uint64_t>}};
    const auto &all = registers == 1 ? narrow : wide;
    auto found = all.find(type);
    return found == all.end() ? NULL : found->second;
}

ptx_handler ptx_store_handler(int bytes, int registers) {
    switch (registers * 16 + bytes) {
    case 16 + 1: return store<uint8_t, uint32_t>;
    case 16 + 2: return store<uint16_t, uint32_t>;
    case 16 + 4: return store<uint32_t, uint32_t>;
    case 32 + 1: return store<uint8_t, uint64_t>;
    case 32 + 2: return store<uint16_t, uint64_t>;
    case 32 + 4: return store<uint32_t, uint64_t>;
    case 32 + 8: return store<uint64_t, uint64_t>;
    default: return NULL;
    }
}

/* ---- Atomics ---- */

#define ATOMIC(name, expression)                                                                   \
    struct name {                                                                                  \
        template <typename T> static T of(T old, T a, T b) {                                       \
            return (void)b, (T)(expression);                                                       \
        }                                                                                          \
    };
ATOMIC(added, old + a)
ATOMIC(smaller, a < old ? a : old)
ATOMIC(larger, a > old ? a : old)
ATOMIC(exchanged, ((void)old, a))
ATOMIC(swapped, old == a ? b : old)

/* One lane after another. */
template <typename F, typename T>
static void atom(ptx_warp &w, const ptx_instruction &i, uint32_t lanes) {
    need_base(w, i, 0, lanes);
    w.need(i, i.in[1], lanes, "what is added is");
    for (int l = 0; l < PTX_LANES; l++) {
        if (!(lanes >> l & 1)) continue;
        uint64_t at = address_of(w, i, 0, l);
        need_alignment(w, i, l, at, sizeof(T));
        char *p = place_of(w, i, l, i.space, at, sizeof(T), PTX_ATOMIC, true);
        T old, a = ptx_take<T>(w.row<ptx_stored<T>>(i.in[1])[l]);
        T b = i.n_in > 2 ? ptx_take<T>(w.row<ptx_stored<T>>(i.in[2])[l]) : a;
        memcpy(&old, p, sizeof old);
        T made = F::of(old, a, b);
        memcpy(p, &made, sizeof made);
        if (i.n_out > 0) w.row<ptx_stored<T>>(i.out[0])[l] = ptx_put<T>(old);
    }
    if (i.n_out > 0) w.give(i.out[0], lanes, lanes);
}

ptx_handler ptx_atom_handler(const std::string &what) {
    static const std::map<std::string, ptx_handler> all = {
        {"add.u32", atom<added, uint32_t>},      {"add.s32", atom<added, uint32_t>},
        {"add.u64", atom<added, uint64_t>},      {"add.f32", atom<added, float>},
        {"add.f64", atom<added, double>},        {"min.u32", atom<smaller, uint32_t>},
        {"min.s32", atom<smaller, int32_t>},     {"min.u64", atom<smaller, uint64_t>},
        {"min.s64", atom<smaller, int64_t>},     {"max.u32", atom<larger, uint32_t>},
        {"max.s32", atom<larger, int32_t>},      {"max.u64", atom<larger, uint64_t>},
        {"max.s64", atom<larger, int64_t>},      {"exch.b32", atom<exchanged, uint32_t>},
        {"exch.b64", atom<exchanged, uint64_t>}, {"cas.b32", atom<swapped, uint32_t>},
        {"cas.b64", atom<swapped, uint64_t>}};
    auto found = all.find(what);
    return found == all.end() ? NULL : found->second;
}

/* ---- Asynchronous copies ---- */

/* Its third operand, where there is one, says how many bytes are read; the rest is zeros. */
void ptx_copy_begin(ptx_warp &w, const ptx_instruction &i, uint32_t lanes) {
    need_base(w, i, 0, lanes);
    need_base(w, i, 1, lanes);
    if (i.n_in > 2) w.need(i, i.in[2], lanes, "a copy's size is");
    for (int l = 0; l < PTX_LANES; l++) {
        if (!(lanes >> l & 1)) continue;
        uint64_t to = address_of(w, i, 0, l), from = address_of(w, i, 1, l);
        uint32_t bytes = i.n_in > 2 ? w.row<uint32_t>(i.in[2])[l] : (uint32_t)i.bytes;
        need_alignment(w, i, l, to, i.bytes);
        need_alignment(w, i, l, from, i.bytes);
        if (bytes > (uint32_t)i.bytes) w.fault(i, l, "a copy of %u bytes to %d", bytes, i.bytes);
        const char *source = NULL;
        if (bytes > 0) source = place_of(w, i, l, PTX_GLOBAL, from, (int)bytes, PTX_READ, true);
        place_of(w, i, l, PTX_SHARED, to, i.bytes, PTX_COPY, true);
        w.open[l].push_back({(uint32_t)to, source, (int)bytes, i.bytes});
    }
}

void ptx_copy_group(ptx_warp &w, const ptx_instruction &, uint32_t lanes) {
    for (int l = 0; l < PTX_LANES; l++) {
        if (!(lanes >> l & 1)) continue;
        w.groups[l].push_back(std::move(w.open[l]));
        w.open[l].clear();
    }
}

static void finish(ptx_warp &w, const ptx_instruction &i, int lane, const ptx_pending &c) {
    char *to = w.block->shared.data() + c.to;
    memset(to, 0, (size_t)c.room);
    if (c.bytes > 0) memcpy(to, c.from, (size_t)c.bytes);
    ptx_copy_came(w, i, lane, c.to, c.room);
}

/* For all but the last groups, as many as the offset says. */
void ptx_copy_wait(ptx_warp &w, const ptx_instruction &i, uint32_t lanes) {
    for (int l = 0; l < PTX_LANES; l++) {
        auto &groups = w.groups[l];
        if (!(lanes >> l & 1) || (int64_t)groups.size() <= i.offset[0]) continue;
        size_t done = groups.size() - (size_t)i.offset[0];
        for (size_t g = 0; g < done; g++)
            for (const ptx_pending &c : groups[g]) finish(w, i, l, c);
        groups.erase(groups.begin(), groups.begin() + (long)done);
    }
}
