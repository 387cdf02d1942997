/* The least keys of a line, by radix selection, a block a line: histograms of digits narrow a bound
 * down until what lies within it fits a list, which is then collected and sorted in shared memory.
 * Device code that all threads of a block run together, and the sizes of what they share.
 * Invariants: the digits of an entry's place come after those of its key, so no two entries are
 * equal and a bound can hold any number of them; a list has all the least entries, and the order in
 * which threads came shows in no result. */
#ifndef LN_CUDA_RADIX_SELECT_H
#define LN_CUDA_RADIX_SELECT_H
#include "sort.h"

enum {
    DIGIT_BITS = 12,
    DIGITS = 1 << DIGIT_BITS,
    DIGITS_EACH = DIGITS / THREADS,      /* that a thread adds up */
    BINS = DIGITS + DIGITS / DIGITS_EACH /* one lies idle after each thread's: no bank conflicts */
};

static const size_t BINS_BYTES = BINS * sizeof(unsigned);

/* What the tests' build shrinks: of a block's lists. */
#ifndef LN_LIST_BYTES
#define LN_LIST_BYTES (1 << 16)
#endif

/* The entries of a list that k are to be found for: a power of two, with room for what lies in the
 * last one's bin; 0 where k entries of so many bytes are too many. */
static inline int64_t list_capacity(int64_t k, size_t size) {
    int64_t most = LN_LIST_BYTES / (int64_t)size, capacity = cuda_sort_length(k + k / 8 + 64);
    return k > most ? 0 : capacity < most ? capacity : most;
}

static inline __device__ unsigned bin_of(unsigned digit) {
    return digit + digit / DIGITS_EACH;
}

/* The sum of v over the warp's lanes before this one; *all: over all of them. */
static inline __device__ unsigned sum_before_in_warp(unsigned v, unsigned *all) {
    unsigned sum = v;
    for (unsigned distance = 1; distance < WARP; distance *= 2) {
        unsigned other = __shfl_up_sync(0xffffffffu, sum, distance);
        if (threadIdx.x % WARP >= distance) sum += other;
    }
    *all = __shfl_sync(0xffffffffu, sum, WARP - 1);
    return sum - v;
}

/* The same over the block's threads. */
static inline __device__ unsigned sum_before(unsigned v) {
    __shared__ unsigned parts[THREADS / WARP];
    unsigned all, before = sum_before_in_warp(v, &all);
    __syncthreads(); /* the parts of the call before are read */
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = all;
    __syncthreads(); /* all parts are there */
    for (unsigned w = 0; w < threadIdx.x / WARP; w++) before += parts[w];
    return before;
}

static inline __device__ void clear_bins(unsigned *bins) {
    for (unsigned i = threadIdx.x; i < BINS; i += THREADS) bins[i] = 0;
}

/* ---- The bound ---- */

/* Entries whose bits under the masks, of the key and then of the place, are at most these. */
template <typename Key> struct bound {
    Key key, key_mask;
    uint32_t place, place_mask;
    int shift; /* of the next digit */
    bool by_place;
    unsigned k, left, equal; /* wanted; of them on the bound; how many are on it */
};

template <typename Key> static __device__ bound<Key> bound_of(unsigned k, unsigned n) {
    return {0, 0, 0, 0, 8 * (int)sizeof(Key) - DIGIT_BITS, false, k, k, n};
}

template <typename Key> static __device__ unsigned within_count(const bound<Key> &b) {
    return b.k - b.left + b.equal;
}

template <typename Key> static __device__ bool is_on(const bound<Key> &b, Key key, uint32_t place) {
    return (key & b.key_mask) == b.key && (place & b.place_mask) == b.place;
}

template <typename Key>
static __device__ bool is_within(const bound<Key> &b, Key key, uint32_t place) {
    Key bits = key & b.key_mask;
    return bits < b.key || (bits == b.key && (place & b.place_mask) <= b.place);
}

template <typename Key>
static __device__ unsigned digit_of(const bound<Key> &b, Key key, uint32_t place) {
    return (b.by_place ? place >> b.shift : (unsigned)(key >> b.shift)) % DIGITS;
}

/* The digit that has the k-th entry on the bound becomes a part of it: `before` entries on the
 * bound have lower ones, `count` have this one. Digits may share bits, which are the same. */
template <typename Key>
static __device__ void narrow(bound<Key> *b, unsigned digit, unsigned before, unsigned count,
                              uint32_t n) {
    b->left -= before;
    b->equal = count;
    if (b->by_place) {
        b->place |= digit << b->shift;
        b->place_mask |= (uint32_t)(DIGITS - 1) << b->shift;
    } else {
        b->key |= (Key)digit << b->shift;
        b->key_mask |= (Key)(DIGITS - 1) << b->shift;
        if (b->shift == 0) {
            b->by_place = true;
            while ((n - 1) >> b->shift >= DIGITS) b->shift++;
            return;
        }
    }
    b->shift = b->shift > DIGIT_BITS ? b->shift - DIGIT_BITS : 0;
}

