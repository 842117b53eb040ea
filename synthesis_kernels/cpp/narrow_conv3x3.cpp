// A 3×3 convolution, stride 1, padding 1, from many channels to the few of an image (four at most), and
// its gradients: one product gives what every pixel says to each of its nine neighbours.
// Inputs are multiples of 16.
#include "winograd.h"

#if defined(__AVX2__) && defined(__FMA__)

namespace {

constexpr int64_t TAPS = 9;

// A few rows of one map that are computed at once.
struct Band {
    int64_t image, first, end;
};

struct Bands {
    int64_t batch, height, width, rows, each = (height + rows - 1) / rows, count = batch * each;
    // So many rows that numbers of them stay in the second cache.
    Bands(int64_t batch, int64_t height, int64_t width)
        : batch(batch), height(height), width(width), rows(std::max<int64_t>(1, 1024 / width)) {}
    Band operator[](int64_t i) const { return {i / each, i % each * rows, std::min(i % each * rows + rows, height)}; }
};

// Calls body(member, band) for all bands; a member's bands follow each other.
template <class Body> inline void over_bands(const Bands &bands, int threads, Body body) {
    const int64_t team = threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t member = 0; member < team; member++)
        body(member, bands.count * member / team, bands.count * (member + 1) / team);
}

inline float number(float v) {
    return v;
}
inline float number(bf16 v) {
    const uint32_t bits = uint32_t(v.bits) << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

typedef float Four __attribute__((vector_size(16)));
inline Four four(const float *p) {
    Four v;
    memcpy(&v, p, 16);
    return v;
}

// Up to four numbers.
inline void write_few(float *p, Four v, int64_t n) {
    memcpy(p, &v, 4 * n);
}
inline void write_few(bf16 *p, Four v, int64_t n) {
    Floats wide{};
    memcpy(&wide, &v, 16);
    const Halves h = narrow(wide);
    memcpy(p, &h, 2 * n);
}

// `from` is rows × columns of float32; packed as `multiply` reads it.
template <class K> void pack_matrix(const float *from, typename K::Element *packed, int64_t rows, int64_t columns) {
    const int64_t steps = rows / K::each;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t k = 0; k < columns; k += K::count) {
            const int64_t begin = k / (2 * K::count) * 2 * K::count, across = std::min(2 * K::count, columns - begin);
            K::put(packed + begin * steps + row / K::each * across + k - begin, row % K::each,
                   K::read(from + row * columns + k));
        }
}

constexpr int64_t up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

template <class K> void forward(const typename K::Number *x, const Weights<const float> &weights, const float *bias,
                                typename K::Element *packed, typename K::Number *y, const Bands &bands, int threads) {
    typedef typename K::Number T;
    const int64_t inputs = weights.inputs, outputs = weights.outputs, columns = up(TAPS * outputs, K::count),
                  width = bands.width;
    Room<float> matrix(inputs * columns, true);
    for (int64_t c = 0; c < inputs; c++)
        for (int64_t tap = 0; tap < TAPS; tap++)
            for (int64_t k = 0; k < outputs; k++)
                matrix[c * columns + tap * outputs + k] = weights.at(k, c, tap / 3, tap % 3);
    pack_matrix<K>(matrix.get(), packed, inputs, columns);
    Four shift{};
    if (bias)
        for (int64_t k = 0; k < outputs; k++) shift[k] = bias[k];
    over_bands(bands, threads, [&](int64_t, int64_t begin, int64_t end) {
        Room<float> said(up((bands.rows + 2) * width, K::rows) * columns);
        Room<T> last(K::rows * inputs, true);
        for (int64_t b = begin; b < end; b++) {
            const Band band = bands[b];
            const int64_t top = std::max<int64_t>(band.first - 1, 0), bottom = std::min(band.end + 1, bands.height),
                          count = (bottom - top) * width;
            const T *from = x + (band.image * bands.height + top) * width * inputs;
            const int64_t whole = count / K::rows * K::rows;
            multiply<K>((const typename K::Element *)from, inputs / K::each, packed, said.get(), whole,
                        inputs / K::each, columns);
            if (whole < count) {
                memcpy(last.get(), from + whole * inputs, (count - whole) * inputs * sizeof(T));
                multiply<K>((const typename K::Element *)last.get(), inputs / K::each, packed,
                            said.get() + whole * columns, count - whole, inputs / K::each, columns);
            }
            for (int64_t row = band.first; row < band.end; row++)
                for (int64_t column = 0; column < width; column++) {
                    Four sum = shift;
                    for (int64_t i = std::max(row - 1, top); i < std::min(row + 2, bottom); i++)
                        for (int64_t j = std::max<int64_t>(column - 1, 0); j < std::min(column + 2, width); j++) {
                            const int64_t tap = (i - row + 1) * 3 + j - column + 1;
                            sum += four(&said[((i - top) * width + j) * columns + tap * outputs]);
                        }
                    write_few(y + ((band.image * bands.height + row) * width + column) * outputs, sum, outputs);
                }
        }
    });
}

