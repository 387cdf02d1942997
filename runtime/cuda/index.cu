/* Index tensors, looked at on the device: what is wrong is written to memory that the host reads
 * after its next wait, so that no operator waits for its index. Invariants: of the bad values that
 * lie between two waits the first of the first operator is told; a note is written by one thread,
 * and read by the host when the device has been waited for. */
#include "index.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "walk.h"

/* What a note says of the operator. */
typedef struct {
    char what[32];
    int ndim;
    int64_t shape[LN_MAX_DIMS]; /* of the index */
    index_range range;
} subject;

typedef struct {
    int empty; /* 1; 0 where something was written */
    subject of;
    int64_t value, place; /* row-major */
} note;

/* In pinned memory, one for each device that has looked at an index. */
static struct {
    pthread_mutex_t lock;
    note *of[LN_MOST_DEVICES];
} notes = {PTHREAD_MUTEX_INITIALIZER, {}};

static ln_status note_of(note **out, int device, const char *what) {
    cudaError_t error = cudaSuccess;
    pthread_mutex_lock(&notes.lock);
    note **n = &notes.of[device];
    if (*n == NULL) {
        error = cudaHostAlloc((void **)n, sizeof **n, cudaHostAllocPortable | cudaHostAllocMapped);
        if (error == cudaSuccess) (*n)->empty = 1;
    }
    *out = *n;
    pthread_mutex_unlock(&notes.lock);
    return cuda_check(error, what);
}

/* The least row-major place of a bad value, into *first_bad. */
static __global__ void check_kernel(walk w, index_range r, unsigned long long *first_bad) {
    for (int64_t i = grid_thread(); i < w.numel; i += grid_threads()) {
        int64_t offset[1];
        walk_offsets<1>(w, i, offset);
        int64_t value = walk_load<int64_t>(w, 0, offset[0]);
        bool good = (value >= r.low && value <= r.high) || (value == r.also && r.high > 0);
        if (!good) atomicMin(first_bad, (unsigned long long)i);
    }
}

/* One thread: writes down what was found, unless the note has something older. */
static __global__ void note_kernel(walk w, subject of, const unsigned long long *first_bad,
                                   note *n) {
    int64_t offset[1], place = (int64_t)*first_bad;
    if (place < 0 || atomicMin(&n->empty, 0) == 0) return;
    walk_offsets<1>(w, place, offset);
    n->of = of;
    n->value = walk_load<int64_t>(w, 0, offset[0]);
    n->place = place;
}

ln_status cuda_index_check(const ln_tensor *index, index_range range, const char *what) {
    void *first_bad = NULL;
    note *n;
    const ln_tensor *t[] = {index};
    walk w = walk_over(1, t, ROW_MAJOR);
    subject of = {};
    ln_status status;
    if (index->numel == 0) return LN_OK;
    snprintf(of.what, sizeof of.what, "%s", what);
    of.ndim = index->ndim;
    memcpy(of.shape, index->shape, sizeof of.shape);
    of.range = range;
    LN_TRY(note_of(&n, ln_device(index), what));
    LN_TRY(cuda_scratch(&first_bad, sizeof(int64_t), what));
    LN_TRY(
        cuda_check(cudaMemsetAsync(first_bad, 0xff, sizeof(int64_t), cudaStreamPerThread), what));
    LN_TRY(launch(what, check_kernel, blocks_for(w.numel), THREADS, w, range,
                  (unsigned long long *)first_bad));
    status = launch(what, note_kernel, 1, 1, w, of, (const unsigned long long *)first_bad, n);
fail:
    cuda_scratch_release(first_bad);
    return status;
}

ln_status cuda_index_found(int device) {
    int64_t at[LN_MAX_DIMS];
    char position[24];
    pthread_mutex_lock(&notes.lock);
    note *n = notes.of[device], found = {1, {}, 0, 0};
    if (n != NULL && __atomic_load_n(&n->empty, __ATOMIC_ACQUIRE) == 0) {
        found = *n;
        __atomic_store_n(&n->empty, 1, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&notes.lock);
    if (found.empty == 1) return LN_OK;
    for (int d = found.of.ndim - 1; d >= 0; d--) {
        at[d] = found.place % found.of.shape[d] + 1;
        found.place /= found.of.shape[d];
    }
    snprintf(position, sizeof position, "%lld", (long long)(found.of.ndim == 1 ? at[0] : 0));
    return ln_fail(LN_BAD_ARGUMENT, "%s: index %lld at position %s is outside %lld..%lld",
                   found.of.what, (long long)found.value,
                   found.of.ndim == 1 ? position : ln_text_shape(found.of.ndim, at),
                   (long long)found.of.range.low, (long long)found.of.range.high);
}
