/* The gradients of value_table.py's weighted bag, float32. Every result is summed by one thread in
 * a fixed order. Indices were checked by the forward. */
#include <stdint.h>
#include <string.h>

/* out[U, D]: the sum over places p in first[u] .. first[u + 1] of weight[order[p]] times the row
 * order[p] / J of dy[N, D]. */
void bag_rows(int64_t U, int64_t J, int64_t D, int threads, const float *dy, const float *weight,
              const int64_t *order, const int64_t *first, float *out) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t u = 0; u < U; u++) {
        float *restrict sum = out + u * D;
        memset(sum, 0, D * sizeof(float));
        for (int64_t p = first[u]; p < first[u + 1]; p++) {
            const float *row = dy + order[p] / J * D, share = weight[order[p]];
            for (int64_t d = 0; d < D; d++) sum[d] += share * row[d];
        }
    }
}

/* out[N, J]: values[index[n, j]] . dy[n]. */
void bag_dots(int64_t N, int64_t J, int64_t D, int threads, const float *dy, const float *values,
              const int64_t *index, float *out) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < N; n++)
        for (int64_t j = 0; j < J; j++) {
            if (j + 4 < J) __builtin_prefetch(values + index[n * J + j + 4] * D);
            const float *row = values + index[n * J + j] * D;
            float sum = 0.0f;
            for (int64_t d = 0; d < D; d++) sum += row[d] * dy[n * D + d];
            out[n * J + j] = sum;
        }
}
