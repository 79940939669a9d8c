/* Patch starts over documents back to back, one byte after another, and entropies of contexts.
 *
 * Every function takes n items, m document starts among them (rising, at most n), and a State that
 * is carried from one call to the next, so that a text cut anywhere gives the same starts. */

#include <math.h>
#include <stdint.h>

typedef struct {
    int64_t length;  /* bytes in the open patch; 0 before the first byte of a document */
    int64_t context; /* the last bytes of the document, the newest lowest */
    int64_t known;   /* how many bytes of the document were seen, at most 3 */
    float entropy;   /* of the last byte */
} State;

/* For each document or part of one: items a .. b - 1. `fresh` where a document begins at a. */
#define EACH_PART(n, m, firsts, a, b, fresh)                                              \
    for (int64_t k_ = -1, a = 0, b, fresh;                                                \
         k_ < (m) && (fresh = k_ >= 0, a = fresh ? (firsts)[k_] : 0,                      \
                      b = k_ + 1 < (m) ? (firsts)[k_ + 1] : (n), 1);                      \
         k_++)

static inline int64_t most(int64_t max_patch) { return max_patch > 0 ? max_patch : INT64_MAX; }

/* A patch every `size` bytes of a document. */
void mark_stride(int64_t n, int64_t m, const int64_t *firsts, int64_t size, State *state,
                 uint8_t *starts) {
    int64_t length = state->length;
    EACH_PART(n, m, firsts, a, b, fresh) {
        if (fresh) length = 0;
        for (int64_t i = a; i < b; i++) {
            int start = (length == 0) | (length == size);
            length = start ? 1 : length + 1;
            starts[i] = start;
        }
    }
    state->length = length;
}

/* A patch where entropy > threshold and entropy - the one before > rise. */
void mark_entropy(int64_t n, const float *entropies, int64_t m, const int64_t *firsts,
                  float threshold, float rise, int64_t max_patch, State *state, uint8_t *starts) {
    int64_t length = state->length, longest = most(max_patch);
    float before = state->entropy;
    EACH_PART(n, m, firsts, a, b, fresh) {
        if (fresh) length = 0;
        for (int64_t i = a; i < b; i++) {
            float entropy = entropies[i], risen = entropy - before;
            int start = (length == 0) | (length == longest);
            start |= (entropy > threshold) & (risen > rise);
            length = (length & ((int64_t)start - 1)) + 1; /* 1 at a start: no branch to guess */
            before = entropy;
            starts[i] = start;
        }
    }
    state->length = length;
    state->entropy = before;
}

/* A patch after the first byte of each run of bytes that `separates` [256] marks with 1. */
void mark_separators(int64_t n, const uint8_t *bytes, int64_t m, const int64_t *firsts,
                     const uint8_t *separates, int64_t max_patch, State *state, uint8_t *starts) {
    int64_t length = state->length, longest = most(max_patch);
    /* Bit 0: the last byte separates; bit 1: the one before it does. */
    unsigned last = state->known > 0 && separates[state->context & 255];
    last |= (unsigned)(state->known > 1 && separates[state->context >> 8 & 255]) << 1;
    int64_t begun = n;
    EACH_PART(n, m, firsts, a, b, fresh) {
        if (fresh) length = 0, last = 0, begun = a;
        for (int64_t i = a; i < b; i++) {
            int start = (length == 0) | (length == longest) | (last == 1);
            length = start ? 1 : length + 1;
            last = (last << 1 | separates[bytes[i]]) & 3;
            starts[i] = start;
        }
    }
    if (m) state->known = 0;
    for (int64_t i = m ? (begun > n - 3 ? begun : n - 3) : (n > 3 ? n - 3 : 0); i < n; i++) {
        state->context = (state->context << 8 | bytes[i]) & 0xffffff;
        if (state->known < 3) state->known++;
    }
    state->length = length;
}

/* The entropy of each byte from the three before it in its document: order3 [2^24] by the context
 * of three bytes, and of the first three bytes order0 [1], order1 [256] and order2 [2^16].
 * Entropies are in `unit`s. */
void context_entropies(int64_t n, const uint8_t *bytes, int64_t m, const int64_t *firsts,
                       const uint16_t *order0, const uint16_t *order1, const uint16_t *order2,
                       const uint16_t *order3, float unit, State *state, float *entropies) {
    const uint16_t *orders[] = {order0, order1, order2};
    uint32_t context = (uint32_t)state->context;
    int64_t known = state->known;
    EACH_PART(n, m, firsts, a, b, fresh) {
        if (fresh) context = 0, known = 0;
        int64_t i = a;
        for (; i < b && known < 3; i++, known++) {
            entropies[i] = unit * orders[known][context & ((1u << 8 * known) - 1)];
            context = (context << 8 | bytes[i]) & 0xffffff;
        }
        for (; i < b; i++) {
            entropies[i] = unit * order3[context];
            context = (context << 8 | bytes[i]) & 0xffffff;
        }
    }
    state->context = context;
    state->known = known;
}