/* Narrows a shared bound by the histogram of its next digit; the caller's barriers stand round it.
 */
template <typename Key>
static __device__ void narrow_by(bound<Key> *shared, const unsigned *bins, uint32_t n) {
    const unsigned *own = bins + bin_of(threadIdx.x * DIGITS_EACH);
    unsigned sum = 0, left = shared->left;
    for (int i = 0; i < DIGITS_EACH; i++) sum += own[i];
    unsigned before = sum_before(sum);
    if (before >= left || before + sum < left) return;
    int i = 0;
    for (; before + own[i] < left; i++) before += own[i];
    narrow(shared, threadIdx.x * DIGITS_EACH + (unsigned)i, before, own[i], n);
}

/* ---- A line ---- */

/* So many keys of a thread are asked for at once. */
enum { BATCH = 8 };

/* Past the end it is the last key again, so that no load waits for a branch. */
template <typename Key, typename Line>
static __device__ void load_batch(Key *keys, const Line &line, uint32_t first, uint32_t n) {
    uint32_t place = first + threadIdx.x;
    if (first + BATCH * THREADS <= n)
        for (uint32_t u = 0; u < BATCH; u++) keys[u] = line.key(place + u * THREADS);
    else
        for (uint32_t u = 0; u < BATCH; u++)
            keys[u] = line.key(place + u * THREADS < n ? place + u * THREADS : n - 1);
}

/* The digits of the entries on the bound; of ALL, where that is a bound to nothing. */
template <bool ALL, typename Key, typename Line>
static __device__ void count_digits_of(unsigned *bins, const bound<Key> &b, const Line &line,
                                       uint32_t n) {
    for (uint32_t first = 0; first < n; first += BATCH * THREADS) {
        Key keys[BATCH];
        load_batch(keys, line, first, n);
        for (uint32_t u = 0; u < BATCH; u++) {
            uint32_t place = first + u * THREADS + threadIdx.x;
            if (place < n && (ALL || is_on(b, keys[u], place)))
                atomicAdd(&bins[bin_of(digit_of(b, keys[u], place))], 1u);
        }
    }
}

template <typename Key, typename Line>
static __device__ void count_digits(unsigned *bins, const bound<Key> &b, const Line &line,
                                    uint32_t n) {
    if (b.key_mask == 0) count_digits_of<true>(bins, bound_of<Key>(0, 0), line, n);
    else count_digits_of<false>(bins, b, line, n);
}

/* The bound of a line of n entries within which there are at least k and at most `capacity`. */
template <typename Key, typename Line>
static __device__ bound<Key> find_bound(unsigned *bins, const Line &line, uint32_t n, unsigned k,
                                        unsigned capacity) {
    __shared__ bound<Key> shared;
    bound<Key> b = bound_of<Key>(k, n);
    while (within_count(b) > capacity) {
        clear_bins(bins);
        if (threadIdx.x == 0) shared = b;
        __syncthreads(); /* the bins are empty, the bound is there */
        count_digits(bins, b, line, n);
        __syncthreads(); /* all are counted */
        narrow_by(&shared, bins, n);
        __syncthreads(); /* the bound is narrower */
        b = shared;
        __syncthreads(); /* all have it */
    }
    return b;
}

static inline __device__ void put(uint32_t *to, uint32_t key, uint32_t) {
    *to = key;
}

static inline __device__ void put(uint64_t *to, uint64_t key, uint32_t) {
    *to = key;
}

static inline __device__ void put(entry *to, uint64_t key, uint32_t place) {
    *to = {key, place};
}

/* Puts what is within the bound on a list, behind what is there: *count entries. A thread's go side
 * by side, which takes fewer instructions than order would. */
template <typename Entry, typename Key, typename Line>
static __device__ void collect(Entry *list, unsigned *count, const bound<Key> &b, const Line &line,
                               uint32_t n) {
    for (uint32_t first = 0; first < n; first += BATCH * THREADS) {
        Key keys[BATCH];
        unsigned taken = 0, own = 0, all;
        load_batch(keys, line, first, n);
        for (uint32_t u = 0; u < BATCH; u++) {
            uint32_t place = first + u * THREADS + threadIdx.x;
            bool takes = place < n && is_within(b, keys[u], place);
            taken |= (unsigned)takes << u;
            own += takes;
        }
        unsigned start = sum_before_in_warp(own, &all);
        unsigned before = threadIdx.x % WARP == 0 ? atomicAdd(count, all) : 0;
        start += __shfl_sync(0xffffffffu, before, 0);
        for (uint32_t u = 0; u < BATCH; u++)
            if (taken >> u & 1) put(&list[start++], keys[u], first + u * THREADS + threadIdx.x);
    }
    __syncthreads(); /* the list is whole */
}

