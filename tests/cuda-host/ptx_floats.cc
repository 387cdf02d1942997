/* Instructions of PTX on floating-point numbers, and conversions. Holds their arithmetic and their
 * names; how they round is in ptx_round.h. Invariant: a multiplication and an addition are two
 * roundings unless the text says fma; NaNs of float32 are the one that a device makes. */
#include <cmath>
#include <tuple>

#include "ptx_lanes.h"
#include "ptx_round.h"

/* ---- Arithmetic ---- */

#define FLOATING(name, parameters, expression)                                                     \
    struct name {                                                                                  \
        template <typename D, typename T> static D of parameters {                                 \
            return ptx_canonical((D)(expression));                                                 \
        }                                                                                          \
    };
FLOATING(add, (T a, T b), a + b)
FLOATING(sub, (T a, T b), a - b)
FLOATING(mul, (T a, T b), a *b)
FLOATING(divided, (T a, T b), a / b)
FLOATING(fused, (T a, T b, T c), std::fma(a, b, c))
FLOATING(root, (T a), std::sqrt(a))
FLOATING(reciprocal, (T a), 1 / a)
/* -0 is below 0; of one NaN the other. */
FLOATING(minimum, (T a, T b), b != b || a < b || (a == b && std::signbit(a)) ? a : b)
FLOATING(maximum, (T a, T b), b != b || a > b || (a == b && !std::signbit(a)) ? a : b)
FLOATING(saturated, (T a), a > 0 ? (a < 1 ? a : 1) : 0)

/* These keep a NaN's bits. */
struct negated {
    template <typename D, typename T> static D of(T a) {
        return -a;
    }
};
struct size_of {
    template <typename D, typename T> static D of(T a) {
        return std::fabs(a);
    }
};
/* b with a's sign. */
struct signed_as {
    template <typename D, typename T> static D of(T a, T b) {
        return std::copysign(b, a);
    }
};

/* F in another direction. */
template <typename F, ptx_direction direction> struct directed {
    template <typename D, typename... T> static __attribute__((noinline)) D of(T... a) {
        if (direction == PTX_NEAREST) return F::template of<D>(a...);
        ptx_round_to(direction);
        D made = ptx_held(F::template of<D>(ptx_held(a)...));
        ptx_round_to(PTX_NEAREST);
        return made;
    }
};

/* ---- Special function units ---- */

#define UNIT(name, function)                                                                       \
    struct name {                                                                                  \
        template <typename D, typename... T> static D of(T... a) {                                 \
            return function(a...);                                                                 \
        }                                                                                          \
    };
UNIT(unit_ex2, ptx_ex2)
UNIT(unit_lg2, ptx_lg2)
UNIT(unit_rcp, ptx_rcp)
UNIT(unit_sqrt, ptx_sqrt)
UNIT(unit_rsqrt, ptx_rsqrt)
UNIT(unit_tanh, ptx_tanh)
UNIT(unit_sin, ptx_sin)
UNIT(unit_cos, ptx_cos)
UNIT(unit_div, ptx_div)
UNIT(unit_rcp_ftz, ptx_rcp_ftz)

template <typename F> struct flushing {
    template <typename D, typename... T> static D of(T... a) {
        return ptx_flushed(F::template of<D>(ptx_flushed(a)...));
    }
};

template <typename F> static void add_unit(ptx_table &t, const std::string &name) {
    t[name + ".approx.f32"] = {ptx_map<F, float, float>, "w=w"};
    t[name + ".approx.ftz.f32"] = {ptx_map<flushing<F>, float, float>, "w=w"};
}

/* ---- Comparison: of what a NaN does not order ---- */

#define COMPARISON(name, expression)                                                               \
    struct name {                                                                                  \
        template <typename T> static bool of(T a, T b) {                                           \
            return expression;                                                                     \
        }                                                                                          \
    };
COMPARISON(equal, a == b)
COMPARISON(unequal, a<b || a> b)
COMPARISON(less, a < b)
COMPARISON(not_more, a <= b)
COMPARISON(more, a > b)
COMPARISON(not_less, a >= b)
COMPARISON(equal_or_nan, !(a < b || a > b))
COMPARISON(unequal_or_nan, a != b)
COMPARISON(less_or_nan, !(a >= b))
COMPARISON(not_more_or_nan, !(a > b))
COMPARISON(more_or_nan, !(a <= b))
COMPARISON(not_less_or_nan, !(a < b))
COMPARISON(both_numbers, a == a && b == b)
COMPARISON(any_nan, a != a || b != b)

