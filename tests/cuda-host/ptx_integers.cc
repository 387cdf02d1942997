/* Integer, logical and moving instructions of PTX. Holds their arithmetic and their names.
 * Invariant: signed values wrap round as the ISA says, so that all is computed without signs. */
#include "ptx_lanes.h"
#include "ptx_text.h"

#include <tuple>

/* ---- Arithmetic ---- */

template <typename T> using plain = std::make_unsigned_t<T>;
template <typename T> constexpr int bits_of = 8 * (int)sizeof(T);

#define BINARY(name, expression)                                                                   \
    struct name {                                                                                  \
        template <typename D, typename T> static D of(T a, T b) {                                  \
            return (D)(expression);                                                                \
        }                                                                                          \
    };
BINARY(add, (plain<T>)a + (plain<T>)b)
BINARY(sub, (plain<T>)a - (plain<T>)b)
BINARY(mul_lo, (uint64_t)a *(uint64_t)b)
BINARY(mul_wide, (D)a *(D)b)
BINARY(minimum, b < a ? b : a)
BINARY(maximum, b > a ? b : a)
BINARY(both, a &b)
BINARY(either, a | b)
BINARY(one, a ^ b)

/* By 0 is left open: all bits. The smallest by -1 is itself. */
template <typename T> static T divide(T a, T b) {
    if (b == 0) return (T) ~(T)0;
    if (std::is_signed<T>::value && b == (T)-1) return (T)(0 - (plain<T>)a);
    return (T)(a / b);
}
BINARY(quotient, divide(a, b))
BINARY(remainder_of, b == 0 ? a : (T)((plain<T>)a - (plain<T>)divide(a, b) * (plain<T>)b))

template <typename T> static T high(T a, T b) {
    if (std::is_signed<T>::value) return (T)((__int128)a * (__int128)b >> bits_of<T>);
    return (T)((unsigned __int128)(plain<T>)a * (unsigned __int128)(plain<T>)b >> bits_of<T>);
}
BINARY(mul_hi, high(a, b))

#define UNARY(name, expression)                                                                    \
    struct name {                                                                                  \
        template <typename D, typename T> static D of(T a) {                                       \
            return (D)(expression);                                                                \
        }                                                                                          \
    };
UNARY(same, a)
UNARY(inverted, ~a)
UNARY(negated, 0 - (plain<T>)a)
UNARY(size_of, a < 0 ? 0 - (plain<T>)a : (plain<T>)a)
UNARY(set_bits, __builtin_popcountll(a))
UNARY(leading_zeros, a == 0 ? bits_of<T> : __builtin_clzll(a) - (64 - bits_of<T>))
UNARY(highest, a == 0 ? -1 : 63 - __builtin_clzll(a))
UNARY(shift_to_highest, a == 0 ? -1 : __builtin_clzll(a) - (64 - bits_of<T>))

struct reversed {
    template <typename D, typename T> static D of(T a) {
        T made = 0;
        for (int b = 0; b < bits_of<T>; b++) made = (T)(made << 1 | (a >> b & 1));
        return made;
    }
};

struct mad_lo {
    template <typename D, typename T, typename U> static D of(T a, T b, U c) {
        return (D)((uint64_t)(D)a * (uint64_t)(D)b + (uint64_t)c);
    }
};

struct mad_hi {
    template <typename D, typename T> static D of(T a, T b, T c) {
        return (D)((plain<T>)high(a, b) + (plain<T>)c);
    }
};

/* Distances past the width are the width. */
struct shift_left {
    template <typename D, typename T> static D of(T a, uint32_t by) {
        return by >= (uint32_t)bits_of<T> ? 0 : (D)((plain<T>)a << by);
    }
};
struct shift_right {
    template <typename D, typename T> static D of(T a, uint32_t by) {
        uint32_t most = (uint32_t)bits_of<T> - 1;
        if (by > most) return std::is_signed<T>::value ? (D)(a >> most) : 0;
        return (D)(a >> by);
    }
};

