/* Storages: reference-counted, aligned blocks, counted by device against a soft and a hard limit.
 * Those of the CPU come from a cache of released blocks, as does the scratch memory of kernels;
 * CUDA's driver has a cache of its own. Ignorant of Lua. Invariants: a device's live_bytes is the
 * sum of the blocks of its storages and graphs and never exceeds hard_bytes; on the CPU use +
 * cached never exceeds the most that use has been, or LEAST_FOOTPRINT, so that caching never raises
 * a large program's footprint above what it has needed itself. */
#include "backend.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    ALIGNMENT = 64,
    HEADER = 256, /* room for a storage, or a scratch block's size, before the data */
    DEVICE_ALIGNMENT = 512,
    STEPS = 8, /* sizes round up to 1/8 of a power of two: at most 12.5 % is lost */
    BINS = 63 * STEPS,
    HUGE_PAGE = 2 << 20
};
_Static_assert(sizeof(ln_storage) <= HEADER, "a storage fits before its data");

typedef struct block {
    struct block *next;
} block;

enum { SOFT_BYTES = 256 << 20, LEAST_FOOTPRINT = 32 << 20 /* not worth giving back */ };

static struct {
    pthread_mutex_t lock;
    block *bins[BINS];
    int64_t cached;
    int64_t use, most; /* live bytes and kernels' scratch; what that has been, or more */
} host = {.lock = PTHREAD_MUTEX_INITIALIZER, .most = LEAST_FOOTPRINT};

/* Of each device, under host.lock too. */
static struct {
    ln_memory count;        /* without what others know: cached_bytes, tensors */
    int64_t collected_live; /* live_bytes when the host language last collected */
} accounts[LN_MOST_DEVICES] = {{.count = {.soft_bytes = SOFT_BYTES}}};

static int64_t fail_after;

/* Read without the lock by ln_memory_pressure. */
static atomic_bool pressure;

