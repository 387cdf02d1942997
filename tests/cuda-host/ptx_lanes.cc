/* Instructions of PTX that a warp's lanes execute together: shuffles, votes, matrices. Holds the
 * layouts of fragments, as the ISA's documentation gives them. Invariants: who waits for whom has
 * been seen to (ptx_warp.cc), so that all the lanes that take part are here; what comes from a lane
 * that does not take part has no value; products of a tensor core are exact, and their sum is cut
 * off to float32, not rounded. */
#include "ptx_lanes.h"

#include <math.h>
#include <tuple>

#include "host.h"
#include "ptx_round.h"

/* ---- Shuffles and votes ---- */

enum shuffle { UP, DOWN, BUTTERFLY, INDEX };

/* Where a lane takes from: the operand c has the clamp in bits 0-4, the segments' mask in 8-12. */
template <shuffle how> static int source_of(int lane, int b, int c, bool *inside) {
    int segments = c >> 8 & 31, clamp = c & 31, from;
    b &= 31;
    int last = (lane & segments) | (clamp & ~segments), first = lane & segments;
    switch (how) {
    case UP: from = lane - b, *inside = from >= last; break;
    case DOWN: from = lane + b, *inside = from <= last; break;
    case BUTTERFLY: from = lane ^ b, *inside = from <= last; break;
    default: from = first | (b & ~segments), *inside = from <= last;
    }
    return *inside ? from : lane;
}

template <shuffle how>
static void shuffle_lanes(ptx_warp &w, const ptx_instruction &i, uint32_t lanes) {
    const uint32_t *a = w.row<uint32_t>(i.in[0]), *b = w.row<uint32_t>(i.in[1]);
    const uint32_t *c = w.row<uint32_t>(i.in[2]);
    uint32_t made[PTX_LANES], insides = 0, valued = 0, has = w.has(i.in[0]);
    w.need(i, i.in[1], lanes, "a shuffle's lane is");
    for (int l = 0; l < PTX_LANES; l++) {
        bool inside;
        int from = source_of<how>(l, (int)b[l], (int)c[l], &inside);
        made[l] = a[from & 31];
        insides |= (uint32_t)inside << l;
        valued |= (lanes & has) >> (from & 31) & 1 ? 1u << l : 0;
    }
    ptx_keep<uint32_t>(w, i.out[0], made, lanes);
    w.give(i.out[0], lanes, valued);
    if (i.n_out < 2) return;
    uint32_t *p = w.row<uint32_t>(i.out[1]);
    *p = (*p & ~lanes) | (insides & lanes);
    w.give(i.out[1], lanes, lanes);
}

static void ballot(ptx_warp &w, const ptx_instruction &i, uint32_t lanes) {
    w.need(i, i.in[0], lanes, "a vote is");
    uint32_t made[PTX_LANES], votes = *w.row<uint32_t>(i.in[0]) & lanes;
    for (int l = 0; l < PTX_LANES; l++) made[l] = votes;
    ptx_keep<uint32_t>(w, i.out[0], made, lanes);
    w.give(i.out[0], lanes, lanes);
}

template <bool all> static void vote(ptx_warp &w, const ptx_instruction &i, uint32_t lanes) {
    w.need(i, i.in[0], lanes, "a vote is");
    uint32_t votes = *w.row<uint32_t>(i.in[0]) & lanes, *to = w.row<uint32_t>(i.out[0]);
    *to = (*to & ~lanes) | ((all ? votes == lanes : votes != 0) ? lanes : 0);
    w.give(i.out[0], lanes, lanes);
}

static void active(ptx_warp &w, const ptx_instruction &i, uint32_t lanes) {
    uint32_t made[PTX_LANES];
    for (int l = 0; l < PTX_LANES; l++) made[l] = lanes;
    ptx_keep<uint32_t>(w, i.out[0], made, lanes);
    w.give(i.out[0], lanes, lanes);
}

static void meet(ptx_warp &w, const ptx_instruction &, uint32_t lanes) {
    ptx_meet(w, lanes);
}

/* ---- Matrices ---- */

/* m16n8k16 of halves. Of a, (r, k) is in register r / 8 + 2 (k / 8) of lane 4 (r % 8) + k % 8 / 2;
 * of b, (k, c) is in register k / 8 of lane 4 c + k % 8 / 2; both in the half k % 2. Of the sums,
 * (r, c) is in register 2 (r / 8) + c % 2 of lane 4 (r % 8) + c / 2. */
