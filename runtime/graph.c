/* Captured graphs: what a thread asked of a CUDA device, recorded once and done again at a call.
 * Holds the memory that recorded work has of its own, and what it was recorded of. Ignorant of
 * CUDA, whose driver records. Invariants: memory that a graph reads or writes lives as long as the
 * graph, as a part of its own memory or as a storage that it retains; its own memory lives as long
 * as it or a storage in it; while a thread records it gives no other device memory back. */
#include "backend.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum {
    ALIGNMENT = 512,
    SMALL = 1 << 20, /* requests up to it share segments of twice as much */
    LARGE = 16 << 20 /* and up to it, too */
};

/* Memory of the graph's own, in the order of addresses; neighbours of one segment are not both
 * idle. */
typedef struct {
    char *p;
    size_t bytes;
    bool busy, first; /* first: where a segment begins */
} part;

typedef struct {
    ln_storage *storage;
    bool written;
} use;

/* A growing array of `size` bytes an item. */
typedef struct {
    void *items;
    size_t n, room;
} list;

struct ln_graph {
    int refs; /* its caller's, and one for each storage in its memory; under the lock */
    int device;
    void *made;           /* the driver's, when it was recorded */
    bool failed;          /* something could not be noted */
    list parts;           /* of part */
    list uses;            /* of use: storages from elsewhere, retained */
    list own;             /* of use: those in its memory, not retained */
    ln_storage *released; /* while it is recorded: what its thread gave back */
    ln_graph *dead, *next;
};

/* Of the lists and counts of all graphs. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local ln_graph *capturing;

ln_graph *ln_capturing(void) {
    return capturing;
}

ln_status ln_capture_refuses(const char *what, const char *instead) {
    if (capturing == NULL) return LN_OK;
    return ln_fail(LN_BAD_ARGUMENT, "%s: cannot be a part of a captured step (lunce.graph): %s",
                   what, instead);
}

ln_status ln_capture_admits(int device, const char *what) {
    if (capturing == NULL || device == capturing->device) return LN_OK;
    char own[24];
    strncpy(own, ln_text_device(capturing->device), sizeof own - 1);
    own[sizeof own - 1] = '\0';
    return ln_fail(LN_BAD_ARGUMENT,
                   "%s: on %s, inside of a step that is captured on %s; a step works on one device",
                   what, ln_text_device(device), own);
}

/* ---- Lists ---- */

/* Makes room for an item at place i; NULL where there is no memory. */
static void *insert(list *l, size_t i, size_t size) {
    if (l->n == l->room) {
        size_t room = l->room * 2 + 64;
        void *larger = realloc(l->items, room * size);
        if (larger == NULL) return NULL;
        l->items = larger;
        l->room = room;
    }
    char *at = (char *)l->items + i * size;
    memmove(at + size, at, (l->n - i) * size);
    l->n++;
    return at;
}

static void cut(list *l, size_t i, size_t size) {
    char *at = (char *)l->items + i * size;
    memmove(at, at + size, (l->n - i - 1) * size);
    l->n--;
}

/* ---- The graph's own memory ---- */

static part *part_at(const ln_graph *g, size_t i) {
    return (part *)g->parts.items + i;
}

static size_t segment_bytes(size_t bytes) {
    if (bytes <= SMALL) return 2 * SMALL;
    if (bytes <= LARGE) return 2 * LARGE;
    return (bytes + 2 * SMALL - 1) / (2 * SMALL) * (2 * SMALL);
}

/* An idle segment of so many bytes. */
static ln_status add_segment(ln_graph *g, size_t bytes, const char *what) {
    void *p;
    const ln_driver *driver = ln_driver_of(g->device);
    ln_status status = ln_memory_take(g->device, bytes, what);
    if (status != LN_OK) return status;
    status = driver->reserve(&p, g->device, bytes);
    if (status == LN_OK) {
        size_t i = 0;
        while (i < g->parts.n && part_at(g, i)->p < (char *)p) i++;
        part *made = insert(&g->parts, i, sizeof *made);
        if (made != NULL) {
            *made = (part){p, bytes, false, true};
            return LN_OK;
        }
        driver->unreserve(p, g->device);
        status = ln_fail(LN_OUT_OF_MEMORY, "%s: out of memory for a graph", what);
    }
    ln_memory_give(g->device, bytes);
    return status;
}

