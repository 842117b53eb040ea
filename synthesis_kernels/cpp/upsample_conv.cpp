// Nearest ×2 and a 3×3 convolution as one, and their gradients. Winograd's F(2×2, 3×3) on a doubled
// image: each tile is one pixel with its eight neighbours, and 7 of its 16 products are of zeros. The
// other 9 are all that is computed, for 36 multiplications. Channels are multiples of 16.
#include "winograd.h"

#if defined(__AVX2__) && defined(__FMA__)

namespace {

struct Inputs {
    static constexpr int FROM = 3, TO = 3, STRIDE = 1, OFFSET = -1;
    template <class V> static void mix(const V *d, V *out) {
        out[0] = d[0] - d[1], out[1] = d[1], out[2] = d[1] - d[2];
    }
};
struct Outputs {
    static constexpr int FROM = 3, TO = 2;
    template <class V> static void mix(const V *m, V *out) { out[0] = m[0] + m[1], out[1] = m[1] - m[2]; }
};
struct Kernel {
    static constexpr int FROM = 3, TO = 3;
    template <class V> static void mix(const V *g, V *out) {
        out[0] = g[0], out[1] = g[0] + g[1] + g[2], out[2] = g[2];
    }
};
// What a pixel's gradient is made of: its own two outputs along an axis, and one of each neighbour's.
struct Backward {
    static constexpr int FROM = 4, TO = 3, STRIDE = 2, OFFSET = -1;
    template <class V> static void mix(const V *y, V *out) {
        out[0] = y[3] - y[1], out[1] = y[1] + y[2], out[2] = y[0] - y[2];
    }
};
struct Gradients {
    static constexpr int FROM = 2, TO = 3, STRIDE = 2, OFFSET = 0;
    template <class V> static void mix(const V *y, V *out) { out[0] = y[0], out[1] = y[0] + y[1], out[2] = -y[1]; }
};
struct KernelGradient {
    static constexpr int FROM = 3, TO = 3;
    template <class V> static void mix(const V *u, V *out) {
        out[0] = u[0] + u[1], out[1] = u[1], out[2] = u[1] + u[2];
    }
};

}  // namespace

// Heights and widths are those of the small maps. `by` are the distances of weights along outputs,
// inputs, rows and columns, and `packed` has room for 9 × inputs × outputs numbers.
#define UPSAMPLE_CONV(NAME, K)                                                                                        \
    extern "C" void upsample_conv_##NAME(const K::Number *x, const float *weight, const float *bias,                  \
                                         K::Element *packed, K::Number *y, int64_t batch, int64_t height,             \
                                         int64_t width, int64_t inputs, int64_t outputs, int64_t by_output,           \
                                         int64_t by_input, int64_t by_row, int64_t by_column, int threads) {          \
        pack<K, Kernel>({weight, outputs, inputs, by_output, by_input, by_row, by_column}, packed, false, threads);   \
        convolve<K, Inputs, Outputs, false>({x, height, width, inputs}, {batch, height, width}, Norm{}, Sums{},       \
                                            packed, 2 * height, 2 * width, outputs, threads,                          \
                                            Plain<K>{y, outputs, bias, nullptr});                                     \
    }                                                                                                                 \
    extern "C" void upsample_conv_backward_##NAME(const K::Number *grad, const float *weight, K::Element *packed,     \
                                                  K::Number *out, int64_t batch, int64_t height, int64_t width,       \
                                                  int64_t inputs, int64_t outputs, int64_t by_output,                 \
                                                  int64_t by_input, int64_t by_row, int64_t by_column, int threads) { \
        const Weights<const float> weights{weight, outputs, inputs, by_output, by_input, by_row, by_column};          \
        pack<K, Kernel>(weights.exchanged(), packed, true, threads);                                                  \
        convolve_joined<K, Backward>({grad, 2 * height, 2 * width, outputs}, {batch, height, width}, packed, inputs,  \
                                     threads, Plain<K>{out, inputs, nullptr, nullptr});                               \
    }                                                                                                                 \
    extern "C" void upsample_conv_weight_##NAME(const K::Number *x, const K::Number *grad, float *sums, float *out,   \
                                                int64_t batch, int64_t height, int64_t width, int64_t inputs,         \
                                                int64_t outputs, int64_t by_output, int64_t by_input, int64_t by_row, \
                                                int64_t by_column, int64_t team, int threads) {                       \
        const Weights<float> weights{out, outputs, inputs, by_output, by_input, by_row, by_column};                   \
        weight_gradient<K, Inputs, Gradients, KernelGradient>({x, height, width, inputs}, Norm{},                     \
                                                              {grad, 2 * height, 2 * width, outputs},                 \
                                                              {batch, height, width}, sums, weights, team, threads);  \
    }

UPSAMPLE_CONV(float32, Float32)
#ifdef __AVX512BF16__
UPSAMPLE_CONV(bfloat16, Bfloat16)
#endif

#endif
