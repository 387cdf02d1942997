/* Choosing, adding and writing at positions that an index tensor holds. Invariants: a position out
 * of range is passed over, and told of later (index.cu); an element receives its sources in the
 * order of the index, from one thread, so that a run repeats its bits. */
#include "select.h"

#include "index.h"

/* ---- The index ---- */

/* The position from 0 that a value means, from 1 or -1 for the last; -1 where there is none. */
static __device__ int64_t position_of(int64_t value, int64_t extent) {
    if (value == -1) return extent - 1;
    return value >= 1 && value <= extent ? value - 1 : -1;
}

ln_status CUDA(index_check)(int64_t *first, const ln_tensor *index, int64_t extent,
                            const char *what) {
    ln_status status = cuda_enter(index, what);
    *first = -1;
    return status != LN_OK ? status : cuda_index_check(index, {1, extent, 1}, what);
}

static ln_status check_index(const ln_tensor *index, int64_t extent, const char *what) {
    return cuda_index_check(index, {1, extent, -1}, what);
}

/* ---- Gathering: a thread an element of the result ---- */

enum { SHAPED, ADDRESSED, INDEX };

template <typename Bits>
static __global__ void gather_kernel(walk w, int64_t extent, int64_t step) {
    for (int64_t i = grid_thread(); i < w.numel; i += grid_threads()) {
        int64_t at[3];
        walk_offsets<3>(w, i, at);
        int64_t position = position_of(walk_load<int64_t>(w, INDEX, at[INDEX]), extent);
        const Bits *from = (const Bits *)w.data[ADDRESSED] + at[ADDRESSED];
        ((Bits *)w.data[SHAPED])[at[SHAPED]] = position < 0 ? Bits(0) : from[position * step];
    }
}

/* index: of out's shape. */
static ln_status gather(ln_tensor *out, const ln_tensor *x, int dim, const ln_tensor *index,
                        const char *what) {
    if (out->numel == 0) return LN_OK;
    ln_tensor addressed = *x;
    addressed.stride[dim] = 0;
    const ln_tensor *t[] = {out, &addressed, index};
    walk w = walk_over(3, t, 0);
    unsigned blocks = blocks_for(w.numel);
    int64_t extent = x->shape[dim], step = x->stride[dim];
    switch (ln_dtype_size(x->dtype)) {
    case 1: return launch(what, gather_kernel<uint8_t>, blocks, THREADS, w, extent, step);
    case 2: return launch(what, gather_kernel<uint16_t>, blocks, THREADS, w, extent, step);
    case 4: return launch(what, gather_kernel<uint32_t>, blocks, THREADS, w, extent, step);
    default: return launch(what, gather_kernel<uint64_t>, blocks, THREADS, w, extent, step);
    }
}

ln_status CUDA(gather)(ln_tensor *out, const ln_tensor *x, int dim, const ln_tensor *index) {
    ln_status status = cuda_enter(x, "gather");
    if (status == LN_OK) status = check_index(index, x->shape[dim], "gather");
    return status != LN_OK ? status : gather(out, x, dim, index, "gather");
}

ln_status CUDA(index_select)(ln_tensor *out, const ln_tensor *x, int dim, const ln_tensor *index) {
    ln_status status = cuda_enter(x, "index_select");
    if (status == LN_OK) status = check_index(index, x->shape[dim], "index_select");
    if (status != LN_OK) return status;
    ln_tensor full = *out;
    full.storage = index->storage;
    full.data = index->data;
    full.dtype = index->dtype;
    for (int d = 0; d < full.ndim; d++) full.stride[d] = d == dim ? index->stride[0] : 0;
    return gather(out, x, dim, &full, "index_select");
}

/* ---- Scattering: the index's lines are sorted; a thread takes what goes to one element ---- */

typedef struct {
    walk others;       /* SHAPED, ADDRESSED over the dimensions other than the line's; INDEX too */
    int64_t n, length; /* positions on a line; entries for them */
    int64_t shaped_step, addressed_step, index_step; /* along a line */
    int64_t extent;
    bool one_line; /* all others share one line of the index */
    bool plain;    /* values are positions from 0 */
    bool replaces; /* addressed = the last of shaped; otherwise addressed += shaped */
} scatter;

static __global__ void positions_kernel(scatter s, entry *entries, int64_t lines) {
    for (int64_t i = grid_thread(); i < lines * s.length; i += grid_threads()) {
        int64_t line = divide(i, s.length), at = i - line * s.length, offset[3];
        entry e = {UINT64_MAX, INT64_MAX};
        walk_offsets<3>(s.others, line, offset);
        if (at < s.n) {
            int64_t value = walk_load<int64_t>(s.others, INDEX, offset[INDEX] + at * s.index_step);
            if (s.plain) value = value < s.extent ? value : -1;
            else value = position_of(value, s.extent);
            if (value >= 0) e = {(uint64_t)value, at};
        }
        entries[i] = e;
    }
}

