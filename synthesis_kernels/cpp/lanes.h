// What the kernels' CPU forms share. Plain C++ with GCC/Clang vector types and no torch headers: it
// compiles in some twenty seconds. Inputs are rows of channels (channels last). Every function takes the
// number of threads; torch's own OpenMP runtime is linked.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <algorithm>
#include <type_traits>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

// Rows of one block: its partial sums stay in registers, its rows in the first cache.
constexpr int64_t ROWS = 128;

struct bf16 { uint16_t bits; };

// One vector register's worth of channels, computed in float (or double for double).
template <class T> struct Lanes {
    typedef float Number;
    typedef float Vector __attribute__((vector_size(64)));
    static constexpr int64_t count = 16;
};
template <> struct Lanes<double> {
    typedef double Number;
    typedef double Vector __attribute__((vector_size(64)));
    static constexpr int64_t count = 8;
};
typedef Lanes<float>::Vector Floats;
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

inline Floats widen(Halves h) {
#ifdef __AVX512F__
    return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
#else
    return (Floats)(__builtin_convertvector(h, Words) << 16);
#endif
}

// Rounds to nearest, ties to even; NaN stays NaN. (Below 2^-126 the instruction gives 0.)
inline Halves narrow(Floats v) {
#ifdef __AVX512BF16__
    return (Halves)_mm512_cvtneps_pbh((__m512)v);
#else
    Words u = (Words)v;
    u = v != v ? Words{} + 0x7fc0 : (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    return __builtin_convertvector(u, Halves);
#endif
}

// `n` is a register's full count except in the last channels of a row that it does not divide.
inline Floats load(const float *p, int64_t n) {
    Floats v{};
    if (n == 16) memcpy(&v, p, 64); else memcpy(&v, p, 4 * n);
    return v;
}
inline Lanes<double>::Vector load(const double *p, int64_t n) {
    Lanes<double>::Vector v{};
    if (n == 8) memcpy(&v, p, 64); else memcpy(&v, p, 8 * n);
    return v;
}
inline Floats load(const bf16 *p, int64_t n) {
    Halves h{};
    if (n == 16) memcpy(&h, p, 32); else memcpy(&h, p, 2 * n);
    return widen(h);
}
inline void store(float *p, Floats v, int64_t n) { if (n == 16) memcpy(p, &v, 64); else memcpy(p, &v, 4 * n); }
inline void store(double *p, Lanes<double>::Vector v, int64_t n) { if (n == 8) memcpy(p, &v, 64); else memcpy(p, &v, 8 * n); }
inline void store(bf16 *p, Floats v, int64_t n) {
    Halves h = narrow(v);
    if (n == 16) memcpy(p, &h, 32); else memcpy(p, &h, 2 * n);
}

// Calls body(thread, first row, end row, first channel, channels) for all blocks of rows and registers
// of channels.
template <int64_t WIDTH, class Body> void over_blocks(int64_t rows, int64_t channels, int threads, Body body) {
    // The OpenMP runtime is not asked which thread this is: beside torch's own, the compiler's may
    // answer for another's threads.
    const int64_t blocks = (rows + ROWS - 1) / ROWS, full = channels / WIDTH * WIDTH, team = threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t thread = 0; thread < team; thread++) {
        for (int64_t block = blocks * thread / team; block < blocks * (thread + 1) / team; block++) {
            const int64_t first = block * ROWS, end = first + ROWS < rows ? first + ROWS : rows;
            // The width is a constant here, so there are no tails inside.
            for (int64_t c = 0; c < full; c += WIDTH) body(thread, first, end, c, WIDTH);
            if (full < channels) body(thread, first, end, full, channels - full);
        }
    }
}

}  // namespace
