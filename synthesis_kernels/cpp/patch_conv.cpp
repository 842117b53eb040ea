// The convolutions of a network that are not of Winograd's kind: 3×3 with stride 2 and padding 1, and
// 1×1 with stride 1 or 2. What an output sees is put side by side, and one product makes the output.
// Channels are multiples of 16.
#include "winograd.h"

#if defined(__AVX2__) && defined(__FMA__)

namespace {

// N×N pixels as they are, for every S-th pixel.
template <int N, int S> struct Patch {
    static constexpr int FROM = N, TO = N, STRIDE = S, OFFSET = -(N / 2);
    template <class V> static void mix(const V *d, V *out) {
        for (int i = 0; i < N; i++) out[i] = d[i];
    }
};
typedef Patch<1, 1> Point;

// A pixel and its neighbours to the right and below.
struct Corner {
    static constexpr int FROM = 2, TO = 2, STRIDE = 1, OFFSET = 0;
    template <class V> static void mix(const V *d, V *out) { out[0] = d[0], out[1] = d[1]; }
};

Grid outputs_of(int64_t batch, int64_t height, int64_t width, int64_t stride) {
    return {batch, (height + stride - 1) / stride, (width + stride - 1) / stride};
}

template <class K, int N, int S>
void forward(const Map<K> &map, const Weights<const float> &weights, const float *bias, typename K::Element *packed, typename K::Number *y,
             int64_t batch, int threads) {
    pack<K, Patch<N, 1>>(weights, packed, true, threads);
    convolve_joined<K, Patch<N, S>>(map, outputs_of(batch, map.height, map.width, S), packed, weights.outputs, threads,
                                    Plain<K>{y, weights.outputs, bias, nullptr});
}

// The gradient of x with stride 2: an output's gradient and those of three neighbours make four pixels,
// each from the taps that meet it.
template <class K, int N>
void backward_in_fours(const Map<K> &map, const Grid &grid, const typename K::Element *packed, typename K::Number *out, int64_t inputs,
                       int64_t height, int64_t width, int threads) {
    typedef typename K::Number T;
    typedef typename K::Element Element;
    constexpr int64_t SIZE = BLOCK<K, Corner>;
    const int64_t outputs = map.channels, steps = outputs / K::each;
    const Plain<K> plain{out, inputs, nullptr, nullptr};
    over_tiles<K, Corner>(grid, threads, [=](int64_t member, int64_t begin, int64_t end) {
        std::unique_ptr<T[]> corners(new T[SIZE * 4 * outputs]);
        // Pixels that no tap meets stay zeros.
        std::unique_ptr<float[]> product(new float[4 * SIZE * inputs]());
        for (int64_t first = begin; first < end; first += SIZE) {
            const int64_t count = std::min(SIZE, end - first);
            over_runs(grid, first, count, [&](const Run &run) {
                over_registers<K>(outputs, [&](auto half, int64_t k, int64_t place) {
                    mix<K, half, Corner, false>(map, run, k, Norm{}, [&](int64_t p, int64_t t, typename K::Vector v) {
                        K::write(&corners[(t * 4 + p) * outputs + place], v);
                    });
                });
            });
            auto add = [&](int64_t pixel, int64_t corner, int64_t tap, bool more) {
                const Element *left = (const Element *)&corners[corner * outputs], *right = packed + tap * inputs * steps;
                float *to = &product[pixel * SIZE * inputs];
                if (more) multiply<K, true>(left, 4 * steps, right, to, count, steps, inputs);
                else multiply<K, false>(left, 4 * steps, right, to, count, steps, inputs);
            };
            // A pixel in an even row is met by the middle row of taps; one in an odd row by the last row
            // from above and by the first one from below. Columns alike.
            for (int64_t i = 0; i < (N == 3 ? 2 : 1); i++)
                for (int64_t j = 0; j < (N == 3 ? 2 : 1); j++)
                    for (int64_t down = 0; down <= i; down++)
                        for (int64_t right = 0; right <= j; right++) {
                            const int64_t row = i == 0 ? N / 2 : down ? 0 : 2, column = j == 0 ? N / 2 : right ? 0 : 2;
                            add(2 * i + j, 2 * down + right, row * N + column, down || right);
                        }
            over_runs(grid, first, count, [&](const Run &run) {
                for (int64_t c = 0; c < inputs; c += K::count) {
                    auto take = plain(member, c);
                    for (int64_t t = 0; t < run.count; t++)
                        for (int64_t p = 0; p < 4; p++) {
                            const int64_t row = 2 * run.row + p / 2, column = 2 * (run.column + t) + p % 2;
                            if (row < height && column < width)
                                take((run.image * height + row) * width + column, K::read(&product[(p * SIZE + run.first + t) * inputs + c]));
                        }
                }
            });
        }
    });
}

template <class K, int N, int S>
void backward(const typename K::Number *grad, const Weights<const float> &weights, typename K::Element *packed, typename K::Number *out,
              int64_t batch, int64_t height, int64_t width, int threads) {
    const Grid grid = outputs_of(batch, height, width, S);
    const Map<K> map{grad, grid.down, grid.across, weights.outputs};
    pack<K, Patch<N, 1>>(weights.exchanged(), packed, false, threads);
    if (S == 2) backward_in_fours<K, N>(map, grid, packed, out, weights.inputs, height, width, threads);
    else convolve_joined<K, Point>(map, grid, packed, weights.inputs, threads, Plain<K>{out, weights.inputs, nullptr, nullptr});
}

template <class K, int N, int S>
void weight_gradient_of(const Map<K> &map, const typename K::Number *grad, float *sums, const Weights<float> &to, int64_t batch, int64_t team,
                        int threads) {
    const Grid grid = outputs_of(batch, map.height, map.width, S);
    weight_gradient<K, Patch<N, S>, Point, Patch<N, 1>>(map, Norm{}, {grad, grid.down, grid.across, to.outputs}, grid, sums, to, team, threads);
}

}  // namespace