/* `length` bits of a, put into b at `at`. */
struct insert {
    template <typename D, typename T> static D of(T a, T b, uint32_t at, uint32_t length) {
        at &= 0xff, length &= 0xff;
        if (at >= (uint32_t)bits_of<T>) return b;
        T ones = length >= (uint32_t)bits_of<T> ? (T) ~(T)0 : (T)(((T)1 << length) - 1);
        return (T)((b & ~(T)(ones << at)) | (T)((a & ones) << at));
    }
};

/* `length` bits of a from `at`, and its sign beyond them. */
struct extract {
    template <typename D, typename T> static D of(T a, uint32_t at, uint32_t length) {
        int most = bits_of<T> - 1, from = (int)(at & 0xff), n = (int)(length & 0xff);
        int last = from + n - 1 < most ? from + n - 1 : most;
        bool sign = std::is_signed<T>::value && n > 0 && ((plain<T>)a >> last & 1);
        plain<T> made = 0;
        for (int b = 0; b <= most; b++) {
            bool inside = b < n && from + b <= most;
            made |= (plain<T>)(inside ? (plain<T>)a >> (from + b) & 1 : sign) << b;
        }
        return (D)made;
    }
};

/* Bytes of b:a, by the low three bits of each of c's four digits; the fourth bit takes the sign. */
struct permute {
    template <typename D> static D of(uint32_t a, uint32_t b, uint32_t c) {
        uint64_t pair = (uint64_t)b << 32 | a;
        uint32_t made = 0;
        for (int k = 0; k < 4; k++) {
            uint32_t digit = c >> 4 * k & 15, byte = (uint32_t)(pair >> 8 * (digit & 7)) & 255;
            if (digit & 8) byte = byte & 128 ? 255 : 0;
            made |= byte << 8 * k;
        }
        return made;
    }
};

struct table_of_three {
    template <typename D> static D of(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
        uint32_t made = 0;
        for (int k = 0; k < 8; k++)
            if (table >> k & 1) made |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
        return made;
    }
};

/* b:a shifted, the upper word left or the lower word right; distances past 32 are 32, or wrap. */
template <bool left, bool wraps> struct funnel {
    template <typename D> static D of(uint32_t a, uint32_t b, uint32_t by) {
        by = wraps ? by & 31 : by < 32 ? by : 32;
        uint64_t pair = (uint64_t)b << 32 | a;
        return (D)(left ? pair << by >> 32 : pair >> by);
    }
};

/* ---- Comparison ---- */

#define COMPARISON(name, expression)                                                               \
    struct name {                                                                                  \
        template <typename T> static bool of(T a, T b) {                                           \
            return expression;                                                                     \
        }                                                                                          \
    };
COMPARISON(equal, a == b)
COMPARISON(unequal, a != b)
COMPARISON(less, a < b)
COMPARISON(not_more, a <= b)
COMPARISON(more, a > b)
COMPARISON(not_less, a >= b)

/* ---- Carries ---- */

/* A sum of 32 bits, whose carry is kept where `sets` and added where `uses`. */
template <bool sets, bool uses, bool subtracts>
static void add_carry(ptx_warp &w, const ptx_instruction &i, uint32_t lanes) {
    const auto *a = w.row<uint32_t>(i.in[0]), *b = w.row<uint32_t>(i.in[1]);
    uint32_t made[PTX_LANES], carry = 0;
    for (int l = 0; l < PTX_LANES; l++) {
        uint64_t in = uses ? w.carry >> l & 1 : 0;
        uint64_t sum = subtracts ? (uint64_t)a[l] - b[l] - in : (uint64_t)a[l] + b[l] + in;
        made[l] = (uint32_t)sum;
        carry |= (uint32_t)(sum >> 32 & 1) << l;
    }
    ptx_keep<uint32_t>(w, i.out[0], made, lanes);
    w.give(i.out[0], lanes, w.has(i.in[0]) & w.has(i.in[1]));
    if (sets) w.carry = (w.carry & ~lanes) | (carry & lanes);
}

