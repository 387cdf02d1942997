/* cuDNN, by its backend API: loaded when a convolution first asks for it, from the path in the
 * environment's LUNCE_CUDNN, else by the system's search. Its heuristics propose engines; the first
 * that is deterministic, precise enough and willing becomes the plan for a shape, and is kept.
 * Holds no kernels. Invariants: `library` is read and written under its lock; a step whose plans
 * are made waits for nothing, so that it can be captured. */
#include "convolve.h"
#include "cudnn_abi.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    DNN_MAJOR = 9,     /* the version whose interface this is */
    MOST_ENGINES = 32, /* proposals looked at, of each kind of heuristic */
    MOST_NOTES = 16
};
static const int64_t MOST_WORKSPACE = (int64_t)1 << 30; /* bytes that a plan may ask for */

/* What a plan is for. Compared as bytes: made from zeros. */
typedef struct {
    int pass, device, dtype, channels_last, tf32, alignment[3];
    int64_t shape[3][4]; /* of x, w, y */
    ln_conv_params p;
} problem;

enum { X, W, Y, OPERANDS };

/* What a problem's operation graph is made of. */
typedef struct {
    dnn_descriptor operand[OPERANDS], convolution, operation, graph;
} operation_graph;

typedef struct plan plan;
struct plan {
    plan *next;
    problem of;
    operation_graph parts;             /* which it refers to, with the proposal that it follows */
    dnn_descriptor config, descriptor; /* NULL: cuDNN has none */
    int64_t workspace;                 /* bytes */
};

typedef struct {
#define DNN_FUNCTION(name, result, arguments) result(*name) arguments;
    DNN_FUNCTIONS(DNN_FUNCTION)
#undef DNN_FUNCTION
} dnn_functions;

static struct {
    pthread_mutex_t lock;
    bool tried;
    int version;       /* 0: not to be used */
    char refusal[320]; /* why, once tried */
    dnn_handle handle[LN_MOST_DEVICES];
    plan *plans;
    dnn_functions f;
} library = {PTHREAD_MUTEX_INITIALIZER, false, 0, {}, {}, NULL, {}};

/* ---- Loading ---- */

static bool find_functions(void *object) {
    static const struct {
        const char *name;
        size_t place;
    } functions[] = {
#define DNN_FUNCTION(name, result, arguments) {"cudnn" #name, offsetof(dnn_functions, name)},
        DNN_FUNCTIONS(DNN_FUNCTION)
#undef DNN_FUNCTION
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        void *found = dlsym(object, functions[i].name);
        if (found == NULL) return false;
        memcpy((char *)&library.f + functions[i].place, &found, sizeof found);
    }
    return true;
}