template <typename T> static void add_comparisons(ptx_table &t, const std::string &n) {
    const char *form = sizeof(T) == 8 ? "p=ll" : "p=ww";
    t["setp.eq." + n] = {ptx_compare<equal, T>, form};
    t["setp.ne." + n] = {ptx_compare<unequal, T>, form};
    t["setp.lt." + n] = {ptx_compare<less, T>, form};
    t["setp.le." + n] = {ptx_compare<not_more, T>, form};
    t["setp.gt." + n] = {ptx_compare<more, T>, form};
    t["setp.ge." + n] = {ptx_compare<not_less, T>, form};
    t["setp.equ." + n] = {ptx_compare<equal_or_nan, T>, form};
    t["setp.neu." + n] = {ptx_compare<unequal_or_nan, T>, form};
    t["setp.ltu." + n] = {ptx_compare<less_or_nan, T>, form};
    t["setp.leu." + n] = {ptx_compare<not_more_or_nan, T>, form};
    t["setp.gtu." + n] = {ptx_compare<more_or_nan, T>, form};
    t["setp.geu." + n] = {ptx_compare<not_less_or_nan, T>, form};
    t["setp.num." + n] = {ptx_compare<both_numbers, T>, form};
    t["setp.nan." + n] = {ptx_compare<any_nan, T>, form};
}

/* ---- Names of arithmetic ---- */

/* A name without a direction means the nearest. */
template <typename F, typename T, typename... S>
static void add_rounded(ptx_table &t, const std::string &name, const std::string &n, bool bare) {
    static const char *const forms[] = {"w=w", "w=ww", "w=www", "l=l", "l=ll", "l=lll"};
    const char *form = forms[sizeof...(S) - 1 + (sizeof(T) == 8 ? 3 : 0)];
    if (bare) t[name + "." + n] = {ptx_map<F, T, S...>, form};
    t[name + ".rn." + n] = {ptx_map<F, T, S...>, form};
    t[name + ".rz." + n] = {ptx_map<directed<F, PTX_ZERO>, T, S...>, form};
    t[name + ".rm." + n] = {ptx_map<directed<F, PTX_DOWN>, T, S...>, form};
    t[name + ".rp." + n] = {ptx_map<directed<F, PTX_UP>, T, S...>, form};
}

template <typename T> static void add_numbers(ptx_table &t, const std::string &n) {
    const char *one = sizeof(T) == 8 ? "l=l" : "w=w", *two = sizeof(T) == 8 ? "l=ll" : "w=ww";
    add_rounded<add, T, T, T>(t, "add", n, true);
    add_rounded<sub, T, T, T>(t, "sub", n, true);
    add_rounded<mul, T, T, T>(t, "mul", n, true);
    add_rounded<fused, T, T, T, T>(t, "fma", n, false);
    add_rounded<divided, T, T, T>(t, "div", n, false);
    add_rounded<root, T, T>(t, "sqrt", n, false);
    add_rounded<reciprocal, T, T>(t, "rcp", n, false);
    t["min." + n] = {ptx_map<minimum, T, T, T>, two};
    t["max." + n] = {ptx_map<maximum, T, T, T>, two};
    t["copysign." + n] = {ptx_map<signed_as, T, T, T>, two};
    t["neg." + n] = {ptx_map<negated, T, T>, one};
    t["abs." + n] = {ptx_map<size_of, T, T>, one};
    add_comparisons<T>(t, n);
}

void ptx_add_floats(ptx_table &t) {
    add_numbers<float>(t, "f32");
    add_numbers<double>(t, "f64");
    add_unit<unit_ex2>(t, "ex2");
    add_unit<unit_lg2>(t, "lg2");
    add_unit<unit_rcp>(t, "rcp");
    add_unit<unit_sqrt>(t, "sqrt");
    add_unit<unit_rsqrt>(t, "rsqrt");
    add_unit<unit_sin>(t, "sin");
    add_unit<unit_cos>(t, "cos");
    t["tanh.approx.f32"] = {ptx_map<unit_tanh, float, float>, "w=w"};
    t["div.full.f32"] = {ptx_map<unit_div, float, float, float>, "w=ww"};
    t["div.approx.f32"] = {ptx_map<unit_div, float, float, float>, "w=ww"};
    t["rcp.approx.ftz.f64"] = {ptx_map<unit_rcp_ftz, double, double>, "l=l"};
}

/* ---- Conversions ---- */

struct converted {
    template <typename D, typename S> static D of(S a) {
        return (D)a;
    }
};

/* The low bits of a wide register. */
template <typename N> struct converted_low {
    template <typename D> static D of(uint64_t a) {
        return (D)(N)a;
    }
};

struct rounded { /* in the direction that is set */
    template <typename D, typename S> static D of(S a) {
        if constexpr (std::is_floating_point<S>::value && std::is_floating_point<D>::value)
            return ptx_canonical((D)a);
        else return (D)a;
    }
};

struct whole { /* likewise */
    template <typename D, typename S> static D of(S a) {
        return (D)std::nearbyint((double)a);
    }
};

/* To the ends of its range; a NaN is 0, but the highest bit of 64 or from 64. */
struct clamped {
    template <typename D, typename S> static D of(S a) {
        double x = std::nearbyint((double)a),
               most = std::ldexp(1.0, 8 * sizeof(D) - std::is_signed<D>::value);
        bool wide = sizeof(D) == 8 || sizeof(S) == 8;
        if (a != a) return wide ? (D)((D)1 << (8 * sizeof(D) - 1)) : (D)0;
        if (x >= most) return (D) ~(std::is_signed<D>::value ? (D)1 << (8 * sizeof(D) - 1) : (D)0);
        if (x < (std::is_signed<D>::value ? -most : 0))
            return std::is_signed<D>::value ? (D)((D)1 << (8 * sizeof(D) - 1)) : (D)0;
        return (D)x;
    }
};

