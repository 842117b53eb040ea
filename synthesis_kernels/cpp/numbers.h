// Numbers as the processor multiplies them, in registers: float32, and bfloat16 two at a time; and
// products of matrices of them.
#pragma once

#include "lanes.h"

#include <new>

#if defined(__AVX2__) && defined(__FMA__)

namespace {

// ---- Numbers -------------------------------------------------------------------------------------

// Where a register's channels come from: of each 32 in bfloat16 the even ones or the odd ones, which a
// shift or a mask takes out of a register; or side by side.
enum Half { EVEN, ODD, WHOLE };

// The same anywhere in memory.
typedef float Loose __attribute__((vector_size(4 * WIDE), aligned(4)));

// What products are made of. An element is four bytes: one float32, or two bfloat16 that the processor
// multiplies and adds at once.
struct Float32 {
    typedef float Number;
    typedef float Element;
    typedef Floats Vector;
    // Numbers in an element, in a register, and rows of products whose sums are in registers at once:
    // AVX-512 has twice as many.
    static constexpr int64_t each = 1, count = WIDE, rows = WIDE == 16 ? 8 : 6;
    // Numbers of all products together for a channel of one block.
    static constexpr int64_t room = WIDE == 16 ? 288 : 432;

    template <Half> static Vector fetch(const float *p) { return read(p); }
    // By type, not by memcpy: bytes may change anything, so the compiler would load every address anew.
    static Vector read(const float *p) { return *(const Loose *)p; }
    static void write(float *p, Vector v) { *(Loose *)p = v; }
    static void put(float *elements, int64_t, Vector v) { write(elements, v); }
    static Vector larger(Vector v, Vector low) { return v < low ? low : v; }
    static Vector add_product(Vector sum, const Element *left, const Element *right) {
        return sum + *left * read(right);
    }
};

#ifdef __AVX512BF16__
struct Bfloat16 {
    typedef bf16 Number;
    typedef int32_t Element;
    typedef Floats Vector;
    static constexpr int64_t each = 2, count = 16, rows = 8;
    static constexpr int64_t room = 384;

    template <Half HALF> static Vector fetch(const bf16 *p) {
        if (HALF == WHOLE) return read(p);
        const __m512i both = _mm512_loadu_si512(p);
        return (Vector)(HALF == EVEN ? _mm512_slli_epi32(both, 16)
                                     : _mm512_and_si512(both, _mm512_set1_epi32(0xffff0000)));
    }
    static Vector read(const bf16 *p) { return load(p, 16); }
    static Vector read(const float *p) { return load(p, 16); }
    static void write(bf16 *p, Vector v) { store(p, v, 16); }
    static void write(float *p, Vector v) { store(p, v, 16); }
    // One number of each of 16 elements. The first one comes first, and waits as it is for the second.
    static void put(int32_t *elements, int64_t number, Vector v) {
        if (number) {
            const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)v, _mm512_loadu_ps(elements));
            const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                                                   22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
            v = (Vector)_mm512_permutexvar_epi16(order, both);
        }
        memcpy(elements, &v, 64);
    }
    // Where either is NaN the instruction gives the second.
    static Vector larger(Vector v, Vector low) { return (Vector)_mm512_max_ps((__m512)low, (__m512)v); }
    static Vector add_product(Vector sum, const Element *left, const Element *right) {
        return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(*left),
                                        (__m512bh)_mm512_loadu_si512(right));
    }
};
#endif

// Calls body(half, channel, slot) for registers of channels; `slot` is where their numbers lie.
template <class K, class Body> inline void over_registers(int64_t channels, Body body) {
    int64_t c = 0;
    if (K::each == 2)
        for (; c + 32 <= channels; c += 32) {
            body(std::integral_constant<Half, EVEN>(), c, c);
            body(std::integral_constant<Half, ODD>(), c, c + 16);
        }
    for (; c < channels; c += K::count) body(std::integral_constant<Half, WHOLE>(), c, c);
}

