/* Readers of dataset formats: IDX, plain or gzip'd. Parses sizes and checks them against the file
 * before anything is allocated; holds no images' meaning. Invariant: a tensor is made only for
 * data that a file of this length can hold. */
#include "backend.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum {
    IDX_UBYTE = 0x08,
    DEFLATE_RATIO = 1032 /* a deflated byte never holds more than this many */
};

/* A stream of bytes from a file, inflated where the file begins as gzip does. */
typedef struct {
    ln_file *file;
    const char *path;
    int64_t offset; /* of the next byte that is read from the file */
    bool gzip, ended;
    z_stream z;
    unsigned char in[1 << 16];
} source;

static ln_status source_open(source *s, const char *path) {
    unsigned char magic[2] = {0, 0};
    *s = (source){.path = path};
    ln_status status = ln_file_open(&s->file, path);
    if (status != LN_OK) return status;
    if (ln_file_size(s->file) >= 2) status = ln_file_read(magic, s->file, 0, 2);
    if (status != LN_OK) return status;
    s->gzip = magic[0] == 0x1f && magic[1] == 0x8b;
    if (s->gzip && inflateInit2(&s->z, 16 + MAX_WBITS) != Z_OK)
        return ln_fail(LN_OUT_OF_MEMORY, "'%s': out of memory to inflate it", path);
    return LN_OK;
}

static void source_close(source *s) {
    if (s->gzip) inflateEnd(&s->z);
    ln_file_close(s->file);
}

/* Bytes of content that can lie in the file. */
static int64_t source_limit(const source *s) {
    int64_t size = ln_file_size(s->file);
    if (!s->gzip) return size;
    return size > INT64_MAX / DEFLATE_RATIO ? INT64_MAX : size * DEFLATE_RATIO;
}

static ln_status source_fill(source *s) {
    int64_t left = ln_file_size(s->file) - s->offset;
    int64_t n = left < (int64_t)sizeof s->in ? left : (int64_t)sizeof s->in;
    ln_status status = ln_file_read(s->in, s->file, s->offset, n);
    s->offset += n;
    s->z.next_in = s->in;
    s->z.avail_in = (unsigned)n;
    return status;
}

/* Inflates up to n bytes; fewer only at the end of the stream. */
static ln_status source_inflate(source *s, void *dst, int64_t n, int64_t *got) {
    *got = 0;
    while (*got < n && !s->ended) {
        if (s->z.avail_in == 0) {
            ln_status status = source_fill(s);
            if (status != LN_OK) return status;
            if (s->z.avail_in == 0)
                return ln_fail(LN_BAD_DATA, "'%s': truncated: its gzip stream has no end", s->path);
        }
        int64_t want = n - *got < INT_MAX ? n - *got : INT_MAX;
        s->z.next_out = (unsigned char *)dst + *got;
        s->z.avail_out = (unsigned)want;
        int result = inflate(&s->z, Z_NO_FLUSH);
        if (result != Z_OK && result != Z_STREAM_END)
            return ln_fail(LN_BAD_DATA, "'%s': damaged gzip data: %s", s->path,
                           s->z.msg == NULL ? "unexpected content" : s->z.msg);
        *got += want - s->z.avail_out;
        s->ended = result == Z_STREAM_END;
    }
    return LN_OK;
}

static ln_status source_read(source *s, void *dst, int64_t n, const char *part) {
    int64_t got = ln_file_size(s->file) - s->offset;
    ln_status status = LN_OK;
    if (s->gzip) {
        status = source_inflate(s, dst, n, &got);
    } else if (got >= n) {
        status = ln_file_read(dst, s->file, s->offset, n);
        s->offset += n;
    }
    if (status == LN_OK && got < n)
        status = ln_fail(LN_BAD_DATA, "'%s': truncated: %lld of the %lld bytes of its %s are there",
                         s->path, (long long)got, (long long)n, part);
    return status;
}

/* The content must end here, and the file with it. */
static ln_status source_end(source *s) {
    unsigned char extra;
    int64_t got = 0;
    ln_status status = LN_OK;
    if (s->gzip) status = source_inflate(s, &extra, 1, &got);
    int64_t left = ln_file_size(s->file) - s->offset + s->z.avail_in;
    if (status == LN_OK && (got > 0 || left > 0))
        status = ln_fail(LN_BAD_DATA, "'%s': trailing bytes after its data", s->path);
    return status;
}

static int64_t big_endian(const unsigned char p[4]) {
    return (int64_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3];
}

static ln_status read_shape(source *s, int *ndim, int64_t *shape) {
    unsigned char word[4];
    ln_status status = source_read(s, word, 4, "header");
    if (status != LN_OK) return status;
    if (word[0] != 0 || word[1] != 0)
        return ln_fail(LN_BAD_DATA, "'%s': not an IDX file: its magic begins %02x %02x, not 00 00",
                       s->path, word[0], word[1]);
    if (word[2] != IDX_UBYTE)
        return ln_fail(LN_BAD_DATA, "'%s': IDX type 0x%02x; unsigned bytes (0x08) are taken",
                       s->path, word[2]);
    if (word[3] < 1 || word[3] > LN_MAX_DIMS)
        return ln_fail(LN_BAD_DATA, "'%s': IDX rank %d; 1 to %d are taken", s->path, word[3],
                       LN_MAX_DIMS);
    *ndim = word[3];
    for (int i = 0; i < *ndim; i++) {
        status = source_read(s, word, 4, "header");
        if (status != LN_OK) return status;
        shape[i] = big_endian(word);
    }
    return LN_OK;
}

/* An empty extent does not excuse the others: together they must be a size. */
static ln_status check_shape(const source *s, int ndim, const int64_t *shape) {
    int64_t bytes = 1, content = 1;
    bool overflow = false;
    for (int i = 0; i < ndim; i++) {
        overflow |= __builtin_mul_overflow(bytes, shape[i] > 0 ? shape[i] : 1, &bytes);
        content = shape[i] == 0 ? 0 : content;
    }
    if (overflow || bytes > INT64_MAX / 16)
        return ln_fail(LN_BAD_DATA, "'%s': shape %s overflows", s->path,
                       ln_text_shape(ndim, shape));
    int64_t header = 4 + 4 * (int64_t)ndim, limit = source_limit(s);
    if (content != 0 && bytes > limit - header)
        return ln_fail(LN_BAD_DATA,
                       "'%s': truncated: shape %s takes %lld bytes and %lld can be there", s->path,
                       ln_text_shape(ndim, shape), (long long)bytes, (long long)(limit - header));
    return LN_OK;
}

ln_status ln_idx_read(ln_tensor **out, const char *path) {
    int ndim = 0;
    int64_t shape[LN_MAX_DIMS];
    ln_tensor *t = NULL;
    source *s = malloc(sizeof *s);
    if (s == NULL) return ln_fail(LN_OUT_OF_MEMORY, "'%s': out of memory to read it", path);
    ln_status status;
    LN_TRY(source_open(s, path));
    LN_TRY(read_shape(s, &ndim, shape));
    LN_TRY(check_shape(s, ndim, shape));
    LN_TRY(ln_tensor_empty(&t, LN_UINT8, LN_CPU, ndim, shape));
    LN_TRY(source_read(s, t->data, t->numel, "data"));
    LN_TRY(source_end(s));
    *out = t;
    t = NULL;
fail:
    ln_tensor_release(t);
    source_close(s);
    free(s);
    return status;
}
