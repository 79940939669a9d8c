/* The softmax of cross_entropy.py over rows of logits, float32. Vectors are the compiler's own, as in
 * scan.c, which says why. A task is a row, so the result does not depend on the threads. */
#include <math.h>

#include "vectors.h"

/* The last, incomplete vector of a row; what is beyond it is -infinity. */
static inline vec take_last(const float *from, int64_t count) {
    vec to = (vec){0} - INFINITY;
    memcpy(&to, from, count * sizeof(float));
    return to;
}

static inline vec larger(vec a, vec b) {
    const ints first = a > b;
    return (vec)(((ints)a & first) | ((ints)b & ~first));
}

/* Adds the bias to a row of logits; the highest of them. */
static float add_bias(int64_t V, float *row, const float *bias) {
    const int64_t whole = V - V % WIDTH;
    vec top = (vec){0} - INFINITY;
    for (int64_t v = 0; v < whole; v += WIDTH) {
        const vec x = load(row + v, WIDTH) + load(bias + v, WIDTH);
        memcpy(row + v, &x, sizeof x);
        top = larger(top, x);
    }
    for (int64_t v = whole; v < V; v++) row[v] += bias[v];
    if (whole < V) top = larger(top, take_last(row + whole, V - whole));
    float highest = -INFINITY;
    for (int i = 0; i < WIDTH; i++) highest = top[i] > highest ? top[i] : highest;
    return highest;
}

/* A row of logits becomes exp(logit - highest); their sum. */
static float exponentials(int64_t V, float *row, float highest) {
    const int64_t whole = V - V % WIDTH;
    vec sum = {0};
    for (int64_t v = 0; v < whole; v += WIDTH) {
        const vec e = exp_minus_abs(load(row + v, WIDTH) - highest);
        memcpy(row + v, &e, sizeof e);
        sum += e;
    }
    if (whole < V) {
        const vec e = exp_minus_abs(take_last(row + whole, V - whole) - highest);
        memcpy(row + whole, &e, (V - whole) * sizeof(float));
        sum += e;
    }
    double total = 0;
    for (int i = 0; i < WIDTH; i++) total += sum[i];
    return (float)total;
}

/* Loss and log-partition (log sum exp) of rows of logits [N, V] with the bias [V]. The logits are
 * used up; where `learns` they become their gradient: that of `dloss` times loss + z partition^2. */
void cross_entropy(int64_t N, int64_t V, int64_t learns, int threads, float *logits,
                   const float *bias, const int64_t *target, const float *dloss, const float *z,
                   float *loss, float *partition) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < N; n++) {
        float *row = logits + n * V;
        const float highest = add_bias(V, row, bias), picked = row[target[n]];
        const float sum = exponentials(V, row, highest), whole = highest + logf(sum);
        partition[n] = whole;
        loss[n] = whole - picked;
        if (!learns) continue;
        const float factor = dloss[n] * (1 + 2 * *z * whole) / sum;
        for (int64_t v = 0; v < V; v++) row[v] *= factor;
        row[target[n]] -= dloss[n];
    }
}
