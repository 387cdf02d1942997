/* The test of the interpreter of PTX, a program: that instructions give what the ISA's
 * documentation says, and that each thing which a device would not forgive is reported. Needs no
 * compiler of PTX: the kernels are written here. Prints what fails; its status is the number of
 * failures. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "host.h"
#include "ptx.h"

static int failures;

static void expect(bool good, const char *what, const std::string &text) {
    if (good) return;
    failures++;
    printf("ptx-check: %s: %s\n", what, text.c_str());
}

/* ---- Kernels ---- */

/* What comes before and after a kernel's body: %r1 is the thread, %r2 four times it, %r3 and %rd2
 * its places of four bytes in shared memory and in the output, %r4 its warp's mask. */
static const char BEGIN[] = ".version 9.0\n.target sm_90\n.address_size 64\n"
                            ".extern .shared .align 16 .b8 memory[];\n"
                            ".visible .entry k(.param .u64 k_param_0)\n{\n"
                            ".reg .pred %p<8>; .reg .b16 %rs<8>; .reg .b32 %r<40>;\n"
                            ".reg .f32 %f<16>; .reg .b64 %rd<8>; .reg .f64 %fd<8>;\n"
                            "ld.param.u64 %rd1, [k_param_0];\nmov.u32 %r1, %tid.x;\n"
                            "shl.b32 %r2, %r1, 2;\nmov.u32 %r3, memory;\nadd.s32 %r3, %r3, %r2;\n"
                            "cvt.u64.u32 %rd2, %r2;\nadd.s64 %rd2, %rd2, %rd1;\n"
                            "mov.b32 %r4, -1;\n";
static const char END[] = "\nret;\n}\n";

enum { WORDS = 1024, SHARED = 4096 };

/* Runs a body; the words that it has written, or what went wrong. */
static std::string run(const char *body, unsigned threads, unsigned blocks, uint32_t *out) {
    std::string error;
    void *memory = NULL;
    cudaMalloc(&memory, WORDS * 4);
    cudaMemsetAsync(memory, 0, WORDS * 4, NULL);
    try {
        auto module = ptx_parse(std::string(BEGIN) + body + END);
        ptx_launch launch;
        launch.module = module.get();
        launch.kernel = &module->kernels.at("k");
        for (int k = 0; k < 3; k++) launch.grid[k] = launch.block[k] = 1;
        launch.grid[0] = blocks;
        launch.block[0] = threads;
        launch.dynamic_bytes = SHARED;
        cuda_host_open();
        error = ptx_run(launch, &memory);
        cuda_host_close();
    } catch (const std::string &thrown) {
        error = thrown;
    }
    if (out != NULL) cudaMemcpyAsync(out, memory, WORDS * 4, cudaMemcpyDeviceToHost, NULL);
    cudaFree(memory);
    return error;
}

static void refuses(const char *what, const char *body, unsigned threads, const char *wanted,
                    unsigned blocks = 1) {
    std::string error = run(body, threads, blocks, NULL);
    expect(error.find(wanted) != std::string::npos, what, error.empty() ? "it ran" : error);
}

static void accepts(const char *what, const char *body, unsigned threads, unsigned blocks = 1) {
    std::string error = run(body, threads, blocks, NULL);
    expect(error.empty(), what, error);
}

/* The body leaves a lane's result in %r9. */
static void gives(const char *what, const char *body, uint32_t (*wanted)(int lane)) {
    uint32_t out[WORDS];
    std::string text = std::string(body) + "st.global.u32 [%rd2], %r9;\n";
    std::string error = run(text.c_str(), 32, 1, out);
    for (int l = 0; l < 32 && error.empty(); l++)
        if (out[l] != wanted(l))
            error = "lane " + std::to_string(l) + " has " + std::to_string(out[l]);
    expect(error.empty(), what, error);
}

/* ---- Memory ---- */

#define OTHER "xor.b32 %r5, %r3, 128;\n" /* the same lane's place, of the other warp */
#define NEIGHBOUR "xor.b32 %r5, %r3, 4;\n"
#define WRITE "st.shared.u32 [%r3], %r1;\n"
#define READ "ld.shared.u32 %r6, [%r5];\n"

