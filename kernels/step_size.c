/* step_size.py's forward and gradient, float32, in one pass over memory each. A task of the backward
 * is TOKENS rows; what tasks add up is written in parts, which are summed in a fixed order. Rows are
 * sorted by modality, `counts[M]` of each. */
#include "modalities.h"
#include "parts.h"
#include "vectors.h"

/* log(1 + z) for 0 <= z <= 1: z times a polynomial, so that small values keep their precision. */
static inline vec log1p_of(vec z) {
    vec p = z * -0.003256378462538123f + 0.019907161593437195f;
    p = p * z - 0.057064201682806015f;
    p = p * z + 0.10614264756441116f;
    p = p * z - 0.15311862528324127f;
    p = p * z + 0.19678117334842682f;
    p = p * z - 0.24954558908939362f;
    p = p * z + 0.33330005407333374f;
    p = p * z - 0.4999990463256836f;
    p = p * z + 1.0f;
    return p * z;
}

/* y = softplus(x + bias[m]); x, y [N, I], bias [M, I]. */
void step_forward(int64_t N, int64_t I, int threads, const float *x, const float *bias,
                  const int64_t *counts, float *y) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < N; n++) {
        int64_t end;
        const float *row = x + n * I, *own = bias + modality_of(counts, n, &end) * I;
        for (int64_t i = 0; i < I; i += WIDTH) {
            const vec zero = {0}, sum = load(row + i, I - i) + load(own + i, I - i);
            const vec above = (vec)((ints)sum & ~(ints)(sum < zero));
            store(y + n * I + i, above + log1p_of(exp_minus_abs(sum)), I - i);
        }
    }
}

/* dx = dy sigmoid(x + bias[m]), and dbias [M, I] of parts [G, M, I]. */
void step_backward(int64_t N, int64_t I, int64_t M, int threads, const float *dy, const float *x,
                   const float *bias, const int64_t *counts, float *dx, float *parts, float *dbias) {
    const int64_t G = (N + TOKENS - 1) / TOKENS;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t g = 0; g < G; g++) {
        memset(parts + g * M * I, 0, M * I * sizeof(float));
        for (int64_t n = g * TOKENS; n < N && n < (g + 1) * TOKENS; n++) {
            int64_t end;
            const int64_t m = modality_of(counts, n, &end);
            float *part = parts + (g * M + m) * I;
            for (int64_t i = 0; i < I; i += WIDTH) {
                const vec sum = load(x + n * I + i, I - i) + load(bias + m * I + i, I - i);
                const vec d = load(dy + n * I + i, I - i) * sigmoid_of(sum);
                store(dx + n * I + i, d, I - i);
                store(part + i, load(part + i, I - i) + d, I - i);
            }
        }
    }
    sum_parts(G, M * I, threads, parts, dbias);
}
