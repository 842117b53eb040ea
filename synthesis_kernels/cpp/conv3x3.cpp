// 3×3 convolutions, stride 1, padding 1, their gradients, and what a frozen network does before and
// after them: a BatchNorm with its ReLU and moments, and a sum. Channels are multiples of 16.
#include "tiles.h"

#if defined(__AVX2__) && defined(__FMA__)

namespace {

// Takes a gradient on, where there is a scale, through BatchNorm, ReLU and moments, of which `slopes`
// is the loss's gradient: d mean/dx = share, d variance/dx = 2·share·(x − mean); and adds `above`.
template <class K> struct Through {
    const typename K::Number *x, *above;
    typename K::Number *out;
    Norm norm;
    const float *moments, *slopes;
    int64_t outputs, width;
    float share;

    struct Taker {
        typedef typename K::Vector V;
        const Through &to;
        int64_t k;
        V scale, shift, mean, base, slope, low;
        void operator()(int64_t pixel, V g) {
            const int64_t at = pixel * to.outputs + k;
            if (to.norm.scale) {
                const V v = K::read(to.x + at), zero{};
                g = v * scale + shift > low ? g * scale : zero;
                if (to.slopes) g += (v - mean) * slope + base;
            }
            if (to.above) g += K::read(to.above + at);
            K::write(to.out + at, g);
        }
        void done() {}
    };
    void foresee(Ahead &ahead, int64_t pixel, int64_t pixels) const {
        const int64_t at = pixel * outputs, bytes = pixels * outputs * sizeof *out;
        if (norm.scale) ahead.add(x + at, bytes);
        if (above) ahead.add(above + at, bytes);
        ahead.add(out + at, bytes);
    }
    Taker operator()(int64_t, int64_t k) const {
        auto at = [k](const float *p, int64_t row) { return p ? K::read(p + row + k) : typename K::Vector{}; };
        return {*this,
                k,
                at(norm.scale, 0),
                at(norm.shift, 0),
                at(moments, 0),
                at(slopes, 0) * share,
                at(slopes, width) * (2 * share),
                typename K::Vector{} + norm.low};
    }
};

// The centre, the number of parts, and zeros.
template <class K> void begin_sums(const typename K::Number *x, const Sums &sums, int64_t channels, int64_t parts) {
    for (int64_t c = 0; c < channels; c += K::count) {
        K::write(sums.group + c, K::read(x + c));
        K::write(sums.group + sums.width + c, typename K::Vector{} + float(parts));
        for (int64_t row = 2; row < 2 + 2 * parts; row++)
            K::write(sums.group + row * sums.width + c, typename K::Vector{});
    }
}

template <class K, class Tile> void forward(const Map<K> &map, const Norm &norm, const Sums &sums,
                                            const typename K::Element *packed, const Plain<K> &plain, int64_t batch,
                                            int threads) {
    auto run = norm.scale ? convolve<K, typename Tile::Inputs, typename Tile::Outputs, true, Plain<K>>
                          : convolve<K, typename Tile::Inputs, typename Tile::Outputs, false, Plain<K>>;
    if (sums.group) begin_sums<K>(map.x, sums, map.channels, threads);
    run(map, grid_of<Tile>(batch, map.height, map.width), norm, sums, packed, map.height, map.width, plain.outputs,
        threads, plain);
}

}  // namespace