static void check_races(void) {
    refuses("another warp's, without a barrier", OTHER WRITE READ, 64, "of shared memory");
    accepts("another warp's, after a barrier", OTHER WRITE "bar.sync 0;\n" READ, 64);
    refuses("another lane's, without a barrier", NEIGHBOUR WRITE READ, 32, "a race: a read");
    accepts("another lane's, after one", NEIGHBOUR WRITE "bar.warp.sync %r4;\n" READ, 32);
    refuses("a shuffle orders no memory",
            NEIGHBOUR WRITE "shfl.sync.idx.b32 %r7|%p1, %r1, 0, 31, %r4;\n" READ, 32,
            "a race: a read");
    refuses("a write over what another warp reads",
            OTHER WRITE "bar.sync 0;\n" READ "bar.warp.sync %r4;\n" WRITE, 64, "a race: ");
    refuses("two writes", "mov.u32 %r5, memory;\nst.shared.u32 [%r5], %r1;\n", 32,
            "a race: two writes");
    accepts("two writes of the same by one instruction",
            "mov.u32 %r5, memory;\nst.shared.u32 [%r5], %r4;\n", 32);
    refuses("two writes of the same by two warps",
            "mov.u32 %r5, memory;\nst.shared.u32 [%r5], %r4;\n", 64, "a race: two writes");
    accepts("atomics",
            "mov.u32 %r5, memory;\nsetp.eq.s32 %p1, %r1, 0;\n"
            "@%p1 st.shared.u32 [%r5], %r1;\nbar.sync 0;\natom.shared.add.u32 %r6, [%r5], 1;\n",
            64);
    refuses("blocks that write the same", "st.global.u32 [%rd2], %r1;\n", 32, "a race: global", 2);
#define GLOBAL_OTHER "xor.b32 %r5, %r2, 128;\ncvt.u64.u32 %rd3, %r5;\nadd.s64 %rd3, %rd3, %rd1;\n"
#define GLOBAL_WRITE "st.global.u32 [%rd2], %r1;\n"
#define GLOBAL_READ "ld.global.u32 %r6, [%rd3];\n"
    refuses("global memory that another warp writes", GLOBAL_OTHER GLOBAL_WRITE GLOBAL_READ, 64,
            "a race: global");
    accepts("global memory, after a barrier", GLOBAL_OTHER GLOBAL_WRITE "bar.sync 0;\n" GLOBAL_READ,
            64);
    refuses("global memory over what another warp reads",
            GLOBAL_OTHER GLOBAL_WRITE "bar.sync 0;\n" GLOBAL_READ GLOBAL_WRITE, 64,
            "a race: global");
    refuses("never written", READ, 32, "an address without a value");
    refuses("nobody has written", "ld.shared.u32 %r6, [%r3];\n", 32, "nobody has written");
}

static void check_places(void) {
    refuses("misaligned", "ld.shared.u32 %r6, [%r3+2];\n", 32, "misaligned");
    refuses("misaligned pair", "st.shared.v2.u32 [%r3], {%r1, %r1};\n", 32, "misaligned");
    refuses("past shared memory", "st.shared.u32 [%r3+4096], %r1;\n", 32, "of shared memory");
    refuses("past the arguments", "ld.param.u64 %rd3, [k_param_0+8];\n", 32, "arguments");
    refuses("past a block of memory", "st.global.u32 [%rd2+4096], %r1;\n", 32, "global memory");
    refuses("a store of nothing", "st.global.u32 [%rd2], %r8;\n", 32, "without a value");
    refuses("a condition of nothing", "@%p1 bra $x;\n$x:\n", 32, "without a value");
    accepts("a condition that one operand decides",
            "setp.lt.s32 %p1, %r1, 0;\nand.pred %p3, %p2, %p1;\n@%p3 bra $x;\n$x:\n", 32);
    refuses("one that it does not decide",
            "setp.ge.s32 %p1, %r1, 0;\nand.pred %p3, %p2, %p1;\n@%p3 bra $x;\n$x:\n", 32,
            "a condition is without a value");
    refuses("an unknown instruction", "add.sat.s32 %r5, %r1, %r1;\n", 32, "does not know");
}

/* A thread copies 16 bytes of the output's begin, which is 0. */
#define COPY                                                                                       \
    "shl.b32 %r5, %r1, 4;\nmov.u32 %r6, memory;\nadd.s32 %r5, %r5, %r6;\n"                         \
    "cp.async.cg.shared.global [%r5], [%rd1], 16;\ncp.async.commit_group;\n"

