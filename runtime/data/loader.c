/* The loader: the order of an epoch's samples, its batches, and the threads that make them ahead of
 * the one who pulls them, but for views that a device makes when they are pulled. Others for a CUDA
 * device are made in pinned memory, and the puller has the next one's upload begun when it gets a
 * batch. Threads block all signals and enter neither the host language nor a device, but for pinned
 * memory. Invariants: under the lock, batches below `taken` are given out, the last of them perhaps
 * held, those from there to `claimed` lie in the slot of their number or are being made for it, and
 * claimed - taken <= queue; the order is written only while no batch is being made. */
#include "data/data.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "random.h"

enum { MAX_THREADS = 256 };

typedef struct {
    ln_tensor *x[LN_MAX_VIEWS], *y, *index;
} batch;

/* FAILED: left to the puller, who makes the batch again and so has the message in its thread. */
typedef struct {
    enum { EMPTY, READY, FAILED } state;
    batch made;
} slot;

struct ln_loader {
    ln_tensor *images, *labels;
    ln_transform *steps;
    int step_count;
    ln_loader_options options;
    int64_t height, width; /* of a result */

    int64_t *order; /* the epoch's samples, of all ranks */
    int64_t share;  /* samples of this rank */
    int64_t batches;
    uint32_t epoch;
    ln_workspace workspace; /* the puller's */
    batch held;             /* the puller's: taken, and not given out yet */

    pthread_mutex_t lock;
    pthread_cond_t ready, room; /* a batch was made; a batch may be claimed */
    pthread_t *threads;
    int running; /* threads that were started */
    bool stop;
    atomic_bool dropping; /* batches in the making are not wanted any more */
    int64_t taken, claimed;
    int making;
    slot *slots; /* batch number n goes to slot n mod queue */
    ln_loader_stats stats;
    double born; /* when the first batch was asked for */

    ln_loader *next; /* in the list of live loaders */
};

