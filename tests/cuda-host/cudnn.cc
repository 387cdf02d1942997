/* A stand-in for libcudnn.so.9 on the host: the backend API as far as cudnn.cu uses it. It keeps
 * attributes, refuses what cuDNN refuses (types, unfinalized parts, shapes that do not fit, too
 * little alignment or workspace), proposes engines of every kind and lets the CPU backend compute.
 * Invariant: an engine that must not be chosen gives NaN, or TF32's few digits. */
#include <string.h>

#include <array>
#include <map>
#include <vector>

#include "backend.h"
#include "cudnn_abi.h"
#include "host.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

struct dnn_context {
    bool has_stream;
};

namespace {

/* What is proposed, by heuristic A all but the last, in this order. Those before UNWILLING must not
 * be chosen; SLOW has no tensor cores. */
enum engine {
    SCATTERING,
    REDUCED,
    FOURIER,
    WINOGRAD,
    UNWILLING,
    LARGE,
    SLOW,
    TENSOR_CORE,
    PLAIN,
    ENGINES
};

struct attribute {
    int64_t count;
    std::vector<char> bytes;
};

struct descriptor {
    int type;
    bool is_final = false;
    int engine = PLAIN;
    std::map<int, attribute> attributes;

    bool has(int name, int64_t count = 1) const {
        auto found = attributes.find(name);
        return found != attributes.end() && found->second.count == count;
    }
    template <typename T> const T *list(int name) const {
        return (const T *)attributes.at(name).bytes.data();
    }
    template <typename T> T value(int name) const {
        return *list<T>(name);
    }
    descriptor *part(int name) const {
        return (descriptor *)value<void *>(name);
    }
};

/* The attributes of a kind of operation. */
struct operation_names {
    int x, w, y, convolution, alpha, beta;
};

operation_names names_of(int type) {
    switch (type) {
    case DNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR:
        return {DNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
                DNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
                DNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
                DNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
                DNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
                DNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA};
    case DNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR:
        return {DNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
                DNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
                DNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
                DNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
                DNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
                DNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA};
    default:
        return {DNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
                DNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
                DNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
                DNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
                DNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
                DNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA};
    }
}

/* The type that an attribute is given with. */
int type_of(int name) {
    switch (name) {
    case DNN_ATTR_CONVOLUTION_COMP_TYPE:
    case DNN_ATTR_TENSOR_DATA_TYPE: return DNN_TYPE_DATA_TYPE;
    case DNN_ATTR_CONVOLUTION_CONV_MODE: return DNN_TYPE_CONVOLUTION_MODE;
    case DNN_ATTR_ENGINEHEUR_MODE: return DNN_TYPE_HEUR_MODE;
    case DNN_ATTR_EXECUTION_PLAN_HANDLE:
    case DNN_ATTR_OPERATIONGRAPH_HANDLE: return DNN_TYPE_HANDLE;
    case DNN_ATTR_VARIANT_PACK_DATA_POINTERS:
    case DNN_ATTR_VARIANT_PACK_WORKSPACE: return DNN_TYPE_VOID_PTR;
    case DNN_ATTR_ENGINE_NUMERICAL_NOTE: return DNN_TYPE_NUMERICAL_NOTE;
    case DNN_ATTR_ENGINEHEUR_OPERATION_GRAPH:
    case DNN_ATTR_ENGINEHEUR_RESULTS:
    case DNN_ATTR_ENGINECFG_ENGINE:
    case DNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG:
    case DNN_ATTR_OPERATIONGRAPH_OPS: return DNN_TYPE_BACKEND_DESCRIPTOR;
    default: break;
    }
    for (int t : {DNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
                  DNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
                  DNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR}) {
        operation_names n = names_of(t);
        if (name == n.x || name == n.w || name == n.y || name == n.convolution)
            return DNN_TYPE_BACKEND_DESCRIPTOR;
        if (name == n.alpha || name == n.beta) return DNN_TYPE_FLOAT;
    }
    return DNN_TYPE_INT64;
}

size_t size_of(int type) {
    return type == DNN_TYPE_DATA_TYPE || type == DNN_TYPE_CONVOLUTION_MODE ||
                   type == DNN_TYPE_HEUR_MODE || type == DNN_TYPE_FLOAT ||
                   type == DNN_TYPE_NUMERICAL_NOTE
               ? 4
               : 8;
}

int dtype_of(int data_type) {
    switch (data_type) {
    case DNN_DATA_FLOAT: return LN_FLOAT32;
    case DNN_DATA_HALF: return LN_FLOAT16;
    case DNN_DATA_BFLOAT16: return LN_BFLOAT16;
    default: return -1;
    }
}

/* ---- What makes a descriptor whole ---- */

int check_tensor(const descriptor &d) {
    if (!d.has(DNN_ATTR_TENSOR_DATA_TYPE) || !d.has(DNN_ATTR_TENSOR_DIMENSIONS, 4) ||
        !d.has(DNN_ATTR_TENSOR_STRIDES, 4) || !d.has(DNN_ATTR_TENSOR_UNIQUE_ID) ||
        !d.has(DNN_ATTR_TENSOR_BYTE_ALIGNMENT))
        return DNN_STATUS_BAD_PARAM;
    int dtype = dtype_of(d.value<int>(DNN_ATTR_TENSOR_DATA_TYPE));
    int64_t alignment = d.value<int64_t>(DNN_ATTR_TENSOR_BYTE_ALIGNMENT);
    if (dtype < 0 || alignment < (int64_t)ln_dtype_size(dtype) || (alignment & (alignment - 1)))
        return DNN_STATUS_BAD_PARAM;
    for (int i = 0; i < 4; i++)
        if (d.list<int64_t>(DNN_ATTR_TENSOR_DIMENSIONS)[i] < 1 ||
            d.list<int64_t>(DNN_ATTR_TENSOR_STRIDES)[i] < 1)
            return DNN_STATUS_BAD_PARAM;
    return DNN_STATUS_SUCCESS;
}

int check_convolution(const descriptor &d) {
    bool whole =
        d.has(DNN_ATTR_CONVOLUTION_COMP_TYPE) && d.has(DNN_ATTR_CONVOLUTION_CONV_MODE) &&
        d.has(DNN_ATTR_CONVOLUTION_SPATIAL_DIMS) && d.has(DNN_ATTR_CONVOLUTION_DILATIONS, 2) &&
        d.has(DNN_ATTR_CONVOLUTION_FILTER_STRIDES, 2) &&
        d.has(DNN_ATTR_CONVOLUTION_PRE_PADDINGS, 2) && d.has(DNN_ATTR_CONVOLUTION_POST_PADDINGS, 2);
    if (!whole || d.value<int64_t>(DNN_ATTR_CONVOLUTION_SPATIAL_DIMS) != 2 ||
        d.value<int>(DNN_ATTR_CONVOLUTION_CONV_MODE) != DNN_CROSS_CORRELATION)
        return DNN_STATUS_BAD_PARAM;
    return d.value<int>(DNN_ATTR_CONVOLUTION_COMP_TYPE) == DNN_DATA_FLOAT
               ? DNN_STATUS_SUCCESS
               : DNN_STATUS_NOT_SUPPORTED;
}

ln_conv_params params_of(const descriptor &operation) {
    operation_names n = names_of(operation.type);
    const descriptor *c = operation.part(n.convolution);
    ln_conv_params p;
    for (int i = 0; i < 2; i++) {
        p.stride[i] = c->list<int64_t>(DNN_ATTR_CONVOLUTION_FILTER_STRIDES)[i];
        p.padding[i] = c->list<int64_t>(DNN_ATTR_CONVOLUTION_PRE_PADDINGS)[i];
        p.dilation[i] = c->list<int64_t>(DNN_ATTR_CONVOLUTION_DILATIONS)[i];
    }
    p.groups = operation.part(n.x)->list<int64_t>(DNN_ATTR_TENSOR_DIMENSIONS)[1] /
               operation.part(n.w)->list<int64_t>(DNN_ATTR_TENSOR_DIMENSIONS)[1];
    return p;
}

int check_operation(const descriptor &d) {
    operation_names n = names_of(d.type);
    for (int name : {n.x, n.w, n.y, n.convolution})
        if (!d.has(name) || !d.part(name)->is_final) return DNN_STATUS_BAD_PARAM_NOT_FINALIZED;
    if (!d.has(n.alpha) || !d.has(n.beta)) return DNN_STATUS_BAD_PARAM;
    const int64_t *x = d.part(n.x)->list<int64_t>(DNN_ATTR_TENSOR_DIMENSIONS);
    const int64_t *w = d.part(n.w)->list<int64_t>(DNN_ATTR_TENSOR_DIMENSIONS);
    const int64_t *y = d.part(n.y)->list<int64_t>(DNN_ATTR_TENSOR_DIMENSIONS);
    int types[3], i = 0;
    for (int name : {n.x, n.w, n.y})
        types[i++] = d.part(name)->value<int>(DNN_ATTR_TENSOR_DATA_TYPE);
    if (types[0] != types[1] || types[0] != types[2]) return DNN_STATUS_NOT_SUPPORTED;
    bool fits = x[0] == y[0] && w[0] == y[1] && x[1] % w[1] == 0;
    ln_conv_params p = params_of(d);
    for (int k = 0; k < 2; k++)
        fits &=
            y[2 + k] ==
            (x[2 + k] + 2 * p.padding[k] - (w[2 + k] - 1) * p.dilation[k] - 1) / p.stride[k] + 1;
    return fits ? DNN_STATUS_SUCCESS : DNN_STATUS_BAD_PARAM_SHAPE_MISMATCH;
}

bool has_final(const descriptor &d, int name) {
    return d.has(name) && d.part(name)->is_final;
}

int check(const descriptor &d) {
    switch (d.type) {
    case DNN_BACKEND_TENSOR_DESCRIPTOR: return check_tensor(d);
    case DNN_BACKEND_CONVOLUTION_DESCRIPTOR: return check_convolution(d);
    case DNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR:
        return has_final(d, DNN_ATTR_OPERATIONGRAPH_OPS) && d.has(DNN_ATTR_OPERATIONGRAPH_HANDLE)
                   ? DNN_STATUS_SUCCESS
                   : DNN_STATUS_BAD_PARAM_NOT_FINALIZED;
    case DNN_BACKEND_ENGINEHEUR_DESCRIPTOR:
        return has_final(d, DNN_ATTR_ENGINEHEUR_OPERATION_GRAPH) && d.has(DNN_ATTR_ENGINEHEUR_MODE)
                   ? DNN_STATUS_SUCCESS
                   : DNN_STATUS_BAD_PARAM_NOT_FINALIZED;
    case DNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR:
        if (!has_final(d, DNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG) ||
            !d.has(DNN_ATTR_EXECUTION_PLAN_HANDLE))
            return DNN_STATUS_BAD_PARAM_NOT_FINALIZED;
        return d.part(DNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG)->engine == UNWILLING
                   ? DNN_STATUS_NOT_SUPPORTED
                   : DNN_STATUS_SUCCESS;
    case DNN_BACKEND_VARIANT_PACK_DESCRIPTOR:
        return d.has(DNN_ATTR_VARIANT_PACK_UNIQUE_IDS, 3) &&
                       d.has(DNN_ATTR_VARIANT_PACK_DATA_POINTERS, 3) &&
                       d.has(DNN_ATTR_VARIANT_PACK_WORKSPACE)
                   ? DNN_STATUS_SUCCESS
                   : DNN_STATUS_BAD_PARAM;
    default: return check_operation(d);
    }
}

/* ---- What is proposed ---- */

/* Of groups nothing but by the fallback, and of dilated groups nothing at all: so every way is
 * taken. */
int propose(const descriptor &heuristic, int64_t asked, int64_t *count, void **configs) {
    const descriptor *graph = heuristic.part(DNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
    const descriptor *operation = graph->part(DNN_ATTR_OPERATIONGRAPH_OPS);
    bool fallback = heuristic.value<int>(DNN_ATTR_ENGINEHEUR_MODE) == DNN_HEUR_MODE_FALLBACK;
    ln_conv_params p = params_of(*operation);
    *count = 0;
    bool dilated = p.dilation[0] > 1 || p.dilation[1] > 1;
    if (p.groups > 1 && (dilated || !fallback)) return DNN_STATUS_SUCCESS;
    for (int e = fallback ? PLAIN : SCATTERING; e < (fallback ? ENGINES : PLAIN); e++) {
        if (*count == asked) break;
        descriptor *config = (descriptor *)configs[(*count)++];
        config->engine = e;
        config->is_final = true;
        void *of = (void *)graph;
        config->attributes[DNN_ATTR_ENGINEHEUR_OPERATION_GRAPH] = {
            1, std::vector<char>((char *)&of, (char *)&of + sizeof of)};
    }
    return DNN_STATUS_SUCCESS;
}

std::vector<int> notes_of(int e) {
    switch (e) {
    case SCATTERING: return {DNN_NUMERICAL_NOTE_NONDETERMINISTIC};
    case REDUCED:
        return {DNN_NUMERICAL_NOTE_TENSOR_CORE, DNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION};
    case FOURIER: return {DNN_NUMERICAL_NOTE_FFT};
    case WINOGRAD: return {DNN_NUMERICAL_NOTE_TENSOR_CORE, DNN_NUMERICAL_NOTE_WINOGRAD};
    case TENSOR_CORE: return {DNN_NUMERICAL_NOTE_TENSOR_CORE};
    default: return {};
    }
}

int64_t workspace_of(int e) {
    return e == LARGE ? (int64_t)1 << 40 : e == TENSOR_CORE ? 4096 : 0;
}

/* ---- Running ---- */

/* A tensor in host memory as the descriptor has it, with the device's values where asked. */
int fetch(ln_tensor **out, const descriptor &t, const void *data, bool values) {
    int64_t shape[4];
    memcpy(shape, t.list<int64_t>(DNN_ATTR_TENSOR_DIMENSIONS), sizeof shape);
    int dtype = dtype_of(t.value<int>(DNN_ATTR_TENSOR_DATA_TYPE));
    if (data == NULL) return DNN_STATUS_BAD_PARAM_NULL_POINTER;
    if ((uintptr_t)data % (uintptr_t)t.value<int64_t>(DNN_ATTR_TENSOR_BYTE_ALIGNMENT) != 0)
        return DNN_STATUS_BAD_PARAM_MISALIGNED_POINTER;
    if (ln_tensor_empty(out, dtype, LN_CPU, 4, shape) != LN_OK) return DNN_STATUS_EXECUTION_FAILED;
    const int64_t *stride = t.list<int64_t>(DNN_ATTR_TENSOR_STRIDES);
    if (memcmp(stride, (*out)->stride, sizeof shape) != 0) ln_set_channels_last(*out);
    if (memcmp(stride, (*out)->stride, sizeof shape) != 0) return DNN_STATUS_NOT_SUPPORTED;
    size_t bytes = (size_t)(*out)->numel * ln_dtype_size(dtype);
    if (!values) return DNN_STATUS_SUCCESS;
    return cudaMemcpyAsync((*out)->data, data, bytes, cudaMemcpyDeviceToHost, NULL) == cudaSuccess
               ? DNN_STATUS_SUCCESS
               : DNN_STATUS_EXECUTION_FAILED;
}

/* What the tensor cores read of float32: 10 bits of fraction. */
void round_to_tf32(ln_tensor *t) {
    uint32_t *bits = (uint32_t *)t->data;
    for (int64_t i = 0; t->dtype == LN_FLOAT32 && i < t->numel; i++)
        bits[i] = (bits[i] + 0x1000) & ~0x1fffu;
}

int compute(const descriptor &operation, int engine, void *const *data) {
    operation_names n = names_of(operation.type);
    const int names[] = {n.x, n.w, n.y};
    int result = operation.type == DNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR         ? 2
                 : operation.type == DNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR ? 0
                                                                                                : 1;
    ln_tensor *t[3] = {};
    ln_conv_params p = params_of(operation);
    const ln_backend *cpu = ln_cpu_backend();
    int error = DNN_STATUS_SUCCESS;
    for (int i = 0; i < 3 && error == DNN_STATUS_SUCCESS; i++) {
        error = fetch(&t[i], *operation.part(names[i]), data[i], i != result);
        if (error == DNN_STATUS_SUCCESS && engine == TENSOR_CORE && i != result)
            round_to_tf32(t[i]);
    }
    if (error == DNN_STATUS_SUCCESS) {
        ln_status status =
            result == 2 ? cpu->conv2d(t[2], t[0], t[1], NULL, &p)
                        : cpu->conv2d_backward(result == 0 ? t[0] : NULL, result == 1 ? t[1] : NULL,
                                               NULL, t[2], t[0], t[1], &p);
        bool slow = engine == SLOW && t[0]->dtype != LN_FLOAT32; /* in halves */
        if (engine < UNWILLING || slow) cpu->fill(t[result], (double)NAN);
        size_t bytes = (size_t)t[result]->numel * ln_dtype_size(t[result]->dtype);
        if (status != LN_OK || cudaMemcpyAsync(data[result], t[result]->data, bytes,
                                               cudaMemcpyHostToDevice, NULL) != cudaSuccess)
            error = DNN_STATUS_EXECUTION_FAILED;
    }
    for (int i = 0; i < 3; i++) ln_tensor_release(t[i]);
    return error;
}

} // namespace

/* ---- The interface ---- */

EXPORT size_t cudnnGetVersion(void) {
    return 90000;
}

EXPORT const char *cudnnGetErrorString(int status) {
    return status == DNN_STATUS_SUCCESS ? "success" : "the stand-in refuses";
}

EXPORT int cudnnCreate(dnn_handle *handle) {
    *handle = new dnn_context{false};
    return DNN_STATUS_SUCCESS;
}

EXPORT int cudnnSetStream(dnn_handle handle, cudaStream_t stream) {
    handle->has_stream = stream == cudaStreamPerThread;
    return DNN_STATUS_SUCCESS;
}

EXPORT int cudnnBackendCreateDescriptor(int type, dnn_descriptor *out) {
    descriptor *d = new descriptor;
    d->type = type;
    *out = d;
    return DNN_STATUS_SUCCESS;
}

EXPORT int cudnnBackendDestroyDescriptor(dnn_descriptor d) {
    delete (descriptor *)d;
    return DNN_STATUS_SUCCESS;
}

EXPORT int cudnnBackendSetAttribute(dnn_descriptor handle, int name, int type, int64_t count,
                                    const void *elements) {
    descriptor *d = (descriptor *)handle;
    if (d->is_final || elements == NULL) return DNN_STATUS_BAD_PARAM;
    if (type != type_of(name)) return DNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE;
    const char *bytes = (const char *)elements;
    d->attributes[name] = {count, std::vector<char>(bytes, bytes + (size_t)count * size_of(type))};
    return DNN_STATUS_SUCCESS;
}

EXPORT int cudnnBackendFinalize(dnn_descriptor handle) {
    descriptor *d = (descriptor *)handle;
    int error = check(*d);
    d->is_final = error == DNN_STATUS_SUCCESS;
    return error;
}

EXPORT int cudnnBackendGetAttribute(dnn_descriptor handle, int name, int type, int64_t asked,
                                    int64_t *count, void *elements) {
    descriptor *d = (descriptor *)handle;
    if (!d->is_final) return DNN_STATUS_BAD_PARAM_NOT_FINALIZED;
    if (type != type_of(name)) return DNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE;
    switch (name) {
    case DNN_ATTR_ENGINEHEUR_RESULTS: return propose(*d, asked, count, (void **)elements);
    case DNN_ATTR_ENGINECFG_ENGINE: {
        descriptor *engine = *(descriptor **)elements;
        engine->engine = d->engine;
        engine->is_final = true;
        *count = 1;
        return DNN_STATUS_SUCCESS;
    }
    case DNN_ATTR_ENGINE_NUMERICAL_NOTE: {
        std::vector<int> notes = notes_of(d->engine);
        *count = (int64_t)notes.size();
        memcpy(elements, notes.data(), notes.size() * sizeof(int));
        return DNN_STATUS_SUCCESS;
    }
    case DNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE:
        *count = 1;
        *(int64_t *)elements = workspace_of(d->part(DNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG)->engine);
        return DNN_STATUS_SUCCESS;
    default: return DNN_STATUS_NOT_SUPPORTED;
    }
}

/* Writes the whole workspace, so that one that is too small is a fault. */
EXPORT int cudnnBackendExecute(dnn_handle handle, dnn_descriptor plan_handle,
                               dnn_descriptor pack_handle) {
    const descriptor *plan = (descriptor *)plan_handle, *pack = (descriptor *)pack_handle;
    if (!plan->is_final || !pack->is_final || !handle->has_stream)
        return DNN_STATUS_BAD_PARAM_NOT_FINALIZED;
    const descriptor *config = plan->part(DNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
    const descriptor *graph = config->part(DNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
    const descriptor *operation = graph->part(DNN_ATTR_OPERATIONGRAPH_OPS);
    if (plan->value<dnn_handle>(DNN_ATTR_EXECUTION_PLAN_HANDLE) != handle ||
        graph->value<dnn_handle>(DNN_ATTR_OPERATIONGRAPH_HANDLE) != handle)
        return DNN_STATUS_BAD_PARAM;
    int64_t bytes = workspace_of(config->engine);
    void *workspace = pack->value<void *>(DNN_ATTR_VARIANT_PACK_WORKSPACE);
    if (bytes > 0 && workspace == NULL) return DNN_STATUS_BAD_PARAM_SIZE_INSUFFICIENT;
    operation_names n = names_of(operation->type);
    std::array<void *, 3> data = {};
    int i = 0;
    for (int name : {n.x, n.w, n.y}) {
        int64_t id = operation->part(name)->value<int64_t>(DNN_ATTR_TENSOR_UNIQUE_ID);
        for (int k = 0; k < 3; k++)
            if (pack->list<int64_t>(DNN_ATTR_VARIANT_PACK_UNIQUE_IDS)[k] == id)
                data[i] = pack->list<void *>(DNN_ATTR_VARIANT_PACK_DATA_POINTERS)[k];
        i++;
    }
    int engine = config->engine, computed = DNN_STATUS_SUCCESS;
    auto compute_all = [=](int *status) {
        if (bytes > 0 && cudaMemsetAsync(workspace, 0xff, (size_t)bytes, NULL) != cudaSuccess)
            *status = DNN_STATUS_BAD_PARAM_SIZE_INSUFFICIENT;
        else *status = compute(*operation, engine, data.data());
    };
    if (!cuda_host_captures()) {
        compute_all(&computed);
        return computed;
    }
    auto later = [=] {
        int status;
        compute_all(&status);
        return status == DNN_STATUS_SUCCESS ? cudaSuccess : cudaErrorLaunchFailure;
    };
    return cuda_host_ask(later) == cudaSuccess ? DNN_STATUS_SUCCESS : DNN_STATUS_EXECUTION_FAILED;
}