static void check_copies(void) {
    refuses("a copy that is not waited for", COPY "ld.shared.u32 %r7, [%r5];\n", 32, "copied");
    refuses("a copy of the last group", COPY "cp.async.wait_group 1;\nld.shared.u32 %r7, [%r5];\n",
            32, "copied");
    accepts("one's own copy", COPY "cp.async.wait_group 0;\nld.shared.u32 %r7, [%r5];\n", 32);
    refuses("another's copy",
            COPY "cp.async.wait_group 0;\nxor.b32 %r5, %r5, 512;\n"
                 "ld.shared.u32 %r7, [%r5];\n",
            64, "of shared memory");
    accepts("another's, after a barrier",
            COPY "cp.async.wait_group 0;\nbar.sync 0;\n"
                 "xor.b32 %r5, %r5, 512;\nld.shared.u32 %r7, [%r5];\n",
            64);
    refuses("a copy over what is read",
            COPY "cp.async.wait_group 0;\nbar.sync 0;\n"
                 "xor.b32 %r7, %r5, 512;\nld.shared.u32 %r8, [%r7];\n"
                 "cp.async.cg.shared.global [%r5], [%rd1], 16;\n",
            64, "a race: ");
}

/* ---- Lanes ---- */

static void check_meetings(void) {
    refuses("a shuffle of half a warp",
            "setp.lt.s32 %p1, %r1, 16;\n@!%p1 bra $x;\n"
            "shfl.sync.idx.b32 %r5|%p2, %r1, 0, 31, %r4;\n$x:\nbar.warp.sync %r4;\n",
            32, "wait for others");
    accepts("a shuffle of those in its mask",
            "setp.lt.s32 %p1, %r1, 16;\n@!%p1 bra $x;\n"
            "shfl.sync.idx.b32 %r5|%p2, %r1, 0, 31, 65535;\n$x:\n",
            32);
    refuses("a mask without the lane", "shfl.sync.idx.b32 %r5|%p2, %r1, 0, 31, 65535;\n", 32,
            "without the lane");
    refuses("shuffles in two places",
            "setp.lt.s32 %p1, %r1, 16;\n@%p1 bra $x;\n"
            "shfl.sync.idx.b32 %r5|%p2, %r1, 0, 31, %r4;\nbra $y;\n$x:\n"
            "shfl.sync.idx.b32 %r5|%p2, %r1, 0, 31, %r4;\n$y:\n",
            32, "wait for others");
    refuses("a matrix for half a warp", "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r5}, [%r3];\n",
            16, "only the lanes");
    refuses("a barrier that some skip", "setp.lt.s32 %p1, %r1, 32;\n@%p1 ret;\nbar.sync 0;\n", 64,
            "not all threads");
    refuses("a barrier that half a warp skips",
            "setp.lt.s32 %p1, %r1, 16;\n@%p1 ret;\n"
            "bar.sync 0;\n",
            32, "not all threads");
    refuses("a value from a lane that is elsewhere",
            "setp.lt.s32 %p1, %r1, 16;\n@!%p1 bra $x;\n"
            "shfl.sync.idx.b32 %r5|%p2, %r1, 20, 31, 65535;\nst.global.u32 [%rd2], %r5;\n$x:\n",
            32, "without a value");
}

static void check_shuffles(void) {
    gives("shfl.up", "shfl.sync.up.b32 %r9|%p1, %r1, 3, 0, %r4;\n",
          [](int l) { return (uint32_t)(l < 3 ? l : l - 3); });
    gives("shfl.down", "shfl.sync.down.b32 %r9|%p1, %r1, 3, 31, %r4;\n",
          [](int l) { return (uint32_t)(l > 28 ? l : l + 3); });
    gives("shfl.bfly", "shfl.sync.bfly.b32 %r9|%p1, %r1, 5, 31, %r4;\n",
          [](int l) { return (uint32_t)(l ^ 5); });
    gives("shfl.idx in segments of 8", "shfl.sync.idx.b32 %r9|%p1, %r1, 2, 6175, %r4;\n",
          [](int l) { return (uint32_t)(l / 8 * 8 + 2); });
    gives("vote", "setp.gt.s32 %p1, %r1, 29;\nvote.sync.ballot.b32 %r9, %p1, %r4;\n",
          [](int) { return 0xc0000000u; });
}