static slot *slot_of(const ln_loader *l, int64_t number) {
    return &l->slots[number % l->options.queue];
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- Batches ---- */

static void batch_release(batch *b) {
    for (int i = 0; i < LN_MAX_VIEWS; i++) ln_tensor_release(b->x[i]);
    ln_tensor_release(b->y);
    ln_tensor_release(b->index);
    *b = (batch){0};
}

static ln_status batch_new(batch *b, const ln_loader *l, int64_t n) {
    int64_t shape[4] = {n, l->images->shape[1], l->height, l->width};
    ln_memory_kind kind = l->options.device == LN_CPU ? LN_USUAL : LN_PINNED;
    ln_status status;
    for (int v = 0; v < l->options.views && !l->options.on_device; v++)
        LN_TRY(ln_tensor_new(&b->x[v], LN_FLOAT32, LN_CPU, kind, 4, shape, "loader"));
    LN_TRY(ln_tensor_new(&b->index, LN_INT64, LN_CPU, LN_USUAL, 1, &n, "loader"));
    if (l->labels != NULL) LN_TRY(ln_tensor_new(&b->y, LN_INT64, LN_CPU, kind, 1, &n, "loader"));
fail:
    return status;
}

static ln_status upload(ln_tensor **t, int device) {
    ln_tensor *there = NULL;
    if (*t == NULL || ln_device(*t) == device) return LN_OK;
    ln_status status = ln_upload(&there, *t, device);
    if (status != LN_OK) return status;
    ln_tensor_release(*t);
    *t = there;
    return LN_OK;
}

/* Begins to move what is not on the loader's device yet: where it fails it may be called again. */
static ln_status batch_upload(batch *b, const ln_loader *l) {
    ln_status status = LN_OK;
    if (l->options.device == LN_CPU) return LN_OK; /* or where a device made the views */
    for (int v = 0; v < l->options.views; v++) LN_TRY(upload(&b->x[v], l->options.device));
    LN_TRY(upload(&b->y, l->options.device));
fail:
    return status;
}

/* The sample at a place of this rank's share. Past the last the order begins again. */
static int64_t sample_at(const ln_loader *l, int64_t place) {
    return l->order[(place * l->options.world + l->options.rank) % l->images->shape[0]];
}

static ln_status make_sample(batch *b, const ln_loader *l, int64_t row, int64_t sample,
                             ln_workspace *w) {
    const int64_t *shape = l->images->shape;
    int64_t in = shape[1] * shape[2] * shape[3], out = shape[1] * l->height * l->width;
    ln_image image = {l->images->data + sample * in, true, shape[1], shape[2], shape[3]};
    ln_status status = LN_OK;
    for (int v = 0; v < l->options.views && b->x[v] != NULL && status == LN_OK; v++) {
        ln_draw_address at = {l->options.seed, l->epoch, (uint32_t)sample, (uint32_t)v};
        ln_transform drawn[LN_MAX_DRAWN];
        int n = ln_steps_draw(drawn, l->steps, l->step_count, shape[2], shape[3], &at);
        status = ln_steps_apply((float *)b->x[v]->data + row * out, &image, drawn, n, w);
    }
    ((int64_t *)b->index->data)[row] = sample + 1;
    if (b->y != NULL) ((int64_t *)b->y->data)[row] = ((const int64_t *)l->labels->data)[sample];
    return status;
}

/* The views of a batch, on the device of the images. */
static ln_status make_on_device(batch *b, const ln_loader *l) {
    ln_tensor *all = NULL;
    ln_status status;
    int views = l->options.views;
    LN_TRY(ln_augment(&all, LN_FLOAT32, l->images, b->index, l->steps, l->step_count,
                      l->options.seed, l->epoch, views));
    for (int v = 0; v < views; v++) LN_TRY(ln_select(&b->x[v], all, 0, v));
fail:
    ln_tensor_release(all);
    return status;
}

/* Makes batch number `number`, but for views on the device; on failure *b is empty. */
static ln_status batch_make(batch *b, ln_loader *l, int64_t number, ln_workspace *w) {
    int64_t first = number * l->options.batch, n = l->share - first;
    if (n > l->options.batch) n = l->options.batch;
    *b = (batch){0};
    ln_status status = batch_new(b, l, n);
    for (int64_t i = 0; i < n && status == LN_OK; i++) {
        if (ln_interrupted() || atomic_load_explicit(&l->dropping, memory_order_relaxed))
            status = ln_fail(LN_INTERRUPTED, "loader: interrupted");
        else status = make_sample(b, l, i, sample_at(l, first + i), w);
    }
    if (status != LN_OK) batch_release(b);
    return status;
}

/* ---- Threads ---- */

static bool claimable(const ln_loader *l) {
    return !atomic_load_explicit(&l->dropping, memory_order_relaxed) && l->claimed < l->batches &&
           l->claimed < l->taken + l->options.queue;
}

static void *work(void *argument) {
    ln_loader *l = argument;
    ln_workspace w = {0};
    pthread_mutex_lock(&l->lock);
    for (;;) {
        while (!l->stop && !claimable(l)) pthread_cond_wait(&l->room, &l->lock);
        if (l->stop) break;
        int64_t number = l->claimed++;
        l->making++;
        pthread_mutex_unlock(&l->lock);
        batch made;
        double start = now();
        ln_status status = batch_make(&made, l, number, &w);
        pthread_mutex_lock(&l->lock);
        *slot_of(l, number) = (slot){status == LN_OK ? READY : FAILED, made};
        l->stats.work_seconds += now() - start;
        l->making--;
        pthread_cond_broadcast(&l->ready);
    }
    pthread_mutex_unlock(&l->lock);
    ln_workspace_release(&w);
    return NULL;
}

/* Signals are for the program's own threads: these inherit a mask that blocks them all. */
static ln_status start_threads(ln_loader *l) {
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (l->running < l->options.threads &&
           pthread_create(&l->threads[l->running], NULL, work, l) == 0)
        l->running++;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (l->running == l->options.threads) return LN_OK;
    return ln_fail(LN_INTERNAL, "loader: the system gives %d threads of %d", l->running,
                   l->options.threads);
}

static void stop_threads(ln_loader *l) {
    pthread_mutex_lock(&l->lock);
    l->stop = true;
    atomic_store(&l->dropping, true);
    pthread_cond_broadcast(&l->room);
    pthread_mutex_unlock(&l->lock);
    for (int i = 0; i < l->running; i++) pthread_join(l->threads[i], NULL);
    l->running = 0;
}

/* Live loaders, so that their threads can be stopped before the library goes. */
static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static ln_loader *list;

__attribute__((destructor)) static void stop_all(void) {
    pthread_mutex_lock(&list_lock);
    for (ln_loader *l = list; l != NULL; l = l->next) stop_threads(l);
    pthread_mutex_unlock(&list_lock);
}

static void list_add(ln_loader *l) {
    pthread_mutex_lock(&list_lock);
    l->next = list;
    list = l;
    pthread_mutex_unlock(&list_lock);
}

static void list_remove(ln_loader *l) {
    pthread_mutex_lock(&list_lock);
    for (ln_loader **p = &list; *p != NULL; p = &(*p)->next)
        if (*p == l) {
            *p = l->next;
            break;
        }
    pthread_mutex_unlock(&list_lock);
}

/* ---- Making and releasing a loader ---- */

static ln_status check_set(const ln_tensor *images, const ln_tensor *labels, bool on_device) {
    if (images == NULL || images->ndim != 4 || images->dtype != LN_UINT8 ||
        (ln_device(images) != LN_CPU && !on_device) || !ln_is_contiguous(images))
        return ln_fail(
            LN_BAD_ARGUMENT, "loader: images are %s; contiguous (N,C,H,W) uint8%s is taken",
            images == NULL ? "nothing" : ln_text(images), on_device ? "" : " on the cpu");
    if (images->shape[0] < 1 || images->shape[0] > LN_MAX_SAMPLES)
        return ln_fail(LN_BAD_ARGUMENT, "loader: %lld samples; 1 to %d are taken",
                       (long long)images->shape[0], LN_MAX_SAMPLES);
    if (labels != NULL &&
        (labels->ndim != 1 || labels->shape[0] != images->shape[0] || labels->dtype != LN_INT64 ||
         ln_device(labels) != LN_CPU || !ln_is_contiguous(labels)))
        return ln_fail(LN_BAD_ARGUMENT,
                       "loader: labels are %s; contiguous (%lld) int64 on the cpu is taken",
                       ln_text(labels), (long long)images->shape[0]);
    ln_status status = ln_check_inputs("loader", 1, &images);
    return status == LN_OK && labels != NULL ? ln_check_inputs("loader", 1, &labels) : status;
}

static ln_status check_options(const ln_loader_options *o) {
    if (o->batch < 1 || o->batch > LN_MAX_SAMPLES)
        return ln_fail(LN_BAD_ARGUMENT, "loader: got batch %lld; 1 or more is taken",
                       (long long)o->batch);
    if (o->views < 1 || o->views > LN_MAX_VIEWS)
        return ln_fail(LN_BAD_ARGUMENT, "loader: got views %d; 1 to %d are taken", o->views,
                       LN_MAX_VIEWS);
    if (o->threads < 0 || o->threads > MAX_THREADS)
        return ln_fail(LN_BAD_ARGUMENT, "loader: got threads %d; 0 to %d are taken", o->threads,
                       MAX_THREADS);
    if (o->queue < 1 || o->queue > 4096)
        return ln_fail(LN_BAD_ARGUMENT, "loader: got queue %d; 1 to 4096 are taken", o->queue);
    if (o->world < 1 || o->rank < 0 || o->rank >= o->world)
        return ln_fail(LN_BAD_ARGUMENT, "loader: got rank %d of world %d; ranks are 0 to world - 1",
                       o->rank, o->world);
    return LN_OK;
}

/* This rank's samples and batches in every epoch. */
static ln_status count_batches(ln_loader *l) {
    int64_t n = l->images->shape[0], world = l->options.world, size = l->options.batch;
    l->share = (n + (l->options.drop_last ? 0 : world - 1)) / world;
    l->batches = (l->share + (l->options.drop_last ? 0 : size - 1)) / size;
    if (l->batches > 0) return LN_OK;
    return ln_fail(LN_BAD_ARGUMENT,
                   "loader: batch %lld with drop_last leaves nothing of %lld samples over %lld "
                   "ranks",
                   (long long)size, (long long)n, (long long)world);
}

static ln_status loader_fill(ln_loader *l, const ln_tensor *images, const ln_tensor *labels,
                             const ln_transform *steps, const ln_loader_options *o) {
    ln_status status;
    int n = l->step_count;
    l->options = *o;
    l->slots = calloc((size_t)o->queue, sizeof *l->slots);
    l->threads = calloc((size_t)o->threads + 1, sizeof *l->threads);
    l->steps = calloc((size_t)n + 1, sizeof *l->steps);
    l->order = malloc((size_t)images->shape[0] * sizeof *l->order);
    if (l->slots == NULL || l->threads == NULL || l->steps == NULL || l->order == NULL)
        return ln_fail(LN_OUT_OF_MEMORY, "loader: out of memory for a queue of %d", o->queue);
    if (n > 0) memcpy(l->steps, steps, (size_t)n * sizeof *steps);
    LN_TRY(ln_tensor_alias(&l->images, images));
    if (labels != NULL) LN_TRY(ln_tensor_alias(&l->labels, labels));
    LN_TRY(count_batches(l));
    l->taken = l->claimed = l->batches; /* as at an epoch's end, until one is begun */
fail:
    return status;
}

ln_status ln_loader_new(ln_loader **out, const ln_tensor *images, const ln_tensor *labels,
                        const ln_transform *steps, int n, const ln_loader_options *options) {
    ln_loader *l = NULL;
    ln_status status;
    LN_TRY(check_set(images, labels, options->on_device));
    LN_TRY(check_options(options));
    LN_TRY(ln_device_check(options->device, "loader"));
    int64_t height = images->shape[2], width = images->shape[3];
    LN_TRY(ln_steps_check(steps, n, images->shape[1], &height, &width));
    l = calloc(1, sizeof *l);
    if (l == NULL) return ln_fail(LN_OUT_OF_MEMORY, "loader: out of memory for a handle");
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->ready, NULL);
    pthread_cond_init(&l->room, NULL);
    l->height = height;
    l->width = width;
    l->step_count = n;
    list_add(l);
    LN_TRY(loader_fill(l, images, labels, steps, options));
    LN_TRY(start_threads(l));
    *out = l;
    l = NULL;
fail:
    ln_loader_release(l);
    return status;
}