/* The place of the smallest idle part that serves; parts.n where there is none. */
static size_t best_fit(const ln_graph *g, size_t bytes) {
    size_t best = g->parts.n;
    for (size_t i = 0; i < g->parts.n; i++) {
        const part *p = part_at(g, i);
        if (p->busy || p->bytes < bytes) continue;
        if (best == g->parts.n || p->bytes < part_at(g, best)->bytes) best = i;
    }
    return best;
}

static ln_status take_part(void **out, ln_graph *g, size_t bytes, const char *what) {
    size_t i = best_fit(g, bytes);
    ln_status status = LN_OK;
    if (i == g->parts.n) {
        status = add_segment(g, segment_bytes(bytes), what);
        if (status == LN_OUT_OF_MEMORY) status = add_segment(g, bytes, what);
        if (status != LN_OK) return status;
        i = best_fit(g, bytes);
    }
    if (part_at(g, i)->bytes > bytes) {
        part *rest = insert(&g->parts, i + 1, sizeof *rest);
        if (rest != NULL) {
            part *whole = part_at(g, i);
            *rest = (part){whole->p + bytes, whole->bytes - bytes, false, false};
            whole->bytes = bytes;
        }
    }
    part_at(g, i)->busy = true;
    *out = part_at(g, i)->p;
    return LN_OK;
}

