/* Counts of token ids and hashes of documents in one pass: see count_tokens.py, whose numpy code is
   the definition. A hash is XXH64 (Yann Collet), written from its specification. */
#include <stdint.h>
#include <string.h>

enum { LANES = 4, CHUNK = 1024 };
static const uint64_t P1 = 0x9E3779B185EBCA87ull, P2 = 0xC2B2AE3D27D4EB4Full,
                      P3 = 0x165667B19E3779F9ull, P4 = 0x85EBCA77C2B2AE63ull,
                      P5 = 0x27D4EB2F165667C5ull;

typedef struct {
    uint64_t seed, lane[4];
} Hash;

static uint64_t turn(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

static uint64_t read64(const uint8_t *p) {
    uint64_t x;
    memcpy(&x, p, 8);
    return x;
}

static uint64_t round64(uint64_t sum, uint64_t word) { return turn(sum + word * P2, 31) * P1; }

static Hash begin(uint64_t seed) {
    return (Hash){seed, {seed + P1 + P2, seed + P2, seed, seed - P1}};
}

static void take_stripes(Hash *h, const uint8_t *p, int64_t stripes) {
    uint64_t a = h->lane[0], b = h->lane[1], c = h->lane[2], d = h->lane[3];
    for (int64_t i = 0; i < stripes; i++, p += 32) {
        a = round64(a, read64(p));
        b = round64(b, read64(p + 8));
        c = round64(c, read64(p + 16));
        d = round64(d, read64(p + 24));
    }
    h->lane[0] = a, h->lane[1] = b, h->lane[2] = c, h->lane[3] = d;
}

/* The hash of `size` bytes, of which all but `size % 32` at `tail` were taken. */
static uint64_t finish(const Hash *h, uint64_t size, const uint8_t *tail) {
    uint64_t x = h->seed + P5;
    if (size >= 32) {
        const uint64_t *v = h->lane;
        x = turn(v[0], 1) + turn(v[1], 7) + turn(v[2], 12) + turn(v[3], 18);
        for (int i = 0; i < 4; i++) x = (x ^ round64(0, v[i])) * P1 + P4;
    }
    x += size;
    int rest = size % 32;
    for (; rest >= 8; rest -= 8, tail += 8) x = turn(x ^ round64(0, read64(tail)), 27) * P1 + P4;
    if (rest >= 4) {
        uint32_t word;
        memcpy(&word, tail, 4);
        x = turn(x ^ word * P1, 23) * P2 + P3;
        rest -= 4, tail += 4;
    }
    for (; rest; rest--, tail++) x = turn(x ^ *tail * P5, 11) * P1;
    x = (x ^ x >> 33) * P2;
    x = (x ^ x >> 29) * P3;
    return x ^ x >> 32;
}

static uint64_t hash_bytes(const void *data, uint64_t size, uint64_t seed) {
    Hash h = begin(seed);
    take_stripes(&h, data, size / 32);
    return finish(&h, size, (const uint8_t *)data + size / 32 * 32);
}

/* Wide ids that would fit in two bytes hash as if they had two. */
static uint64_t hash_narrow(const uint32_t *ids, int64_t n, uint64_t seed) {
    Hash h = begin(seed);
    uint16_t part[CHUNK];
    for (int64_t at = 0;; at += CHUNK) {
        int64_t m = n - at < CHUNK ? n - at : CHUNK;
        for (int64_t i = 0; i < m; i++) part[i] = (uint16_t)ids[at + i];
        take_stripes(&h, (const uint8_t *)part, m / 16);
        if (m < CHUNK) return finish(&h, 2 * n, (const uint8_t *)(part + m / 16 * 16));
    }
}

#define COUNT(NAME, TYPE)                                                                      \
    static uint32_t NAME(const TYPE *restrict ids, int64_t n, uint32_t *restrict counts,       \
                         int64_t stride, uint32_t size) {                                      \
        TYPE top = 0;                                                                          \
        for (int64_t i = 0; i < n; i++) top = ids[i] > top ? ids[i] : top;                     \
        if (top >= size) return top;                                                           \
        int64_t i = 0;                                                                         \
        for (; i + LANES <= n; i += LANES)                                                     \
            for (int lane = 0; lane < LANES; lane++) counts[lane * stride + ids[i + lane]]++;  \
        for (; i < n; i++) counts[ids[i]]++;                                                   \
        return top;                                                                            \
    }
COUNT(count16, uint16_t)
COUNT(count32, uint32_t)

/* Returns the first span that holds an id beyond its vocabulary, else -1. */
int64_t count_tokens(const void *ids, int64_t wide, const int64_t *kinds, const uint64_t *shapes,
                     const int64_t *documents, int64_t n_documents, const int64_t *sizes,
                     const int64_t *starts, uint32_t *counts, int64_t stride, uint64_t *hashes) {
    const uint16_t *ids16 = ids;
    const uint32_t *ids32 = ids;
    int64_t at = 0, span = 0;
    for (int64_t d = 0; d < n_documents; d++) {
        int64_t first = span, start = at;
        uint32_t top = 0;
        for (; span < first + documents[d]; span++) {
            int64_t n = shapes[2 * span + 1], kind = kinds[span];
            uint32_t *own = counts + starts[kind], size = sizes[kind];
            uint32_t found = wide ? count32(ids32 + at, n, own, stride, size)
                                  : count16(ids16 + at, n, own, stride, size);
            if (found >= size && n) return span;
            top = found > top ? found : top;
            at += n;
        }
        uint64_t seed = hash_bytes(shapes + 2 * first, 16 * documents[d], 0);
        int64_t n = at - start;
        hashes[d] = !wide           ? hash_bytes(ids16 + start, 2 * n, seed)
                    : top >> 16     ? hash_bytes(ids32 + start, 4 * n, seed)
                                    : hash_narrow(ids32 + start, n, seed);
    }
    return -1;
}
