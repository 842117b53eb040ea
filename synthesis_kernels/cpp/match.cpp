// A frozen BatchNorm and its batch's moments, in one pass each way.
#include "lanes.h"

namespace {

template <class T, class N = typename Lanes<T>::Number>
void match_forward(const T *x, T *y, const N *centre, const N *scale, const N *shift, N *sums, int64_t rows, int64_t channels,
                   int64_t relu, int threads) {
    typedef typename Lanes<T>::Vector V;
    const V zero{}, low = zero + (relu ? N(0) : N(-INFINITY));
    over_blocks<Lanes<T>::count>(rows, channels, threads, [=](int64_t thread, int64_t first, int64_t end, int64_t c, int64_t n) {
        N *sum = sums + 2 * channels * thread + c, *squares = sum + channels;
        const V m = load(centre + c, n), k = load(scale + c, n), b = load(shift + c, n);
        V s1 = zero, s2 = zero;
        for (int64_t r = first; r < end; r++) {
            const V v = load(x + r * channels + c, n), d = v - m, out = v * k + b;
            s1 += d;
            s2 += d * d;
            store(y + r * channels + c, out < low ? low : out, n);
        }
        store(sum, load(sum, n) + s1, n);
        store(squares, load(squares, n) + s2, n);
    });
}

template <class T, class N = typename Lanes<T>::Number>
void match_backward(const T *x, const T *grad, T *out, const N *scale, const N *shift, const N *mean, const N *slope,
                    const N *base, int64_t rows, int64_t channels, int64_t relu, int threads) {
    typedef typename Lanes<T>::Vector V;
    const V zero{}, low = zero + (relu ? N(0) : N(-INFINITY));
    over_blocks<Lanes<T>::count>(rows, channels, threads, [=](int64_t, int64_t first, int64_t end, int64_t c, int64_t n) {
        const V k = load(scale + c, n), b = load(shift + c, n), m = load(mean + c, n), s = load(slope + c, n), q = load(base + c, n);
        for (int64_t r = first; r < end; r++) {
            const V v = load(x + r * channels + c, n), g = load(grad + r * channels + c, n);
            store(out + r * channels + c, (v * k + b > low ? g * k : zero) + ((v - m) * s + q), n);
        }
    });
}

}  // namespace

#define FORMS(NAME, T, N)                                                                                                        \
    extern "C" void match_forward_##NAME(const T *x, T *y, const N *centre, const N *scale, const N *shift, N *sums,             \
                                         int64_t rows, int64_t channels, int64_t relu, int threads) {                            \
        match_forward(x, y, centre, scale, shift, sums, rows, channels, relu, threads);                                          \
    }                                                                                                                            \
    extern "C" void match_backward_##NAME(const T *x, const T *grad, T *out, const N *scale, const N *shift, const N *mean,      \
                                          const N *slope, const N *base, int64_t rows, int64_t channels, int64_t relu,           \
                                          int threads) {                                                                         \
        match_backward(x, grad, out, scale, shift, mean, slope, base, rows, channels, relu, threads);                            \
    }
FORMS(float32, float, float)
FORMS(float64, double, double)
FORMS(bfloat16, bf16, float)
