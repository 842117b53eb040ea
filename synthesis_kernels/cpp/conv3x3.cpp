// 3×3 convolutions, stride 1, padding 1, their gradients, and what a network does before and after
// them: a frozen BatchNorm with its ReLU and moments, and a sum. In bfloat16 by F(2×2, 3×3), 16
// multiplications instead of 36; in float32 by F(4×4, 3×3), 36 instead of 144. Channels are multiples
// of 16.
#include "winograd.h"

#if defined(__AVX2__) && defined(__FMA__)

namespace {

// Each is a matrix of Lavin & Gray, applied to a line of numbers.
struct Small {
    static constexpr int64_t SIDE = 2;
    struct Inputs {
        static constexpr int FROM = 4, TO = 4, STRIDE = 2, OFFSET = -1;
        template <class V> static void mix(const V *d, V *out) {
            out[0] = d[0] - d[2], out[1] = d[1] + d[2], out[2] = d[2] - d[1], out[3] = d[1] - d[3];
        }
    };
    struct Outputs {
        static constexpr int FROM = 4, TO = 2;
        template <class V> static void mix(const V *m, V *out) { out[0] = m[0] + m[1] + m[2], out[1] = m[1] - m[2] - m[3]; }
    };
    struct Kernel {
        static constexpr int FROM = 3, TO = 4;
        template <class V> static void mix(const V *g, V *out) {
            out[0] = g[0], out[1] = .5f * (g[0] + g[1] + g[2]), out[2] = .5f * (g[0] - g[1] + g[2]), out[3] = g[2];
        }
    };
    struct Gradients {
        static constexpr int FROM = 2, TO = 4, STRIDE = 2, OFFSET = 0;
        template <class V> static void mix(const V *y, V *out) { out[0] = y[0], out[1] = y[0] + y[1], out[2] = y[0] - y[1], out[3] = -y[1]; }
    };
    struct KernelGradient {
        static constexpr int FROM = 4, TO = 3;
        template <class V> static void mix(const V *u, V *out) {
            const V even = .5f * (u[1] + u[2]);
            out[0] = u[0] + even, out[1] = .5f * (u[1] - u[2]), out[2] = even + u[3];
        }
    };
};

struct Large {
    static constexpr int64_t SIDE = 4;
    struct Inputs {
        static constexpr int FROM = 6, TO = 6, STRIDE = 4, OFFSET = -1;
        template <class V> static void mix(const V *d, V *out) {
            const V even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1], far = d[4] - d[2], steep = 2 * (d[3] - d[1]);
            out[0] = 4 * d[0] - 5 * d[2] + d[4], out[1] = even + odd, out[2] = even - odd;
            out[3] = far + steep, out[4] = far - steep, out[5] = 4 * d[1] - 5 * d[3] + d[5];
        }
    };
    struct Outputs {
        static constexpr int FROM = 6, TO = 4;
        template <class V> static void mix(const V *m, V *out) {
            const V near = m[1] + m[2], slope = m[1] - m[2], far = m[3] + m[4], steep = m[3] - m[4];
            out[0] = m[0] + near + far, out[1] = slope + 2 * steep, out[2] = near + 4 * far, out[3] = slope + 8 * steep + m[5];
        }
    };
    struct Kernel {
        static constexpr int FROM = 3, TO = 6;
        template <class V> static void mix(const V *g, V *out) {
            const V ends = (g[0] + g[2]) / -6.f, middle = g[1] / 6.f, far = g[0] / 24.f + g[2] / 6.f, steep = g[1] / 12.f;
            out[0] = g[0] / 4.f, out[1] = ends - middle, out[2] = ends + middle, out[3] = far + steep, out[4] = far - steep, out[5] = g[2];
        }
    };
    struct Gradients {
        static constexpr int FROM = 4, TO = 6, STRIDE = 4, OFFSET = 0;
        template <class V> static void mix(const V *y, V *out) {
            const V even = y[0] + y[2], odd = y[1] + y[3], far = y[0] + 4 * y[2], steep = 2 * y[1] + 8 * y[3];
            out[0] = y[0], out[1] = even + odd, out[2] = even - odd, out[3] = far + steep, out[4] = far - steep, out[5] = y[3];
        }
    };
    struct KernelGradient {
        static constexpr int FROM = 6, TO = 3;
        template <class V> static void mix(const V *u, V *out) {
            const V near = (u[1] + u[2]) / -6.f, slope = (u[2] - u[1]) / 6.f, far = u[3] + u[4], steep = (u[3] - u[4]) / 12.f;
            out[0] = u[0] / 4.f + near + far / 24.f, out[1] = slope + steep, out[2] = near + far / 6.f + u[5];
        }
    };
};

