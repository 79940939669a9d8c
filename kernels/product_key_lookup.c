/* The gradients of product_key_lookup.py, float32. A task is one half of one head: it alone writes the
 * gradients of its keys and queries, position by position, whatever the number of threads.
 * Letters: N positions, H heads, d width of half a key, n half keys, k picks. */
#include <stdint.h>
#include <string.h>

/* dquery [N, H, 2, d] and dkeys [H, 2, n, d] from dscore [N, H, k]. */
void lookup_backward(int64_t N, int64_t H, int64_t d, int64_t n, int64_t k, int threads,
                     const float *dscore, const int64_t *slot, const float *query, const float *keys,
                     float *dquery, float *dkeys) {
    memset(dkeys, 0, 2 * H * n * d * sizeof(float));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t task = 0; task < 2 * H; task++)
        for (int64_t row = 0; row < N; row++) {
            const int64_t picks = (row * H + task / 2) * k, at = (row * 2 * H + task) * d;
            const float *restrict q = query + at;
            float *restrict dq = dquery + at;
            memset(dq, 0, d * sizeof(float));
            for (int64_t p = picks; p < picks + k; p++) {
                const int64_t half = task % 2 ? slot[p] % n : slot[p] / n;
                const float *restrict key = keys + (task * n + half) * d;
                float *restrict dkey = dkeys + (task * n + half) * d;
                for (int64_t i = 0; i < d; i++) {
                    dq[i] += dscore[p] * key[i];
                    dkey[i] += dscore[p] * q[i];
                }
            }
        }
}
