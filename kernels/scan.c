/* The selective scan and its gradient in float32; scan.py's `reference` is the definition.
 *
 * A block of LANES channels of one row is a task: lanes run over channels, so that no state is ever
 * summed across lanes, and the block's S states stay in the first cache. The state is kept every
 * KEPT steps; the backward computes the steps between from there. Each task writes memory of its
 * own, and the parts are summed in a fixed order at last: the result does not depend on the number
 * of threads. A block's rows of memory are a whole row of the tensor apart, too far for the
 * processor to foresee: all that a step reads and writes is fetched AHEAD, which doubles the speed.
 * Step t of row b stands at place[b * T + t] of u, dt, Bs, Cs, y and their gradients, which saves a
 * caller whose rows are sorted by modality to move them. `reset` is in the order of steps.
 * Letters: B rows, T steps, I channels, S states, J blocks of channels, G groups of KEPT steps.
 */
#include <stdlib.h>
#include <string.h>

#include "parts.h"
#include "vectors.h"

enum { LANES = 64, VECS = LANES / WIDTH, KEPT = 32, AHEAD = 4 };

typedef struct { vec v[VECS]; } block;

static inline float sum_of(vec x) {
    float sum = 0.0f;
    for (int l = 0; l < WIDTH; l++) sum += x[l];
    return sum;
}

/* `count` floats of a row, zero beyond; and back. */
static inline block take(const float *from, int64_t count) {
    block to = {0};
    if (count == LANES) memcpy(&to, from, sizeof to);
    else memcpy(&to, from, count * sizeof(float));
    return to;
}

static inline void put(float *to, const block *from, int64_t count) {
    if (count == LANES) memcpy(to, from, sizeof *from);
    else memcpy(to, from, count * sizeof(float));
}

/* Into the cache, soon to be read or written. */
static inline void fetch(const float *from) {
    for (int l = 0; l < LANES; l += 16) __builtin_prefetch(from + l);
}

static inline block times(const block *a, const block *b) {
    block c;
    for (int v = 0; v < VECS; v++) c.v[v] = a->v[v] * b->v[v];
    return c;
}

/* A[I, S] of a block, in units of log2. */
static void take_rates(block *rate, const float *A, int64_t S, int64_t count) {
    for (int64_t l = 0; l < count; l++)
        for (int64_t s = 0; s < S; s++)
            rate[s].v[l / WIDTH][l % WIDTH] = A[l * S + s] * 1.4426950408889634f;
}

static block *blocks(int64_t count) {
    block *memory = aligned_alloc(sizeof(block), count * sizeof(block));
    if (memory) memset(memory, 0, count * sizeof(block));
    return memory;
}

/* y[B, T, I] and kept[B, G + 1, S, I]: the state before each group of KEPT steps, and at last the
 * final state. Returns 1 if memory runs out. */
int scan_forward(int64_t B, int64_t T, int64_t I, int64_t S, int threads, const float *u,
                 const float *dt, const float *A, const float *Bs, const float *Cs, const float *D,
                 const uint8_t *reset, const int64_t *place, float *y, float *kept) {
    const int64_t J = (I + LANES - 1) / LANES, G = (T + KEPT - 1) / KEPT;
    int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : failed)
    for (int64_t task = 0; task < B * J; task++) {
        const int64_t b = task / J, i = task % J * LANES, count = I - i < LANES ? I - i : LANES;
        block *h = blocks(2 * S), *rate = h + S;
        if (!h) { failed = 1; continue; }
        take_rates(rate, A + i * S, S, count);
        const block d = take(D + i, count);
        for (int64_t t = 0; t <= T; t++) {
            if (t % KEPT == 0 || t == T)
                for (int64_t s = 0; s < S; s++)
                    put(kept + ((b * (G + 1) + (t + KEPT - 1) / KEPT) * S + s) * I + i, h + s, count);
            if (t == T) break;
            const int64_t at = place[b * T + t];
            if (t + AHEAD < T) {
                const int64_t next = place[b * T + t + AHEAD] * I + i;
                fetch(u + next), fetch(dt + next), fetch(y + next);
            }
            if (reset[b * T + t]) memset(h, 0, S * sizeof(block));
            const block ut = take(u + at * I + i, count), dtt = take(dt + at * I + i, count);
            const block in = times(&dtt, &ut);
            block out = times(&d, &ut);
            for (int64_t s = 0; s < S; s++) {
                const float bs = Bs[at * S + s], cs = Cs[at * S + s];
                for (int v = 0; v < VECS; v++) {
                    h[s].v[v] = exp2_of(dtt.v[v] * rate[s].v[v]) * h[s].v[v] + in.v[v] * bs;
                    out.v[v] += h[s].v[v] * cs;
                }
            }
            put(y + at * I + i, &out, count);
        }
        free(h);
    }
    return failed;
}

/* Gradients of u, dt [B, T, I], B, C [B, T, S], A [I, S] and D [I]; the last four also in parts,
 * to be summed over an axis put first: [J, B, T, S], [B, I, S] and [B, I]. Returns 1 if memory runs
 * out. */