template <ptx_half kind> struct widened {
    template <typename D> static D of(uint16_t a) {
        return ptx_half_value(kind, a);
    }
};

template <ptx_half kind> struct narrowed {
    template <typename D> static D of(float a) {
        return ptx_half_bits(kind, a);
    }
};

/* The first operand is the upper half. */
template <ptx_half kind> struct narrowed_pair {
    template <typename D> static D of(float a, float b) {
        return (D)ptx_half_bits(kind, a) << 16 | ptx_half_bits(kind, b);
    }
};

template <typename D, typename S> static const char *form_of(void) {
    static const char *const forms[] = {"w=w", "w=l", "l=w", "l=l"};
    return forms[2 * (sizeof(D) == 8) + (sizeof(S) == 8)];
}

/* With each of the four directions. */
template <typename F, typename D, typename S>
static void add_directions(ptx_table &t, const std::string &suffix, const std::string &rest) {
    const char *form = form_of<D, S>();
    t["cvt.rn" + suffix + rest] = {ptx_map<directed<F, PTX_NEAREST>, D, S>, form};
    t["cvt.rz" + suffix + rest] = {ptx_map<directed<F, PTX_ZERO>, D, S>, form};
    t["cvt.rm" + suffix + rest] = {ptx_map<directed<F, PTX_DOWN>, D, S>, form};
    t["cvt.rp" + suffix + rest] = {ptx_map<directed<F, PTX_UP>, D, S>, form};
}

template <typename D, typename S>
static void add_whole(ptx_table &t, const std::string &d, const std::string &s) {
    t["cvt." + d + "." + s] = {ptx_map<converted, D, S>, form_of<D, S>()};
    if (sizeof(S) == 8) return;
    t["cvt." + d + "." + s + ":wide"] = {ptx_map<converted_low<S>, D, uint64_t>,
                                         form_of<D, uint64_t>()};
}

template <typename D> static void add_to(ptx_table &t, const std::string &d) {
    add_whole<D, uint8_t>(t, d, "u8");
    add_whole<D, int8_t>(t, d, "s8");
    add_whole<D, uint16_t>(t, d, "u16");
    add_whole<D, int16_t>(t, d, "s16");
    add_whole<D, uint32_t>(t, d, "u32");
    add_whole<D, int32_t>(t, d, "s32");
    add_whole<D, uint64_t>(t, d, "u64");
    add_whole<D, int64_t>(t, d, "s64");
    add_directions<clamped, D, float>(t, "i", "." + d + ".f32");
    add_directions<clamped, D, double>(t, "i", "." + d + ".f64");
}

template <typename S> static void add_from(ptx_table &t, const std::string &s) {
    add_directions<rounded, float, S>(t, "", ".f32." + s);
    add_directions<rounded, double, S>(t, "", ".f64." + s);
}

void ptx_add_conversions(ptx_table &t) {
    add_to<uint8_t>(t, "u8");
    add_to<uint16_t>(t, "u16");
    add_to<int16_t>(t, "s16");
    add_to<uint32_t>(t, "u32");
    add_to<int32_t>(t, "s32");
    add_to<uint64_t>(t, "u64");
    add_to<int64_t>(t, "s64");
    add_from<uint8_t>(t, "u8");
    add_from<int8_t>(t, "s8");
    add_from<uint16_t>(t, "u16");
    add_from<int16_t>(t, "s16");
    add_from<uint32_t>(t, "u32");
    add_from<int32_t>(t, "s32");
    add_from<uint64_t>(t, "u64");
    add_from<int64_t>(t, "s64");
    add_directions<rounded, float, double>(t, "", ".f32.f64");
    t["cvt.f64.f32"] = {ptx_map<converted, double, float>, "l=w"};
    add_directions<whole, float, float>(t, "i", ".f32.f32");
    add_directions<whole, double, double>(t, "i", ".f64.f64");
    t["cvt.sat.f32.f32"] = {ptx_map<saturated, float, float>, "w=w"};
    t["cvt.f32.f16"] = {ptx_map<widened<PTX_FLOAT16>, float, uint16_t>, "w=w"};
    t["cvt.f32.bf16"] = {ptx_map<widened<PTX_BFLOAT16>, float, uint16_t>, "w=w"};
    t["cvt.rn.f16.f32"] = {ptx_map<narrowed<PTX_FLOAT16>, uint16_t, float>, "w=w"};
    t["cvt.rn.bf16.f32"] = {ptx_map<narrowed<PTX_BFLOAT16>, uint16_t, float>, "w=w"};
    t["cvt.rn.f16x2.f32"] = {ptx_map<narrowed_pair<PTX_FLOAT16>, uint32_t, float, float>, "w=ww"};
    t["cvt.rn.bf16x2.f32"] = {ptx_map<narrowed_pair<PTX_BFLOAT16>, uint32_t, float, float>, "w=ww"};
}
