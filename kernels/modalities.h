/* Rows sorted by modality, in tasks of TOKENS rows. */
#pragma once
#include <stdint.h>

enum { TOKENS = 64 };

/* The modality of a row, and into `end` the first row of the next one. */
static inline int64_t modality_of(const int64_t *counts, int64_t n, int64_t *end) {
    int64_t m = 0;
    for (*end = counts[0]; n >= *end; *end += counts[m]) m++;
    return m;
}
