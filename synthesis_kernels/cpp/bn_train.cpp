// A BatchNorm in training, with the sum and the LeakyReLU that follow it: two passes each way. All
// sums are taken in double from one block to the next.
#include "lanes.h"

namespace {

// Adds a block's two sums of each channel to its thread's.
template <class V> void add_up(double *sums, int64_t channels, V first, V second, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        sums[i] += first[i];
        sums[channels + i] += second[i];
    }
}

// One channel's sum over all threads.
inline double total(const std::vector<double> &sums, int64_t place, int64_t channels, int threads) {
    double all = 0;
    for (int64_t thread = 0; thread < threads; thread++) all += sums[2 * channels * thread + place];
    return all;
}

// x, or where there is a branch their sum, which is kept for all that follows.
template <class T> auto summed(const T *x, const T *branch, T *sum, int64_t place, int64_t n) {
    auto v = load(x + place, n);
    if (branch) {
        store(sum + place, v + load(branch + place, n), n);
        v = load(sum + place, n);
    }
    return v;
}

// Mean and 1/√(variance + eps), around the first row (E[x²] − E[x]² cancels where |mean| ≫ std);
// and the running statistics moved towards them.
template <class T, class N = typename Lanes<T>::Number>
void bn_train_moments(const T *x, const T *branch, T *sum, N *mean, N *invstd, N *running_mean, N *running_var,
                      int64_t *batches, int64_t rows, int64_t channels, float momentum, float eps, int threads) {
    typedef typename Lanes<T>::Vector V;
    std::vector<double> sums(2 * channels * threads);
    double *all = sums.data();
    std::vector<N> centres(channels);
    N *centre = centres.data();
    for (int64_t c = 0; c < channels; c++) centre[c] = summed(x, branch, sum, c, 1)[0];
    over_blocks<Lanes<T>::count>(rows, channels, threads, [=](int64_t thread, int64_t first, int64_t end, int64_t c, int64_t n) {
        const V m = load(centre + c, n);
        // Two of each: a sum waits for the one before it.
        V s{}, squares{}, s2{}, squares2{};
        int64_t r = first;
        for (; r + 1 < end; r += 2) {
            const V d = summed(x, branch, sum, r * channels + c, n) - m;
            const V e = summed(x, branch, sum, (r + 1) * channels + c, n) - m;
            s += d;
            squares += d * d;
            s2 += e;
            squares2 += e * e;
        }
        if (r < end) {
            const V d = summed(x, branch, sum, r * channels + c, n) - m;
            s += d;
            squares += d * d;
        }
        add_up(all + 2 * channels * thread + c, channels, s + s2, squares + squares2, n);
    });
    for (int64_t c = 0; c < channels; c++) {
        const double offset = total(sums, c, channels, threads) / rows;
        const double apart = total(sums, channels + c, channels, threads) / rows - offset * offset;
        const double variance = apart < 0 ? 0 : apart, middle = centre[c] + offset;
        mean[c] = middle;
        invstd[c] = 1 / std::sqrt(variance + eps);
        running_mean[c] += momentum * (middle - running_mean[c]);
        running_var[c] += momentum * (variance * rows / (rows - 1) - running_var[c]);
    }
    if (batches) ++*batches;
}

template <class T, class N = typename Lanes<T>::Number>
void bn_train_apply(const T *x, const T *residual, T *y, const N *mean, const N *invstd, const N *weight, const N *bias,
                    int64_t rows, int64_t channels, float slope, int threads) {
    typedef typename Lanes<T>::Vector V;
    const V zero{}, leak = zero + N(slope);
    over_blocks<Lanes<T>::count>(rows, channels, threads, [=](int64_t, int64_t first, int64_t end, int64_t c, int64_t n) {
        const V m = load(mean + c, n), k = load(invstd + c, n) * load(weight + c, n), b = load(bias + c, n);
        for (int64_t r = first; r < end; r++) {
            V v = (load(x + r * channels + c, n) - m) * k + b;
            if (residual) v += load(residual + r * channels + c, n);
            store(y + r * channels + c, (v < zero ? zero : v) + leak * (v < zero ? v : zero), n);
        }
    });
}

// What one register's gradient is before the LeakyReLU; where a sum was between, y tells its sign.
template <class T, class V, class N>
V behind(const T *grad, const T *y, V apart, V k, V b, N slope, int64_t n) {
    const V g = load(grad, n), v = y ? V(load(y, n)) : V(apart * k + b);
    return v > V{} ? g : g * slope;
}