template <class Tile> Grid grid_of(int64_t batch, int64_t height, int64_t width) {
    return {batch, (height + Tile::SIDE - 1) / Tile::SIDE, (width + Tile::SIDE - 1) / Tile::SIDE};
}

// y = weights ⋆ (x, or max(x·scale + shift, low) where there is a scale) + bias + residual.
template <class K, class Tile>
void forward(const typename K::Number *x, const Norm &norm, const typename K::Element *packed, const float *bias,
             const typename K::Number *residual, typename K::Number *y, int64_t batch, int64_t height, int64_t width, int64_t inputs,
             int64_t outputs, int threads) {
    typedef typename K::Vector V;
    const Map<K> map{x, height, width, inputs};
    const Grid grid = grid_of<Tile>(batch, height, width);
    auto finish = [=](int64_t pixel, int64_t k, V v) {
        if (bias) v += K::read(bias + k);
        if (residual) v += K::read(residual + pixel * outputs + k);
        K::write(y + pixel * outputs + k, v);
    };
    auto run = norm.scale ? convolve<K, typename Tile::Inputs, typename Tile::Outputs, true, decltype(finish)>
                          : convolve<K, typename Tile::Inputs, typename Tile::Outputs, false, decltype(finish)>;
    run(map, grid, norm, packed, height, width, outputs, threads, finish);
}

// The gradient of x: of `grad` through the convolution, whose weights come turned about; then, where
// there is a scale, through BatchNorm, ReLU and moments, whose own is (x − mean)·slope + base; and
// `extra` is added.
template <class K, class Tile>
void backward(const typename K::Number *grad, const typename K::Element *packed, const typename K::Number *x, const Norm &norm,
              const float *slope, const float *base, const typename K::Number *extra, typename K::Number *out, int64_t batch,
              int64_t height, int64_t width, int64_t inputs, int64_t outputs, int threads) {
    typedef typename K::Vector V;
    const Map<K> map{grad, height, width, inputs};
    const Norm none{};
    const V zero{}, low = zero + norm.low;
    auto finish = [=](int64_t pixel, int64_t k, V g) {
        const int64_t at = pixel * outputs + k;
        if (norm.scale) {
            const V v = K::read(x + at), s = K::read(norm.scale + k);
            g = v * s + K::read(norm.shift + k) > low ? g * s : zero;
            if (slope) g += (v - K::read(norm.centre + k)) * K::read(slope + k) + K::read(base + k);
        }
        if (extra) g += K::read(extra + at);
        K::write(out + at, g);
    };
    convolve<K, typename Tile::Inputs, typename Tile::Outputs, false>(map, grid_of<Tile>(batch, height, width), none, packed, height, width,
                                                                      outputs, threads, finish);
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
            {x, height, width, inputs}, {grad, height, width, outputs}, grid_of<TILE>(batch, height, width), sums, weights, team,  \
            threads);                                                                                                              \
    }

CONV3X3(float32, Float32, Large)
#ifdef __AVX512BF16__
CONV3X3(bfloat16, Bfloat16, Small)
#endif

#endif
