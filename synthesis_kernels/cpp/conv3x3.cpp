// 3×3 convolutions, stride 1, padding 1, their gradients, and what a network does before and after
// them: a frozen BatchNorm with its ReLU and moments, and a sum. In bfloat16 by F(2×2, 3×3), 16
// multiplications instead of 36; in float32 by F(4×4, 3×3), 36 instead of 144. Channels are multiples
// of 16.
#include "tiles.h"

#if defined(__AVX2__) && defined(__FMA__)

namespace {

// y = weights ⋆ (x, or max(x·scale + shift, low) where there is a scale) + bias + residual.
template <class K, class Tile>
void forward(const typename K::Number *x, const Norm &norm, const typename K::Element *packed, const float *bias,
             const typename K::Number *residual, typename K::Number *y, int64_t batch, int64_t height, int64_t width, int64_t inputs,
             int64_t outputs, int threads) {
    const Map<K> map{x, height, width, inputs};
    const Grid grid = grid_of<Tile>(batch, height, width);
    auto run = norm.scale ? convolve<K, typename Tile::Inputs, typename Tile::Outputs, true, Plain<K>>
                          : convolve<K, typename Tile::Inputs, typename Tile::Outputs, false, Plain<K>>;
    run(map, grid, norm, packed, height, width, outputs, threads, {y, outputs, bias, residual});
}

// Takes a gradient on, where there is a scale, through BatchNorm, ReLU and moments.
template <class K> struct Through {
    const typename K::Number *x, *extra;
    typename K::Number *out;
    Norm norm;
    const float *slope, *base;
    int64_t outputs;

    struct Taker {
        typedef typename K::Vector V;
        const Through &to;
        int64_t k;
        V scale, shift, centre, slope, base, low;
        void operator()(int64_t pixel, V g) {
            const int64_t at = pixel * to.outputs + k;
            if (to.norm.scale) {
                const V v = K::read(to.x + at), zero{};
                g = v * scale + shift > low ? g * scale : zero;
                if (to.slope) g += (v - centre) * slope + base;
            }
            if (to.extra) g += K::read(to.extra + at);
            K::write(to.out + at, g);
        }
        void done() {}
    };
    Taker operator()(int64_t, int64_t k) const {
        auto at = [k](const float *p) { return p ? K::read(p + k) : typename K::Vector{}; };
        return {*this, k, at(norm.scale), at(norm.shift), at(norm.centre), at(slope), at(base), typename K::Vector{} + norm.low};
    }
};

// The gradient of x: of `grad` through the convolution, whose weights come turned about; then, where
// there is a scale, through BatchNorm, ReLU and moments, whose own is (x − mean)·slope + base; and
// `extra` is added.
template <class K, class Tile>
void backward(const typename K::Number *grad, const typename K::Element *packed, const typename K::Number *x, const Norm &norm,
              const float *slope, const float *base, const typename K::Number *extra, typename K::Number *out, int64_t batch,
              int64_t height, int64_t width, int64_t inputs, int64_t outputs, int threads) {
    const Map<K> map{grad, height, width, inputs};
    const Through<K> through{x, extra, out, norm, slope, base, outputs};
    convolve<K, typename Tile::Inputs, typename Tile::Outputs, false>(map, grid_of<Tile>(batch, height, width), Norm{}, packed, height, width,
                                                                      outputs, threads, through);
}

}  // namespace

// `by` are the distances of weights along outputs, inputs, rows and columns, and `packed` has room for
// PLACES × inputs × outputs numbers.
#define CONV3X3(NAME, K, TILE)                                                                                                     \
    extern "C" void conv3x3_pack_##NAME(const float *weight, K::Element *packed, int64_t inputs, int64_t outputs, int64_t by_output, \
                                        int64_t by_input, int64_t by_row, int64_t by_column, int64_t turned, int threads) {        \
        const Weights<const float> weights{weight, outputs, inputs, by_output, by_input, by_row, by_column};                       \
        pack<K, TILE::Kernel>(turned ? weights.turned() : weights, packed, false, threads);                                        \
    }                                                                                                                              \
    extern "C" void conv3x3_train_##NAME(const K::Number *x, const float *weight, const float *bias, K::Element *packed, K::Number *y, \
                                         int64_t batch, int64_t height, int64_t width, int64_t inputs, int64_t outputs,             \
                                         int64_t by_output, int64_t by_input, int64_t by_row, int64_t by_column, int64_t turned,    \
                                         int threads) {                                                                             \
        const int64_t many = turned ? inputs : outputs, few = turned ? outputs : inputs;                                           \
        conv3x3_pack_##NAME(weight, packed, few, many, by_output, by_input, by_row, by_column, turned, threads);                   \
        forward<K, TILE>(x, Norm{}, packed, bias, nullptr, y, batch, height, width, inputs, outputs, threads);                     \
    }                                                                                                                              \
    extern "C" void conv3x3_##NAME(const K::Number *x, const float *scale, const float *shift, const float *centre, float *sums,   \
                                   const K::Element *packed, const float *bias, const K::Number *residual, K::Number *y,           \
                                   int64_t batch, int64_t height, int64_t width, int64_t inputs, int64_t outputs, int64_t relu,    \
                                   int threads) {                                                                                  \
        const Norm norm{scale, shift, centre, sums, relu ? 0.f : -INFINITY};                                                       \
        forward<K, TILE>(x, norm, packed, bias, residual, y, batch, height, width, inputs, outputs, threads);                      \
    }                                                                                                                              \
    extern "C" void conv3x3_backward_##NAME(const K::Number *grad, const K::Element *packed, const K::Number *x, const float *scale, \
                                            const float *shift, const float *mean, const float *slope, const float *base,          \
                                            const K::Number *extra, K::Number *out, int64_t batch, int64_t height, int64_t width,  \
                                            int64_t inputs, int64_t outputs, int64_t relu, int threads) {                          \
        const Norm norm{scale, shift, mean, nullptr, relu ? 0.f : -INFINITY};                                                      \
        backward<K, TILE>(grad, packed, x, norm, slope, base, extra, out, batch, height, width, inputs, outputs, threads);         \
    }                                                                                                                              \
    extern "C" void conv3x3_weight_##NAME(const K::Number *x, const K::Number *grad, float *sums, float *out, int64_t batch,       \
                                          int64_t height, int64_t width, int64_t inputs, int64_t outputs, int64_t by_output,       \
                                          int64_t by_input, int64_t by_row, int64_t by_column, int64_t team, int threads) {        \
        const Weights<float> weights{out, outputs, inputs, by_output, by_input, by_row, by_column};                                \
        weight_gradient<K, TILE::Inputs, TILE::Gradients, TILE::KernelGradient>(                                                   \
            {x, height, width, inputs}, Norm{}, {grad, height, width, outputs}, grid_of<TILE>(batch, height, width), sums, weights, team,  \
            threads);                                                                                                              \
    }

CONV3X3(float32, Float32, Large)
#ifdef __AVX512BF16__
CONV3X3(bfloat16, Bfloat16, Small)
#endif

#endif
