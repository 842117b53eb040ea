// Convolutions with stride 2, 3×3 with padding 1 and 1×1, and their gradients: what an output sees is
// put side by side, and one product makes the output. Channels are multiples of 16. Where a 3×3 and a
// 1×1 one see the same map, as at the start of a stage of a residual network, its gradient is made at once.
#include "winograd.h"

#if defined(__AVX2__) && defined(__FMA__)

namespace {

// What every second pixel sees, as it is; the taps alike; and a pixel by itself.
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

Grid outputs_of(int64_t batch, int64_t height, int64_t width) {
    return {batch, (height + 1) / 2, (width + 1) / 2};
}

// The gradient of a 1×1 convolution's output, if there is one beside, and its weights.
template <class K> struct Beside {
    Map<K> map;
    const typename K::Element *packed;
};

// The gradient of x: an output's gradient and those of three neighbours make four pixels, each from the
// taps that meet it. The 1×1 convolution beside has seen the first of the four.
template <class K> void four_by_corners(const Map<K> &map, const Grid &grid, const typename K::Element *packed,
                                        typename K::Number *out, int64_t inputs, int64_t height, int64_t width,
                                        int threads, const Beside<K> &beside = {}) {
    typedef typename K::Number T;
    typedef typename K::Element Element;
    constexpr int64_t SIZE = BLOCK<K, Corner>;
    const int64_t outputs = map.channels, steps = outputs / K::each;
    const Plain<K> plain{out, inputs, nullptr, nullptr};
    over_tiles<K, Corner>(grid, threads, [=](int64_t member, int64_t begin, int64_t end) {
        Room<T> corners(SIZE * 4 * outputs), points(SIZE * beside.map.channels);
        Room<float> product(4 * SIZE * inputs);
        for (int64_t first = begin; first < end; first += SIZE) {
            const int64_t count = std::min(SIZE, end - first);
            over_runs(grid, first, count, [&](const Run &run) {
                over_registers<K>(outputs, [&](auto half, int64_t k, int64_t slot) {
                    mix<K, half, Corner, false>(map, run, k, slot, Norm{},
                                                [&](int64_t p, int64_t t, typename K::Vector v) {
                                                    K::write(&corners[(t * 4 + p) * outputs + slot], v);
                                                });
                });
            });
            auto add = [&](int64_t pixel, int64_t corner, int64_t tap, bool more) {
                const Element *left = (const Element *)&corners[corner * outputs],
                              *right = packed + tap * inputs * steps;
                float *to = &product[pixel * SIZE * inputs];
                if (more)
                    multiply<K, true>(left, 4 * steps, right, to, count, steps, inputs);
                else
                    multiply<K, false>(left, 4 * steps, right, to, count, steps, inputs);
            };
            // A pixel in an even row is met by the middle row of taps; one in an odd row by the last row
            // from above and by the first one from below. Columns alike.
            for (int64_t i = 0; i < 2; i++)
                for (int64_t j = 0; j < 2; j++)
                    for (int64_t down = 0; down <= i; down++)
                        for (int64_t right = 0; right <= j; right++) {
                            const int64_t row = i == 0 ? 1 : down ? 0 : 2, column = j == 0 ? 1 : right ? 0 : 2;
                            add(2 * i + j, 2 * down + right, row * 3 + column, down || right);
                        }
            if (const int64_t others = beside.map.channels) {
                over_runs(grid, first, count, [&](const Run &run) {
                    over_registers<K>(others, [&](auto half, int64_t k, int64_t slot) {
                        mix<K, half, Point, false>(beside.map, run, k, slot, Norm{},
                                                   [&](int64_t, int64_t t, typename K::Vector v) {
                                                       K::write(&points[t * others + slot], v);
                                                   });
                    });
                });
                const int64_t each = others / K::each;
                multiply<K, true>((const Element *)points.get(), each, beside.packed, product.get(), count, each,
                                  inputs);
            }
            over_runs(grid, first, count, [&](const Run &run) {
                for (int64_t c = 0; c < inputs; c += K::count) {
                    auto take = plain(member, c);
                    for (int64_t t = 0; t < run.count; t++)
                        for (int64_t p = 0; p < 4; p++) {
                            const int64_t row = 2 * run.row + p / 2, column = 2 * (run.column + t) + p % 2;
                            if (row < height && column < width)
                                take((run.image * height + row) * width + column,
                                     K::read(&product[(p * SIZE + run.first + t) * inputs + c]));
                        }
                }
            });
        }
    });
}

// Of a 1×1 convolution: only every second pixel of every second row was seen, the others get zeros.
template <class K> struct Spread {
    typename K::Number *out;
    int64_t inputs, height, width;
    Grid grid;

    struct Taker {
        const Spread &to;
        int64_t c;
        void operator()(int64_t tile, typename K::Vector v) {
            const int64_t across = to.grid.across, line = tile / across, column = 2 * (tile % across),
                          image = line / to.grid.down, row = 2 * (line % to.grid.down);
            for (int64_t i = row; i < std::min(row + 2, to.height); i++)
                for (int64_t j = column; j < std::min(column + 2, to.width); j++)
                    K::write(to.out + ((image * to.height + i) * to.width + j) * to.inputs + c,
                             i == row && j == column ? v : typename K::Vector{});
        }
        void done() {}
    };
    Taker operator()(int64_t, int64_t c) const { return {*this, c}; }
};
template <class K> void one_of_four(const Map<K> &map, const Grid &grid, const typename K::Element *packed,
                                    typename K::Number *out, int64_t inputs, int64_t height, int64_t width,
                                    int threads) {
    convolve_joined<K, Point>(map, grid, packed, inputs, threads, Spread<K>{out, inputs, height, width, grid});
}

}  // namespace

