/* gated_silu.py's forward and gradient, float32, in one pass over memory each. Vectors are the
 * compiler's own, as in scan.c, which says why. A task is a row. */
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
enum { BYTES = 64 };
#elif defined(__AVX2__)
enum { BYTES = 32 };
#else
enum { BYTES = 16 };
#endif
typedef float vec __attribute__((vector_size(BYTES)));
typedef int32_t ints __attribute__((vector_size(BYTES)));

enum { WIDTH = BYTES / 4 };

/* 1 / (1 + e^-x) to 4e-7 of the result; NaN stays NaN. */
static inline vec sigmoid_of(vec x) {
    const vec zero = {0}, one = zero + 1.0f;
    const ints below = x < zero;
    vec e = (vec)((ints)x | INT32_MIN) * (zero + 1.4426950408889634f); /* -|x| / log 2 */
    const ints low = e < zero - 126.0f;
    e = (vec)((ints)e & ~low);
    const ints whole = __builtin_convertvector(e - 0.5f, ints);
    const vec f = e - __builtin_convertvector(whole, vec);
    vec p = f * 1.5403530393381608e-4f + 1.3333558146428443e-3f;
    p = p * f + 9.618129107628477e-3f;
    p = p * f + 5.550410866482158e-2f;
    p = p * f + 2.402265069591007e-1f;
    p = p * f + 6.931471805599453e-1f;
    p = p * f + 1.0f;
    const vec z = (vec)((ints)(p * (vec)((whole + 127) << 23)) & ~low);
    return (vec)(((ints)z & below) | ((ints)one & ~below)) / (one + z);
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

/* y [N, F] = silu(gate) up, where x [N, 2 F] holds gate and up side by side. */
void gated_forward(int64_t N, int64_t F, int threads, const float *x, float *y) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < N; n++)
        for (int64_t f = 0; f < F; f += WIDTH) {
            const vec gate = take(x + 2 * n * F + f, F - f);
            const vec up = take(x + (2 * n + 1) * F + f, F - f);
            put(y + n * F + f, gate * sigmoid_of(gate) * up, F - f);
        }
}

/* dx [N, 2 F] from dy [N, F]. */
void gated_backward(int64_t N, int64_t F, int threads, const float *dy, const float *x, float *dx) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < N; n++)
        for (int64_t f = 0; f < F; f += WIDTH) {
            const vec gate = take(x + 2 * n * F + f, F - f);
            const vec up = take(x + (2 * n + 1) * F + f, F - f);
            const vec d = take(dy + n * F + f, F - f), share = sigmoid_of(gate);
            const vec silu = gate * share;
            put(dx + 2 * n * F + f, d * up * (share + silu * (1.0f - share)), F - f);
            put(dx + (2 * n + 1) * F + f, d * silu, F - f);
        }
}
