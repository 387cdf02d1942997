/* Tensor cores and what feeds them, for kernels that are compiled at run time: this file is their
 * text. It includes nothing on a device, and on the host what stands in for it. Invariants: all 32
 * lanes of a warp call fragment_* and mma together; fragments lie as PTX documents them for
 * m16n8k16 of 16-bit elements: with g = lane / 4 and t = lane % 4, sums hold (g, 2t), (g, 2t + 1),
 * (g + 8, 2t), (g + 8, 2t + 1); a holds the pairs that begin at (g, 2t), (g + 8, 2t), (g, 2t + 8),
 * (g + 8, 2t + 8); b those that begin at (2t, g), (2t + 8, g), where a pair goes down. */

#ifdef __CUDACC__
#ifdef LN_BFLOAT16
#define LN_HALF "bf16"
#else
#define LN_HALF "f16"
#endif

/* Two halves, the first in the low bits, nearest even. */
static __device__ unsigned half_pair(float first, float second) {
    unsigned pair;
    asm("cvt.rn." LN_HALF "x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

/* sums (16,8) += a (16,16) b (16,8). */
static __device__ void mma(float sums[4], const unsigned a[4], const unsigned b[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." LN_HALF "." LN_HALF ".f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* A place in shared memory, from which others are counted in bytes: what the compiler knows of it
 * ends here, or it would make each of those anew instead of an offset. */
typedef unsigned shared_place;
static __device__ shared_place shared_place_of(const void *p) {
    shared_place place = (unsigned)__cvta_generic_to_shared(p);
    asm volatile("" : "+r"(place));
    return place;
}

/* Four 8 x 8 matrices of halves in shared memory: a lane gives the place of row lane % 8 of matrix
 * lane / 8, 16 bytes, and gets of each the pair at (lane / 4, 2 (lane % 4)). */
static __device__ void fragment_rows(unsigned out[4], shared_place row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(row)
                 : "memory");
}

/* The same of the transposed matrices. */
static __device__ void fragment_columns(unsigned out[4], shared_place row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(row)
                 : "memory");
}

/* Begins to copy 16 bytes to shared memory, both at multiples of 16; zeros where not `given`. */
static __device__ void copy_begin(void *to, const void *from, bool given) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"((unsigned)__cvta_generic_to_shared(to)), "l"(from), "r"(given ? 16 : 0)
                 : "memory");
}

/* Ends a group: what the thread began to copy since the last. */
static __device__ void copy_group(void) {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Waits until all but the thread's last `left` groups, 0 or 1, have come. */
static __device__ void copy_wait(int left) {
    if (left == 0) asm volatile("cp.async.wait_group 0;" ::: "memory");
    else asm volatile("cp.async.wait_group 1;" ::: "memory");
}

/* The block's dynamic shared memory. */
static __device__ char *block_memory(void) {
    extern __shared__ float4 block_memory_of[];
    return (char *)block_memory_of;
}
#else
#include "mma.h"
#endif