__attribute__((constructor)) static void set_hard_limit(void) {
    int64_t pages = sysconf(_SC_AVPHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    accounts[LN_CPU].count.hard_bytes = pages > 0 && size > 0 ? pages / 10 * 8 * size : INT64_MAX;
}

void ln_memory_open(int device, int64_t total_bytes, int64_t available_bytes) {
    pthread_mutex_lock(&host.lock);
    ln_memory *count = &accounts[device].count;
    count->soft_bytes = total_bytes / 64 > SOFT_BYTES ? total_bytes / 64 : SOFT_BYTES;
    count->hard_bytes = available_bytes / 20 * 19;
    pthread_mutex_unlock(&host.lock);
}

/* The bin of a size, and that bin's block size. */
static int bin_of(size_t bytes, size_t *block_bytes) {
    bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    size_t step = ((size_t)1 << (63 - __builtin_clzll(bytes))) / STEPS;
    *block_bytes = step > ALIGNMENT ? (bytes + step - 1) / step * step : bytes;
    int log = 63 - __builtin_clzll(*block_bytes);
    return log * STEPS + (int)((*block_bytes >> (log - 3)) & (STEPS - 1));
}

static size_t size_of_bin(int bin) {
    return (size_t)(STEPS + bin % STEPS) << (bin / STEPS - 3);
}

static void *system_new(size_t bytes) {
    size_t alignment = bytes >= 4 * (size_t)HUGE_PAGE ? HUGE_PAGE : ALIGNMENT;
    void *p = aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    if (p != NULL && alignment == HUGE_PAGE) madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

/* Frees cached blocks, large ones first, until at most `keep` bytes of them are left. */
static void flush_locked(int64_t keep) {
    for (int i = BINS - 1; i >= 0 && host.cached > keep; i--)
        while (host.bins[i] != NULL && host.cached > keep) {
            block *b = host.bins[i];
            host.bins[i] = b->next;
            host.cached -= (int64_t)size_of_bin(i);
            free(b);
        }
}

__attribute__((destructor)) static void flush_at_unload(void) {
    flush_locked(0);
}

/* A block of at least `bytes`, whose real size goes to *block_bytes; NULL when there is none. */
static void *block_new(size_t bytes, size_t *block_bytes) {
    if (bytes > SIZE_MAX / 4) return NULL;
    int bin = bin_of(bytes, block_bytes);
    int64_t size = (int64_t)*block_bytes;
    void *p = host.bins[bin];
    if (p != NULL) {
        host.bins[bin] = host.bins[bin]->next;
        host.cached -= size;
    } else {
        int64_t room = host.most - host.use - size;
        flush_locked(room > 0 ? room : 0);
        p = system_new(*block_bytes);
        if (p == NULL) {
            flush_locked(0);
            p = system_new(*block_bytes);
        }
        if (p == NULL) return NULL;
    }
    host.use += size;
    if (host.use > host.most) host.most = host.use;
    return p;
}

static void block_release(void *p, size_t block_bytes) {
    size_t same;
    int bin = bin_of(block_bytes, &same);
    host.use -= (int64_t)block_bytes;
    if (host.use + host.cached + (int64_t)block_bytes > host.most) {
        free(p);
        return;
    }
    block *b = p;
    b->next = host.bins[bin];
    host.bins[bin] = b;
    host.cached += (int64_t)block_bytes;
}

static ln_status refuse(size_t bytes, int device, const char *what) {
    const ln_memory *count = &accounts[device].count;
    return ln_fail(
        LN_OUT_OF_MEMORY,
        "%s: out of memory: %zu bytes on %s%s, where %lld are live and the limit is %lld", what,
        bytes, device == LN_CPU ? "the " : "", ln_text_device(device), (long long)count->live_bytes,
        (long long)count->hard_bytes);
}

/* Whether so many more bytes may be live on the device. */
static bool admits(int device, size_t block_bytes) {
    const ln_memory *count = &accounts[device].count;
    int64_t room = count->hard_bytes - count->live_bytes;
    return room > 0 && block_bytes <= (size_t)room;
}

static void count_bytes(int device, int64_t bytes) {
    ln_memory *m = &accounts[device].count;
    m->live_bytes += bytes;
    if (m->live_bytes > m->peak_bytes) m->peak_bytes = m->live_bytes;
    if (m->live_bytes - accounts[device].collected_live > m->soft_bytes)
        atomic_store_explicit(&pressure, true, memory_order_relaxed);
}

static void uncount_bytes(int device, int64_t bytes) {
    ln_memory *m = &accounts[device].count;
    int64_t *collected = &accounts[device].collected_live;
    m->live_bytes -= bytes;
    if (m->live_bytes < *collected) *collected = m->live_bytes;
}

static void count_new(int device, int64_t bytes) {
    count_bytes(device, bytes);
    accounts[device].count.storages++;
    accounts[device].count.allocations++;
}

static void count_released(int device, int64_t bytes) {
    uncount_bytes(device, bytes);
    accounts[device].count.storages--;
}

/* A block for a storage's header and, unless its data lies apart, that too; NULL where there is
 * none or the limit forbids it. Counts *counted bytes, none where a graph has counted them. */
static ln_storage *storage_block(int device, bool apart, const ln_graph *graph, size_t bytes,
                                 size_t *counted) {
    size_t block_bytes;
    if (bytes > SIZE_MAX / 4 || (fail_after > 0 && --fail_after == 0)) return NULL;
    if (graph != NULL) *counted = 0;
    else if (apart) *counted = (bytes + DEVICE_ALIGNMENT - 1) / DEVICE_ALIGNMENT * DEVICE_ALIGNMENT;
    else bin_of(HEADER + bytes, counted);
    if (*counted > 0 && !admits(device, *counted)) return NULL;
    ln_storage *s = block_new(apart ? HEADER : HEADER + bytes, &block_bytes);
    if (s != NULL) count_new(device, (int64_t)*counted);
    return s;
}

static void storage_block_release(ln_storage *s, int device, bool apart, size_t counted) {
    size_t block_bytes = counted;
    if (apart) bin_of(HEADER, &block_bytes);
    count_released(device, (int64_t)counted);
    block_release(s, block_bytes);
}

static ln_status acquire_of_graph(ln_storage *s, ln_graph *graph, int device, size_t bytes,
                                  const char *what) {
    ln_status status = ln_graph_acquire(&s->data, graph, device, bytes, what);
    if (status != LN_OK) return status;
    status = ln_graph_join(graph, s);
    if (status != LN_OK) ln_graph_give_back(graph, s->data);
    return status;
}

ln_status ln_storage_new(ln_storage **out, int device, ln_memory_kind kind, size_t bytes,
                         const char *what) {
    size_t counted = 0;
    bool apart = device != LN_CPU || kind == LN_PINNED;
    const ln_driver *driver = device != LN_CPU ? ln_driver_of(device) : NULL;
    ln_graph *graph = device != LN_CPU ? ln_capturing() : NULL;
    ln_status status = kind == LN_PINNED ? ln_driver_load(&driver, what) : LN_OK;
    if (status != LN_OK) return status;
    pthread_mutex_lock(&host.lock);
    ln_storage *s = storage_block(device, apart, graph, bytes, &counted);
    if (s == NULL) status = refuse(bytes, device, what);
    pthread_mutex_unlock(&host.lock);
    if (s == NULL) return status;
    s->data = (char *)s + HEADER;
    if (graph != NULL) status = acquire_of_graph(s, graph, device, bytes, what);
    else if (kind == LN_PINNED) status = driver->pin(&s->data, bytes);
    else if (apart) status = driver->acquire(&s->data, device, bytes, kind == LN_AHEAD);
    if (status != LN_OK) {
        pthread_mutex_lock(&host.lock);
        storage_block_release(s, device, apart, counted);
        if (status == LN_OUT_OF_MEMORY) refuse(bytes, device, what);
        pthread_mutex_unlock(&host.lock);
        return status;
    }
    atomic_init(&s->refs, 1);
    atomic_init(&s->version, 0);
    s->device = device;
    s->bytes = counted;
    s->pinned = kind == LN_PINNED;
    s->upload = NULL;
    s->arrival = LN_ARRIVED;
    s->graph = graph;
    *out = s;
    return LN_OK;
}

void ln_storage_retain(ln_storage *s) {
    atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
}

void ln_storage_release(ln_storage *s) {
    if (s == NULL || atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) > 1) return;
    bool apart = s->pinned || s->device != LN_CPU;
    if (!apart || !ln_graph_defers(s)) ln_storage_free(s);
}

void ln_storage_free(ln_storage *s) {
    bool apart = s->pinned || s->device != LN_CPU;
    if (s->graph != NULL) {
        ln_settle(s);
        ln_graph_leave(s->graph, s);
    } else if (s->pinned) {
        ln_driver_of(LN_CUDA)->unpin(s->data, s->bytes, s->upload);
    } else if (apart) {
        ln_settle(s);
        ln_driver_of(s->device)->release(s->data, s->device);
    }
    pthread_mutex_lock(&host.lock);
    storage_block_release(s, s->device, apart, s->bytes);
    pthread_mutex_unlock(&host.lock);
}

ln_status ln_memory_take(int device, size_t bytes, const char *what) {
    ln_status status = LN_OK;
    pthread_mutex_lock(&host.lock);
    if (admits(device, bytes)) count_bytes(device, (int64_t)bytes);
    else status = refuse(bytes, device, what);
    pthread_mutex_unlock(&host.lock);
    return status;
}

void ln_memory_give(int device, size_t bytes) {
    pthread_mutex_lock(&host.lock);
    uncount_bytes(device, (int64_t)bytes);
    pthread_mutex_unlock(&host.lock);
}

void *ln_scratch_new(size_t bytes, const char *what) {
    size_t block_bytes;
    pthread_mutex_lock(&host.lock);
    char *p = block_new(HEADER + bytes, &block_bytes);
    if (p == NULL) refuse(bytes, LN_CPU, what);
    pthread_mutex_unlock(&host.lock);
    if (p == NULL) return NULL;
    memcpy(p, &block_bytes, sizeof block_bytes);
    return p + HEADER;
}

void ln_scratch_release(void *p) {
    if (p == NULL) return;
    char *start = (char *)p - HEADER;
    size_t block_bytes;
    memcpy(&block_bytes, start, sizeof block_bytes);
    pthread_mutex_lock(&host.lock);
    block_release(start, block_bytes);
    pthread_mutex_unlock(&host.lock);
}

ln_status ln_memory_info(ln_memory *out, int device) {
    ln_status status = ln_device_check(device, "memory");
    int64_t total, available, cached = 0;
    if (status == LN_OK && device != LN_CPU)
        status = ln_driver_of(device)->memory(&total, &available, &cached, device);
    if (status != LN_OK) return status;
    pthread_mutex_lock(&host.lock);
    *out = accounts[device].count;
    out->cached_bytes = device == LN_CPU ? host.cached : cached;
    out->tensors = ln_tensor_handles();
    pthread_mutex_unlock(&host.lock);
    return LN_OK;
}

void ln_memory_reset_peak(int device) {
    if (device < LN_CPU || device >= ln_devices()) return;
    pthread_mutex_lock(&host.lock);
    ln_memory *count = &accounts[device].count;
    count->peak_bytes = count->live_bytes;
    if (device == LN_CPU) {
        flush_locked(0);
        host.most = host.use > LEAST_FOOTPRINT ? host.use : LEAST_FOOTPRINT;
    }
    pthread_mutex_unlock(&host.lock);
}

ln_status ln_memory_limit(int device, int64_t soft_bytes, int64_t hard_bytes) {
    ln_status status = ln_device_check(device, "memory_limit");
    if (status != LN_OK) return status;
    if (soft_bytes < 0 || hard_bytes < 0)
        return ln_fail(LN_BAD_ARGUMENT,
                       "memory_limit: limits are positive bytes, or 0 to leave "
                       "one as it is; got soft %lld, hard %lld",
                       (long long)soft_bytes, (long long)hard_bytes);
    pthread_mutex_lock(&host.lock);
    ln_memory *count = &accounts[device].count;
    if (hard_bytes > 0 && hard_bytes < count->live_bytes)
        status = ln_fail(LN_BAD_ARGUMENT,
                         "memory_limit: hard limit %lld is below the %lld bytes "
                         "that are live",
                         (long long)hard_bytes, (long long)count->live_bytes);
    if (status == LN_OK && soft_bytes > 0) count->soft_bytes = soft_bytes;
    if (status == LN_OK && hard_bytes > 0) count->hard_bytes = hard_bytes;
    pthread_mutex_unlock(&host.lock);
    return status;
}

bool ln_memory_pressure(void) {
    return atomic_load_explicit(&pressure, memory_order_relaxed);
}

void ln_memory_collected(void) {
    pthread_mutex_lock(&host.lock);
    for (int i = 0; i < LN_MOST_DEVICES; i++)
        accounts[i].collected_live = accounts[i].count.live_bytes;
    atomic_store_explicit(&pressure, false, memory_order_relaxed);
    pthread_mutex_unlock(&host.lock);
}

ln_status ln_memory_flush(int device) {
    ln_status status = ln_device_check(device, "memory_flush");
    if (status != LN_OK) return status;
    if (device != LN_CPU) /* a capture cannot wait, and began with nothing cached */
        return ln_capturing() != NULL ? LN_OK : ln_driver_of(device)->flush(device);
    pthread_mutex_lock(&host.lock);
    flush_locked(0);
    pthread_mutex_unlock(&host.lock);
    return LN_OK;
}

void ln_memory_fail_after(int64_t n) {
    pthread_mutex_lock(&host.lock);
    fail_after = n;
    pthread_mutex_unlock(&host.lock);
}