// y = weights ⋆ (x, or max(x·scale + shift, low) where there is a scale) + bias + residual; and where
// there are `sums`, those of x, for each of `groups` batches apart. `by` are the distances of weights
// along outputs, inputs, rows and columns, and `packed` has room for PLACES × inputs × outputs numbers;
// without `packs` it holds the weights already. The gradient's are turned about.
#define CONV3X3(NAME, K, TILE)                                                                                        \
    extern "C" void conv3x3_##NAME(const K::Number *x, const float *scale, const float *shift, float *sums,           \
                                   const float *weight, const float *bias, const K::Number *residual,                 \
                                   K::Element *packed, K::Number *y, int64_t batch, int64_t height, int64_t width,    \
                                   int64_t inputs, int64_t outputs, int64_t by_output, int64_t by_input,              \
                                   int64_t by_row, int64_t by_column, int64_t turned, int64_t relu, int64_t packs,    \
                                   int64_t groups, int64_t channels, int threads) {                                   \
        const int64_t many = turned ? inputs : outputs, few = turned ? outputs : inputs,                              \
                      pixels = batch / groups * height * width;                                                       \
        const Weights<const float> weights{weight, many, few, by_output, by_input, by_row, by_column};                \
        if (packs) pack<K, TILE::Kernel>(turned ? weights.turned() : weights, packed, false, threads);                \
        const Norm norm{scale, shift, relu ? 0.f : -INFINITY};                                                        \
        for (int64_t g = 0; g < groups; g++) {                                                                        \
            const Sums own{sums ? sums + g * (2 + 2 * threads) * channels : nullptr, channels, 1.f / pixels};         \
            const K::Number *added = residual ? residual + g * pixels * outputs : nullptr;                            \
            forward<K, TILE>({x + g * pixels * inputs, height, width, inputs}, norm, own, packed,                     \
                             {y + g * pixels * outputs, outputs, bias, added}, batch / groups, threads);              \
        }                                                                                                             \
    }                                                                                                                 \
    extern "C" void conv3x3_backward_##NAME(                                                                          \
        const K::Number *grad, const float *weight, const K::Number *x, const float *scale, const float *shift,       \
        const float *moments, const float *slopes, const K::Number *above, K::Element *packed, K::Number *out,        \
        int64_t batch, int64_t height, int64_t width, int64_t inputs, int64_t outputs, int64_t by_output,             \
        int64_t by_input, int64_t by_row, int64_t by_column, int64_t relu, int64_t packs, int64_t groups,             \
        int64_t channels, int threads) {                                                                              \
        const Weights<const float> weights{weight, outputs, inputs, by_output, by_input, by_row, by_column};          \
        const int64_t pixels = batch / groups * height * width;                                                       \
        if (packs) pack<K, TILE::Kernel>(weights.turned(), packed, false, threads);                                   \
        for (int64_t g = 0; g < groups; g++) {                                                                        \
            const int64_t row = g * pixels * inputs, place = g * 2 * channels;                                        \
            const Through<K> through{x + row,                                                                         \
                                     above ? above + row : nullptr,                                                   \
                                     out + row,                                                                       \
                                     {scale, shift, relu ? 0.f : -INFINITY},                                          \
                                     moments ? moments + place : nullptr,                                             \
                                     slopes ? slopes + place : nullptr,                                               \
                                     inputs,                                                                          \
                                     channels,                                                                        \
                                     1.f / pixels};                                                                   \
            convolve<K, TILE::Inputs, TILE::Outputs, false>({grad + g * pixels * outputs, height, width, outputs},    \
                                                            grid_of<TILE>(batch / groups, height, width), Norm{},     \
                                                            Sums{}, packed, height, width, inputs, threads, through); \
        }                                                                                                             \
    }                                                                                                                 \
    extern "C" void conv3x3_weight_##NAME(const K::Number *x, const K::Number *grad, float *sums, float *out,         \
                                          int64_t batch, int64_t height, int64_t width, int64_t inputs,               \
                                          int64_t outputs, int64_t by_output, int64_t by_input, int64_t by_row,       \
                                          int64_t by_column, int64_t team, int threads) {                             \
        const Weights<float> weights{out, outputs, inputs, by_output, by_input, by_row, by_column};                   \
        weight_gradient<K, TILE::Inputs, TILE::Gradients, TILE::KernelGradient>(                                      \
            {x, height, width, inputs}, Norm{}, {grad, height, width, outputs}, grid_of<TILE>(batch, height, width),  \
            sums, weights, team, threads);                                                                            \
    }

CONV3X3(float32, Float32, Large)
#ifdef __AVX512BF16__
CONV3X3(bfloat16, Bfloat16, Small)
#endif

#endif
