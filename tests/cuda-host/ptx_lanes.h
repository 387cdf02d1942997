/* An operation on values, made an instruction on 32 lanes. Holds templates only. Invariants: lanes
 * that do not take part are computed and not kept; a result has a value where all operands have. */
#ifndef LN_CUDA_HOST_PTX_LANES_H
#define LN_CUDA_HOST_PTX_LANES_H
#include <string.h>

#include <type_traits>
#include <utility>

#include "ptx.h"

/* What a row holds of a T: the low bits, the others 0. */
template <typename T> using ptx_stored = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

template <typename T> static inline T ptx_take(ptx_stored<T> bits) {
    if constexpr (std::is_floating_point<T>::value) {
        T x;
        memcpy(&x, &bits, sizeof x);
        return x;
    } else {
        return (T)bits;
    }
}

template <typename T> static inline ptx_stored<T> ptx_put(T x) {
    ptx_stored<T> bits;
    if constexpr (std::is_floating_point<T>::value) memcpy(&bits, &x, sizeof x);
    else bits = (ptx_stored<T>)(std::make_unsigned_t<T>)x;
    return bits;
}

template <typename D>
static inline void ptx_keep(ptx_warp &w, ptx_row r, const ptx_stored<D> *made, uint32_t lanes) {
    ptx_stored<D> *to = w.row<ptx_stored<D>>(r);
    if (lanes == ~0u) {
        memcpy(to, made, PTX_LANES * sizeof *made);
        return;
    }
    for (int l = 0; l < PTX_LANES; l++) to[l] = lanes >> l & 1 ? made[l] : to[l];
}

template <typename F, typename D, typename... S, size_t... K>
static inline void ptx_each(ptx_warp &w, const ptx_instruction &i, uint32_t lanes,
                            std::index_sequence<K...>) {
    ptx_stored<D> made[PTX_LANES];
    auto rows = std::make_tuple((const ptx_stored<S> *)w.row<ptx_stored<S>>(i.in[K])...);
    for (int l = 0; l < PTX_LANES; l++)
        made[l] = ptx_put<D>(F::template of<D>(ptx_take<S>(std::get<K>(rows)[l])...));
    ptx_keep<D>(w, i.out[0], made, lanes);
    w.give(i.out[0], lanes, (w.has(i.in[K]) & ... & ~0u));
}

/* D = F(S...). */
template <typename F, typename D, typename... S>
static void ptx_map(ptx_warp &w, const ptx_instruction &i, uint32_t lanes) {
    ptx_each<F, D, S...>(w, i, lanes, std::index_sequence_for<S...>());
}

/* A predicate = F(S, S). */
template <typename F, typename S>
static void ptx_compare(ptx_warp &w, const ptx_instruction &i, uint32_t lanes) {
    const auto *a = w.row<ptx_stored<S>>(i.in[0]), *b = w.row<ptx_stored<S>>(i.in[1]);
    uint32_t made = 0, *to = w.row<uint32_t>(i.out[0]);
    for (int l = 0; l < PTX_LANES; l++)
        made |= (uint32_t)F::of(ptx_take<S>(a[l]), ptx_take<S>(b[l])) << l;
    *to = (*to & ~lanes) | (made & lanes);
    w.give(i.out[0], lanes, w.has(i.in[0]) & w.has(i.in[1]));
}

/* One of two by a predicate; without the predicate's value none. */
template <typename T>
static void ptx_select(ptx_warp &w, const ptx_instruction &i, uint32_t lanes) {
    const auto *a = w.row<ptx_stored<T>>(i.in[0]), *b = w.row<ptx_stored<T>>(i.in[1]);
    uint32_t first = *w.row<uint32_t>(i.in[2]);
    ptx_stored<T> made[PTX_LANES];
    for (int l = 0; l < PTX_LANES; l++) made[l] = first >> l & 1 ? a[l] : b[l];
    ptx_keep<T>(w, i.out[0], made, lanes);
    uint32_t valued = (first & w.has(i.in[0])) | (~first & w.has(i.in[1]));
    w.give(i.out[0], lanes, valued & w.has(i.in[2]));
}

#endif