/* ---- Sorting in shared memory ---- */

static inline __device__ void fill(uint32_t *a) {
    *a = UINT32_MAX;
}

static inline __device__ void fill(uint64_t *a) {
    *a = UINT64_MAX;
}

static inline __device__ void fill(entry *a) {
    *a = {UINT64_MAX, INT64_MAX};
}

template <typename Key> static __device__ bool comes_later(Key a, Key b) {
    return a > b;
}

/* The first n of a list that has room up to a power of two, by a bitonic network. */
template <typename Entry> static __device__ void sort_list(Entry *list, unsigned n) {
    unsigned length = 1;
    while (length < n) length *= 2;
    for (unsigned i = n + threadIdx.x; i < length; i += THREADS) fill(&list[i]);
    for (unsigned size = 2; size <= length; size *= 2)
        for (unsigned step = size / 2; step > 0; step /= 2) {
            __syncthreads(); /* the list is full, or the step before is done */
            for (unsigned p = threadIdx.x; p < length / 2; p += THREADS) {
                unsigned i = 2 * p - (p & (step - 1));
                Entry a = list[i], b = list[i + step];
                if (comes_later(a, b) == ((i & size) != 0)) continue;
                list[i] = b;
                list[i + step] = a;
            }
        }
    __syncthreads(); /* the last step is done */
}

/* Past so many keys of one bin the network is faster than their comparison with each other. */
enum { CROWD = 48 };

/* Spreads a list's keys over bins by their distance from the least, *low, less its *shift last
 * bits: the bins become where each one's keys start. Says whether one of them is a crowd. */
template <typename Key>
static __device__ bool start_bins(unsigned *bins, const Key *list, unsigned n, Key *low,
                                  int *shift) {
    __shared__ Key least[THREADS / WARP], most[THREADS / WARP];
    __shared__ unsigned crowd;
    Key a = ~(Key)0, b = 0;
    clear_bins(bins);
    if (threadIdx.x == 0) crowd = 0;
    for (unsigned i = threadIdx.x; i < n; i += THREADS) {
        a = list[i] < a ? list[i] : a;
        b = list[i] > b ? list[i] : b;
    }
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        Key c = __shfl_xor_sync(0xffffffffu, a, distance);
        Key d = __shfl_xor_sync(0xffffffffu, b, distance);
        a = c < a ? c : a;
        b = d > b ? d : b;
    }
    least[threadIdx.x / WARP] = a; /* of all lanes the same */
    most[threadIdx.x / WARP] = b;
    __syncthreads(); /* all warps' ends are there, the bins are empty */
    for (int w = 0; w < THREADS / WARP; w++) {
        a = least[w] < a ? least[w] : a;
        b = most[w] > b ? most[w] : b;
    }
    *low = a;
    for (*shift = 0; (b - a) >> *shift >= DIGITS;) ++*shift;
    for (unsigned i = threadIdx.x; i < n; i += THREADS)
        atomicAdd(&bins[bin_of((unsigned)((list[i] - a) >> *shift))], 1u);
    __syncthreads(); /* all are counted */
    unsigned *own = bins + bin_of(threadIdx.x * DIGITS_EACH), sum = 0;
    for (int i = 0; i < DIGITS_EACH; i++) {
        sum += own[i];
        if (own[i] > CROWD) atomicMax(&crowd, own[i]);
    }
    unsigned start = sum_before(sum);
    for (int i = 0; i < DIGITS_EACH; i++) {
        unsigned count = own[i];
        own[i] = start;
        start += count;
    }
    __syncthreads(); /* the starts are there, and all have looked */
    return crowd > 0;
}

/* Sorts the first n keys of a list, with room like it in `spare`: spread over bins, they are
 * compared within theirs. */
template <typename Key>
static __device__ void sort_keys(Key *list, Key *spare, unsigned *bins, unsigned n) {
    Key low;
    int shift;
    if (start_bins(bins, list, n, &low, &shift)) {
        sort_list(list, n);
        return;
    }
    for (unsigned i = threadIdx.x; i < n; i += THREADS) {
        unsigned bin = bin_of((unsigned)((list[i] - low) >> shift));
        spare[atomicAdd(&bins[bin], 1u)] = list[i]; /* the start becomes the end */
    }
    __syncthreads(); /* all are spread */
    for (unsigned i = threadIdx.x; i < n; i += THREADS) {
        Key key = spare[i];
        unsigned digit = (unsigned)((key - low) >> shift), end = bins[bin_of(digit)];
        unsigned start = digit > 0 ? bins[bin_of(digit - 1)] : 0, rank = start;
        for (unsigned j = start; j < end; j++) rank += spare[j] < key || (spare[j] == key && j < i);
        list[rank] = key;
    }
    __syncthreads(); /* they are in order */
}

#endif