ln_status ln_graph_acquire(void **out, ln_graph *g, int device, size_t bytes, const char *what) {
    ln_status status = ln_capture_admits(device, what);
    if (status != LN_OK) return status;
    bytes = bytes > 0 ? (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT : ALIGNMENT;
    pthread_mutex_lock(&lock);
    status = take_part(out, g, bytes, what);
    pthread_mutex_unlock(&lock);
    return status;
}

static void join_next(ln_graph *g, size_t i) {
    if (i + 1 >= g->parts.n) return;
    part *p = part_at(g, i), *next = part_at(g, i + 1);
    if (p->busy || next->busy || next->first) return;
    p->bytes += next->bytes;
    cut(&g->parts, i + 1, sizeof *p);
}

/* Under the lock. */
static void give_part_back(ln_graph *g, const void *p) {
    size_t i = 0;
    while (part_at(g, i)->p != p) i++;
    part_at(g, i)->busy = false;
    join_next(g, i);
    if (i > 0) join_next(g, i - 1);
}

void ln_graph_give_back(ln_graph *g, void *p) {
    pthread_mutex_lock(&lock);
    give_part_back(g, p);
    pthread_mutex_unlock(&lock);
}

static void give_memory_back(ln_graph *g) {
    const ln_driver *driver = ln_driver_of(g->device);
    size_t n = g->parts.n;
    for (size_t i = 0; i < n;) {
        char *segment = part_at(g, i)->p;
        size_t bytes = 0;
        do bytes += part_at(g, i++)->bytes;
        while (i < n && !part_at(g, i)->first);
        driver->unreserve(segment, g->device);
        ln_memory_give(g->device, bytes);
    }
}

/* ---- Life ---- */

static void bury(ln_graph *g) {
    give_memory_back(g);
    free(g->parts.items);
    free(g->uses.items);
    free(g->own.items);
    free(g);
}

/* What is over while its thread records another is given back after it: that waits. */
static void drop(ln_graph *g) {
    pthread_mutex_lock(&lock);
    bool last = --g->refs == 0;
    pthread_mutex_unlock(&lock);
    if (!last) return;
    if (capturing == NULL) {
        bury(g);
        return;
    }
    g->next = capturing->dead;
    capturing->dead = g;
}

ln_status ln_graph_join(ln_graph *g, ln_storage *s) {
    pthread_mutex_lock(&lock);
    use *made = insert(&g->own, g->own.n, sizeof *made);
    if (made != NULL) {
        *made = (use){s, true};
        g->refs++;
    }
    pthread_mutex_unlock(&lock);
    return made != NULL ? LN_OK : ln_fail(LN_OUT_OF_MEMORY, "graph: out of memory");
}

void ln_graph_leave(ln_graph *g, ln_storage *s) {
    pthread_mutex_lock(&lock);
    size_t i = g->own.n - 1;
    while (((use *)g->own.items)[i].storage != s) i--;
    cut(&g->own, i, sizeof(use));
    give_part_back(g, s->data);
    pthread_mutex_unlock(&lock);
    drop(g);
}

void ln_graph_release(ln_graph *g) {
    if (g == NULL) return;
    if (g->made != NULL) ln_driver_of(g->device)->graph_destroy(g->made, g->device);
    for (size_t i = 0; i < g->uses.n; i++) ln_storage_release(((use *)g->uses.items)[i].storage);
    g->uses.n = 0;
    drop(g);
}

/* ---- Recording ---- */

void ln_graph_note(ln_storage *s, bool written) {
    ln_graph *g = capturing;
    if (g == NULL || s->device == LN_CPU || s->graph == g) return;
    use *uses = g->uses.items;
    for (size_t i = g->uses.n; i-- > 0;)
        if (uses[i].storage == s) {
            uses[i].written |= written;
            return;
        }
    use *made = insert(&g->uses, g->uses.n, sizeof *made);
    g->failed |= made == NULL;
    if (made == NULL) return;
    *made = (use){s, written};
    ln_storage_retain(s);
}

bool ln_graph_defers(ln_storage *s) {
    if (capturing == NULL || s->graph == capturing) return false;
    s->next = capturing->released;
    capturing->released = s;
    return true;
}

ln_status ln_graph_begin(int device) {
    ln_status status = ln_device_check(device, "graph");
    if (status == LN_OK && device == LN_CPU)
        status = ln_fail(LN_BAD_ARGUMENT, "graph: the cpu captures nothing; a cuda device does");
    if (status == LN_OK)
        status = ln_capture_refuses("graph", "steps are not captured one inside of another");
    if (status != LN_OK) return status;
    ln_graph *g = calloc(1, sizeof *g);
    if (g == NULL) return ln_fail(LN_OUT_OF_MEMORY, "graph: out of memory");
    g->refs = 1;
    g->device = device;
    /* What is cached is of no use to the graph's own memory. */
    status = ln_memory_flush(device);
    if (status == LN_OK) status = ln_driver_of(device)->capture_begin(device);
    if (status == LN_OK) capturing = g;
    else free(g);
    return status;
}

/* The end of recording: what had to wait for it is given back. */
static void finish(ln_graph *g) {
    capturing = NULL;
    for (ln_storage *s = g->released, *next; s != NULL; s = next) {
        next = s->next;
        ln_storage_free(s);
    }
    g->released = NULL;
    for (ln_graph *d = g->dead, *next; d != NULL; d = next) {
        next = d->next;
        bury(d);
    }
    g->dead = NULL;
}

ln_status ln_graph_end(ln_graph **out) {
    ln_graph *g = capturing;
    if (g == NULL) return ln_fail(LN_BAD_ARGUMENT, "graph: nothing is being captured");
    ln_status status = ln_driver_of(g->device)->capture_end(&g->made, g->device);
    finish(g);
    if (status == LN_OK && g->failed)
        status = ln_fail(LN_OUT_OF_MEMORY, "graph: out of memory for what it uses");
    if (status == LN_OK) *out = g;
    else ln_graph_release(g);
    return status;
}

void ln_graph_abandon(void) {
    ln_graph *g = capturing;
    if (g == NULL) return;
    ln_driver_of(g->device)->capture_end(NULL, g->device);
    finish(g);
    ln_graph_release(g);
}

/* What a launch uses: copies that are under way come first. */
static void ready(const list *l) {
    const use *uses = l->items;
    for (size_t i = 0; i < l->n; i++) {
        if (uses[i].written) atomic_fetch_add(&uses[i].storage->version, 1);
        ln_settle(uses[i].storage);
    }
}

ln_status ln_graph_launch(ln_graph *g) {
    ln_status status = LN_OK;
    if (g == NULL || g->made == NULL)
        return ln_fail(LN_BAD_ARGUMENT, "graph: it was released or not captured");
    if (ln_interrupted()) return ln_fail(LN_INTERRUPTED, "graph: interrupted");
    status = ln_capture_refuses("graph", "call the function that it was made of");
    if (status != LN_OK) return status;
    pthread_mutex_lock(&lock);
    ready(&g->uses);
    ready(&g->own);
    pthread_mutex_unlock(&lock);
    return ln_driver_of(g->device)->graph_launch(g->made, g->device);
}