template <typename T> static __global__ void scatter_kernel(scatter s, const entry *entries) {
    for (int64_t i = grid_thread(); i < s.others.numel * s.n; i += grid_threads()) {
        int64_t j = divide(i, s.others.numel), other = i - j * s.others.numel, offset[3];
        const entry *line = entries + (s.one_line ? 0 : other * s.length);
        uint64_t key = line[j].key;
        if (key == UINT64_MAX || (j > 0 && line[j - 1].key == key)) continue; /* none; another's */
        walk_offsets<3>(s.others, other, offset);
        int64_t to = offset[ADDRESSED] + (int64_t)key * s.addressed_step;
        T sum = walk_load<T>(s.others, ADDRESSED, to);
        for (; j < s.n && line[j].key == key; j++) {
            T x = walk_load<T>(s.others, SHAPED, offset[SHAPED] + line[j].at * s.shaped_step);
            sum = s.replaces ? x : sum + x;
        }
        walk_store(s.others, ADDRESSED, to, sum);
    }
}

/* shaped and index have the same shape but where index's stride is 0; addressed has it but along
 * dim. */
static ln_status run_scatter(scatter s, ln_tensor *addressed, int dim, const ln_tensor *index,
                             const ln_tensor *shaped, const char *what) {
    if (shaped->numel == 0) return LN_OK;
    ln_tensor other[] = {*shaped, *addressed, *index};
    const ln_tensor *t[] = {&other[0], &other[1], &other[2]};
    int64_t lines;
    void *scratch = NULL;
    ln_status status;
    for (int i = 0; i < 3; i++) other[i].shape[dim] = 1;
    other[0].numel = shaped->numel / shaped->shape[dim];
    s.others = walk_over(3, t, 0);
    s.n = shaped->shape[dim];
    s.length = cuda_sort_length(s.n);
    s.shaped_step = shaped->stride[dim];
    s.addressed_step = addressed->stride[dim];
    s.index_step = index->stride[dim];
    s.extent = addressed->shape[dim];
    lines = s.one_line ? 1 : s.others.numel;
    LN_TRY(cuda_scratch(&scratch, (size_t)(lines * s.length) * sizeof(entry), what));
    LN_TRY(launch(what, positions_kernel, blocks_for(lines * s.length), THREADS, s,
                  (entry *)scratch, lines));
    LN_TRY(cuda_sort((entry *)scratch, lines, s.length, what));
    {
        const entry *entries = (const entry *)scratch;
        unsigned blocks = blocks_for(shaped->numel);
        if (shaped->dtype == LN_FLOAT64)
            status = launch(what, scatter_kernel<double>, blocks, THREADS, s, entries);
        else if (ln_dtype_is_float(shaped->dtype))
            status = launch(what, scatter_kernel<float>, blocks, THREADS, s, entries);
        else status = launch(what, scatter_kernel<int64_t>, blocks, THREADS, s, entries);
    }
fail:
    cuda_scratch_release(scratch);
    return status;
}

/* One line of the index for all of src. */
static ln_status scatter_lines(bool replaces, ln_tensor *dst, int dim, const ln_tensor *index,
                               const ln_tensor *src, const char *what) {
    ln_status status = cuda_enter(dst, what);
    if (status == LN_OK) status = check_index(index, dst->shape[dim], what);
    if (status != LN_OK) return status;
    ln_tensor full = *src;
    full.storage = index->storage;
    full.data = index->data;
    full.dtype = index->dtype;
    for (int d = 0; d < full.ndim; d++) full.stride[d] = d == dim ? index->stride[0] : 0;
    scatter s = {};
    s.one_line = true;
    s.replaces = replaces;
    return run_scatter(s, dst, dim, &full, src, what);
}

ln_status CUDA(index_add)(ln_tensor *dst, int dim, const ln_tensor *index, const ln_tensor *src) {
    return scatter_lines(false, dst, dim, index, src, "index_add");
}

ln_status CUDA(index_copy)(ln_tensor *dst, int dim, const ln_tensor *index, const ln_tensor *src) {
    return scatter_lines(true, dst, dim, index, src, "index_copy_");
}

/* src may be larger than index: only the part of index's shape is added. */
ln_status CUDA(scatter_add)(ln_tensor *dst, int dim, const ln_tensor *index, const ln_tensor *src) {
    ln_status status = cuda_enter(dst, "scatter_add");
    if (status == LN_OK) status = check_index(index, dst->shape[dim], "scatter_add");
    if (status != LN_OK) return status;
    ln_tensor shaped = *src;
    for (int d = 0; d < src->ndim; d++) shaped.shape[d] = index->shape[d];
    shaped.numel = index->numel;
    return run_scatter({}, dst, dim, index, &shaped, "scatter_add");
}

ln_status cuda_scatter_planes(ln_tensor *dst, const ln_tensor *index, const ln_tensor *src,
                              const char *what) {
    ln_status status = cuda_index_check(index, {0, dst->shape[1] - 1, 0}, what);
    if (status != LN_OK) return status;
    scatter s = {};
    s.plain = true;
    return run_scatter(s, dst, 1, index, src, what);
}