template <bool upper, bool sets, bool uses>
static void mad_carry(ptx_warp &w, const ptx_instruction &i, uint32_t lanes) {
    const auto *a = w.row<uint32_t>(i.in[0]), *b = w.row<uint32_t>(i.in[1]);
    const auto *c = w.row<uint32_t>(i.in[2]);
    uint32_t made[PTX_LANES], carry = 0;
    for (int l = 0; l < PTX_LANES; l++) {
        uint64_t product = (uint64_t)a[l] * b[l];
        uint64_t sum = (upper ? product >> 32 : product & ~0u) + (uint64_t)c[l] +
                       (uses ? w.carry >> l & 1 : 0);
        made[l] = (uint32_t)sum;
        carry |= (uint32_t)(sum >> 32 & 1) << l;
    }
    ptx_keep<uint32_t>(w, i.out[0], made, lanes);
    w.give(i.out[0], lanes, w.has(i.in[0]) & w.has(i.in[1]) & w.has(i.in[2]));
    if (sets) w.carry = (w.carry & ~lanes) | (carry & lanes);
}

/* ---- Predicates ---- */

/* Of `and` and `or`, one operand that decides is enough: `decides` is what it is, for all lanes. */
template <typename F, uint32_t decides = 0, bool any = false>
static void logic(ptx_warp &w, const ptx_instruction &i, uint32_t lanes) {
    uint32_t a = *w.row<uint32_t>(i.in[0]), b = *w.row<uint32_t>(i.in[i.n_in - 1]);
    uint32_t *to = w.row<uint32_t>(i.out[0]);
    uint32_t has_a = w.has(i.in[0]), has_b = w.has(i.in[i.n_in - 1]), decided = 0;
    if (any) decided = (has_a & ~(a ^ decides)) | (has_b & ~(b ^ decides));
    if (any) a = (a & has_a) | (~decides & ~has_a), b = (b & has_b) | (~decides & ~has_b);
    *to = (*to & ~lanes) | (F::template of<uint32_t>(a, b) & lanes);
    w.give(i.out[0], lanes, (has_a & has_b) | decided);
}
BINARY(first_of, (void(b), a))
BINARY(not_first, (void(b), ~a))

/* ---- Names ---- */

template <typename T> static const char *form(const char *narrow, const char *wide) {
    return sizeof(T) == 8 ? wide : narrow;
}

template <typename T> static void add_bits(ptx_table &t, const std::string &b) {
    const char *two = form<T>("w=ww", "l=ll");
    t["and.b" + b] = {ptx_map<both, T, T, T>, two};
    t["or.b" + b] = {ptx_map<either, T, T, T>, two};
    t["xor.b" + b] = {ptx_map<one, T, T, T>, two};
    t["not.b" + b] = {ptx_map<inverted, T, T>, form<T>("w=w", "l=l")};
    t["shl.b" + b] = {ptx_map<shift_left, T, T, uint32_t>, form<T>("w=ww", "l=lw")};
    t["shr.b" + b] = {ptx_map<shift_right, T, T, uint32_t>, form<T>("w=ww", "l=lw")};
    for (const char *kind : {"b", "u", "s", "f"}) {
        if (b == "16" && *kind == 'f') continue;
        t["mov." + (kind + b)] = {ptx_map<same, T, T>, form<T>("w=w", "l=l")};
        t["selp." + (kind + b)] = {ptx_select<T>, form<T>("w=wwp", "l=llp")};
    }
    t["setp.eq.b" + b] = {ptx_compare<equal, T>, form<T>("p=ww", "p=ll")};
    t["setp.ne.b" + b] = {ptx_compare<unequal, T>, form<T>("p=ww", "p=ll")};
    if (b == "16") return;
    t["popc.b" + b] = {ptx_map<set_bits, uint32_t, T>, form<T>("w=w", "w=l")};
    t["clz.b" + b] = {ptx_map<leading_zeros, uint32_t, T>, form<T>("w=w", "w=l")};
    t["bfind.u" + b] = {ptx_map<highest, uint32_t, T>, form<T>("w=w", "w=l")};
    t["bfind.shiftamt.u" + b] = {ptx_map<shift_to_highest, uint32_t, T>, form<T>("w=w", "w=l")};
    t["brev.b" + b] = {ptx_map<reversed, T, T>, form<T>("w=w", "l=l")};
    t["bfi.b" + b] = {ptx_map<insert, T, T, T, uint32_t, uint32_t>, form<T>("w=wwww", "l=llww")};
}

