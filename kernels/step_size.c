/* step_size.py's forward and gradient, float32, in one pass over memory each. A task is TOKENS rows;
 * what tasks add up is written in parts, which the caller sums in a fixed order. */
#include <string.h>

#include "vectors.h"

enum { TOKENS = 64 };

/* e^-|x| to 2e-7 (1 + |x|) of the result; 0 below 2^-126, NaN stays NaN. */
static inline vec exp_minus_abs(vec x) {
    const vec zero = {0};
    x = (vec)((ints)x | INT32_MIN) * (zero + 1.4426950408889634f);
    const ints low = x < zero - 126.0f;
    x = (vec)((ints)x & ~low);
    const ints whole = __builtin_convertvector(x - 0.5f, ints);
    const vec f = x - __builtin_convertvector(whole, vec);
    return (vec)((ints)exp2_of_parts(whole, f) & ~low);
}

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

static inline vec take(const float *from, int64_t count) {
    vec to = {0};
    if (count >= WIDTH) memcpy(&to, from, sizeof to);
    else memcpy(&to, from, count * sizeof(float));
    return to;
}

static inline void put(float *to, vec from, int64_t count) {
    memcpy(to, &from, count >= WIDTH ? sizeof from : count * sizeof(float));
}

/* The modality of row n: rows are sorted, and ends[m] is where modality m ends. */
static inline int64_t modality_of(int64_t n, const int64_t *ends) {
    int64_t m = 0;
    while (n >= ends[m]) m++;
    return m;
}

/* y = softplus(x + bias[m]); x, y [N, I], bias [M, I]. */
void step_forward(int64_t N, int64_t I, int threads, const float *x, const float *bias,
                  const int64_t *ends, float *y) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const float *row = x + n * I, *own = bias + modality_of(n, ends) * I;
        for (int64_t i = 0; i < I; i += WIDTH) {
            const vec zero = {0}, sum = take(row + i, I - i) + take(own + i, I - i);
            const vec above = (vec)((ints)sum & ~(ints)(sum < zero));
            put(y + n * I + i, above + log1p_of(exp_minus_abs(sum)), I - i);
        }
    }
}

/* dx = dy sigmoid(x + bias[m]), and in parts dbias [G, M, I], zero at first. */
void step_backward(int64_t N, int64_t I, int64_t M, int threads, const float *dy, const float *x,
                   const float *bias, const int64_t *ends, float *dx, float *dbias) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t g = 0; g < (N + TOKENS - 1) / TOKENS; g++)
        for (int64_t n = g * TOKENS; n < N && n < (g + 1) * TOKENS; n++) {
            const int64_t m = modality_of(n, ends);
            float *part = dbias + (g * M + m) * I;
            for (int64_t i = 0; i < I; i += WIDTH) {
                const vec zero = {0}, one = zero + 1.0f;
                const vec sum = take(x + n * I + i, I - i) + take(bias + m * I + i, I - i);
                const vec z = exp_minus_abs(sum);
                const ints below = sum < zero;
                const vec top = (vec)(((ints)z & below) | ((ints)one & ~below));
                const vec d = take(dy + n * I + i, I - i) * (top / (one + z));
                put(dx + n * I + i, d, I - i);
                put(part + i, take(part + i, I - i) + d, I - i);
            }
        }
}
