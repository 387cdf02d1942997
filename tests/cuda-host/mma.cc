/* Tensor cores on the host: a warp's fragments are exchanged as PTX lays them out, matrices loaded
 * from the addresses that its lanes give, and asynchronous copies done only when they are waited
 * for, so that one that is read too early shows. Holds the arithmetic of m16n8k16. Invariant: the
 * last copies of a thread are those of groups that it has not waited for.
 *
 * LUNCE_CUDA_HOST_COUNT: 1 to have the multiplications of all warps counted at exit. */
#include "mma.h"

#include <deque>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

#include "backend.h"
#include "host.h"

enum { MOST_THREADS = 1024 };

/* ---- Products ---- */

static void pair_to_floats(float out[2], bool bfloat16, unsigned pair) {
    for (int i = 0; i < 2; i++) {
        uint16_t bits = (uint16_t)(pair >> 16 * i);
        out[i] = bfloat16 ? ln_bfloat16_to_float(bits) : ln_float16_to_float(bits);
    }
}

unsigned cuda_host_half_pair(bool bfloat16, float first, float second) {
    if (bfloat16) return ln_float_to_bfloat16(first) | (unsigned)ln_float_to_bfloat16(second) << 16;
    return ln_float_to_float16(first) | (unsigned)ln_float_to_float16(second) << 16;
}

/* What the lanes of a warp bring to a product, side by side. A lane writes its own before it waits
 * and reads the others' after; the next product has the other place, and nobody is at the one after
 * that before all have waited for the next. */
static struct { float a[4][2], b[2][2]; } brought[2][MOST_THREADS];
static bool second[MOST_THREADS]; /* the place of a lane's next product */

/* The rows of matrices that they name. Written before the first wait, read before the second. */
static const void *named[MOST_THREADS];

static long multiplications;

void cuda_host_count_multiplication(void) {
    multiplications++;
}

__attribute__((destructor)) static void tell_multiplications(void) {
    if (getenv("LUNCE_CUDA_HOST_COUNT") == NULL) return;
    fprintf(stderr, "cuda-host: %ld multiplications of tensor cores\n", multiplications);
}

/* This lane's four sums need the rows g and g + 8 of a, which the four lanes of its group hold, and
 * the columns 2t and 2t + 1 of b, which two other groups hold. */
void cuda_host_mma(bool bfloat16, float sums[4], const unsigned a[4], const unsigned b[2]) {
    int lane = cuda_host_lane(), g = lane / 4, t = lane % 4;
    float row[2][16], column[2][16];
    if (lane == 0) cuda_host_count_multiplication();
    auto *warp = &brought[second[threadIdx.x]][threadIdx.x - lane];
    second[threadIdx.x] = !second[threadIdx.x];
    for (int i = 0; i < 4; i++) pair_to_floats(warp[lane].a[i], bfloat16, a[i]);
    for (int i = 0; i < 2; i++) pair_to_floats(warp[lane].b[i], bfloat16, b[i]);
    __syncwarp();
    for (int k = 0; k < 16; k += 2) {
        int other = k % 8 / 2, upper = k / 8;
        for (int i = 0; i < 2; i++) {
            memcpy(row[i] + k, warp[4 * g + other].a[i + 2 * upper], sizeof *warp->a);
            memcpy(column[i] + k, warp[4 * (2 * t + i) + other].b[upper], sizeof *warp->b);
        }
    }
    for (int r = 0; r < 2; r++)
        for (int c = 0; c < 2; c++)
            for (int k = 0; k < 16; k++) sums[2 * r + c] += row[r][k] * column[c][k];
}

/* ---- Matrices in shared memory ---- */

/* A device faults on other addresses. */
static void need_alignment(const void *p) {
    if ((uint64_t)p % 16 != 0) raise(SIGSEGV);
}

void cuda_host_fragments(unsigned out[4], const void *row, bool transposed) {
    int lane = cuda_host_lane(), g = lane / 4, t = lane % 4;
    const void **warp = &named[threadIdx.x - lane];
    need_alignment(row);
    warp[lane] = row;
    __syncwarp();
    for (int m = 0; m < 4; m++)
        for (int p = 0; p < 2; p++) {
            int i = transposed ? 2 * t + p : g, j = transposed ? g : 2 * t + p;
            uint16_t half;
            memcpy(&half, (const char *)warp[8 * m + i] + 2 * j, sizeof half);
            out[m] = p == 0 ? half : out[m] | (unsigned)half << 16;
        }
    __syncwarp();
}

/* ---- Asynchronous copies ---- */

struct copy {
    void *to;
    const void *from;
    bool given;
};

static struct {
    std::vector<copy> open; /* of no group yet */
    std::deque<std::vector<copy>> groups;
} pending[MOST_THREADS];

void copy_begin(void *to, const void *from, bool given) {
    need_alignment(to);
    need_alignment(from);
    pending[threadIdx.x].open.push_back({to, from, given});
}

void copy_group(void) {
    auto &mine = pending[threadIdx.x];
    mine.groups.push_back(std::move(mine.open));
    mine.open.clear();
}

void copy_wait(int left) {
    auto &mine = pending[threadIdx.x];
    for (; mine.groups.size() > (size_t)left; mine.groups.pop_front())
        for (const copy &c : mine.groups.front()) {
            if (c.given) memcpy(c.to, c.from, 16);
            else memset(c.to, 0, 16);
        }
}
