// A training BatchNorm, a ReLU and a 3×3 convolution as one, and the gradients of all three: the
// normalised map is never written, it is made again wherever it is read.
#include "tiles.h"

#if defined(__AVX2__) && defined(__FMA__)

namespace {

// Of a batch, for each channel.
struct Statistics {
    float *mean, *deviation, *scale, *shift;  // `deviation` is 1 / √(variance + ε)
    Statistics(float *all, int64_t channels)
        : mean(all), deviation(all + channels), scale(all + 2 * channels), shift(all + 3 * channels) {}
};

// Adds up body(value, pixel) → (first, second) of all pixels, 2 × channels for each thread.
template <class K, class Body> void sum_up(int64_t pixels, int64_t channels, float *sums, int threads, Body body) {
    over_blocks<K::count>(pixels, channels, threads,
                          [=](int64_t thread, int64_t first, int64_t end, int64_t c, int64_t) {
                              typename K::Vector one{}, two{};
                              body(first, end, c, one, two);
                              float *own = sums + 2 * channels * thread + c;
                              K::write(own, K::read(own) + one);
                              K::write(own + channels, K::read(own + channels) + two);
                          });
}

inline float total(const float *sums, int64_t at, int64_t channels, int threads) {
    double sum = 0;
    for (int64_t thread = 0; thread < threads; thread++) sum += sums[2 * channels * thread + at];
    return sum;
}

// What a BatchNorm does to this batch; and its running statistics take their share of it.
template <class K> void measure_batch(const typename K::Number *x, const float *weight, const float *bias,
                                      float *running_mean, float *running_variance, float momentum, float epsilon,
                                      const Statistics &batch, float *sums, int64_t pixels, int64_t channels,
                                      int threads) {
    // Around the first pixel: E[x²] − E[x]² cancels where the mean is far from 0.
    float *centre = batch.mean;
    for (int64_t c = 0; c < channels; c += K::count) K::write(centre + c, K::read(x + c));
    memset(sums, 0, 2 * channels * threads * sizeof(float));
    sum_up<K>(pixels, channels, sums, threads, [=](int64_t first, int64_t end, int64_t c, auto &sum, auto &squares) {
        const auto around = K::read(centre + c);
        for (int64_t p = first; p < end; p++) {
            const auto d = K::read(x + p * channels + c) - around;
            sum += d, squares += d * d;
        }
    });
    for (int64_t c = 0; c < channels; c++) {
        const float offset = total(sums, c, channels, threads) / pixels,
                    square = total(sums, channels + c, channels, threads) / pixels;
        const float variance = std::max(square - offset * offset, 0.f);
        batch.mean[c] = centre[c] + offset;
        batch.deviation[c] = 1 / std::sqrt(variance + epsilon);
        batch.scale[c] = weight[c] * batch.deviation[c];
        batch.shift[c] = bias[c] - batch.mean[c] * batch.scale[c];
        running_mean[c] += momentum * (batch.mean[c] - running_mean[c]);
        running_variance[c] += momentum * (variance * pixels / (pixels - 1) - running_variance[c]);
    }
}

// Takes a gradient through the ReLU, and adds up what BatchNorm's own needs.
template <class K> struct Masked {
    const typename K::Number *x;
    typename K::Number *out;
    const Statistics &batch;
    float *sums;
    int64_t channels;

    struct Taker {
        typedef typename K::Vector V;
        const Masked &to;
        int64_t c;
        float *own;
        V scale, shift, mean, sum, product;
        void operator()(int64_t pixel, V g) {
            const V v = K::read(to.x + pixel * to.channels + c), zero{};
            g = v * scale + shift > zero ? g : zero;
            sum += g;
            product += g * (v - mean);
            K::write(to.out + pixel * to.channels + c, g);
        }
        void done() {
            K::write(own, K::read(own) + sum);
            K::write(own + to.channels, K::read(own + to.channels) + product);
        }
    };
    void foresee(Ahead &ahead, int64_t pixel, int64_t pixels) const {
        const int64_t at = pixel * channels, bytes = pixels * channels * sizeof *out;
        ahead.add(x + at, bytes);
        ahead.add(out + at, bytes);
    }
    Taker operator()(int64_t member, int64_t c) const {
        const typename K::Vector zero{};
        return {*this,
                c,
                sums + 2 * channels * member + c,
                K::read(batch.scale + c),
                K::read(batch.shift + c),
                K::read(batch.mean + c),
                zero,
                zero};
    }
};

// The gradients of the BatchNorm's weight and bias; and that of x, from `out`, which is behind the ReLU;
// with what it has from elsewhere, if it has.
template <class K> void through_norm(const typename K::Number *x, const typename K::Number *above,
                                     typename K::Number *out, const Statistics &batch, const float *sums,
                                     float *to_weight, float *to_bias, float *slopes, int64_t pixels,
                                     int64_t channels, int threads) {
    for (int64_t c = 0; c < channels; c++) {
        to_bias[c] = total(sums, c, channels, threads);
        to_weight[c] = total(sums, channels + c, channels, threads) * batch.deviation[c];
        slopes[c] = -batch.scale[c] * batch.deviation[c] * to_weight[c] / pixels;
        slopes[channels + c] = -batch.scale[c] * to_bias[c] / pixels;
    }
    over_blocks<K::count>(pixels, channels, threads, [=](int64_t, int64_t first, int64_t end, int64_t c, int64_t) {
        const auto scale = K::read(batch.scale + c), mean = K::read(batch.mean + c), slope = K::read(slopes + c),
                   base = K::read(slopes + channels + c);
        for (int64_t p = first; p < end; p++) {
            const int64_t at = p * channels + c;
            auto g = K::read(out + at) * scale + (K::read(x + at) - mean) * slope + base;
            if (above) g += K::read(above + at);
            K::write(out + at, g);
        }
    });
}

template <class K, class Tile> void forward(const typename K::Number *x, const float *norm_weight,
                                            const float *norm_bias, float *running_mean, float *running_variance,
                                            const Weights<const float> &weights, const float *bias,
                                            const typename K::Number *residual, float *statistics, float *sums,
                                            typename K::Element *packed, typename K::Number *y, int64_t batch,
                                            int64_t height, int64_t width, float momentum, float epsilon, int threads) {
    const Statistics own(statistics, weights.inputs);
    measure_batch<K>(x, norm_weight, norm_bias, running_mean, running_variance, momentum, epsilon, own, sums,
                     batch * height * width, weights.inputs, threads);
    pack<K, typename Tile::Kernel>(weights, packed, false, threads);
    const Norm norm{own.scale, own.shift, 0.f};
    convolve<K, typename Tile::Inputs, typename Tile::Outputs, true>(
        {x, height, width, weights.inputs}, grid_of<Tile>(batch, height, width), norm, Sums{}, packed, height, width,
        weights.outputs, threads, Plain<K>{y, weights.outputs, bias, residual});
}

template <class K, class Tile>
void backward(const typename K::Number *grad, const typename K::Number *x, const typename K::Number *above,
              const Weights<const float> &weights, float *statistics, float *sums, float *products,
              typename K::Element *packed, typename K::Number *to_x, float *to_norm_weight, float *to_norm_bias,
              const Weights<float> &to_weights, int64_t batch, int64_t height, int64_t width, int64_t team,
              int threads) {
    const int64_t channels = weights.inputs, pixels = batch * height * width;
    const Statistics own(statistics, channels);
    const Grid grid = grid_of<Tile>(batch, height, width);
    const Norm norm{own.scale, own.shift, 0.f};
    const Map<K> map{grad, height, width, weights.outputs};
    weight_gradient<K, typename Tile::Inputs, typename Tile::Gradients, typename Tile::KernelGradient, true>(
        {x, height, width, channels}, norm, map, grid, products, to_weights, team, threads);
    pack<K, typename Tile::Kernel>(weights.turned(), packed, false, threads);
    memset(sums, 0, 2 * channels * threads * sizeof(float));
    convolve<K, typename Tile::Inputs, typename Tile::Outputs, false>(
        map, grid, Norm{}, Sums{}, packed, height, width, channels, threads, Masked<K>{x, to_x, own, sums, channels});
    // The first thread's place in `products` is free again.
    through_norm<K>(x, above, to_x, own, sums, to_norm_weight, to_norm_bias, products, pixels, channels, threads);
}

}  // namespace

