/* Matrix products by cuBLASLt, whose matrices are column-major: our z = x y is its z' = y' x'.
 * Holds no kernels. Invariant: sums are in float32, or in float64 for float64; TF32 is not used
 * unless it was asked for. */
#include "products.h"

#include <cublasLt.h>
#include <pthread.h>

static const size_t WORKSPACE = (size_t)32 << 20; /* what Hopper's fast algorithms ask for */

/* ---- Handles ---- */

static struct {
    pthread_mutex_t lock;
    cublasLtHandle_t handle[LN_MOST_DEVICES];
} library = {PTHREAD_MUTEX_INITIALIZER, {}};

static ln_status blas_check(cublasStatus_t error, const char *what) {
    if (error == CUBLAS_STATUS_SUCCESS) return LN_OK;
    cudaError_t cause = cudaGetLastError();
    if (cause != cudaSuccess) return cuda_fail(cause, what);
    return ln_fail(error == CUBLAS_STATUS_ALLOC_FAILED ? LN_OUT_OF_MEMORY : LN_INTERNAL,
                   "%s: cuBLASLt: %s", what, cublasLtGetStatusString(error));
}

/* The current device's handle. */
static ln_status handle_of(cublasLtHandle_t *out, const char *what) {
    int device;
    ln_status status = cuda_check(cudaGetDevice(&device), what);
    if (status != LN_OK) return status;
    pthread_mutex_lock(&library.lock);
    cublasLtHandle_t *handle = &library.handle[device];
    if (*handle == NULL) status = blas_check(cublasLtCreate(handle), what);
    *out = *handle;
    pthread_mutex_unlock(&library.lock);
    return status;
}

/* ---- Descriptions ---- */

static cudaDataType_t data_type(int dtype) {
    switch (dtype) {
    case LN_FLOAT64: return CUDA_R_64F;
    case LN_BFLOAT16: return CUDA_R_16BF;
    case LN_FLOAT16: return CUDA_R_16F;
    default: return CUDA_R_32F;
    }
}

/* Our (rows, columns) as the library sees it: columns first. */
static ln_status layout_new(cublasLtMatrixLayout_t *out, int dtype, matrix a, int64_t rows,
                            int64_t columns, int64_t batches, const char *what) {
    int32_t count = (int32_t)batches;
    uint64_t first = (uint64_t)(a.transposed ? rows : columns);
    uint64_t second = (uint64_t)(a.transposed ? columns : rows);
    ln_status status;
    LN_TRY(blas_check(cublasLtMatrixLayoutCreate(out, data_type(dtype), first, second, a.stride),
                      what));
    LN_TRY(blas_check(cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                                                       &count, sizeof count),
                      what));
    status =
        blas_check(cublasLtMatrixLayoutSetAttribute(
                       *out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &a.step, sizeof a.step),
                   what);
fail:
    return status;
}

typedef struct {
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t y, x, z; /* its A, B, C and D */
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t choice;
} description;

static ln_status product_new(description *d, const product_kind &kind, matrix x, matrix y,
                             const char *what) {
    bool wide = kind.z == LN_FLOAT64;
    bool rough = kind.operands == LN_FLOAT32 && (kind.rough || ln_cuda_tf32());
    cublasLtPointerMode_t mode = CUBLASLT_POINTER_MODE_DEVICE;
    cublasComputeType_t type = CUBLAS_COMPUTE_32F;
    if (wide) type = CUBLAS_COMPUTE_64F;
    if (rough) type = CUBLAS_COMPUTE_32F_FAST_TF32;
    cublasOperation_t turn_y = y.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t turn_x = x.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    ln_status status;
    LN_TRY(blas_check(cublasLtMatmulDescCreate(&d->product, type, wide ? CUDA_R_64F : CUDA_R_32F),
                      what));
    LN_TRY(blas_check(cublasLtMatmulDescSetAttribute(d->product, CUBLASLT_MATMUL_DESC_TRANSA,
                                                     &turn_y, sizeof turn_y),
                      what));
    if (kind.factors != NULL)
        LN_TRY(blas_check(cublasLtMatmulDescSetAttribute(
                              d->product, CUBLASLT_MATMUL_DESC_POINTER_MODE, &mode, sizeof mode),
                          what));
    status = blas_check(cublasLtMatmulDescSetAttribute(d->product, CUBLASLT_MATMUL_DESC_TRANSB,
                                                       &turn_x, sizeof turn_x),
                        what);
fail:
    return status;
}

