/* rotary.py's forward and gradient, float32: queries and keys normed and turned, values copied.
 *
 * qkv [N, 3, H, K]; `stride` is from token to token. cosine and sine [N, K / 2]. gains [2, M, K], of
 * queries and of keys; M = 0 stands for no norm. Tokens come sorted by modality, `counts[M]` of each.
 * A task is a group of tokens; gradients of the gains are written in parts, one a task. The loops are
 * compiled for the usual half sizes of a head, whose vectors then need no loops.
 */
#include <math.h>
#include <string.h>

#include "modalities.h"
#include "parts.h"

#define INLINE static inline __attribute__((always_inline))
#define BY_HALF(run, ...)                            \
    switch (K / 2) {                                 \
    case 16: return run(16, __VA_ARGS__);            \
    case 32: return run(32, __VA_ARGS__);            \
    case 64: return run(64, __VA_ARGS__);            \
    default: return run(K / 2, __VA_ARGS__);         \
    }

/* One head: y = turned(x scale gain); the scale is given back. */
INLINE float head_forward(int64_t half, const float *restrict x, const float *restrict gain, float eps,
                          const float *restrict cosine, const float *restrict sine, float *restrict y) {
    float scale = 1.0f;
    if (gain) {
        float sum = 0.0f;
        for (int64_t k = 0; k < 2 * half; k++) sum += x[k] * x[k];
        scale = 1.0f / sqrtf(sum / (float)(2 * half) + eps);
    }
    for (int64_t k = 0; k < half; k++) {
        const float a = gain ? x[k] * scale * gain[k] : x[k];
        const float b = gain ? x[k + half] * scale * gain[k + half] : x[k + half];
        y[k] = a * cosine[k] - b * sine[k];
        y[k + half] = b * cosine[k] + a * sine[k];
    }
    return scale;
}

/* Its gradient dx, and dgain added to what is there. */
INLINE void head_backward(int64_t half, const float *restrict dy, const float *restrict x,
                          const float *restrict gain, float scale, const float *restrict cosine,
                          const float *restrict sine, float *restrict dx, float *restrict dgain) {
    for (int64_t k = 0; k < half; k++) {
        dx[k] = dy[k] * cosine[k] + dy[k + half] * sine[k];
        dx[k + half] = dy[k + half] * cosine[k] - dy[k] * sine[k];
    }
    if (!gain) return;
    float sum = 0.0f;
    for (int64_t k = 0; k < 2 * half; k++) sum += dx[k] * gain[k] * x[k];
    const float back = sum * scale * scale * scale / (float)(2 * half);
    for (int64_t k = 0; k < 2 * half; k++) {
        dgain[k] += dx[k] * x[k] * scale;
        dx[k] = dx[k] * gain[k] * scale - x[k] * back;
    }
}

INLINE void forward(int64_t half, int64_t N, int64_t H, int64_t stride, int64_t M, int threads,
                    const float *qkv, const float *cosine, const float *sine, const float *gains,
                    const int64_t *counts, const float *eps, float *q, float *k, float *v, float *scales) {
    const int64_t K = 2 * half, G = (N + TOKENS - 1) / TOKENS;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t task = 0; task < G; task++) {
        const int64_t last = (task + 1) * TOKENS < N ? (task + 1) * TOKENS : N;
        int64_t end = 0, m = 0;
        for (int64_t n = task * TOKENS; n < last; n++) {
            if (M && n >= end) m = modality_of(counts, n, &end);
            for (int64_t part = 0; part < 2; part++) {
                const float *gain = M ? gains + (part * M + m) * K : NULL;
                float *out = (part ? k : q) + n * H * K;
                for (int64_t h = 0; h < H; h++)
                    scales[(n * 2 + part) * H + h] = head_forward(
                        half, qkv + n * stride + (part * H + h) * K, gain, *eps, cosine + n * half,
                        sine + n * half, out + h * K);
            }
            memcpy(v + n * H * K, qkv + n * stride + 2 * H * K, H * K * sizeof(float));
        }
    }
}

INLINE void backward(int64_t half, int64_t N, int64_t H, int64_t stride, int64_t M, int threads,
                     const float *dq, const float *dk, const float *dv, const float *qkv,
                     const float *cosine, const float *sine, const float *gains, const int64_t *counts,
                     const float *scales, float *dqkv, float *parts, float *dgains) {
    const int64_t K = 2 * half, G = (N + TOKENS - 1) / TOKENS, size = 2 * M * K;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t task = 0; task < G; task++) {
        const int64_t last = (task + 1) * TOKENS < N ? (task + 1) * TOKENS : N;
        int64_t end = 0, m = 0;
        memset(parts + task * size, 0, size * sizeof(float));
        for (int64_t n = task * TOKENS; n < last; n++) {
            if (M && n >= end) m = modality_of(counts, n, &end);
            for (int64_t part = 0; part < 2; part++) {
                const int64_t at = (part * M + m) * K;
                const float *dy = (part ? dk : dq) + n * H * K;
                for (int64_t h = 0; h < H; h++)
                    head_backward(half, dy + h * K, qkv + n * stride + (part * H + h) * K,
                                  M ? gains + at : NULL, scales[(n * 2 + part) * H + h],
                                  cosine + n * half, sine + n * half,
                                  dqkv + ((n * 3 + part) * H + h) * K, parts + task * size + at);
            }
            memcpy(dqkv + (n * 3 + 2) * H * K, dv + n * H * K, H * K * sizeof(float));
        }
    }
    sum_parts(G, size, threads, parts, dgains);
}

void rotary_forward(int64_t N, int64_t H, int64_t K, int64_t stride, int64_t M, int threads,
                    const float *qkv, const float *cosine, const float *sine, const float *gains,
                    const int64_t *counts, const float *eps, float *q, float *k, float *v,
                    float *scales) {
    BY_HALF(forward, N, H, stride, M, threads, qkv, cosine, sine, gains, counts, eps, q, k, v, scales)
}

/* dqkv [N, 3, H, K], and dgains [2, M, K], of parts [G, 2, M, K]. */
void rotary_backward(int64_t N, int64_t H, int64_t K, int64_t stride, int64_t M, int threads,
                     const float *dq, const float *dk, const float *dv, const float *qkv,
                     const float *cosine, const float *sine, const float *gains, const int64_t *counts,
                     const float *scales, float *dqkv, float *parts, float *dgains) {
    BY_HALF(backward, N, H, stride, M, threads, dq, dk, dv, qkv, cosine, sine, gains, counts, scales,
            dqkv, parts, dgains)
}
