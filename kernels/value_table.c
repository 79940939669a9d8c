/* value_table.py's gradients and update, float32. Every result is summed by one thread in a fixed
 * order. Indices were checked by the forward. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* The places 0 .. P - 1 by the row that was read there, and the rows that were read, rising: those
 * of row rows[u] are order[first[u]] .. order[first[u + 1] - 1], rising. Gives the number of rows.
 * Sorted digit by digit, 11 bits at a time; index[P] holds rows 0 .. R - 1. */
int64_t reverse_index(int64_t P, int64_t R, int threads, const int64_t *index, int64_t *order,
                      int64_t *rows, int64_t *first) {
    (void)threads;
    int64_t *from = malloc(P * sizeof(int64_t)), *to = order, *spare = from;
    if (P && !from) return -1;
    for (int64_t p = 0; p < P; p++) from[p] = p;
    for (int shift = 0; shift == 0 || (R - 1) >> shift; shift += 11) {
        int64_t start[2049] = {0};
        for (int64_t p = 0; p < P; p++) start[(index[p] >> shift & 2047) + 1]++;
        for (int d = 0; d < 2048; d++) start[d + 1] += start[d];
        for (int64_t p = 0; p < P; p++) to[start[index[from[p]] >> shift & 2047]++] = from[p];
        int64_t *was = from;
        from = to, to = was;
    }
    if (from != order) memcpy(order, from, P * sizeof(int64_t));
    free(spare);
    int64_t U = 0;
    for (int64_t p = 0; p < P; p++) {
        int64_t row = index[order[p]];
        if (!U || rows[U - 1] != row) rows[U] = row, first[U++] = p;
    }
    first[U] = P;
    return U;
}

/* The gradient of one row: the sum over places p of weight[p] times dy's row p / J. */
static inline void row_sum(int64_t J, int64_t D, const float *dy, const float *weight,
                           const int64_t *places, int64_t count, float *restrict sum) {
    memset(sum, 0, D * sizeof(float));
    for (int64_t c = 0; c < count; c++) {
        const float *row = dy + places[c] / J * D, share = weight[places[c]];
        for (int64_t d = 0; d < D; d++) sum[d] += share * row[d];
    }
}

/* out[U, D]: the gradients of the rows that were read. */
void bag_rows(int64_t U, int64_t J, int64_t D, int threads, const float *dy, const float *weight,
              const int64_t *order, const int64_t *first, float *out) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t u = 0; u < U; u++)
        row_sum(J, D, dy, weight, order + first[u], first[u + 1] - first[u], out + u * D);
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

/* square[u]: the sum of squares of each row's gradient, which is kept nowhere: its parts are in the
 * cache, and making it twice is faster than writing it. */
void row_squares(int64_t U, int64_t J, int64_t D, int threads, const float *dy, const float *weight,
                 const int64_t *order, const int64_t *first, double *square) {
#pragma omp parallel num_threads(threads)
    {
        float *sum = malloc(D * sizeof(float));
#pragma omp for schedule(static)
        for (int64_t u = 0; u < U; u++) {
            row_sum(J, D, dy, weight, order + first[u], first[u + 1] - first[u], sum);
            float total = 0.0f;
            for (int64_t d = 0; d < D; d++) total += sum[d] * sum[d];
            square[u] = total;
        }
        free(sum);
    }
}

/* One step of Adam on the rows that were read; see value_table.py. `number` is the factor of the
 * gradients, the learning rate, beta1, beta2 and eps; fresh[u] the mean of the row's squares. */
void adam_rows(int64_t U, int64_t J, int64_t D, int threads, const float *dy, const float *weight,
               const int64_t *order, const int64_t *first, const int64_t *rows, const double *number,
               const double *fresh, const float *kept, float *values, float *mean, float *square,
               int32_t *reads) {
    float scale = number[0], beta1 = number[2], beta2 = number[3], eps = number[4];
#pragma omp parallel num_threads(threads)
    {
        float *sum = malloc(D * sizeof(float));
#pragma omp for schedule(static)
        for (int64_t u = 0; u < U; u++) {
            int64_t row = rows[u];
            float *restrict value = values + row * D, *restrict moment = mean + row * D;
            __builtin_prefetch(value), __builtin_prefetch(moment);
            row_sum(J, D, dy, weight, order + first[u], first[u + 1] - first[u], sum);
            int32_t t = ++reads[row];
            square[row] = beta2 * square[row] + (1 - beta2) * (float)(fresh[u] * scale * scale);
            float deviation = sqrtf(square[row] / (float)(1 - pow(number[3], t))) + eps;
            float rate = number[1] / (1 - pow(number[2], t)) / deviation;
            for (int64_t d = 0; d < D; d++) {
                moment[d] = beta1 * moment[d] + (1 - beta1) * scale * sum[d];
                value[d] = kept[u] * value[d] - rate * moment[d];
            }
        }
        free(sum);
    }
}