/* Views may begin anywhere: algorithms that read wider than an address allows are not chosen. */
static ln_status set_alignment(description *d, cublasLtMatmulPreferenceAttributes_t name,
                               const void *p, const char *what) {
    uint32_t alignment = 256; /* of whole blocks; the most that is asked for */
    while ((uintptr_t)p % alignment != 0) alignment /= 2;
    return blas_check(
        cublasLtMatmulPreferenceSetAttribute(d->preference, name, &alignment, sizeof alignment),
        what);
}

static ln_status choose(description *d, cublasLtHandle_t handle, const matrix *a,
                        const char *what) {
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    int found = 0;
    ln_status status;
    LN_TRY(blas_check(cublasLtMatmulPreferenceCreate(&d->preference), what));
    LN_TRY(blas_check(cublasLtMatmulPreferenceSetAttribute(d->preference,
                                                           CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                           &WORKSPACE, sizeof WORKSPACE),
                      what));
    for (int i = 0; i < 4; i++) LN_TRY(set_alignment(d, alignments[i], a[i].data, what));
    LN_TRY(blas_check(cublasLtMatmulAlgoGetHeuristic(handle, d->product, d->y, d->x, d->z, d->z,
                                                     d->preference, 1, &d->choice, &found),
                      what));
    if (found == 0) return ln_fail(LN_INTERNAL, "%s: cuBLASLt knows no algorithm for it", what);
fail:
    return status;
}

static void drop(description *d) {
    if (d->product != NULL) cublasLtMatmulDescDestroy(d->product);
    if (d->y != NULL) cublasLtMatrixLayoutDestroy(d->y);
    if (d->x != NULL) cublasLtMatrixLayoutDestroy(d->x);
    if (d->z != NULL) cublasLtMatrixLayoutDestroy(d->z);
    if (d->preference != NULL) cublasLtMatmulPreferenceDestroy(d->preference);
}

ln_status cuda_product(const product_kind &kind, matrix z, matrix x, matrix y, int64_t n, int64_t m,
                       int64_t k, int64_t batches, bool add, const char *what) {
    description d = {};
    cublasLtHandle_t handle;
    void *workspace = NULL;
    double wide[] = {1, add ? 1.0 : 0.0};
    float narrow[] = {1, add ? 1.0f : 0.0f};
    const matrix operands[] = {y, x, z, z}; /* its A, B, C and D */
    bool is_wide = kind.z == LN_FLOAT64;
    const void *one = is_wide ? (const void *)&wide[0] : &narrow[0];
    const void *kept = is_wide ? (const void *)&wide[1] : &narrow[1];
    if (kind.factors != NULL) {
        one = &kind.factors[0];
        kept = &kind.factors[1];
    }
    ln_status status;
    LN_TRY(handle_of(&handle, what));
    LN_TRY(product_new(&d, kind, x, y, what));
    LN_TRY(layout_new(&d.y, kind.operands, y, k, m, batches, what));
    LN_TRY(layout_new(&d.x, kind.operands, x, n, k, batches, what));
    LN_TRY(layout_new(&d.z, kind.z, z, n, m, batches, what));
    LN_TRY(choose(&d, handle, operands, what));
    if (d.choice.workspaceSize > 0) LN_TRY(cuda_scratch(&workspace, d.choice.workspaceSize, what));
    status = blas_check(cublasLtMatmul(handle, d.product, one, y.data, d.y, x.data, d.x, kept,
                                       z.data, d.z, z.data, d.z, &d.choice.algo, workspace,
                                       d.choice.workspaceSize, cudaStreamPerThread),
                        what);
fail:
    cuda_scratch_release(workspace);
    drop(&d);
    return status;
}
