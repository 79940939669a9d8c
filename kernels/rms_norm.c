/* The norm of rms_norm.py and its gradient, float32.
 *
 * A task is a group of TOKENS tokens, each of R vectors of D; `stride` is from token to token of x.
 * Tokens come sorted by modality, `counts[M]` of each. Gradients of the gains are written in parts,
 * one a task, which are summed in a fixed order.
 */
#include <math.h>
#include <string.h>

#include "modalities.h"
#include "parts.h"

void norm_forward(int64_t N, int64_t R, int64_t D, int64_t stride, int threads, const float *x,
                  const float *w, const int64_t *counts, const float *eps, float *y, float *inverse) {
    const int64_t G = (N + TOKENS - 1) / TOKENS;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t task = 0; task < G; task++) {
        const int64_t last = (task + 1) * TOKENS < N ? (task + 1) * TOKENS : N;
        int64_t end = 0;
        const float *gain = w;
        for (int64_t n = task * TOKENS; n < last; n++) {
            if (n >= end) gain = w + modality_of(counts, n, &end) * D;
            for (int64_t r = 0; r < R; r++) {
                const float *restrict from = x + n * stride + r * D;
                float *restrict to = y + (n * R + r) * D;
                float sum = 0.0f;
                for (int64_t d = 0; d < D; d++) sum += from[d] * from[d];
                const float scale = 1.0f / sqrtf(sum / (float)D + *eps);
                for (int64_t d = 0; d < D; d++) to[d] = from[d] * scale * gain[d];
                inverse[n * R + r] = scale;
            }
        }
    }
}

/* dx [N, R, D], and dw [M, D] of parts [G, M, D]. */
void norm_backward(int64_t N, int64_t R, int64_t D, int64_t stride, int64_t M, int threads,
                   const float *dy, const float *x, const float *w, const int64_t *counts,
                   const float *inverse, float *dx, float *parts, float *dw) {
    const int64_t G = (N + TOKENS - 1) / TOKENS;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t task = 0; task < G; task++) {
        const int64_t last = (task + 1) * TOKENS < N ? (task + 1) * TOKENS : N;
        float *part = parts + task * M * D, *restrict dgain = part;
        memset(part, 0, M * D * sizeof(float));
        int64_t end = 0;
        const float *restrict gain = w;
        for (int64_t n = task * TOKENS; n < last; n++) {
            if (n >= end) {
                const int64_t m = modality_of(counts, n, &end);
                gain = w + m * D;
                dgain = part + m * D;
            }
            for (int64_t r = 0; r < R; r++) {
                const float *restrict from = x + n * stride + r * D;
                const float *restrict grad = dy + (n * R + r) * D;
                float *restrict to = dx + (n * R + r) * D;
                const float scale = inverse[n * R + r];
                float sum = 0.0f;
                for (int64_t d = 0; d < D; d++) sum += grad[d] * gain[d] * from[d];
                const float back = sum * scale * scale * scale / (float)D;
                for (int64_t d = 0; d < D; d++) {
                    to[d] = grad[d] * gain[d] * scale - from[d] * back;
                    dgain[d] += grad[d] * from[d] * scale;
                }
            }
        }
    }
    sum_parts(G, M * D, threads, parts, dw);
}
