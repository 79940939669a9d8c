/* Sums of what tasks wrote in parts of their own, so that threads need not wait for each other. */
#pragma once
#include <stdint.h>

/* total [size] of parts [G, size], always in the same order. */
static inline void sum_parts(int64_t G, int64_t size, int threads, const float *restrict parts,
                             float *restrict total) {
    enum { BLOCK = 1024 };
#pragma omp parallel for num_threads(threads) schedule(static) if (size > 16 * BLOCK)
    for (int64_t first = 0; first < size; first += BLOCK) {
        const int64_t last = first + BLOCK < size ? first + BLOCK : size;
        for (int64_t i = first; i < last; i++) total[i] = 0.0f;
        for (int64_t g = 0; g < G; g++)
            for (int64_t i = first; i < last; i++) total[i] += parts[g * size + i];
    }
}