#define PATCH_CONV(KIND, N, S, NAME, K)                                                                                              \
    extern "C" void KIND##_##NAME(const K::Number *x, const float *weight, const float *bias, K::Element *packed, K::Number *y,      \
                                  int64_t batch, int64_t height, int64_t width, int64_t inputs, int64_t outputs, int64_t by_output,  \
                                  int64_t by_input, int64_t by_row, int64_t by_column, int threads) {                                \
        forward<K, N, S>({x, height, width, inputs}, {weight, outputs, inputs, by_output, by_input, by_row, by_column}, bias,        \
                         packed, y, batch, threads);                                                                                 \
    }                                                                                                                                \
    extern "C" void KIND##_backward_##NAME(const K::Number *grad, const float *weight, K::Element *packed, K::Number *out,           \
                                           int64_t batch, int64_t height, int64_t width, int64_t inputs, int64_t outputs,            \
                                           int64_t by_output, int64_t by_input, int64_t by_row, int64_t by_column, int threads) {    \
        backward<K, N, S>(grad, {weight, outputs, inputs, by_output, by_input, by_row, by_column}, packed, out, batch, height,       \
                          width, threads);                                                                                           \
    }                                                                                                                                \
    extern "C" void KIND##_weight_##NAME(const K::Number *x, const K::Number *grad, float *sums, float *out, int64_t batch,          \
                                         int64_t height, int64_t width, int64_t inputs, int64_t outputs, int64_t by_output,          \
                                         int64_t by_input, int64_t by_row, int64_t by_column, int64_t team, int threads) {           \
        weight_gradient_of<K, N, S>({x, height, width, inputs}, grad, sums,                                                          \
                                    {out, outputs, inputs, by_output, by_input, by_row, by_column}, batch, team, threads);           \
    }
#define PATCH_CONVS(NAME, K)                     \
    PATCH_CONV(patch_conv_3_2, 3, 2, NAME, K)    \
    PATCH_CONV(patch_conv_1_1, 1, 1, NAME, K)    \
    PATCH_CONV(patch_conv_1_2, 1, 2, NAME, K)

PATCH_CONVS(float32, Float32)
#ifdef __AVX512BF16__
PATCH_CONVS(bfloat16, Bfloat16)
#endif

#endif
