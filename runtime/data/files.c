/* Files: whole reads at an offset, and writes that appear at once or not at all. Knows bytes and
 * tensors, no formats. Invariants: nothing is read past the size that the file had when it was
 * opened; the path of a file being written is touched by the final rename only. */
#define _GNU_SOURCE /* asprintf */
#include "backend.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors in files are little-endian");

enum { CHUNK = 16 << 20 }; /* bytes between two looks at the interrupt flag */

struct ln_file {
    int fd;
    int64_t size;
    char *path;
    char *temporary; /* where the bytes lie until commit; NULL for a file that is read */
};

static ln_status fail_errno(const char *path, const char *verb) {
    return ln_fail(LN_IO, "'%s': cannot %s: %s", path, verb, strerror(errno));
}

/* NULL, with the message set, when there is no memory. */
static ln_file *file_new(const char *path) {
    ln_file *f = calloc(1, sizeof *f);
    char *copy = strdup(path);
    if (f == NULL || copy == NULL) {
        ln_fail(LN_OUT_OF_MEMORY, "'%s': out of memory for a handle", path);
        free(f);
        free(copy);
        return NULL;
    }
    *f = (ln_file){.fd = -1, .path = copy};
    return f;
}

ln_status ln_file_open(ln_file **out, const char *path) {
    ln_status status = LN_OK;
    ln_file *f = file_new(path);
    if (f == NULL) return LN_OUT_OF_MEMORY;
    struct stat info;
    f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not block the open */
    if (f->fd < 0 && (errno == ENOENT || errno == ENOTDIR))
        status = ln_fail(LN_NOT_FOUND, "'%s': no such file", path);
    else if (f->fd < 0 || fstat(f->fd, &info) != 0) status = fail_errno(path, "open it");
    else if (!S_ISREG(info.st_mode)) status = ln_fail(LN_IO, "'%s': not a regular file", path);
    if (status != LN_OK) {
        ln_file_close(f);
        return status;
    }
    f->size = info.st_size;
    *out = f;
    return LN_OK;
}

ln_status ln_file_create(ln_file **out, const char *path) {
    static atomic_uint serial;
    ln_status status = LN_OK;
    ln_file *f = file_new(path);
    if (f == NULL) return LN_OUT_OF_MEMORY;
    unsigned number = atomic_fetch_add(&serial, 1);
    if (asprintf(&f->temporary, "%s.tmp-%d-%u", path, (int)getpid(), number) < 0) {
        f->temporary = NULL;
        status = ln_fail(LN_OUT_OF_MEMORY, "'%s': out of memory for a name", path);
    } else if ((f->fd = open(f->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666)) < 0) {
        status = fail_errno(path, "create it");
    }
    if (status != LN_OK) {
        ln_file_close(f);
        return status;
    }
    *out = f;
    return LN_OK;
}

void ln_file_close(ln_file *f) {
    if (f == NULL) return;
    if (f->fd >= 0) {
        close(f->fd);
        if (f->temporary != NULL) unlink(f->temporary);
    }
    free(f->temporary);
    free(f->path);
    free(f);
}

int64_t ln_file_size(const ln_file *f) {
    return f->size;
}

static int64_t chunk_of(int64_t n) {
    return n < CHUNK ? n : CHUNK;
}

ln_status ln_file_read(void *dst, ln_file *f, int64_t offset, int64_t n) {
    if (offset < 0 || n < 0 || offset > f->size || n > f->size - offset)
        return ln_fail(LN_BAD_DATA,
                       "'%s': truncated: %lld bytes at offset %lld do not fit its %lld", f->path,
                       (long long)n, (long long)offset, (long long)f->size);
    for (int64_t done = 0; done < n;) {
        if (ln_interrupted()) return ln_fail(LN_INTERRUPTED, "'%s': interrupted", f->path);
        ssize_t got = pread(f->fd, (char *)dst + done, (size_t)chunk_of(n - done), offset + done);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return fail_errno(f->path, "read it");
        if (got == 0)
            return ln_fail(LN_BAD_DATA, "'%s': became shorter while it was read", f->path);
        done += got;
    }
    return LN_OK;
}

static ln_status check_host(const ln_file *f, const ln_tensor *t) {
    if (ln_device(t) == LN_CPU && ln_is_contiguous(t)) return LN_OK;
    return ln_fail(LN_BAD_ARGUMENT, "'%s': a contiguous tensor on the cpu is taken", f->path);
}

ln_status ln_file_read_tensor(ln_tensor *dst, ln_file *f, int64_t offset) {
    ln_status status = check_host(f, dst);
    if (status != LN_OK) return status;
    int64_t bytes = dst->numel * (int64_t)ln_dtype_size(dst->dtype);
    ln_wrote(dst);
    status = ln_file_read(dst->data, f, offset, bytes);
    if (status != LN_OK || dst->dtype != LN_BOOL) return status;
    unsigned char *p = (unsigned char *)dst->data;
    for (int64_t i = 0; i < bytes; i++) {
        if (p[i] <= 1) continue;
        status = ln_fail(LN_BAD_DATA, "'%s': byte %lld is %d where a bool is 0 or 1", f->path,
                         (long long)(offset + i), p[i]);
        memset(p, 0, (size_t)bytes); /* no kernel may meet it */
        return status;
    }
    return LN_OK;
}

static ln_status check_writing(const ln_file *f) {
    if (f->temporary != NULL && f->fd >= 0) return LN_OK;
    return ln_fail(LN_BAD_ARGUMENT, "'%s': not open for writing", f->path);
}

ln_status ln_file_write(ln_file *f, const void *bytes, int64_t n) {
    ln_status status = check_writing(f);
    if (status != LN_OK) return status;
    for (int64_t done = 0; done < n;) {
        if (ln_interrupted()) return ln_fail(LN_INTERRUPTED, "'%s': interrupted", f->path);
        ssize_t put = write(f->fd, (const char *)bytes + done, (size_t)chunk_of(n - done));
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return fail_errno(f->path, "write it");
        done += put;
    }
    return LN_OK;
}

ln_status ln_file_write_tensor(ln_file *f, const ln_tensor *t) {
    ln_status status = check_host(f, t);
    if (status == LN_OK) status = ln_check_inputs("write", 1, &t);
    if (status != LN_OK) return status;
    return ln_file_write(f, t->data, t->numel * (int64_t)ln_dtype_size(t->dtype));
}

/* A rename is durable once its directory is flushed. */
static ln_status flush_directory(const char *path) {
    const char *slash = strrchr(path, '/');
    char *name = slash == NULL ? strdup(".") : strndup(path, (size_t)(slash - path) + 1);
    if (name == NULL) return ln_fail(LN_OUT_OF_MEMORY, "'%s': out of memory for a name", path);
    int fd = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(name);
    /* Some file systems refuse to flush a directory; there the rename is all that can be had. */
    bool flushed = fd >= 0 && (fsync(fd) == 0 || errno == EINVAL);
    if (fd >= 0) close(fd);
    return flushed ? LN_OK : fail_errno(path, "flush its directory");
}

ln_status ln_file_commit(ln_file *f) {
    ln_status status = check_writing(f);
    if (status != LN_OK) return status;
    if (fsync(f->fd) != 0) return fail_errno(f->path, "flush it");
    if (rename(f->temporary, f->path) != 0) return fail_errno(f->path, "rename onto it");
    close(f->fd);
    f->fd = -1;
    return flush_directory(f->path);
}
