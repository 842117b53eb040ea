// A frozen BatchNorm, with its batch's moments or without, in one pass each way. Moments of all layers of a network lie in one
// buffer, `width` channels in all, and a layer's from `start` on. Rows come in `groups` of equal size, each with moments of its
// own. What is normalised may be the sum of two inputs, which is then written too; its gradient is `above`.
#include "lanes.h"

namespace {

// Of a group, the buffer holds rows of `width` numbers: the centre, how many parts there are, and each part's two sums, over x −
// centre and over its square, divided by the rows.
template <class N> inline N *part_of(N *group, int64_t part, int64_t width) { return group + (2 + 2 * part) * width; }

// What is normalised: the input, or the sum with another, as T has it.
template <bool ADDS, class T> inline auto add(const T *x, const T *other, T *total, int64_t place, int64_t n) {
    const auto v = load(x + place, n);
    if (!ADDS) return v;
    store(total + place, v + load(other + place, n), n);
    return load(total + place, n);
}

template <bool ADDS, class T, class N>
void begin_sums(const T *x, const T *other, N *group, int64_t channels, int64_t width, int64_t parts) {
    constexpr int64_t lanes = Lanes<T>::count;
    for (int64_t c = 0; c < channels; c += lanes) {
        const int64_t n = channels - c < lanes ? channels - c : lanes;
        const auto first = load(x + c, n);
        store(group + c, ADDS ? first + load(other + c, n) : first, n);
    }
    for (int64_t c = 0; c < channels; c++) group[width + c] = N(parts);
    for (int64_t row = 2; row < 2 + 2 * parts; row++) memset(group + row * width, 0, channels * sizeof(N));
}

template <bool ADDS, class T, class N = typename Lanes<T>::Number>
void match_forward(const T *x, const T *other, T *total, T *y, const N *scale, const N *shift, N *group, int64_t rows,
                   int64_t channels, int64_t relu, int64_t width, int64_t parts) {
    typedef typename Lanes<T>::Vector V;
    const V zero{}, low = zero + (relu ? N(0) : N(-INFINITY)), share = zero + N(1) / N(rows);
    begin_sums<ADDS>(x, other, group, channels, width, parts);
    over_blocks<Lanes<T>::count>(rows, channels, parts, [=](int64_t thread, int64_t first, int64_t end, int64_t c, int64_t n) {
        N *sum = part_of(group, thread, width) + c, *squares = sum + width;
        const V m = load(group + c, n), k = load(scale + c, n), b = load(shift + c, n);
        V s1 = zero, s2 = zero;
        for (int64_t r = first; r < end; r++) {
            const V v = add<ADDS>(x, other, total, r * channels + c, n), d = v - m, out = v * k + b;
            s1 += d;
            s2 += d * d;
            store(y + r * channels + c, out < low ? low : out, n);
        }
        store(sum, load(sum, n) + s1 * share, n);
        store(squares, load(squares, n) + s2 * share, n);
    });
}

// (mean, biased variance) of every channel, each `width` numbers.
template <class N> void match_finish(const N *group, N *moments, int64_t width) {
    for (int64_t c = 0; c < width; c++) {
        const int64_t parts = int64_t(group[width + c]);
        N offset = 0, square = 0;
        for (int64_t part = 0; part < parts; part++) {
            const N *sum = part_of(group, part, width) + c;
            offset += sum[0];
            square += sum[width];
        }
        const N variance = square - offset * offset;
        moments[c] = group[c] + offset;
        moments[width + c] = variance < 0 ? 0 : variance;
    }
}

// `slopes` is the loss's gradient by the moments, and laid out like them: d mean/dx = 1/rows, d variance/dx = 2(x − mean)/rows.
template <bool ADDS, class T, class N = typename Lanes<T>::Number>
void match_backward(const T *x, const T *grad, const T *above, T *out, const N *scale, const N *shift, const N *moments,
                    const N *slopes, int64_t rows, int64_t channels, int64_t relu, int64_t width, int threads) {
    typedef typename Lanes<T>::Vector V;
    const V zero{}, low = zero + (relu ? N(0) : N(-INFINITY)), share = zero + N(1) / N(rows);
    over_blocks<Lanes<T>::count>(rows, channels, threads, [=](int64_t, int64_t first, int64_t end, int64_t c, int64_t n) {
        const V k = load(scale + c, n), b = load(shift + c, n), m = load(moments + c, n);
        const V q = load(slopes + c, n) * share, s = load(slopes + width + c, n) * share * 2;
        for (int64_t r = first; r < end; r++) {
            const V v = load(x + r * channels + c, n), g = load(grad + r * channels + c, n);
            V to_x = (v * k + b > low ? g * k : zero) + ((v - m) * s + q);
            if (ADDS) to_x += load(above + r * channels + c, n);
            store(out + r * channels + c, to_x, n);
        }
    });
}

// Without moments.
template <bool ADDS, class T, class N = typename Lanes<T>::Number>
void apply_forward(const T *x, const T *other, T *total, T *y, const N *scale, const N *shift, int64_t rows, int64_t channels,
                   int64_t relu, int threads) {
    typedef typename Lanes<T>::Vector V;
    const V zero{}, low = zero + (relu ? N(0) : N(-INFINITY));
    over_blocks<Lanes<T>::count>(rows, channels, threads, [=](int64_t, int64_t first, int64_t end, int64_t c, int64_t n) {
        const V k = load(scale + c, n), b = load(shift + c, n);
        for (int64_t r = first; r < end; r++) {
            const V out = add<ADDS>(x, other, total, r * channels + c, n) * k + b;
            store(y + r * channels + c, out < low ? low : out, n);
        }
    });
}

template <bool ADDS, class T, class N = typename Lanes<T>::Number>
void apply_backward(const T *x, const T *grad, const T *above, T *out, const N *scale, const N *shift, int64_t rows,
                    int64_t channels, int64_t relu, int threads) {
    typedef typename Lanes<T>::Vector V;
    const V zero{}, low = zero + (relu ? N(0) : N(-INFINITY));
    over_blocks<Lanes<T>::count>(rows, channels, threads, [=](int64_t, int64_t first, int64_t end, int64_t c, int64_t n) {
        const V k = load(scale + c, n), b = load(shift + c, n);
        for (int64_t r = first; r < end; r++) {
            const V v = load(x + r * channels + c, n), g = load(grad + r * channels + c, n);
            V to_x = v * k + b > low ? g * k : zero;
            if (ADDS) to_x += load(above + r * channels + c, n);
            store(out + r * channels + c, to_x, n);
        }
    });
}

}  // namespace

