/* Vectors of the compiler's own (gcc and clang, any processor), and 2^x of them. */
#pragma once
#include <stdint.h>

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