void ln_loader_release(ln_loader *l) {
    if (l == NULL) return;
    list_remove(l);
    stop_threads(l);
    if (l->slots != NULL)
        for (int i = 0; i < l->options.queue; i++) batch_release(&l->slots[i].made);
    batch_release(&l->held);
    ln_workspace_release(&l->workspace);
    ln_tensor_release(l->images);
    ln_tensor_release(l->labels);
    pthread_mutex_destroy(&l->lock);
    pthread_cond_destroy(&l->ready);
    pthread_cond_destroy(&l->room);
    free(l->slots);
    free(l->threads);
    free(l->steps);
    free(l->order);
    free(l);
}

/* ---- Epochs ---- */

/* Orders are drawn on streams of their own, beside those of the views. */
static void fill_order(ln_loader *l) {
    int64_t n = l->images->shape[0];
    for (int64_t i = 0; i < n; i++) l->order[i] = i;
    if (l->options.shuffle) ln_shuffle(l->order, n, l->options.seed, UINT64_C(3) << 62 | l->epoch);
}

/* Waits until no thread makes a batch, and empties the queue. */
static void drop_epoch(ln_loader *l) {
    batch_release(&l->held);
    atomic_store(&l->dropping, true);
    while (l->making > 0) pthread_cond_wait(&l->ready, &l->lock);
    for (int i = 0; i < l->options.queue; i++) {
        batch_release(&l->slots[i].made);
        l->slots[i].state = EMPTY;
    }
    atomic_store(&l->dropping, false);
}