// Three rows of a map of few channels around one, with a pixel of zeros on either side.
template <class T, class N>
inline void gather_lines(const T *map, const Bands &bands, int64_t image, int64_t row, int64_t channels, N *lines) {
    const int64_t line = (bands.width + 2) * channels;
    for (int64_t i = 0; i < 3; i++) {
        const int64_t from = row + i - 1;
        const bool inside = from >= 0 && from < bands.height;
        const T *g = map + (image * bands.height + from) * bands.width * channels;
        for (int64_t n = 0; n < bands.width * channels; n++) {
            N value{};
            if (inside) {
                if constexpr (std::is_same<T, N>::value)
                    value = g[n];
                else
                    value = number(g[n]);
            }
            lines[i * line + channels + n] = value;
        }
    }
}

// The gradient of x.
template <class K> void backward(const typename K::Number *grad, const Weights<const float> &weights,
                                 typename K::Element *packed, typename K::Number *out, const Bands &bands,
                                 int threads) {
    typedef typename K::Number T;
    const int64_t inputs = weights.inputs, outputs = weights.outputs, numbers = up(TAPS * outputs, K::each),
                  width = bands.width;
    Room<float> matrix(numbers * inputs, true);
    for (int64_t tap = 0; tap < TAPS; tap++)
        for (int64_t k = 0; k < outputs; k++)
            for (int64_t c = 0; c < inputs; c++)
                matrix[(tap * outputs + k) * inputs + c] = weights.at(k, c, 2 - tap / 3, 2 - tap % 3);
    pack_matrix<K>(matrix.get(), packed, numbers, inputs);
    over_bands(bands, threads, [&](int64_t, int64_t begin, int64_t end) {
        const int64_t line = (width + 2) * outputs, few = 3 * outputs;
        Room<T> lines(3 * line, true), near(up(width, K::rows) * numbers, true);
        Room<float> product(up(width, K::rows) * inputs);
        for (int64_t b = begin; b < end; b++) {
            const Band band = bands[b];
            for (int64_t row = band.first; row < band.end; row++) {
                gather_lines(grad, bands, band.image, row, outputs, lines.get());
                for (int64_t column = 0; column < width; column++)
                    for (int64_t i = 0; i < 3; i++)
                        memcpy(&near[column * numbers + i * few], &lines[i * line + column * outputs], few * sizeof(T));
                multiply<K>((const typename K::Element *)near.get(), numbers / K::each, packed, product.get(), width,
                            numbers / K::each, inputs);
                T *to = out + (band.image * bands.height + row) * width * inputs;
                for (int64_t at = 0; at < width * inputs; at += K::count) K::write(to + at, K::read(&product[at]));
            }
        }
    });
}

