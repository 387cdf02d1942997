/* Decoding of JPEG, PNG and BMP through stb_image, whose only includer this is. Our own checks of a
 * file's integrity and size come first, since stb_image decodes cut and damaged files without a
 * word. Invariant: stb_image sees only images within the pixel budget that have their end. */
#include "backend.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { PIXEL_BUDGET = 64 << 20 };

/* stb_image's memory. Zeroed, so that what a damaged stream leaves out does not vary; bounded by
 * the largest image (16-bit RGBA), so that a small PNG cannot inflate without end. */
static void *stb_new(size_t n) {
    return n > PIXEL_BUDGET * 9UL ? NULL : calloc(1, n);
}

static void *stb_resize(void *p, size_t n) {
    return n > PIXEL_BUDGET * 9UL ? NULL : realloc(p, n);
}

#define STB_IMAGE_IMPLEMENTATION
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#define STBI_ONLY_BMP
#define STBI_NO_STDIO
#define STBI_NO_LINEAR
#define STBI_MAX_DIMENSIONS 65536
#define STBI_MALLOC(n) stb_new(n)
#define STBI_REALLOC(p, n) stb_resize(p, n)
#define STBI_FREE(p) free(p)
#include <stb/stb_image.h>

typedef struct {
    const unsigned char *p;
    size_t n;
} bytes;

static ln_status damaged(const char *fault) {
    return ln_fail(LN_BAD_DATA, "image: %s", fault);
}

static uint32_t big_endian(const unsigned char *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static uint32_t little_endian(const unsigned char *p) {
    return (uint32_t)p[3] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[1] << 8 | p[0];
}

/* Walks a JPEG's segments to its end-of-image marker: lengths are jumped over, so that a preview
 * inside a segment is not taken for the image, and the scans' coded data is searched. */
static ln_status check_jpeg(bytes b) {
    size_t i = 2;
    bool scan = false;
    while (i + 1 < b.n) {
        int marker = b.p[i + 1];
        bool coded = b.p[i] != 0xff || marker == 0x00 || (marker >= 0xd0 && marker <= 0xd7);
        if (scan && coded) {
            const unsigned char *next = memchr(b.p + i + 1, 0xff, b.n - i - 1);
            if (next == NULL) break;
            i = (size_t)(next - b.p);
        } else if (b.p[i] != 0xff) {
            return damaged("damaged JPEG: a segment does not end at a marker");
        } else if (marker == 0xff || marker == 0x01) {
            i += marker == 0xff ? 1 : 2; /* padding; a marker without a segment */
        } else if (marker == 0xd9) {
            return LN_OK;
        } else {
            if (i + 4 > b.n) break;
            scan = marker == 0xda;
            i += 2 + (size_t)(b.p[i + 2] << 8 | b.p[i + 3]);
        }
    }
    return damaged("truncated JPEG: it has no end-of-image marker");
}

static ln_status check_png(bytes b) {
    for (size_t i = 8; b.n - i >= 12;) {
        size_t length = big_endian(b.p + i);
        if (length > b.n - i - 12) break;
        uint32_t crc = (uint32_t)crc32(0, b.p + i + 4, (unsigned)length + 4);
        if (crc != big_endian(b.p + i + 8 + length))
            return damaged("damaged PNG: a chunk's checksum is wrong");
        if (memcmp(b.p + i + 4, "IEND", 4) == 0) return LN_OK;
        i += length + 12;
    }
    return damaged("truncated PNG: it has no IEND chunk");
}

static ln_status check_bmp(bytes b) {
    if (b.n < 30) return damaged("truncated BMP: its header is not whole");
    uint64_t offset = little_endian(b.p + 10), width, height, bits;
    if (little_endian(b.p + 14) == 12) { /* the oldest header has 16-bit sizes */
        width = little_endian(b.p + 18) & 0xffff;
        height = little_endian(b.p + 18) >> 16;
        bits = little_endian(b.p + 22) >> 16;
    } else {
        int32_t signed_height = (int32_t)little_endian(b.p + 22); /* negative: top row first */
        width = little_endian(b.p + 18);
        height = (uint64_t)llabs(signed_height);
        bits = little_endian(b.p + 26) >> 16;
    }
    uint64_t row = (width * bits + 31) / 32 * 4;
    if (height > 0 && (offset > b.n || row > (b.n - offset) / height))
        return damaged("truncated BMP: its rows are not all there");
    return LN_OK;
}

static ln_status check_format(bytes b) {
    static const unsigned char png[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
    if (b.n >= 3 && b.p[0] == 0xff && b.p[1] == 0xd8 && b.p[2] == 0xff) return check_jpeg(b);
    if (b.n >= 8 && memcmp(b.p, png, 8) == 0) return check_png(b);
    if (b.n >= 2 && b.p[0] == 'B' && b.p[1] == 'M') return check_bmp(b);
    return damaged("neither JPEG, PNG nor BMP");
}

static ln_status check_image(bytes b) {
    int width, height, channels;
    if (b.n > INT32_MAX) return damaged("larger than 2 GiB");
    ln_status status = check_format(b);
    if (status != LN_OK) return status;
    if (!stbi_info_from_memory(b.p, (int)b.n, &width, &height, &channels))
        return ln_fail(LN_BAD_DATA, "image: header not understood: %s", stbi_failure_reason());
    if (width < 1 || height < 1) return damaged("it has no pixels");
    if ((int64_t)width * height > PIXEL_BUDGET)
        return ln_fail(LN_BAD_DATA, "image: %d x %d pixels; at most 64 megapixels are taken", width,
                       height);
    return LN_OK;
}

/* (H,W,C) to (C,H,W). */
static void split_planes(unsigned char *dst, const unsigned char *src, int64_t pixels,
                         int channels) {
    for (int c = 0; c < channels; c++)
        for (int64_t i = 0; i < pixels; i++) dst[c * pixels + i] = src[i * channels + c];
}

ln_status ln_image_decode(ln_tensor **out, const void *data, int64_t n, int channels) {
    bytes b = {data, n > 0 ? (size_t)n : 0};
    ln_tensor *t = NULL;
    unsigned char *pixels = NULL;
    int width, height, own_channels;
    if (channels != 1 && channels != 3)
        return ln_fail(LN_BAD_ARGUMENT, "image: got channels %d; 1 and 3 are taken", channels);
    ln_status status;
    LN_TRY(check_image(b));
    pixels = stbi_load_from_memory(b.p, (int)b.n, &width, &height, &own_channels, channels);
    if (pixels == NULL) {
        status = ln_fail(LN_BAD_DATA, "image: cannot be decoded: %s", stbi_failure_reason());
        goto fail;
    }
    LN_TRY(ln_tensor_empty(&t, LN_UINT8, LN_CPU, 3, (int64_t[]){channels, height, width}));
    split_planes((unsigned char *)t->data, pixels, (int64_t)width * height, channels);
    *out = t;
    t = NULL;
fail:
    stbi_image_free(pixels);
    ln_tensor_release(t);
    return status;
}
