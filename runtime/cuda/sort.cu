/* Sorting and the choice of the k best. Elements of any dtype become keys whose order as unsigned
 * integers is the order wanted; lines of them are sorted by a bitonic network, as many at once as
 * scratch memory holds. Where k is well below a line's length, the k best are selected and only
 * they are sorted: by the block that selects them, where shared memory holds them. Invariant: no
 * two entries of a line are equal, so that the order is stable and the same in every run.
 *
 * The network reads and writes a line log2(length)^2 / 2 times, those of a tile in shared memory:
 * the price of a sort without scratch beyond the entries, and small beside it for short lines. */
#include "radix_select.h"

static const int64_t TILE = 2 * THREADS; /* entries that a block sorts in shared memory */

/* ---- The network ---- */

/* Pair p of those that lie `step` apart: the place of its first entry. */
static __device__ int64_t first_of(int64_t p, int64_t step) {
    return 2 * p - (p & (step - 1));
}

/* Orders the pair at i, whose place on its line says which way runs of `size` go. */
static __device__ void order_pair(entry *a, entry *b, int64_t i, int64_t size, int64_t length) {
    bool falls = (i & (length - 1) & size) != 0;
    if (comes_later(*a, *b) == falls) return;
    entry held = *a;
    *a = *b;
    *b = held;
}

/* A block a tile: the stages of sizes `from` to `to`, of which those that reach past the tile have
 * their wide steps done already. */
static __global__ void tile_kernel(entry *entries, int64_t total, int64_t length, int64_t from,
                                   int64_t to) {
    __shared__ entry tile[TILE];
    for (int64_t start = (int64_t)blockIdx.x * TILE; start < total;
         start += (int64_t)gridDim.x * TILE) {
        int64_t count = total - start < TILE ? total - start : TILE;
        for (int64_t i = threadIdx.x; i < count; i += THREADS) tile[i] = entries[start + i];
        for (int64_t size = from; size <= to; size *= 2)
            for (int64_t step = size / 2 < TILE / 2 ? size / 2 : TILE / 2; step > 0; step /= 2) {
                int64_t i = first_of(threadIdx.x, step);
                __syncthreads(); /* the tile is read, or the step before is done */
                if (i < count) order_pair(&tile[i], &tile[i + step], start + i, size, length);
            }
        __syncthreads(); /* the last step is done */
        /* the next tile goes into the places that the same thread empties here */
        for (int64_t i = threadIdx.x; i < count; i += THREADS) entries[start + i] = tile[i];
    }
}

/* A thread a pair: one step that reaches past a tile. */
static __global__ void step_kernel(entry *entries, int64_t total, int64_t length, int64_t size,
                                   int64_t step) {
    for (int64_t p = grid_thread(); p < total / 2; p += grid_threads()) {
        int64_t i = first_of(p, step);
        order_pair(&entries[i], &entries[i + step], i, size, length);
    }
}

ln_status cuda_sort(entry *entries, int64_t lines, int64_t length, const char *what) {
    int64_t total = lines * length;
    unsigned tiles = blocks_for(total, TILE), pairs = blocks_for(total / 2);
    ln_status status = LN_OK;
    if (length > 1)
        LN_TRY(launch(what, tile_kernel, tiles, THREADS, entries, total, length, (int64_t)2,
                      length < TILE ? length : TILE));
    for (int64_t size = 2 * TILE; size <= length; size *= 2) {
        for (int64_t step = size / 2; step >= TILE; step /= 2)
            LN_TRY(launch(what, step_kernel, pairs, THREADS, entries, total, length, size, step));
        LN_TRY(launch(what, tile_kernel, tiles, THREADS, entries, total, length, size, size));
    }
fail:
    return status;
}

/* ---- Keys and results ---- */

typedef struct {
    walk lines;                /* X, VALUES, INDICES */
    int64_t extent, length, k; /* length: of the entries that are sorted */
    int64_t step[3];           /* of each along a line */
    bool largest, integer, selects;
    size_t size;
} selection;

enum { X, VALUES, INDICES };

/* T: what an element is read as; its key may be narrower than an entry's. */
template <typename T>
static __device__ auto key_at(const selection &s, int64_t offset) -> decltype(key_of(T())) {
    auto key = key_of(walk_load<T>(s.lines, X, offset));
    return s.largest ? ~key : key;
}

/* All entries of `lines` lines from `first` on. */
static __global__ void keys_kernel(selection s, entry *entries, int64_t first, int64_t lines) {
    for (int64_t i = grid_thread(); i < lines * s.length; i += grid_threads()) {
        int64_t line = divide(i, s.length), at = i - line * s.length, offset[1];
        entry e = {UINT64_MAX, INT64_MAX};
        walk_offsets<1>(s.lines, first + line, offset);
        int64_t from = offset[X] + at * s.step[X];
        if (at < s.extent) e = {s.integer ? key_at<int64_t>(s, from) : key_at<double>(s, from), at};
        entries[i] = e;
    }
}

template <typename T> struct tensor_line {
    const selection &s;
    int64_t offset;
    __device__ auto key(uint32_t place) const -> decltype(key_of(T())) {
        return key_at<T>(s, offset + place * s.step[X]);
    }
};

/* A block a line: its k best, sorted where `capacity` entries fit shared memory; else as they came
 * and, with what only fills the length, to be sorted. */
