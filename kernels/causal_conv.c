/* The causal convolution of causal_conv.py and its gradient, float32.
 *
 * A task is one row's group of STEPS positions; what tasks add to is written in parts, one a task,
 * which are summed in a fixed order. Weights are [K, I], so that lanes run over channels.
 * Position t of row b stands at place[b * T + t] of x, y and their gradients.
 */
#include <stdint.h>
#include <string.h>

#include "parts.h"

enum { STEPS = 64 };

/* Whether position t + shift of the row is there and in t's document. */
static inline int joined(const int32_t *document, int64_t t, int64_t shift, int64_t T) {
    return t + shift >= 0 && t + shift < T && document[t + shift] == document[t];
}

static inline void add_product(float *restrict y, const float *restrict a,
                               const float *restrict b, int64_t I) {
    for (int64_t i = 0; i < I; i++) y[i] += a[i] * b[i];
}

void conv_forward(int64_t B, int64_t T, int64_t I, int64_t K, int threads, const float *x,
                  const float *w, const float *bias, const int32_t *document, const int64_t *place,
                  float *y) {
    const int64_t G = (T + STEPS - 1) / STEPS;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t task = 0; task < B * G; task++) {
        const int64_t b = task / G, first = task % G * STEPS;
        const int64_t last = first + STEPS < T ? first + STEPS : T;
        for (int64_t t = first; t < last; t++) {
            const int64_t flat = b * T + t;
            float *yt = y + place[flat] * I;
            memcpy(yt, bias, I * sizeof(float));
            for (int64_t back = 0; back < K; back++)
                if (joined(document + b * T, t, -back, T))
                    add_product(yt, w + (K - 1 - back) * I, x + place[flat - back] * I, I);
        }
    }
}

/* dx[B, T, I], and dw[K, I] and dbias[I] of parts [B * G, K, I] and [B * G, I]. */
void conv_backward(int64_t B, int64_t T, int64_t I, int64_t K, int threads, const float *dy,
                   const float *x, const float *w, const int32_t *document, const int64_t *place,
                   float *dx, float *dw_parts, float *dbias_parts, float *dw, float *dbias) {
    const int64_t G = (T + STEPS - 1) / STEPS;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t task = 0; task < B * G; task++) {
        const int64_t b = task / G, first = task % G * STEPS;
        const int64_t last = first + STEPS < T ? first + STEPS : T;
        float *dwt = dw_parts + task * K * I, *dbiast = dbias_parts + task * I;
        memset(dwt, 0, K * I * sizeof(float));
        memset(dbiast, 0, I * sizeof(float));
        for (int64_t t = first; t < last; t++) {
            const int64_t flat = b * T + t;
            const float *dyt = dy + place[flat] * I;
            float *dxt = dx + place[flat] * I;
            for (int64_t i = 0; i < I; i++) dbiast[i] += dyt[i];
            memset(dxt, 0, I * sizeof(float));
            for (int64_t back = 0; back < K; back++) {
                const int64_t tap = K - 1 - back;
                if (joined(document + b * T, t, back, T))
                    add_product(dxt, w + tap * I, dy + place[flat + back] * I, I);
                if (joined(document + b * T, t, -back, T))
                    add_product(dwt + tap * I, dyt, x + place[flat - back] * I, I);
            }
        }
    }
    sum_parts(B * G, K * I, threads, dw_parts, dw);
    sum_parts(B * G, I, threads, dbias_parts, dbias);
}