int scan_backward(int64_t B, int64_t T, int64_t I, int64_t S, int threads, const float *dy,
                  const float *u, const float *dt, const float *A, const float *Bs,
                  const float *Cs, const float *D, const uint8_t *reset, const int64_t *place,
                  const float *kept, float *du, float *ddt, float *dA, float *dB, float *dC, float *dD,
                  float *dA_parts, float *dB_parts, float *dC_parts, float *dD_parts) {
    const int64_t J = (I + LANES - 1) / LANES, G = (T + KEPT - 1) / KEPT;
    int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : failed)
    for (int64_t task = 0; task < B * J; task++) {
        const int64_t j = task % J, b = task / J, i = j * LANES;
        const int64_t count = I - i < LANES ? I - i : LANES;
        /* h[0] is the state before the group; h[k + 1] and decay[k] belong to its step k. */
        block *rate = blocks((5 + 2 * KEPT) * S), *carry = rate + S, *rated = carry + S,
              *zero = rated + S, *h = zero + S, *decay = h + (KEPT + 1) * S;
        if (!rate) { failed = 1; continue; }
        take_rates(rate, A + i * S, S, count);
        const block d = take(D + i, count);
        block dd = {0};
        for (int64_t g = G - 1; g >= 0; g--) {
            const int64_t first = b * T + g * KEPT;
            const int64_t steps = T - g * KEPT < KEPT ? T - g * KEPT : KEPT;
            for (int64_t s = 0; s < S; s++)
                h[s] = take(kept + ((b * (G + 1) + g) * S + s) * I + i, count);
            for (int64_t k = 0; k < steps; k++) {
                const int64_t at = place[first + k];
                const block *before = reset[first + k] ? zero : h + k * S;
                const block ut = take(u + at * I + i, count), dtt = take(dt + at * I + i, count);
                const block in = times(&dtt, &ut);
                block *after = h + (k + 1) * S, *e = decay + k * S;
                for (int64_t s = 0; s < S; s++)
                    for (int v = 0; v < VECS; v++) {
                        e[s].v[v] = exp2_of(dtt.v[v] * rate[s].v[v]);
                        after[s].v[v] = e[s].v[v] * before[s].v[v] + in.v[v] * Bs[at * S + s];
                    }
            }
            for (int64_t k = steps - 1; k >= 0; k--) {
                const int64_t at = place[first + k];
                if (g) {
                    const int64_t next = place[first + k - KEPT] * I + i;
                    fetch(u + next), fetch(dt + next), fetch(dy + next);
                    fetch(du + next), fetch(ddt + next);
                }
                const block *before = reset[first + k] ? zero : h + k * S;
                const block *after = h + (k + 1) * S, *e = decay + k * S;
                const block ut = take(u + at * I + i, count), dtt = take(dt + at * I + i, count);
                const block dyt = take(dy + at * I + i, count), in = times(&dtt, &ut);
                block din = {0}, drate = {0}, dut, ddtt;
                for (int64_t s = 0; s < S; s++) {
                    const float bs = Bs[at * S + s], cs = Cs[at * S + s];
                    vec db = {0}, dc = {0};
                    for (int v = 0; v < VECS; v++) {
                        const vec dh = carry[s].v[v] + dyt.v[v] * cs, through = dh * e[s].v[v];
                        const vec dexponent = through * before[s].v[v];
                        db += dh * in.v[v];
                        dc += dyt.v[v] * after[s].v[v];
                        din.v[v] += dh * bs;
                        drate.v[v] += dexponent * rate[s].v[v];
                        rated[s].v[v] += dexponent * dtt.v[v];
                        carry[s].v[v] = through;
                    }
                    dB_parts[(j * B * T + at) * S + s] = sum_of(db);
                    dC_parts[(j * B * T + at) * S + s] = sum_of(dc);
                }
                for (int v = 0; v < VECS; v++) {
                    dut.v[v] = din.v[v] * dtt.v[v] + dyt.v[v] * d.v[v];
                    /* the rates are in units of log2 */
                    ddtt.v[v] = drate.v[v] * 0.6931471805599453f + din.v[v] * ut.v[v];
                    dd.v[v] += dyt.v[v] * ut.v[v];
                }
                put(du + at * I + i, &dut, count);
                put(ddt + at * I + i, &ddtt, count);
                if (reset[first + k]) memset(carry, 0, S * sizeof(block));
            }
        }
        for (int64_t l = 0; l < count; l++)
            for (int64_t s = 0; s < S; s++)
                dA_parts[(b * I + i + l) * S + s] = rated[s].v[l / WIDTH][l % WIDTH];
        put(dD_parts + b * I + i, &dd, count);
        free(rate);
    }
    sum_parts(B, I * S, threads, dA_parts, dA);
    sum_parts(J, B * T * S, threads, dB_parts, dB);
    sum_parts(J, B * T * S, threads, dC_parts, dC);
    sum_parts(B, I, threads, dD_parts, dD);
    return failed;
}