// The channel that lies in a slot.
template <class K> inline int64_t channel_at(int64_t slot, int64_t channels) {
    const int64_t begin = slot / 32 * 32, within = slot % 32;
    if (K::each == 1 || begin + 32 > channels) return slot;
    return begin + (within < 16 ? 2 * within : 2 * (within - 16) + 1);
}

// Numbers of which there is one a channel, in the order of slots; and back.
template <class K> inline void to_slots(const float *channels, float *slots, int64_t count) {
    for (int64_t p = 0; p < count; p++) slots[p] = channels[channel_at<K>(p, count)];
}
template <class K> inline void add_slots(float *channels, const float *slots, int64_t count, float share) {
    for (int64_t p = 0; p < count; p++) channels[channel_at<K>(p, count)] += slots[p] * share;
}

// Memory for a while, at the beginning of a cache line: registers that lie across two of them take twice
// the time to be written.
template <class T> struct Room {
    T *begin;
    explicit Room(int64_t count, bool zeros = false)
        : begin((T *)operator new[](count * sizeof(T), std::align_val_t(64))) {
        if (zeros) memset((void *)begin, 0, count * sizeof(T));
    }
    ~Room() { operator delete[](begin, std::align_val_t(64)); }
    Room(const Room &) = delete;
    T &operator[](int64_t i) const { return begin[i]; }
    T *get() const { return begin; }
};

// ---- Products ------------------------------------------------------------------------------------

// COUNT × NV registers of sums of `steps` products: row r's element of step s is at
// left[r · row + s · step].
template <class K, int COUNT, int NV, bool ADD>
inline void products(const typename K::Element *left, int64_t row, int64_t step, const typename K::Element *right,
                     int64_t next, float *out, int64_t outputs, int64_t steps) {
    typename K::Vector sums[COUNT][NV] = {};
    for (int64_t s = 0; s < steps; s++)
#pragma GCC unroll 8
        for (int r = 0; r < COUNT; r++)
#pragma GCC unroll 2
            for (int n = 0; n < NV; n++)
                sums[r][n] = K::add_product(sums[r][n], left + r * row + s * step, right + s * next + K::count * n);
#pragma GCC unroll 8
    for (int r = 0; r < COUNT; r++)
#pragma GCC unroll 2
        for (int n = 0; n < NV; n++) {
            float *to = out + r * outputs + K::count * n;
            K::write(to, ADD ? K::read(to) + sums[r][n] : sums[r][n]);
        }
}

// `count` rows of products with weights that lie packed, two registers of outputs at a time; rows of
// the left side are `row` elements apart. Past `count` there is room, and what is written there is
// never read.
template <class K, bool ADD = false> inline void multiply(const typename K::Element *left, int64_t row,
                                                          const typename K::Element *packed, float *out, int64_t count,
                                                          int64_t steps, int64_t outputs) {
    for (int64_t k = 0; k < outputs; k += 2 * K::count)
        for (int64_t t = 0; t < count; t += K::rows) {
            const typename K::Element *from = left + t * row, *right = packed + k * steps;
            float *to = out + t * outputs + k;
            if (k + 2 * K::count <= outputs)
                products<K, K::rows, 2, ADD>(from, row, 1, right, 2 * K::count, to, outputs, steps);
            else
                products<K, K::rows, 1, ADD>(from, row, 1, right, K::count, to, outputs, steps);
        }
}

// out += leftᵀ · right over `steps` elements, for NV registers of outputs.
template <class K, int NV> inline void add_outer(const typename K::Element *left, const typename K::Element *right,
                                                 float *out, int64_t inputs, int64_t outputs, int64_t steps) {
    constexpr int64_t ROWS = K::rows;
    int64_t c = 0;
    for (; c + ROWS <= inputs; c += ROWS)
        products<K, ROWS, NV, true>(left + c, 1, inputs, right, outputs, out + c * outputs, outputs, steps);
    for (; c < inputs; c += 2)
        products<K, 2, NV, true>(left + c, 1, inputs, right, outputs, out + c * outputs, outputs, steps);
}

}  // namespace

#endif