ln_status ln_loader_start(ln_loader *l, int64_t epoch, int64_t first) {
    if (epoch < 0 || epoch > UINT32_MAX)
        return ln_fail(LN_BAD_ARGUMENT, "loader: got epoch %lld; 0 to 2^32 - 1 are taken",
                       (long long)epoch);
    if (first < 0 || first > l->batches)
        return ln_fail(LN_BAD_ARGUMENT, "loader: cannot start at batch %lld of %lld",
                       (long long)first + 1, (long long)l->batches);
    pthread_mutex_lock(&l->lock);
    drop_epoch(l);
    l->epoch = (uint32_t)epoch;
    fill_order(l);
    l->taken = l->claimed = first;
    pthread_cond_broadcast(&l->room);
    pthread_mutex_unlock(&l->lock);
    return LN_OK;
}

/* ---- Pulling ---- */

/* Sleeps until a batch is made, but looks at the interrupt flag ten times a second. */
static void wait_ready(ln_loader *l) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 100000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_cond_timedwait(&l->ready, &l->lock, &until);
}

/* Takes the next batch from its slot, or leaves it to the caller: then *b is empty. */
static ln_status take_ready(ln_loader *l, batch *b) {
    slot *s = slot_of(l, l->taken);
    if (l->running == 0) return LN_OK;
    while (s->state == EMPTY) {
        if (ln_interrupted()) return ln_fail(LN_INTERRUPTED, "loader: interrupted");
        wait_ready(l);
    }
    *b = s->made;
    s->made = (batch){0};
    return LN_OK;
}

