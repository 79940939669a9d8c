/* Vectors of the compiler's own (gcc and clang, any processor), and their exponentials. */
#pragma once
#include <stdint.h>
#include <string.h>

/* The processor's own width: a wider vector would be taken apart into single numbers. */
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

/* 2^x to 2e-7 of the result for x below 128; 0 below 2^-126, NaN stays NaN. */
static inline vec exp2_of(vec x) {
    const vec zero = {0};
    /* x + 3 * 2^22 is rounded to a whole number, which then stands in its lowest bits */
    const ints whole = (ints)(x + 12582912.0f) - 0x4B400000;
    const vec f = x - __builtin_convertvector(whole, vec);
    vec p = f * 1.326465280726552e-3f + 9.671511128544807e-3f;
    p = p * f + 5.550733953714371e-2f;
    p = p * f + 2.4022242426872253e-1f;
    p = p * f + 6.931470036506653e-1f;
    p = p * f + 1.0f;
    return (vec)((ints)(p * (vec)((whole + 127) << 23)) & ~(ints)(x < zero - 126.0f));
}

/* e^-|x| to 2e-7 (1 + |x|) of the result; 0 below 2^-126, NaN stays NaN. */
static inline vec exp_minus_abs(vec x) {
    const vec zero = {0};
    return exp2_of((vec)((ints)x | INT32_MIN) * (zero + 1.4426950408889634f));
}

/* 1 / (1 + e^-x) to 4e-7 of the result; NaN stays NaN. */
static inline vec sigmoid_of(vec x) {
    const vec zero = {0}, one = zero + 1.0f;
    const ints below = x < zero;
    const vec z = exp_minus_abs(x);
    return (vec)(((ints)z & below) | ((ints)one & ~below)) / (one + z);
}

static inline vec load(const float *from, int64_t count) {
    vec to = {0};
    if (count >= WIDTH) memcpy(&to, from, sizeof to);
    else memcpy(&to, from, count * sizeof(float));
    return to;
}

static inline void store(float *to, vec from, int64_t count) {
    memcpy(to, &from, count >= WIDTH ? sizeof from : count * sizeof(float));
}