/* ---- Matrices ---- */

/* Small whole numbers, which bfloat16 holds: its upper half of float32. */
static float a_of(int r, int k) {
    return (float)((r * 5 + k * 3) % 7 - 3);
}
static float b_of(int k, int c) {
    return (float)((k * 2 + c * 3) % 5 - 2);
}

static uint32_t pair_of(float low, float high) {
    uint32_t bits[2];
    memcpy(&bits[0], &low, 4);
    memcpy(&bits[1], &high, 4);
    return bits[0] >> 16 | (bits[1] & 0xffff0000);
}

/* A lane's fragments, from the tables of the documentation: six words of input at 6 lane, four sums
 * at 512 + 4 lane. */
static void check_products(void) {
    std::string body =
        "mul.lo.s32 %r5, %r1, 24;\ncvt.u64.u32 %rd3, %r5;\nadd.s64 %rd3, %rd3, %rd1;\n";
    for (int l = 0; l < 32; l++) {
        int g = l / 4, t = l % 4 * 2;
        uint32_t words[6] = {pair_of(a_of(g, t), a_of(g, t + 1)),
                             pair_of(a_of(g + 8, t), a_of(g + 8, t + 1)),
                             pair_of(a_of(g, t + 8), a_of(g, t + 9)),
                             pair_of(a_of(g + 8, t + 8), a_of(g + 8, t + 9)),
                             pair_of(b_of(t, g), b_of(t + 1, g)),
                             pair_of(b_of(t + 8, g), b_of(t + 9, g))};
        body += "setp.eq.s32 %p1, %r1, " + std::to_string(l) + ";\n";
        for (int n = 0; n < 6; n++)
            body += "@%p1 mov.b32 %r" + std::to_string(10 + n) + ", " + std::to_string(words[n]) +
                    ";\n";
    }
    body += "mov.b32 %f1, 0f3F800000;\nshl.b32 %r5, %r1, 4;\ncvt.u64.u32 %rd3, %r5;\n"
            "add.s64 %rd3, %rd3, %rd1;\n"
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f2, %f3, %f4, %f5}, "
            "{%r10, %r11, %r12, %r13}, {%r14, %r15}, {%f1, %f1, %f1, %f1};\n"
            "st.global.v4.f32 [%rd3], {%f2, %f3, %f4, %f5};\n";
    float out[WORDS];
    std::string error = run(body.c_str(), 32, 1, (uint32_t *)out);
    for (int r = 0; r < 16; r++)
        for (int c = 0; c < 8; c++) {
            float sum = 1, got = out[4 * (r % 8 * 4 + c / 2) + r / 8 * 2 + c % 2];
            for (int k = 0; k < 16; k++) sum += a_of(r, k) * b_of(k, c);
            if (error.empty() && got != sum) error = "another product";
        }
    expect(error.empty(), "mma", error);
}

/* Word n of shared memory holds n, so that half 2 n is n and half 2 n + 1 is 0; row r of matrix m
 * begins at word 32 m + 4 r. */
#define MATRICES(trans)                                                                            \
    "st.shared.u32 [%r3], %r1;\nadd.s32 %r5, %r1, 32;\nst.shared.u32 [%r3+128], %r5;\n"            \
    "bar.warp.sync %r4;\nshl.b32 %r6, %r1, 4;\nmov.u32 %r7, memory;\nand.b32 %r6, %r6, 255;\n"     \
    "add.s32 %r6, %r6, %r7;\nldmatrix.sync.aligned.m8n8.x2" trans                                  \
    ".shared.b16 {%r8, %r9}, [%r6];\n"

static void check_matrices(void) {
    gives("ldmatrix", MATRICES(""), [](int l) { return (uint32_t)(32 + l); });
    gives("ldmatrix.trans", MATRICES(".trans"), [](int l) {
        int row = l % 4 * 2, column = l / 4;
        if (column % 2 == 1) return 0u;
        uint32_t low = (uint32_t)(32 + 4 * row + column / 2);
        return low | (low + 4) << 16;
    });
}

/* ---- Numbers ---- */

