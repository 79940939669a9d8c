/* Packed rows from pieces of documents: see fill_rows.py, whose numpy code is the definition. */
#include <stdint.h>
#include <string.h>

enum { BOS = 1, EOS = 2, PREFETCHED = 16 };
enum { PLACE, LENGTH, BLOCK, KIND, BIT, COLUMNS };

typedef struct {
    const int64_t *span_starts; /* [d + 1] */
    const int32_t *spans;       /* [s, COLUMNS] */
    const void **ids;           /* [b]: NULL until the block is open */
    const uint8_t **bits;       /* [b]: packed patch starts or NULL */
    const uint8_t *wide;        /* [b] */
} Documents;

typedef struct {
    const int64_t *documents, *starts, *stops, *again; /* [p] */
    const int64_t *rows;                               /* [r + 1] */
} Pieces;

typedef struct {
    const int64_t *start, *begin, *end; /* [k] */
    const uint8_t *modality;            /* [k] */
} Kinds;

typedef struct {
    int64_t *tokens;
    uint8_t *modality;
    int32_t *document, *position;
    uint8_t *loss_mask, *patch_starts;
} Out;

static void lift16(int64_t *restrict out, const uint16_t *restrict ids, int64_t n, int64_t start) {
    for (int64_t i = 0; i < n; i++) out[i] = ids[i] + start;
}

static void lift32(int64_t *restrict out, const uint32_t *restrict ids, int64_t n, int64_t start) {
    for (int64_t i = 0; i < n; i++) out[i] = ids[i] + start;
}

static void unpack(uint8_t *restrict out, const uint8_t *restrict bits, int64_t first, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = bits[(first + i) >> 3] >> (7 - ((first + i) & 7)) & 1;
}

/* Everything but the tokens, which is the same for a whole piece or a span of it. */
static void fill_masks(const Out *out, int64_t at, int64_t n, int32_t number, int32_t place) {
    int32_t *restrict document = out->document + at, *restrict position = out->position + at;
    memset(out->modality + at, 0, n);
    for (int64_t i = 0; i < n; i++) document[i] = number;
    if (number < 0) {
        memset(position, 0, n * sizeof(int32_t));
        memset(out->loss_mask + at, 0, n);
        return;
    }
    for (int64_t i = 0; i < n; i++) position[i] = place + (int32_t)i;
    memset(out->loss_mask + at, 1, n - 1);
    out->loss_mask[at + n - 1] = 0;
}

/* One piece, from place `start` to `stop` of its document; `at` is where it begins in the rows.
 * Returns 1 if a span of it has patch starts. */
static int fill_piece(const Documents *d, const Kinds *kinds, int64_t document, int64_t start,
                      int64_t stop, int64_t again, const Out *out, int64_t at) {
    int64_t place = 1, shift = at + again - start;
    int found = 0;
    int64_t *tokens = out->tokens;
    if (start == 0) tokens[at] = BOS;
    const int32_t *span = d->spans + d->span_starts[document] * COLUMNS;
    const int32_t *last = d->spans + d->span_starts[document + 1] * COLUMNS;
    for (; span < last && place < stop; span += COLUMNS) {
        int64_t kind = span[KIND], marked = kinds->begin[kind] >= 0;
        int64_t begin = place + marked, end = begin + span[LENGTH];
        int64_t a = begin > start ? begin : start, b = end < stop ? end : stop;
        if (again && start >= begin && start < end) tokens[at] = kinds->begin[kind];
        if (marked && place >= start && place < stop) tokens[place + shift] = kinds->begin[kind];
        if (b > a) {
            int64_t from = span[PLACE] + a - begin, to = a + shift, block = span[BLOCK];
            const void *ids = d->ids[block];
            if (d->wide[block])
                lift32(tokens + to, (const uint32_t *)ids + from, b - a, kinds->start[kind]);
            else
                lift16(tokens + to, (const uint16_t *)ids + from, b - a, kinds->start[kind]);
            if (out->modality && kinds->modality[kind])
                memset(out->modality + to, kinds->modality[kind], b - a);
            if (out->patch_starts && span[BIT] >= 0) {
                unpack(out->patch_starts + to, d->bits[block], span[BIT] + a - begin, b - a);
                found = 1;
            }
        }
        if (marked && end >= start && end < stop) tokens[end + shift] = kinds->end[kind];
        place = end + marked;
    }
    if (span == last && place < stop && place >= start) tokens[place + shift] = EOS;
    return found;
}