template <ptx_half kind>
static void multiply(ptx_warp &w, const ptx_instruction &i, uint32_t lanes) {
    double a[16][16], b[16][8];
    uint32_t valued = ~0u;
    for (int n = 0; n < 10; n++) valued &= w.has(i.in[n]);
    for (int n = 0; n < 10; n++) w.need(i, i.in[n], ~valued, "an operand of mma is");
    for (int k = 0; k < 16; k++) {
        int lane = k % 8 / 2, shift = 16 * (k % 2);
        for (int r = 0; r < 16; r++) {
            uint32_t pair = w.row<uint32_t>(i.in[r / 8 + 2 * (k / 8)])[4 * (r % 8) + lane];
            a[r][k] = (double)ptx_half_value(kind, (uint16_t)(pair >> shift));
        }
        for (int c = 0; c < 8; c++) {
            uint32_t pair = w.row<uint32_t>(i.in[4 + k / 8])[4 * c + lane];
            b[k][c] = (double)ptx_half_value(kind, (uint16_t)(pair >> shift));
        }
    }
    float made[4][PTX_LANES];
    for (int r = 0; r < 16; r++)
        for (int c = 0; c < 8; c++) {
            int n = 2 * (r / 8) + c % 2, lane = 4 * (r % 8) + c / 2;
            double sum = (double)w.row<float>(i.in[6 + n])[lane];
            for (int k = 0; k < 16; k++) sum += a[r][k] * b[k][c];
            float cut = (float)sum;
            if (fabs((double)cut) > fabs(sum)) cut = nextafterf(cut, 0);
            made[n][lane] = ptx_canonical(cut);
        }
    for (int n = 0; n < 4; n++) {
        memcpy(w.row<float>(i.out[n]), made[n], sizeof made[n]);
        w.give(i.out[n], lanes, lanes);
    }
    cuda_host_count_multiplication();
}

/* Matrices of 8 x 8 halves: lane 8 m + r gives the address of row r of matrix m, 16 bytes; lane l
 * gets of each the elements (l / 4, 2 (l % 4)) and (l / 4, 2 (l % 4) + 1) or, transposed, those at
 * (2 (l % 4), l / 4) and (2 (l % 4) + 1, l / 4). */
template <bool transposed>
static void load_matrices(ptx_warp &w, const ptx_instruction &i, uint32_t lanes) {
    uint16_t rows[PTX_LANES][8];
    uint32_t made[4][PTX_LANES];
    int given = 8 * i.n_out;
    w.need(i, i.in[0], (uint32_t)((1ull << given) - 1), "an address");
    for (int l = 0; l < given; l++) {
        uint64_t at = i.wide[0] ? w.row<uint64_t>(i.in[0])[l] : w.row<uint32_t>(i.in[0])[l];
        at += (uint64_t)i.offset[0];
        if (at % 16 != 0)
            w.fault(i, l, "a misaligned address: 0x%llx is no multiple of 16",
                    (unsigned long long)at);
        ptx_check_shared(w, i, l, (int64_t)at, 16, PTX_READ, true);
        memcpy(rows[l], w.block->shared.data() + at, 16);
    }
    for (int m = 0; m < i.n_out; m++)
        for (int l = 0; l < PTX_LANES; l++) {
            int at = l / 4, pair = 2 * (l % 4);
            uint16_t low = transposed ? rows[8 * m + pair][at] : rows[8 * m + at][pair];
            uint16_t high = transposed ? rows[8 * m + pair + 1][at] : rows[8 * m + at][pair + 1];
            made[m][l] = (uint32_t)high << 16 | low;
        }
    for (int m = 0; m < i.n_out; m++) {
        memcpy(w.row<uint32_t>(i.out[m]), made[m], sizeof made[m]);
        w.give(i.out[m], lanes, lanes);
    }
}

ptx_handler ptx_lanes_handler(const std::string &what) {
    static const std::map<std::string, ptx_handler> all = {
        {"shfl.sync.up.b32", shuffle_lanes<UP>},
        {"shfl.sync.down.b32", shuffle_lanes<DOWN>},
        {"shfl.sync.bfly.b32", shuffle_lanes<BUTTERFLY>},
        {"shfl.sync.idx.b32", shuffle_lanes<INDEX>},
        {"vote.sync.ballot.b32", ballot},
        {"vote.sync.any.pred", vote<false>},
        {"vote.sync.all.pred", vote<true>},
        {"activemask.b32", active},
        {"bar.warp.sync", meet},
        {"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", multiply<PTX_FLOAT16>},
        {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", multiply<PTX_BFLOAT16>},
        {"ldmatrix.sync.aligned.m8n8.x1.shared.b16", load_matrices<false>},
        {"ldmatrix.sync.aligned.m8n8.x2.shared.b16", load_matrices<false>},
        {"ldmatrix.sync.aligned.m8n8.x4.shared.b16", load_matrices<false>},
        {"ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16", load_matrices<true>},
        {"ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16", load_matrices<true>},
        {"ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", load_matrices<true>}};
    auto found = all.find(what);
    return found == all.end() ? NULL : found->second;
}
