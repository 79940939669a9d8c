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

/* 2^(whole + f) to 2e-7 of the result, for |f| <= 1/2 and a whole of -126 to 127. */
static inline vec exp2_of_parts(ints whole, vec f) {
    vec p = f * 1.5403530393381608e-4f + 1.3333558146428443e-3f;
    p = p * f + 9.618129107628477e-3f;
    p = p * f + 5.550410866482158e-2f;
    p = p * f + 2.402265069591007e-1f;
    p = p * f + 6.931471805599453e-1f;
    p = p * f + 1.0f;
    return p * (vec)((whole + 127) << 23);
}

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

static inline vec load(const float *from, int64_t count) {
    vec to = {0};
    if (count >= WIDTH) memcpy(&to, from, sizeof to);
    else memcpy(&to, from, count * sizeof(float));
    return to;
}

static inline void store(float *to, vec from, int64_t count) {
    memcpy(to, &from, count >= WIDTH ? sizeof from : count * sizeof(float));
}