/* Under the lock. Sets version, or refusal. */
static void load_library(void) {
    const char *given = getenv("LUNCE_CUDNN");
    void *object = dlopen(given != NULL ? given : "libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
    library.tried = true;
    if (object == NULL) {
        snprintf(library.refusal, sizeof library.refusal, "%s", dlerror());
        return;
    }
    bool complete = find_functions(object);
    int version = complete ? (int)library.f.GetVersion() : 0;
    if (version / 10000 == DNN_MAJOR) library.version = version;
    else
        snprintf(library.refusal, sizeof library.refusal,
                 complete ? "cuDNN has version %d; %d.x is taken" : "it is not a whole cuDNN",
                 version, DNN_MAJOR);
}

static ln_status dnn_check(int error, const char *what) {
    if (error == DNN_STATUS_SUCCESS) return LN_OK;
    cudaError_t cause = cudaGetLastError();
    if (cause != cudaSuccess) return cuda_fail(cause, what);
    bool memory = error == DNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED;
    return ln_fail(memory ? LN_OUT_OF_MEMORY : LN_INTERNAL, "%s: cuDNN: %s", what,
                   library.f.GetErrorString(error));
}

/* The current device's handle, on the stream of the calling thread, whichever that is. Where cuDNN
 * does not start, it is not used from now on. */
static ln_status handle_of(dnn_handle *out, int device) {
    dnn_handle *handle = &library.handle[device];
    int error = DNN_STATUS_SUCCESS;
    if (*handle == NULL) {
        error = library.f.Create(handle);
        if (error == DNN_STATUS_SUCCESS) error = library.f.SetStream(*handle, cudaStreamPerThread);
    }
    *out = *handle;
    if (error == DNN_STATUS_SUCCESS) return LN_OK;
    cudaGetLastError();
    library.version = 0;
    snprintf(library.refusal, sizeof library.refusal, "it does not start: %s",
             library.f.GetErrorString(error));
    return LN_NO_DEVICE;
}

int cuda_cudnn_version(const char **why) {
    pthread_mutex_lock(&library.lock);
    if (!library.tried) load_library();
    int version = library.version;
    if (version == 0) *why = library.refusal;
    pthread_mutex_unlock(&library.lock);
    return version;
}

/* ---- Descriptors: status codes are cuDNN's ---- */

static int create(dnn_descriptor *out, int type) {
    return library.f.BackendCreateDescriptor(type, out);
}

static void destroy(dnn_descriptor d) {
    if (d != NULL) library.f.BackendDestroyDescriptor(d);
}

static int set(dnn_descriptor d, int name, int type, int64_t count, const void *elements) {
    return library.f.BackendSetAttribute(d, name, type, count, elements);
}

static int set_descriptor(dnn_descriptor d, int name, const dnn_descriptor *value) {
    return set(d, name, DNN_TYPE_BACKEND_DESCRIPTOR, 1, value);
}

static int get(dnn_descriptor d, int name, int type, int64_t asked, int64_t *count,
               void *elements) {
    return library.f.BackendGetAttribute(d, name, type, asked, count, elements);
}

static int finalize(dnn_descriptor d) {
    return library.f.BackendFinalize(d);
}

/* For functions that end at `fail:` with a variable `error`. */
#define DNN_TRY(call)                                                                              \
    do {                                                                                           \
        if ((error = (call)) != DNN_STATUS_SUCCESS) goto fail;                                     \
    } while (0)

static int data_type(int dtype) {
    switch (dtype) {
    case LN_BFLOAT16: return DNN_DATA_BFLOAT16;
    case LN_FLOAT16: return DNN_DATA_HALF;
    default: return DNN_DATA_FLOAT;
    }
}

static int tensor_new(dnn_descriptor *out, const problem *q, int operand) {
    const int64_t *shape = q->shape[operand];
    int64_t stride[4] = {shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1};
    int64_t alignment = q->alignment[operand], id = operand + 1;
    int type = data_type(q->dtype), error;
    if (q->channels_last) {
        stride[1] = 1;
        stride[2] = shape[3] * shape[1];
        stride[3] = shape[1];
    }
    DNN_TRY(create(out, DNN_BACKEND_TENSOR_DESCRIPTOR));
    DNN_TRY(set(*out, DNN_ATTR_TENSOR_DATA_TYPE, DNN_TYPE_DATA_TYPE, 1, &type));
    DNN_TRY(set(*out, DNN_ATTR_TENSOR_DIMENSIONS, DNN_TYPE_INT64, 4, shape));
    DNN_TRY(set(*out, DNN_ATTR_TENSOR_STRIDES, DNN_TYPE_INT64, 4, stride));
    DNN_TRY(set(*out, DNN_ATTR_TENSOR_UNIQUE_ID, DNN_TYPE_INT64, 1, &id));
    DNN_TRY(set(*out, DNN_ATTR_TENSOR_BYTE_ALIGNMENT, DNN_TYPE_INT64, 1, &alignment));
    error = finalize(*out);
fail:
    return error;
}

static int convolution_new(dnn_descriptor *out, const ln_conv_params *p) {
    int type = DNN_DATA_FLOAT, mode = DNN_CROSS_CORRELATION, error;
    int64_t dimensions = 2;
    DNN_TRY(create(out, DNN_BACKEND_CONVOLUTION_DESCRIPTOR));
    DNN_TRY(set(*out, DNN_ATTR_CONVOLUTION_COMP_TYPE, DNN_TYPE_DATA_TYPE, 1, &type));
    DNN_TRY(set(*out, DNN_ATTR_CONVOLUTION_CONV_MODE, DNN_TYPE_CONVOLUTION_MODE, 1, &mode));
    DNN_TRY(set(*out, DNN_ATTR_CONVOLUTION_SPATIAL_DIMS, DNN_TYPE_INT64, 1, &dimensions));
    DNN_TRY(set(*out, DNN_ATTR_CONVOLUTION_DILATIONS, DNN_TYPE_INT64, 2, p->dilation));
    DNN_TRY(set(*out, DNN_ATTR_CONVOLUTION_FILTER_STRIDES, DNN_TYPE_INT64, 2, p->stride));
    DNN_TRY(set(*out, DNN_ATTR_CONVOLUTION_PRE_PADDINGS, DNN_TYPE_INT64, 2, p->padding));
    DNN_TRY(set(*out, DNN_ATTR_CONVOLUTION_POST_PADDINGS, DNN_TYPE_INT64, 2, p->padding));
    error = finalize(*out);
fail:
    return error;
}

/* Of each pass: its operation's type, and the attributes of x, w, y, the convolution and the
 * factors of what is computed and of what the result held before. */
static const struct {
    int type, operand[OPERANDS], convolution, alpha, beta;
} passes[] = {
    {DNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
     {DNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, DNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
      DNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y},
     DNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
     DNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
     DNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA},
    {DNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
     {DNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, DNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
      DNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY},
     DNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
     DNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
     DNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA},
    {DNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
     {DNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X, DNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
      DNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY},
     DNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
     DNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
     DNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA},
};

static int graph_new(operation_graph *g, const problem *q, dnn_handle handle) {
    float alpha = 1, beta = 0;
    int error;
    for (int i = 0; i < OPERANDS; i++) DNN_TRY(tensor_new(&g->operand[i], q, i));
    DNN_TRY(convolution_new(&g->convolution, &q->p));
    DNN_TRY(create(&g->operation, passes[q->pass].type));
    for (int i = 0; i < OPERANDS; i++)
        DNN_TRY(set_descriptor(g->operation, passes[q->pass].operand[i], &g->operand[i]));
    DNN_TRY(set_descriptor(g->operation, passes[q->pass].convolution, &g->convolution));
    DNN_TRY(set(g->operation, passes[q->pass].alpha, DNN_TYPE_FLOAT, 1, &alpha));
    DNN_TRY(set(g->operation, passes[q->pass].beta, DNN_TYPE_FLOAT, 1, &beta));
    DNN_TRY(finalize(g->operation));
    DNN_TRY(create(&g->graph, DNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR));
    DNN_TRY(set(g->graph, DNN_ATTR_OPERATIONGRAPH_HANDLE, DNN_TYPE_HANDLE, 1, &handle));
    DNN_TRY(set_descriptor(g->graph, DNN_ATTR_OPERATIONGRAPH_OPS, &g->operation));
    error = finalize(g->graph);
fail:
    return error;
}

static void graph_drop(operation_graph *g) {
    destroy(g->graph);
    destroy(g->operation);
    destroy(g->convolution);
    for (int i = 0; i < OPERANDS; i++) destroy(g->operand[i]);
}

/* ---- Plans ---- */

/* Whether an engine with this note is out of the question. Transforms round what goes into the
 * products: small integers would not give exact sums. */
static bool refuses(const problem *q, int note) {
    bool exact = q->dtype == LN_FLOAT32 && !q->tf32;
    switch (note) {
    case DNN_NUMERICAL_NOTE_FFT:
    case DNN_NUMERICAL_NOTE_WINOGRAD:
    case DNN_NUMERICAL_NOTE_NONDETERMINISTIC:
    case DNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION: return true;
    case DNN_NUMERICAL_NOTE_TENSOR_CORE:
    case DNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS: return exact;
    default: return false;
    }
}

/* How welcome a proposal is. */
typedef enum { REFUSED, SLOW, FAST } verdict;

/* By the notes on its engine. Halves and TF32 that no tensor core multiplies are slow. */
static int judge(verdict *out, const problem *q, dnn_descriptor config) {
    dnn_descriptor engine = NULL;
    int notes[MOST_NOTES], error;
    int64_t count = 0;
    *out = REFUSED;
    DNN_TRY(create(&engine, DNN_BACKEND_ENGINE_DESCRIPTOR));
    DNN_TRY(
        get(config, DNN_ATTR_ENGINECFG_ENGINE, DNN_TYPE_BACKEND_DESCRIPTOR, 1, &count, &engine));
    DNN_TRY(get(engine, DNN_ATTR_ENGINE_NUMERICAL_NOTE, DNN_TYPE_NUMERICAL_NOTE, MOST_NOTES, &count,
                notes));
    *out = q->dtype == LN_FLOAT32 && !q->tf32 ? FAST : SLOW;
    for (int64_t i = 0; i < count && i < MOST_NOTES; i++) {
        if (notes[i] == DNN_NUMERICAL_NOTE_TENSOR_CORE && *out == SLOW) *out = FAST;
        if (refuses(q, notes[i])) *out = REFUSED;
        if (*out == REFUSED) break;
    }
fail:
    destroy(engine);
    return error;
}

/* The plan of one proposal, where it is possible. */
static int plan_from(plan *made, dnn_descriptor config, dnn_handle handle) {
    dnn_descriptor d = NULL;
    int64_t count, workspace = 0;
    int error;
    DNN_TRY(create(&d, DNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR));
    DNN_TRY(set(d, DNN_ATTR_EXECUTION_PLAN_HANDLE, DNN_TYPE_HANDLE, 1, &handle));
    DNN_TRY(set_descriptor(d, DNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, &config));
    DNN_TRY(finalize(d));
    DNN_TRY(get(d, DNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, DNN_TYPE_INT64, 1, &count, &workspace));
    if (workspace > MOST_WORKSPACE) DNN_TRY(DNN_STATUS_NOT_SUPPORTED);
    made->descriptor = d;
    made->workspace = workspace;
    return error;
fail:
    destroy(d);
    return error;
}

/* The first of what one kind of heuristic proposes that is at least so welcome and possible. A
 * proposal that fails is passed over: there are others. */
static int choose(plan *made, dnn_handle handle, int mode, verdict least) {
    dnn_descriptor heuristic = NULL, configs[MOST_ENGINES] = {};
    int64_t count = 0;
    int error;
    DNN_TRY(create(&heuristic, DNN_BACKEND_ENGINEHEUR_DESCRIPTOR));
    DNN_TRY(set_descriptor(heuristic, DNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, &made->parts.graph));
    DNN_TRY(set(heuristic, DNN_ATTR_ENGINEHEUR_MODE, DNN_TYPE_HEUR_MODE, 1, &mode));
    DNN_TRY(finalize(heuristic));
    for (int i = 0; i < MOST_ENGINES; i++)
        DNN_TRY(create(&configs[i], DNN_BACKEND_ENGINECFG_DESCRIPTOR));
    DNN_TRY(get(heuristic, DNN_ATTR_ENGINEHEUR_RESULTS, DNN_TYPE_BACKEND_DESCRIPTOR, MOST_ENGINES,
                &count, configs));
    for (int64_t i = 0; i < count && i < MOST_ENGINES && made->descriptor == NULL; i++) {
        verdict found;
        int judged = judge(&found, &made->of, configs[i]);
        if (judged != DNN_STATUS_SUCCESS || found < least) continue;
        if (plan_from(made, configs[i], handle) != DNN_STATUS_SUCCESS) continue;
        made->config = configs[i];
        configs[i] = NULL;
    }
fail:
    destroy(heuristic);
    for (int i = 0; i < MOST_ENGINES; i++) destroy(configs[i]);
    return error;
}

/* The plan for a problem, made at its first use; its descriptor stays NULL where there is none. */
static ln_status plan_for(plan **out, const problem *q, dnn_handle handle, const char *what) {
    static const struct {
        int mode;
        verdict least;
    } searches[] = {{DNN_HEUR_MODE_A, FAST},
                    {DNN_HEUR_MODE_FALLBACK, FAST},
                    {DNN_HEUR_MODE_A, SLOW},
                    {DNN_HEUR_MODE_FALLBACK, SLOW}};
    for (*out = library.plans; *out != NULL; *out = (*out)->next)
        if (memcmp(&(*out)->of, q, sizeof *q) == 0) return LN_OK;
    plan *made = (plan *)calloc(1, sizeof *made);
    if (made == NULL) return ln_fail(LN_OUT_OF_MEMORY, "%s: out of memory for a plan", what);
    memcpy(&made->of, q, sizeof *q);
    int error = graph_new(&made->parts, q, handle);
    for (int i = 0; i < 4 && error == DNN_STATUS_SUCCESS && made->descriptor == NULL; i++)
        choose(made, handle, searches[i].mode, searches[i].least);
    if (made->descriptor == NULL) graph_drop(&made->parts);
    cudaGetLastError(); /* of what failed on the way */
    made->next = library.plans;
    library.plans = *out = made;
    return LN_OK;
}

/* ---- Running ---- */

static ln_status run(const plan *chosen, dnn_handle handle, void *const *data, const char *what) {
    const int64_t ids[OPERANDS] = {X + 1, W + 1, Y + 1};
    dnn_descriptor pack = NULL;
    void *workspace = NULL;
    int error = DNN_STATUS_SUCCESS;
    ln_status status = LN_OK;
    if (chosen->workspace > 0) status = cuda_scratch(&workspace, (size_t)chosen->workspace, what);
    if (status != LN_OK) return status;
    DNN_TRY(create(&pack, DNN_BACKEND_VARIANT_PACK_DESCRIPTOR));
    DNN_TRY(set(pack, DNN_ATTR_VARIANT_PACK_UNIQUE_IDS, DNN_TYPE_INT64, OPERANDS, ids));
    DNN_TRY(set(pack, DNN_ATTR_VARIANT_PACK_DATA_POINTERS, DNN_TYPE_VOID_PTR, OPERANDS, data));
    DNN_TRY(set(pack, DNN_ATTR_VARIANT_PACK_WORKSPACE, DNN_TYPE_VOID_PTR, 1, &workspace));
    DNN_TRY(finalize(pack));
    error = library.f.BackendExecute(handle, chosen->descriptor, pack);
fail:
    destroy(pack);
    cuda_scratch_release(workspace);
    return dnn_check(error, what);
}

static void describe(problem *q, const ln_tensor *const *t, convolve_pass pass, bool channels_last,
                     const ln_conv_params *p) {
    memset(q, 0, sizeof *q);
    q->pass = pass;
    q->device = ln_device(t[X]);
    q->dtype = t[X]->dtype;
    q->channels_last = channels_last;
    q->tf32 = q->dtype == LN_FLOAT32 && ln_cuda_tf32();
    q->p = *p;
    for (int i = 0; i < OPERANDS; i++) {
        q->alignment[i] = 16; /* the widest that an engine reads */
        while ((uintptr_t)t[i]->data % (uintptr_t)q->alignment[i] != 0) q->alignment[i] /= 2;
        for (int d = 0; d < 4; d++) q->shape[i][d] = t[i]->shape[d];
    }
}

ln_status cuda_convolve(bool *done, convolve_pass pass, const ln_tensor *x, const ln_tensor *w,
                        const ln_tensor *y, bool channels_last, const ln_conv_params *p,
                        const char *what) {
    const ln_tensor *const t[] = {x, w, y};
    void *const data[] = {x->data, w->data, y->data};
    problem q;
    dnn_handle handle;
    plan *chosen = NULL;
    ln_status status = LN_OK;
    *done = false;
    if (!ln_cuda_cudnn_allowed() || x->dtype == LN_FLOAT64) return LN_OK;
    describe(&q, t, pass, channels_last, p);
    pthread_mutex_lock(&library.lock);
    if (!library.tried) load_library();
    if (library.version > 0 && handle_of(&handle, q.device) == LN_OK) {
        status = plan_for(&chosen, &q, handle, what);
        if (status == LN_OK && chosen->descriptor != NULL) {
            status = run(chosen, handle, data, what);
            *done = true;
        }
    }
    pthread_mutex_unlock(&library.lock);
    return status;
}
