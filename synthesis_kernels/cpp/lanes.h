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

// How many float32 a register has. A vector of two registers would go by way of memory.
#ifndef WIDE
#ifdef __AVX512F__
#define WIDE 16
#else
#define WIDE 8
#endif
#endif

// One vector register's worth of channels, computed in float (or double for double).
template <class T> struct Lanes {
    typedef float Number;
    typedef float Vector __attribute__((vector_size(4 * WIDE)));
    static constexpr int64_t count = WIDE;
};
template <> struct Lanes<double> {
    typedef double Number;
    typedef double Vector __attribute__((vector_size(4 * WIDE)));
    static constexpr int64_t count = WIDE / 2;
};
typedef Lanes<float>::Vector Floats;
typedef int32_t Integers __attribute__((vector_size(4 * WIDE)));
typedef uint32_t Words __attribute__((vector_size(4 * WIDE)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDE)));

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
template <class V, class T> inline V load_bytes(const T *p, int64_t n) {
    V v{};
    if (n == int64_t(sizeof v / sizeof *p)) memcpy(&v, p, sizeof v); else memcpy(&v, p, n * sizeof *p);
    return v;
}
template <class V, class T> inline void store_bytes(T *p, V v, int64_t n) {
    if (n == int64_t(sizeof v / sizeof *p)) memcpy(p, &v, sizeof v); else memcpy(p, &v, n * sizeof *p);
}
inline Floats load(const float *p, int64_t n) { return load_bytes<Floats>(p, n); }
inline Lanes<double>::Vector load(const double *p, int64_t n) { return load_bytes<Lanes<double>::Vector>(p, n); }
inline Floats load(const bf16 *p, int64_t n) { return widen(load_bytes<Halves>(p, n)); }
inline void store(float *p, Floats v, int64_t n) { store_bytes(p, v, n); }
inline void store(double *p, Lanes<double>::Vector v, int64_t n) { store_bytes(p, v, n); }
inline void store(bf16 *p, Floats v, int64_t n) { store_bytes(p, narrow(v), n); }

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