static void check_numbers(void) {
    gives("cvt.f16x2: the first is the upper",
          "cvt.rn.f32.s32 %f1, %r1;\nmov.f32 %f2, 0f3F800000;\n"
          "cvt.rn.f16x2.f32 %r9, %f2, %f1;\nand.b32 %r9, %r9, -65536;\n",
          [](int) { return 0x3c000000u; });
    gives("cvt.rn.bf16: ties to even",
          "mov.f32 %f1, 0f3F808000;\nmov.f32 %f2, 0f3F818000;\n"
          "cvt.rn.bf16x2.f32 %r9, %f1, %f2;\n",
          [](int) { return 0x3f803f82u; });
    gives("cvt.rn.f16: subnormal",
          "mov.f32 %f1, 0f33800000;\nmov.f32 %f2, 0f477FF000;\n"
          "cvt.rn.f16x2.f32 %r9, %f1, %f2;\n",
          [](int) { return 0x00017c00u; });
    gives("cvt.rzi of a NaN", "mov.f32 %f1, 0f7FC00000;\ncvt.rzi.s32.f32 %r9, %f1;\n",
          [](int) { return 0u; });
    gives("cvt.rni", "mov.f32 %f1, 0fC0200000;\ncvt.rni.s32.f32 %r9, %f1;\n", /* -2.5 */
          [](int) { return (uint32_t)-2; });
    gives("add.rz",
          "mov.f32 %f1, 0f3F800000;\nmov.f32 %f2, 0fB2800000;\n"
          "add.rz.f32 %f3, %f1, %f2;\nmov.b32 %r9, %f3;\n",
          [](int) { return 0x3f7fffffu; });
    gives("bfi", "bfi.b32 %r9, %r1, 0, 5, 27;\n", [](int l) { return (uint32_t)l << 5; });
    gives("bfind", "bfind.u32 %r9, %r1;\n",
          [](int l) { return l == 0 ? ~0u : 31u - (uint32_t)__builtin_clz((unsigned)l); });
    gives("bfind.shiftamt", "bfind.shiftamt.u32 %r9, %r1;\n",
          [](int l) { return l == 0 ? ~0u : (uint32_t)__builtin_clz((unsigned)l); });
    gives("bfe", "mov.b32 %r5, -256;\nbfe.s32 %r9, %r5, 4, 8;\n", [](int) { return 0xfffffff0u; });
    gives("prmt",
          "mov.b32 %r5, 50462976;\nmov.b32 %r6, 117835012;\nprmt.b32 %r9, %r5, %r6, 30212;\n",
          [](int) { return 0x07060004u; });
    gives("mul.hi", "neg.s32 %r5, %r1;\nmul.hi.s32 %r9, %r5, 1073741824;\n",
          [](int l) { return (uint32_t)((int64_t)-l * 1073741824 >> 32); });
    gives("shr past the width", "neg.s32 %r5, %r1;\nshr.s32 %r9, %r5, 40;\n",
          [](int l) { return l > 0 ? ~0u : 0u; });
    gives("carries", "mov.b32 %r5, -1;\nadd.cc.u32 %r6, %r5, %r1;\naddc.u32 %r9, 0, 0;\n",
          [](int l) { return l > 0 ? 1u : 0u; });
}

/* An approximation is not the nearest number, and as near as it must be. */
static void check_units(void) {
    uint32_t out[WORDS];
    std::string error = run("cvt.rn.f32.s32 %f1, %r1;\nadd.f32 %f1, %f1, 0f3E800000;\n"
                            "ex2.approx.ftz.f32 %f2, %f1;\nst.global.f32 [%rd2], %f2;\n",
                            32, 1, out);
    int off = 0;
    for (int l = 0; l < 32; l++) {
        float got;
        memcpy(&got, &out[l], sizeof got);
        double exact = exp2(l + 0.25), error_of = fabs(got - exact) / exact;
        off += error_of > 0x1p-23;
        if (!(error_of <= 0x1.4p-22)) error = "ex2 is off";
    }
    expect(error.empty() && off > 16, "ex2.approx", error);
}

int main(void) {
    check_races();
    check_places();
    check_copies();
    check_meetings();
    check_shuffles();
    check_products();
    check_matrices();
    check_numbers();
    check_units();
    return failures;
}