static int64_t number(const int64_t *numbers, int64_t first, int64_t i) {
    return numbers ? numbers[i] : first + i;
}

/* For each piece `q` of row i that belongs to a document. */
#define EACH_DOCUMENT(q, i)                                                                \
    for (int64_t r_ = number(rows, row, i), q = p->rows[r_]; q < p->rows[r_ + 1]; q++)     \
        if (p->documents[q] >= 0)

/* The first block that the rows need and that is not open, or -1. Meanwhile what they need is
 * fetched into the processor's cache, all of one level before the next: the memory answers many
 * questions at a time. */
static int64_t closed_block(const Documents *d, const Pieces *p, int64_t n, const int64_t *rows,
                            int64_t row) {
    for (int64_t i = 0; i < n; i++)
        EACH_DOCUMENT(q, i) __builtin_prefetch(d->span_starts + p->documents[q]);
    for (int64_t i = 0; i < n; i++)
        EACH_DOCUMENT(q, i)
            __builtin_prefetch(d->spans + d->span_starts[p->documents[q]] * COLUMNS);
    for (int64_t i = 0; i < n; i++)
        EACH_DOCUMENT(q, i) {
            int64_t first = d->span_starts[p->documents[q]];
            int64_t last = d->span_starts[p->documents[q] + 1];
            for (int64_t s = first; s < last; s++) {
                int32_t block = d->spans[s * COLUMNS + BLOCK];
                if (!d->ids[block]) return block;
            }
            if (first == last) continue;
            const int32_t *span = d->spans + first * COLUMNS;
            int64_t size = d->wide[span[BLOCK]] ? 4 : 2;
            int64_t skip = p->starts[q] < span[LENGTH] ? p->starts[q] : 0;
            const char *from = d->ids[span[BLOCK]];
            from += (span[PLACE] + skip) * size;
            int64_t bytes = (span[LENGTH] - skip) * size;
            for (int64_t at = 0; at < bytes && at < 64 * PREFETCHED; at += 64)
                __builtin_prefetch(from + at);
        }
    return -1;
}

/* Rows of the pieces to rows of `out`, T tokens each: rows[i] to to[i], or where there are no
 * lists, row + i to first + i. Returns a block to be opened before another call; or -1, or -2 if
 * there were patch starts, or -3 if a row is too long. */
int64_t fill_rows(const Documents *d, const Pieces *p, const Kinds *kinds, int64_t T, int64_t n,
                  int64_t row, const int64_t *rows, int64_t first, const int64_t *to,
                  int64_t *tokens, uint8_t *modality, int32_t *document, int32_t *position,
                  uint8_t *loss_mask, uint8_t *patch_starts) {
    Out out = {tokens, modality, document, position, loss_mask, patch_starts};
    int patched = 0;
    int64_t closed = closed_block(d, p, n, rows, row);
    if (closed >= 0) return closed;
    for (int64_t i = 0; i < n; i++) {
        int64_t r = number(rows, row, i), at = number(to, first, i) * T, row_end = at + T;
        if (patch_starts) memset(patch_starts + at, 0, T);
        for (int64_t q = p->rows[r]; q < p->rows[r + 1]; q++) {
            int64_t of = p->documents[q], start = p->starts[q], stop = p->stops[q];
            int64_t again = p->again[q], size = stop - start + again;
            if (size <= 0) continue;
            if (at + size > row_end) return -3;
            int32_t place = of < 0 ? -1 : (int32_t)(q - p->rows[r]);
            if (modality) fill_masks(&out, at, size, place, (int32_t)start);
            if (of < 0)
                memset(tokens + at, 0, size * sizeof(int64_t));
            else
                patched |= fill_piece(d, kinds, of, start, stop, again, &out, at);
            at += size;
        }
    }
    return patched ? -2 : -1;
}