template <typename T> static void add_numbers(ptx_table &t, const std::string &n) {
    const char *one_in = form<T>("w=w", "l=l"), *two = form<T>("w=ww", "l=ll");
    const char *three = form<T>("w=www", "l=lll"), *compared = form<T>("p=ww", "p=ll");
    t["add." + n] = {ptx_map<add, T, T, T>, two};
    t["sub." + n] = {ptx_map<sub, T, T, T>, two};
    t["mul.lo." + n] = {ptx_map<mul_lo, T, T, T>, two};
    t["mul.hi." + n] = {ptx_map<mul_hi, T, T, T>, two};
    t["mad.lo." + n] = {ptx_map<mad_lo, T, T, T, T>, three};
    t["mad.hi." + n] = {ptx_map<mad_hi, T, T, T, T>, three};
    t["div." + n] = {ptx_map<quotient, T, T, T>, two};
    t["rem." + n] = {ptx_map<remainder_of, T, T, T>, two};
    t["min." + n] = {ptx_map<minimum, T, T, T>, two};
    t["max." + n] = {ptx_map<maximum, T, T, T>, two};
    t["shr." + n] = {ptx_map<shift_right, T, T, uint32_t>, form<T>("w=ww", "l=lw")};
    t["setp.eq." + n] = {ptx_compare<equal, T>, compared};
    t["setp.ne." + n] = {ptx_compare<unequal, T>, compared};
    t["setp.lt." + n] = {ptx_compare<less, T>, compared};
    t["setp.le." + n] = {ptx_compare<not_more, T>, compared};
    t["setp.gt." + n] = {ptx_compare<more, T>, compared};
    t["setp.ge." + n] = {ptx_compare<not_less, T>, compared};
    if (std::is_signed<T>::value) {
        t["neg." + n] = {ptx_map<negated, T, T>, one_in};
        t["abs." + n] = {ptx_map<size_of, T, T>, one_in};
    }
    if (sizeof(T) == 2) return;
    t["bfe." + n] = {ptx_map<extract, T, T, uint32_t, uint32_t>, form<T>("w=www", "l=lww")};
}

template <typename W, typename T> static void add_wide(ptx_table &t, const std::string &n) {
    t["mul.wide." + n] = {ptx_map<mul_wide, W, T, T>, form<W>("w=ww", "l=ww")};
    t["mad.wide." + n] = {ptx_map<mad_lo, W, T, T, W>, form<W>("w=www", "l=wwl")};
}

static void add_carries(ptx_table &t) {
    for (const char *type : {"u32", "s32"}) {
        std::string n = type;
        t["add.cc." + n] = {add_carry<true, false, false>, "w=ww"};
        t["addc." + n] = {add_carry<false, true, false>, "w=ww"};
        t["addc.cc." + n] = {add_carry<true, true, false>, "w=ww"};
        t["sub.cc." + n] = {add_carry<true, false, true>, "w=ww"};
        t["subc." + n] = {add_carry<false, true, true>, "w=ww"};
        t["subc.cc." + n] = {add_carry<true, true, true>, "w=ww"};
    }
    t["mad.lo.cc.u32"] = {mad_carry<false, true, false>, "w=www"};
    t["mad.hi.cc.u32"] = {mad_carry<true, true, false>, "w=www"};
    t["madc.lo.u32"] = {mad_carry<false, false, true>, "w=www"};
    t["madc.hi.u32"] = {mad_carry<true, false, true>, "w=www"};
    t["madc.lo.cc.u32"] = {mad_carry<false, true, true>, "w=www"};
    t["madc.hi.cc.u32"] = {mad_carry<true, true, true>, "w=www"};
}