// `sums` has room for inputs × columns of each of the team.
template <class K> void weight_gradient(const typename K::Number *x, const typename K::Number *grad, float *sums,
                                        const Weights<float> &to, const Bands &bands, int64_t team) {
    typedef typename K::Element Element;
    const int64_t inputs = to.inputs, outputs = to.outputs, columns = up(TAPS * outputs, K::count), width = bands.width;
    const int64_t steps = up(width, K::each) / K::each;
    over_bands(bands, team, [&](int64_t member, int64_t begin, int64_t end) {
        Room<Element> left(steps * inputs), right(steps * columns);
        // Three rows of the gradient with a pixel of zeros on either side, and what lies around one pixel.
        const int64_t line = (width + 2) * outputs;
        Room<float> lines(3 * line, true), values(columns, true);
        float *own = sums + member * inputs * columns;
        memset(own, 0, inputs * columns * sizeof(float));
        for (int64_t b = begin; b < end; b++) {
            const Band band = bands[b];
            for (int64_t row = band.first; row < band.end; row++) {
                const int64_t first = (band.image * bands.height + row) * width;
                gather_lines(grad, bands, band.image, row, outputs, lines.get());
                for (int64_t column = 0; column < width; column++) {
                    const int64_t step = column / K::each, number = column % K::each;
                    for (int64_t c = 0; c < inputs; c += K::count)
                        K::put(&left[step * inputs + c], number, K::read(x + (first + column) * inputs + c));
                    for (int64_t i = 0; i < 3; i++)
                        memcpy(&values[3 * i * outputs], &lines[i * line + column * outputs],
                               3 * outputs * sizeof(float));
                    for (int64_t k = 0; k < columns; k += K::count)
                        K::put(&right[step * columns + k], number, K::read(&values[k]));
                }
                if (width % K::each) {
                    fill_last<K>(left.get(), 1, 0, steps - 1, inputs);
                    fill_last<K>(right.get(), 1, 0, steps - 1, columns);
                }
                for (int64_t k = 0; k < columns; k += 2 * K::count)
                    if (k + 2 * K::count <= columns)
                        add_outer<K, 2>(left.get(), &right[k], own + k, inputs, columns, steps);
                    else
                        add_outer<K, 1>(left.get(), &right[k], own + k, inputs, columns, steps);
            }
        }
    });
    for (int64_t c = 0; c < inputs; c++)
        for (int64_t tap = 0; tap < TAPS; tap++)
            for (int64_t k = 0; k < outputs; k++) {
                float sum = 0;
                for (int64_t member = 0; member < team; member++)
                    sum += sums[(member * inputs + c) * columns + (TAPS - 1 - tap) * outputs + k];
                to.at(k, c, tap / 3, tap % 3) = sum;
            }
}

}  // namespace

// The arguments are those of `native_conv.py`; `packed` has room for inputs × columns numbers.
#define NARROW_CONV3X3(NAME, K)                                                                                        \
    extern "C" void narrow_conv3x3_##NAME(const K::Number *x, const float *weight, const float *bias,                  \
                                          K::Element *packed, K::Number *y, int64_t batch, int64_t height,             \
                                          int64_t width, int64_t inputs, int64_t outputs, int64_t by_output,           \
                                          int64_t by_input, int64_t by_row, int64_t by_column, int threads) {          \
        const Weights<const float> weights{weight, outputs, inputs, by_output, by_input, by_row, by_column};           \
        forward<K>(x, weights, bias, packed, y, {batch, height, width}, threads);                                      \
    }                                                                                                                  \
    extern "C" void narrow_conv3x3_backward_##NAME(const K::Number *grad, const float *weight, K::Element *packed,     \
                                                   K::Number *out, int64_t batch, int64_t height, int64_t width,       \
                                                   int64_t inputs, int64_t outputs, int64_t by_output,                 \
                                                   int64_t by_input, int64_t by_row, int64_t by_column, int threads) { \
        const Weights<const float> weights{weight, outputs, inputs, by_output, by_input, by_row, by_column};           \
        backward<K>(grad, weights, packed, out, {batch, height, width}, threads);                                      \
    }                                                                                                                  \
    extern "C" void narrow_conv3x3_weight_##NAME(const K::Number *x, const K::Number *grad, float *sums, float *out,   \
                                                 int64_t batch, int64_t height, int64_t width, int64_t inputs,         \
                                                 int64_t outputs, int64_t by_output, int64_t by_input, int64_t by_row, \
                                                 int64_t by_column, int64_t team, int) {                               \
        const Weights<float> weights{out, outputs, inputs, by_output, by_input, by_row, by_column};                    \
        weight_gradient<K>(x, grad, sums, weights, {batch, height, width}, team);                                      \
    }

NARROW_CONV3X3(float32, Float32)
#ifdef __AVX512BF16__
NARROW_CONV3X3(bfloat16, Bfloat16)
#endif

#endif
