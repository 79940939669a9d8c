/* product_keys.py's look-up, float32: the best k sums of two lists of n scores, for each row.
 *
 * The best k of a list are among the values that reach a bound: the k-th largest of the maxima of
 * 2 k groups or more (k of these are k values, all as large). What reaches it, some 1.5 k of 1024
 * values, is sorted. A group has every so many-th value, so that all maxima are taken at once. Of two sorted lists the best sums are picked one by one: in row a of the table
 * of sums only the next column waits, and row a + 1 has its turn after row a was picked once.
 *
 * Values and places are sorted as one integer, so that of equal values the first comes first, always.
 * NaN counts as larger than all. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { GROUP = 16 };  /* the most that a group has */

/* Rises with the value, and falls with the place among equal values. */
static inline uint64_t key_of(float value, uint32_t place) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits = value != value ? 0x7fc00000u : bits;
    bits ^= (uint32_t)((int32_t)bits >> 31) | 0x80000000u;
    return (uint64_t)bits << 32 | (0xffffffffu - place);
}

static inline uint32_t place_of(uint64_t key) { return 0xffffffffu - (uint32_t)key; }

static inline float value_of(uint64_t key) {
    uint32_t bits = (uint32_t)(key >> 32);
    bits ^= (bits >> 31) ? 0x80000000u : 0xffffffffu;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static int falling(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x < y) - (x > y);
}

/* A few keys go to their ranks, each the number of larger ones, without a branch to guess wrong. */
static void sort_falling(uint64_t *restrict keys, int64_t n) {
    enum { FEW = 96 };
    if (n > FEW) {
        qsort(keys, n, sizeof(uint64_t), falling);
        return;
    }
    uint64_t rank[FEW] = {0}, sorted[FEW];
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < n; i++) rank[i] += keys[j] > keys[i];
    for (int64_t i = 0; i < n; i++) sorted[rank[i]] = keys[i];
    memcpy(keys, sorted, n * sizeof(uint64_t));
}

/* The best k keys of n scores, falling, in room for n of them. `most` and `above` have room for n:
 * each group's largest score, and how many of these are no smaller. */
static void best_of(const float *restrict scores, int64_t n, int64_t k, uint64_t *restrict keys,
                    float *restrict most, int32_t *restrict above) {
    int64_t size = GROUP, count = 0;
    while (size > 1 && n < 2 * k * size) size /= 2;
    const int64_t groups = n / size;
    memcpy(most, scores, groups * sizeof(float));
    for (int64_t i = groups; i < n; i += groups) {
        const int64_t here = n - i < groups ? n - i : groups;
        for (int64_t g = 0; g < here; g++) {
            const float was = most[g], score = scores[i + g];
            most[g] = (score <= was) | (was != was) ? was : score;
        }
    }
    float bound = -INFINITY;
    if (size > 1) {
        memset(above, 0, groups * sizeof(int32_t));
        for (int64_t h = 0; h < groups; h++)
            for (int64_t g = 0; g < groups; g++) above[g] += most[h] >= most[g];
        for (int64_t g = 0; g < groups; g++)
            if (above[g] >= k && most[g] > bound) bound = most[g];
    }
    for (int64_t g = 0; g < groups; g++)
        if (!(most[g] < bound))
            for (int64_t i = g; i < n; i += groups) {
                keys[count] = key_of(scores[i], (uint32_t)i);
                count += !(scores[i] < bound);
            }
    sort_falling(keys, count);
}

/* out_scores and out_slots [rows, k], falling; scores1 and scores2 [rows, n]. */
void best_sums(int64_t rows, int64_t n, int64_t k, int threads, const float *scores1,
               const float *scores2, float *out_scores, int64_t *out_slots) {
#pragma omp parallel num_threads(threads)
    {
        uint64_t *first = malloc(n * sizeof(uint64_t)), *second = malloc(n * sizeof(uint64_t));
        float *value1 = malloc(k * sizeof(float)), *value2 = malloc(k * sizeof(float));
        float *next = malloc(k * sizeof(float)), *most = malloc(n * sizeof(float));
        int32_t *above = malloc(n * sizeof(int32_t));
        int64_t *column = malloc(k * sizeof(int64_t));
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            best_of(scores1 + row * n, n, k, first, most, above);
            best_of(scores2 + row * n, n, k, second, most, above);
            for (int64_t i = 0; i < k; i++) {
                value1[i] = value_of(first[i]);
                value2[i] = value_of(second[i]);
            }
            int64_t open = 1;
            column[0] = 0;
            next[0] = value1[0] + value2[0];
            for (int64_t picked = 0; picked < k; picked++) {
                int64_t best = 0;
                for (int64_t a = 1; a < open; a++)
                    if (next[a] > next[best]) best = a;
                out_scores[row * k + picked] = next[best];
                out_slots[row * k + picked] =
                    (int64_t)place_of(first[best]) * n + place_of(second[column[best]]);
                column[best]++;
                next[best] = column[best] < k ? value1[best] + value2[column[best]] : -1.0f / 0.0f;
                if (best == open - 1 && open < k) {
                    column[open] = 0;
                    next[open] = value1[open] + value2[0];
                    open++;
                }
            }
        }
        free(first), free(second), free(value1), free(value2), free(next), free(column), free(most), free(above);
    }
}