#define NORM_CONV3X3(NAME, K, TILE)                                                                                   \
    extern "C" void norm_conv3x3_##NAME(                                                                              \
        const K::Number *x, const float *norm_weight, const float *norm_bias, float *running_mean,                    \
        float *running_variance, int64_t *batches, const float *weight, const float *bias, const K::Number *residual, \
        float *statistics, float *sums, K::Element *packed, K::Number *y, int64_t batch, int64_t height,              \
        int64_t width, int64_t inputs, int64_t outputs, int64_t by_output, int64_t by_input, int64_t by_row,          \
        int64_t by_column, float momentum, float epsilon, int threads) {                                              \
        const Weights<const float> weights{weight, outputs, inputs, by_output, by_input, by_row, by_column};          \
        if (batches) ++*batches;                                                                                      \
        forward<K, TILE>(x, norm_weight, norm_bias, running_mean, running_variance, weights, bias, residual,          \
                         statistics, sums, packed, y, batch, height, width, momentum, epsilon, threads);              \
    }                                                                                                                 \
    extern "C" void norm_conv3x3_backward_##NAME(                                                                     \
        const K::Number *grad, const K::Number *x, const K::Number *above, const float *weight, float *statistics,    \
        float *sums, float *products, K::Element *packed, K::Number *to_x, float *to_norm_weight,                     \
        float *to_norm_bias, float *to_weight, int64_t batch, int64_t height, int64_t width, int64_t inputs,          \
        int64_t outputs, int64_t by_output, int64_t by_input, int64_t by_row, int64_t by_column, int64_t team,        \
        int threads) {                                                                                                \
        const Weights<const float> weights{weight, outputs, inputs, by_output, by_input, by_row, by_column};          \
        const Weights<float> to{to_weight, outputs, inputs, by_output, by_input, by_row, by_column};                  \
        backward<K, TILE>(grad, x, above, weights, statistics, sums, products, packed, to_x, to_norm_weight,          \
                          to_norm_bias, to, batch, height, width, team, threads);                                     \
    }

NORM_CONV3X3(float32, Float32, Large)
#ifdef __AVX512BF16__
NORM_CONV3X3(bfloat16, Bfloat16, Small)
#endif

#endif