#define FORMS(NAME, T, N)                                                                                                        \
    extern "C" void match_forward_##NAME(const T *x, const T *other, T *total, T *y, const N *scale, const N *shift, N *sums,    \
                                         int64_t rows, int64_t channels, int64_t relu, int64_t adds, int64_t groups,             \
                                         int64_t start, int64_t width, int64_t parts, int) {                                     \
        const auto run = adds ? match_forward<true, T, N> : match_forward<false, T, N>;                                          \
        for (int64_t g = 0; g < groups; g++) {                                                                                   \
            const int64_t row = g * rows * channels;                                                                             \
            run(x + row, other + row, total + row, y + row, scale, shift, sums + g * (2 + 2 * parts) * width + start, rows,      \
                channels, relu, width, parts);                                                                                   \
        }                                                                                                                        \
    }                                                                                                                            \
    extern "C" void match_backward_##NAME(const T *x, const T *grad, const T *above, T *out, const N *scale, const N *shift,     \
                                          const N *moments, const N *slopes, int64_t rows, int64_t channels, int64_t relu,       \
                                          int64_t adds, int64_t groups, int64_t start, int64_t width, int threads) {             \
        const auto run = adds ? match_backward<true, T, N> : match_backward<false, T, N>;                                        \
        for (int64_t g = 0; g < groups; g++) {                                                                                   \
            const int64_t row = g * rows * channels, place = g * 2 * width + start;                                              \
            run(x + row, grad + row, above + row, out + row, scale, shift, moments + place, slopes + place, rows, channels,      \
                relu, width, threads);                                                                                           \
        }                                                                                                                        \
    }                                                                                                                            \
    extern "C" void apply_forward_##NAME(const T *x, const T *other, T *total, T *y, const N *scale, const N *shift,             \
                                         int64_t rows, int64_t channels, int64_t relu, int64_t adds, int threads) {              \
        const auto run = adds ? apply_forward<true, T, N> : apply_forward<false, T, N>;                                          \
        run(x, other, total, y, scale, shift, rows, channels, relu, threads);                                                    \
    }                                                                                                                            \
    extern "C" void apply_backward_##NAME(const T *x, const T *grad, const T *above, T *out, const N *scale, const N *shift,     \
                                          int64_t rows, int64_t channels, int64_t relu, int64_t adds, int threads) {             \
        const auto run = adds ? apply_backward<true, T, N> : apply_backward<false, T, N>;                                        \
        run(x, grad, above, out, scale, shift, rows, channels, relu, threads);                                                   \
    }
FORMS(float32, float, float)
FORMS(float64, double, double)
FORMS(bfloat16, bf16, float)

#define FINISH(NAME, N)                                                                                                          \
    extern "C" void match_finish_##NAME(const N *sums, N *moments, int64_t groups, int64_t width, int64_t parts, int) {          \
        for (int64_t g = 0; g < groups; g++)                                                                                     \
            match_finish(sums + g * (2 + 2 * parts) * width, moments + g * 2 * width, width);                                    \
    }
FINISH(float32, float)
FINISH(float64, double)
