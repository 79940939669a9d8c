/* gated_silu.py's forward and gradient, float32, in one pass over memory each. Vectors are the
 * compiler's own, as in scan.c, which says why. A task is a row. */
#include "vectors.h"

/* y [N, F] = silu(gate) up, where x [N, 2 F] holds gate and up side by side. */
void gated_forward(int64_t N, int64_t F, int threads, const float *x, float *y) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < N; n++)
        for (int64_t f = 0; f < F; f += WIDTH) {
            const vec gate = load(x + 2 * n * F + f, F - f);
            const vec up = load(x + (2 * n + 1) * F + f, F - f);
            store(y + n * F + f, gate * sigmoid_of(gate) * up, F - f);
        }
}

/* dx [N, 2 F] from dy [N, F]. */
void gated_backward(int64_t N, int64_t F, int threads, const float *dy, const float *x, float *dx) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < N; n++)
        for (int64_t f = 0; f < F; f += WIDTH) {
            const vec gate = load(x + 2 * n * F + f, F - f);
            const vec up = load(x + (2 * n + 1) * F + f, F - f);
            const vec d = load(dy + n * F + f, F - f), share = sigmoid_of(gate);
            const vec silu = gate * share;
            store(dx + 2 * n * F + f, d * up * (share + silu * (1.0f - share)), F - f);
            store(dx + (2 * n + 1) * F + f, d * silu, F - f);
        }
}