#define STRIDED_CONV(NAME, K, SIDE, BACKWARD)                                                                         \
    extern "C" void strided_conv##SIDE##x##SIDE##_##NAME(                                                             \
        const K::Number *x, const float *weight, const float *bias, K::Element *packed, K::Number *y, int64_t batch,  \
        int64_t height, int64_t width, int64_t inputs, int64_t outputs, int64_t by_output, int64_t by_input,          \
        int64_t by_row, int64_t by_column, int threads) {                                                             \
        const Weights<const float> weights{weight, outputs, inputs, by_output, by_input, by_row, by_column};          \
        pack<K, Patch<SIDE, 1>>(weights, packed, true, threads);                                                      \
        convolve_joined<K, Patch<SIDE, 2>>({x, height, width, inputs}, outputs_of(batch, height, width), packed,      \
                                           outputs, threads, Plain<K>{y, outputs, bias, nullptr});                    \
    }                                                                                                                 \
    extern "C" void strided_conv##SIDE##x##SIDE##_backward_##NAME(                                                    \
        const K::Number *grad, const float *weight, K::Element *packed, K::Number *out, int64_t batch, int64_t height,\
        int64_t width, int64_t inputs, int64_t outputs, int64_t by_output, int64_t by_input, int64_t by_row,          \
        int64_t by_column, int threads) {                                                                             \
        const Weights<const float> weights{weight, outputs, inputs, by_output, by_input, by_row, by_column};          \
        const Grid grid = outputs_of(batch, height, width);                                                           \
        pack<K, Patch<SIDE, 1>>(weights.exchanged(), packed, false, threads);                                         \
        BACKWARD<K>({grad, grid.down, grid.across, outputs}, grid, packed, out, inputs, height, width, threads);      \
    }                                                                                                                 \
    extern "C" void strided_conv##SIDE##x##SIDE##_weight_##NAME(                                                      \
        const K::Number *x, const K::Number *grad, float *sums, float *out, int64_t batch, int64_t height,            \
        int64_t width, int64_t inputs, int64_t outputs, int64_t by_output, int64_t by_input, int64_t by_row,          \
        int64_t by_column, int64_t team, int threads) {                                                               \
        const Weights<float> weights{out, outputs, inputs, by_output, by_input, by_row, by_column};                   \
        const Grid grid = outputs_of(batch, height, width);                                                           \
        weight_gradient<K, Patch<SIDE, 2>, Point, Patch<SIDE, 1>>({x, height, width, inputs}, Norm{},                 \
                                                                  {grad, grid.down, grid.across, outputs}, grid, sums,\
                                                                  weights, team, threads);                            \
    }

// The gradient of a map that a 3×3 and a 1×1 convolution see.
#define STRIDED_PAIR(NAME, K)                                                                                         \
    extern "C" void strided_pair_backward_##NAME(                                                                     \
        const K::Number *grad, const float *weight, K::Element *packed, const K::Number *beside, const float *point,  \
        K::Element *packed_point, K::Number *out, int64_t batch, int64_t height, int64_t width, int64_t inputs,       \
        int64_t outputs, int64_t by_output, int64_t by_input, int64_t by_row, int64_t by_column, int64_t others,      \
        int64_t point_by_output, int64_t point_by_input, int threads) {                                               \
        const Weights<const float> weights{weight, outputs, inputs, by_output, by_input, by_row, by_column},          \
            points{point, others, inputs, point_by_output, point_by_input, 0, 0};                                     \
        const Grid grid = outputs_of(batch, height, width);                                                           \
        pack<K, Patch<3, 1>>(weights.exchanged(), packed, false, threads);                                            \
        pack<K, Point>(points.exchanged(), packed_point, false, threads);                                             \
        four_by_corners<K>({grad, grid.down, grid.across, outputs}, grid, packed, out, inputs, height, width,         \
                           threads, {{beside, grid.down, grid.across, others}, packed_point});                        \
    }

STRIDED_CONV(float32, Float32, 1, one_of_four)
STRIDED_CONV(float32, Float32, 3, four_by_corners)
STRIDED_PAIR(float32, Float32)
#ifdef __AVX512BF16__
STRIDED_CONV(bfloat16, Bfloat16, 1, one_of_four)
STRIDED_CONV(bfloat16, Bfloat16, 3, four_by_corners)
STRIDED_PAIR(bfloat16, Bfloat16)
#endif

#endif