static void add_words(ptx_table &t) {
    t["prmt.b32"] = {ptx_map<permute, uint32_t, uint32_t, uint32_t, uint32_t>, "w=www"};
    t["lop3.b32"] = {ptx_map<table_of_three, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t>,
                     "w=wwww"};
    t["shf.l.clamp.b32"] = {ptx_map<funnel<true, false>, uint32_t, uint32_t, uint32_t, uint32_t>,
                            "w=www"};
    t["shf.r.clamp.b32"] = {ptx_map<funnel<false, false>, uint32_t, uint32_t, uint32_t, uint32_t>,
                            "w=www"};
    t["shf.l.wrap.b32"] = {ptx_map<funnel<true, true>, uint32_t, uint32_t, uint32_t, uint32_t>,
                           "w=www"};
    t["shf.r.wrap.b32"] = {ptx_map<funnel<false, true>, uint32_t, uint32_t, uint32_t, uint32_t>,
                           "w=www"};
}

void ptx_add_integers(ptx_table &t) {
    add_bits<uint16_t>(t, "16");
    add_bits<uint32_t>(t, "32");
    add_bits<uint64_t>(t, "64");
    add_numbers<int16_t>(t, "s16");
    add_numbers<uint16_t>(t, "u16");
    add_numbers<int32_t>(t, "s32");
    add_numbers<uint32_t>(t, "u32");
    add_numbers<int64_t>(t, "s64");
    add_numbers<uint64_t>(t, "u64");
    add_wide<int32_t, int16_t>(t, "s16");
    add_wide<uint32_t, uint16_t>(t, "u16");
    add_wide<int64_t, int32_t>(t, "s32");
    add_wide<uint64_t, uint32_t>(t, "u32");
    add_carries(t);
    add_words(t);
    t["and.pred"] = {logic<both, 0u, true>, "p=pp"};
    t["or.pred"] = {logic<either, ~0u, true>, "p=pp"};
    t["xor.pred"] = {logic<one>, "p=pp"};
    t["not.pred"] = {logic<not_first>, "p=p"};
    t["mov.pred"] = {logic<first_of>, "p=p"};
}

/* ---- Parts of a register ---- */

/* Its parts, the lowest first, of the whole's bytes each alike. */
static uint64_t part_of(ptx_warp &w, ptx_row r, int lane, int bytes) {
    return bytes == 8 ? w.row<uint64_t>(r)[lane] : w.row<uint32_t>(r)[lane];
}

static void set_part(ptx_warp &w, ptx_row r, int lane, int bytes, uint64_t x) {
    if (bytes == 8) w.row<uint64_t>(r)[lane] = x;
    else w.row<uint32_t>(r)[lane] = (uint32_t)x;
}

void ptx_pack(ptx_warp &w, const ptx_instruction &i, uint32_t lanes) {
    int each = i.bytes / i.count;
    uint32_t valued = ~0u;
    for (int l = 0; l < PTX_LANES; l++) {
        uint64_t whole = 0;
        for (int k = 0; k < i.count; k++) whole |= part_of(w, i.in[k], l, each) << 8 * each * k;
        if (lanes >> l & 1) set_part(w, i.out[0], l, i.bytes, whole);
    }
    for (int k = 0; k < i.count; k++) valued &= w.has(i.in[k]);
    w.give(i.out[0], lanes, valued);
}

void ptx_unpack(ptx_warp &w, const ptx_instruction &i, uint32_t lanes) {
    int each = i.bytes / i.count;
    uint32_t valued = w.has(i.in[0]);
    uint64_t ones = each == 4 ? 0xffffffff : 0xffff;
    for (int l = 0; l < PTX_LANES; l++) {
        uint64_t whole = part_of(w, i.in[0], l, i.bytes);
        for (int k = 0; k < i.count; k++)
            if (lanes >> l & 1) set_part(w, i.out[k], l, each, whole >> 8 * each * k & ones);
    }
    for (int k = 0; k < i.count; k++) w.give(i.out[k], lanes, valued);
}

void ptx_move_by(ptx_warp &w, const ptx_instruction &i, uint32_t lanes) {
    const uint64_t *from = w.row<uint64_t>(i.in[0]);
    uint64_t made[PTX_LANES];
    for (int l = 0; l < PTX_LANES; l++) made[l] = from[l] + (uint64_t)i.offset[0];
    ptx_keep<uint64_t>(w, i.out[0], made, lanes);
    w.give(i.out[0], lanes, w.has(i.in[0]));
}