/* Takes the next batch to hold it; the epoch is not over. */
static ln_status take_locked(ln_loader *l) {
    batch b = {0};
    slot *s = slot_of(l, l->taken);
    ln_status status = take_ready(l, &b);
    if (status == LN_OK && b.index == NULL) {
        double start = now();
        status = batch_make(&b, l, l->taken, &l->workspace);
        l->stats.work_seconds += now() - start;
    }
    if (status == LN_OK && l->options.on_device) {
        double start = now();
        status = make_on_device(&b, l);
        l->stats.work_seconds += now() - start;
        if (status != LN_OK) batch_release(&b);
    }
    if (status != LN_OK) return status;
    l->held = b;
    s->state = EMPTY;
    l->taken++;
    if (l->claimed < l->taken) l->claimed = l->taken;
    pthread_cond_broadcast(&l->room);
    return LN_OK;
}

/* Holds the next batch, where none is held and one is left. starved: whether it was waited for;
 * NULL: a batch that is not there is left to the threads. */
static ln_status hold(ln_loader *l, bool *starved) {
    ln_status status = LN_OK;
    if (l->held.index != NULL) return LN_OK;
    pthread_mutex_lock(&l->lock);
    bool is_ready = slot_of(l, l->taken)->state == READY;
    if (starved != NULL) *starved = !is_ready;
    if (l->taken < l->batches && (is_ready || starved != NULL || l->running == 0))
        status = take_locked(l);
    pthread_mutex_unlock(&l->lock);
    return status;
}

/* Has the next batch under way to the device. One that fails fails again when it is pulled. */
static void hold_ahead(ln_loader *l) {
    if (l->options.device == LN_CPU || l->options.on_device) return;
    if (hold(l, NULL) == LN_OK) batch_upload(&l->held, l);
}

static void count_batch(ln_loader *l, int64_t samples, double asked, bool starved) {
    pthread_mutex_lock(&l->lock);
    double t = now();
    l->stats.batches++;
    l->stats.samples += samples;
    l->stats.starved += starved;
    l->stats.wait_seconds += t - asked;
    l->stats.seconds = t - l->born;
    pthread_mutex_unlock(&l->lock);
}

ln_status ln_loader_next(ln_loader *l, ln_tensor **x, ln_tensor **y, ln_tensor **index) {
    double asked = now();
    bool starved = false;
    ln_status status;
    if (ln_interrupted()) return ln_fail(LN_INTERRUPTED, "loader: interrupted");
    if (l->born == 0) l->born = asked;
    LN_TRY(hold(l, &starved));
    LN_TRY(batch_upload(&l->held, l));
    batch b = l->held;
    l->held = (batch){0};
    for (int v = 0; v < l->options.views; v++) x[v] = b.x[v];
    *y = b.y;
    *index = b.index;
    if (b.index == NULL) return LN_OK;
    int64_t samples = b.index->numel;
    hold_ahead(l);
    count_batch(l, samples, asked, starved);
fail:
    return status;
}

int64_t ln_loader_batches(const ln_loader *l) {
    return l->batches;
}

void ln_loader_info(ln_loader_stats *out, ln_loader *l) {
    pthread_mutex_lock(&l->lock);
    *out = l->stats;
    out->queued = 0;
    for (int i = 0; i < l->options.queue; i++) out->queued += l->slots[i].state == READY;
    pthread_mutex_unlock(&l->lock);
}
