/* The softmax of cross_entropy.py over rows of logits, float32. Vectors are the compiler's own, as in
 * scan.c, which says why. A task is a row, so the result does not depend on the threads. */
#include <math.h>
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

/* e^x for x <= 0 to 2e-7 of the result; 0 below 2^-126, NaN stays NaN. */
static inline vec exp_of(vec x) {
    const vec zero = {0};
    x = x * (zero + 1.4426950408889634f);
    const ints low = x < zero - 126.0f;
    x = (vec)((ints)x & ~low);
    const ints whole = __builtin_convertvector(x - 0.5f, ints);
    const vec f = x - __builtin_convertvector(whole, vec);
    vec p = f * 1.5403530393381608e-4f + 1.3333558146428443e-3f;
    p = p * f + 9.618129107628477e-3f;
    p = p * f + 5.550410866482158e-2f;
    p = p * f + 2.402265069591007e-1f;
    p = p * f + 6.931471805599453e-1f;
    p = p * f + 1.0f;
    return (vec)((ints)(p * (vec)((whole + 127) << 23)) & ~low);
}

static inline vec take(const float *from) {
    vec to;
    memcpy(&to, from, sizeof to);
    return to;
}

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
        const vec x = take(row + v) + take(bias + v);
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
        const vec e = exp_of(take(row + v) - highest);
        memcpy(row + v, &e, sizeof e);
        sum += e;
    }
    if (whole < V) {
        const vec e = exp_of(take_last(row + whole, V - whole) - highest);
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