template <typename T>
static __global__ void select_kernel(selection s, entry *entries, int64_t first, int64_t lines,
                                     unsigned capacity) {
    __shared__ unsigned count;
    unsigned *bins = (unsigned *)shared_memory(), n = (unsigned)s.extent;
    for (int64_t line = blockIdx.x; line < lines; line += gridDim.x) {
        int64_t offset[1];
        if (threadIdx.x == 0) count = 0;
        __syncthreads(); /* it is 0 */
        walk_offsets<1>(s.lines, first + line, offset);
        tensor_line<T> x = {s, offset[X]};
        entry *own = entries + line * s.length, *list = capacity > 0 ? (entry *)(bins + BINS) : own;
        auto b = find_bound<decltype(x.key(0))>(bins, x, n, (unsigned)s.k,
                                                capacity > 0 ? capacity : (unsigned)s.length);
        collect(list, &count, b, x, n);
        if (capacity > 0) {
            sort_list(list, within_count(b));
            for (int64_t i = threadIdx.x; i < s.k; i += THREADS) own[i] = list[i];
        } else {
            for (int64_t i = within_count(b) + threadIdx.x; i < s.length; i += THREADS)
                fill(&own[i]);
        }
        __syncthreads(); /* the next line uses the list and the count */
    }
}

static ln_status select_lines(const selection &s, int dtype, entry *entries, int64_t first,
                              int64_t lines, int64_t capacity, const char *what) {
    size_t bytes = BINS_BYTES + (size_t)capacity * sizeof(entry);
    auto kernel = s.integer             ? select_kernel<int64_t>
                  : dtype == LN_FLOAT64 ? select_kernel<double>
                                        : select_kernel<float>;
    ln_status status = launch_shared(what, kernel, blocks_for(lines, 1), THREADS, bytes, s, entries,
                                     first, lines, capacity);
    if (status != LN_OK || capacity > 0) return status;
    return cuda_sort(entries, lines, s.length, what);
}

template <typename Bits>
static __global__ void results_kernel(selection s, const entry *entries, int64_t first,
                                      int64_t lines) {
    for (int64_t i = grid_thread(); i < lines * s.k; i += grid_threads()) {
        int64_t line = divide(i, s.k), at = i - line * s.k, offset[3];
        entry e = entries[line * s.length + at];
        walk_offsets<3>(s.lines, first + line, offset);
        ((Bits *)s.lines.data[VALUES])[offset[VALUES] + at * s.step[VALUES]] =
            ((const Bits *)s.lines.data[X])[offset[X] + e.at * s.step[X]];
        walk_store(s.lines, INDICES, offset[INDICES] + at * s.step[INDICES], e.at + 1);
    }
}

static ln_status store_results(const selection &s, const entry *entries, int64_t first,
                               int64_t lines, const char *what) {
    unsigned blocks = blocks_for(lines * s.k);
    switch (s.size) {
    case 1: return launch(what, results_kernel<uint8_t>, blocks, THREADS, s, entries, first, lines);
    case 2:
        return launch(what, results_kernel<uint16_t>, blocks, THREADS, s, entries, first, lines);
    case 4:
        return launch(what, results_kernel<uint32_t>, blocks, THREADS, s, entries, first, lines);
    default:
        return launch(what, results_kernel<uint64_t>, blocks, THREADS, s, entries, first, lines);
    }
}

static ln_status sort_lines(const selection &s, entry *entries, int64_t first, int64_t lines,
                            const char *what) {
    ln_status status =
        launch(what, keys_kernel, blocks_for(lines * s.length), THREADS, s, entries, first, lines);
    return status != LN_OK ? status : cuda_sort(entries, lines, s.length, what);
}

static selection plan(ln_tensor *values, ln_tensor *indices, const ln_tensor *x, int64_t k, int dim,
                      bool largest) {
    selection s = {};
    ln_tensor line[] = {*x, *values, *indices};
    const ln_tensor *t[] = {&line[0], &line[1], &line[2]};
    for (int i = 0; i < 3; i++) {
        s.step[i] = line[i].stride[dim];
        line[i].shape[dim] = 1;
        line[i].numel = x->numel / x->shape[dim];
    }
    s.lines = walk_over(3, t, 0);
    s.extent = x->shape[dim];
    s.length = cuda_sort_length(k);
    s.selects =
        s.extent > TILE && s.extent <= INT32_MAX && 2 * s.length <= cuda_sort_length(s.extent);
    if (!s.selects) s.length = cuda_sort_length(s.extent);
    s.k = k;
    s.largest = largest;
    s.integer = !ln_dtype_is_float(x->dtype);
    s.size = ln_dtype_size(x->dtype);
    return s;
}

ln_status CUDA(topk)(ln_tensor *values, ln_tensor *indices, const ln_tensor *x, int64_t k, int dim,
                     bool largest) {
    const char *what = x->shape[dim] == k ? "sort" : "topk";
    ln_status status = cuda_enter(x, what);
    if (status != LN_OK || k == 0 || x->numel == 0) return status;
    selection s = plan(values, indices, x, k, dim, largest);
    int64_t all = s.lines.numel, line_bytes = s.length * (int64_t)sizeof(entry);
    int64_t batch = SCRATCH / line_bytes < 1 ? 1 : SCRATCH / line_bytes;
    int64_t capacity = list_capacity(k, sizeof(entry));
    void *scratch = NULL;
    if (batch > all) batch = all;
    LN_TRY(cuda_scratch(&scratch, (size_t)(batch * line_bytes), what));
    for (int64_t first = 0; first < all; first += batch) {
        int64_t lines = all - first < batch ? all - first : batch;
        entry *entries = (entry *)scratch;
        if (s.selects) LN_TRY(select_lines(s, x->dtype, entries, first, lines, capacity, what));
        else LN_TRY(sort_lines(s, entries, first, lines, what));
        LN_TRY(store_results(s, entries, first, lines, what));
    }
fail:
    cuda_scratch_release(scratch);
    return status;
}