template <class T, class N = typename Lanes<T>::Number>
void bn_train_sums(const T *x, const T *grad, const T *y, const N *mean, const N *invstd, const N *weight, const N *bias,
                   N *to_weight, N *to_bias, int64_t rows, int64_t channels, float slope, int threads) {
    typedef typename Lanes<T>::Vector V;
    std::vector<double> sums(2 * channels * threads);
    double *all = sums.data();
    over_blocks<Lanes<T>::count>(rows, channels, threads, [=](int64_t thread, int64_t first, int64_t end, int64_t c, int64_t n) {
        const V m = load(mean + c, n), k = load(invstd + c, n) * load(weight + c, n), b = load(bias + c, n);
        V s{}, products{}, s2{}, products2{};
        const auto add = [=](V &sum, V &product, int64_t r) {
            const int64_t place = r * channels + c;
            const V d = load(x + place, n) - m;
            const V g = behind(grad + place, y ? y + place : y, d, k, b, N(slope), n);
            sum += g;
            product += g * d;
        };
        int64_t r = first;
        for (; r + 1 < end; r += 2) {
            add(s, products, r);
            add(s2, products2, r + 1);
        }
        if (r < end) add(s, products, r);
        add_up(all + 2 * channels * thread + c, channels, s + s2, products + products2, n);
    });
    for (int64_t c = 0; c < channels; c++) {
        to_bias[c] = total(sums, c, channels, threads);
        to_weight[c] = total(sums, channels + c, channels, threads) * invstd[c];
    }
}

template <class T, class N = typename Lanes<T>::Number>
void bn_train_gradient(const T *x, const T *grad, const T *y, const T *passed, T *to_x, T *to_residual, const N *mean, const N *invstd,
                       const N *weight, const N *bias, const N *to_weight, const N *to_bias, int64_t rows, int64_t channels,
                       float slope, int threads) {
    typedef typename Lanes<T>::Vector V;
    const N share = N(1) / rows;
    over_blocks<Lanes<T>::count>(rows, channels, threads, [=](int64_t, int64_t first, int64_t end, int64_t c, int64_t n) {
        const V m = load(mean + c, n), unit = load(invstd + c, n), k = unit * load(weight + c, n), b = load(bias + c, n);
        const V tilt = k * unit * load(to_weight + c, n) * share, base = k * load(to_bias + c, n) * share;
        for (int64_t r = first; r < end; r++) {
            const int64_t place = r * channels + c;
            const V d = load(x + place, n) - m;
            const V g = behind(grad + place, y ? y + place : y, d, k, b, N(slope), n);
            V out = g * k - (d * tilt + base);
            if (passed) out += load(passed + place, n);
            store(to_x + place, out, n);
            if (to_residual) store(to_residual + place, g, n);
        }
    });
}

}  // namespace

#define FORMS(NAME, T, N)                                                                                                        \
    extern "C" void bn_train_moments_##NAME(const T *x, const T *branch, T *sum, N *mean, N *invstd, N *running_mean,            \
                                            N *running_var, int64_t *batches, int64_t rows, int64_t channels, float momentum,    \
                                            float eps, int threads) {                                                            \
        bn_train_moments(x, branch, sum, mean, invstd, running_mean, running_var, batches, rows, channels, momentum, eps,        \
                         threads);                                                                                               \
    }                                                                                                                            \
    extern "C" void bn_train_apply_##NAME(const T *x, const T *residual, T *y, const N *mean, const N *invstd, const N *weight,  \
                                          const N *bias, int64_t rows, int64_t channels, float slope, int threads) {             \
        bn_train_apply(x, residual, y, mean, invstd, weight, bias, rows, channels, slope, threads);                              \
    }                                                                                                                            \
    extern "C" void bn_train_sums_##NAME(const T *x, const T *grad, const T *y, const N *mean, const N *invstd, const N *weight, \
                                         const N *bias, N *to_weight, N *to_bias, int64_t rows, int64_t channels, float slope,   \
                                         int threads) {                                                                          \
        bn_train_sums(x, grad, y, mean, invstd, weight, bias, to_weight, to_bias, rows, channels, slope, threads);               \
    }                                                                                                                            \
    extern "C" void bn_train_gradient_##NAME(const T *x, const T *grad, const T *y, const T *passed, T *to_x, T *to_residual,    \
                                             const N *mean, const N *invstd, const N *weight, const N *bias, const N *to_weight, \
                                             const N *to_bias, int64_t rows, int64_t channels, float slope, int threads) {       \
        bn_train_gradient(x, grad, y, passed, to_x, to_residual, mean, invstd, weight, bias, to_weight, to_bias, rows, channels, \
                          slope, threads);                                                                                       \
    }
FORMS(float32, float, float)
FORMS(float64, double, double)
FORMS(bfloat16, bf16, float)
