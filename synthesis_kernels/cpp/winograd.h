// Small convolutions by Winograd's method (Lavin & Gray 2016): a tile of pixels becomes a few numbers a
// channel, those are mixed by as many products over the channels, and become a tile of outputs, with
// less multiplications than the convolution itself. A block of tiles stays in the second cache from
// beginning to end.
#pragma once

#include "lanes.h"

#include <memory>

#if defined(__AVX2__) && defined(__FMA__)

namespace {

// ---- Numbers -------------------------------------------------------------------------------------

// Where a register's channels come from: of each 32 in bfloat16 the even ones or the odd ones, which a
// shift or a mask takes out of a register; or side by side.
enum Half { EVEN, ODD, WHOLE };

// WIDE is how many float32 a register has.
#ifndef WIDE
#ifdef __AVX512F__
#define WIDE 16
#else
#define WIDE 8
#endif
#endif
typedef float Wide __attribute__((vector_size(4 * WIDE)));

// What products are made of. An element is four bytes: one float32, or two bfloat16 that the processor
// multiplies and adds at once.
struct Float32 {
    typedef float Number;
    typedef float Element;
    typedef Wide Vector, Elements;
    // Numbers in an element, in a register, and rows of products whose sums are in registers at once.
    static constexpr int64_t each = 1, count = WIDE, rows = 6;
    // Numbers of all products together for a channel of one block.
    static constexpr int64_t room = 432;

    template <Half> static Vector fetch(const float *p) { return read(p); }
    static Vector read(const float *p) { Vector v; memcpy(&v, p, sizeof v); return v; }
    static void write(float *p, Vector v) { memcpy(p, &v, sizeof v); }
    static void put(float *elements, int64_t, Vector v) { write(elements, v); }
    static Vector larger(Vector v, Vector low) { return v < low ? low : v; }
    static Vector add_product(Vector sum, const Element *left, const Element *right) { return sum + *left * read(right); }
};

#ifdef __AVX512BF16__
struct Bfloat16 {
    typedef bf16 Number;
    typedef int32_t Element;
    typedef Floats Vector;
    static constexpr int64_t each = 2, count = 16, rows = 8;
    static constexpr int64_t room = 768;

    template <Half HALF> static Vector fetch(const bf16 *p) {
        if (HALF == WHOLE) return read(p);
        const __m512i both = _mm512_loadu_si512(p);
        return (Vector)(HALF == EVEN ? _mm512_slli_epi32(both, 16) : _mm512_and_si512(both, _mm512_set1_epi32(0xffff0000)));
    }
    static Vector read(const bf16 *p) { return load(p, 16); }
    static Vector read(const float *p) { return load(p, 16); }
    static void write(bf16 *p, Vector v) { store(p, v, 16); }
    static void write(float *p, Vector v) { store(p, v, 16); }
    // One number of each of 16 elements; the first one comes first.
    static void put(int32_t *elements, int64_t number, Vector v) {
        Words words = __builtin_convertvector(narrow(v), Words);
        if (number) {
            Words first;
            memcpy(&first, elements, 64);
            words = first | words << 16;
        }
        memcpy(elements, &words, 64);
    }
    // Where either is NaN the instruction gives the second.
    static Vector larger(Vector v, Vector low) { return (Vector)_mm512_max_ps((__m512)low, (__m512)v); }
    static Vector add_product(Vector sum, const Element *left, const Element *right) {
        return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(*left), (__m512bh)_mm512_loadu_si512(right));
    }
};
#endif

// Calls body(half, channel, place) for registers of channels; `place` is where their numbers lie.
template <class K, class Body> inline void over_registers(int64_t channels, Body body) {
    int64_t c = 0;
    if (K::each == 2)
        for (; c + 32 <= channels; c += 32) {
            body(std::integral_constant<Half, EVEN>(), c, c);
            body(std::integral_constant<Half, ODD>(), c, c + 16);
        }
    for (; c < channels; c += K::count) body(std::integral_constant<Half, WHOLE>(), c, c);
}

// The channel that lies at a place.
template <class K> inline int64_t channel_at(int64_t place, int64_t channels) {
    const int64_t begin = place / 32 * 32, within = place % 32;
    if (K::each == 1 || begin + 32 > channels) return place;
    return begin + (within < 16 ? 2 * within : 2 * (within - 16) + 1);
}

// A register of numbers of which there is one a channel; and back.
template <class K, Half HALF> inline typename K::Vector pick(const float *p) {
    typename K::Vector v;
    for (int i = 0; i < K::count; i++) v[i] = HALF == WHOLE ? p[i] : p[2 * i + HALF];
    return v;
}
template <class K, Half HALF> inline void add_to(float *p, typename K::Vector v, float share) {
    for (int i = 0; i < K::count; i++) p[HALF == WHOLE ? i : 2 * i + HALF] += v[i] * share;
}

// ---- Maps and tiles ------------------------------------------------------------------------------

template <class K> struct Map {
    const typename K::Number *x;
    int64_t height, width, channels;
    const typename K::Number *line(int64_t image, int64_t row) const {
        return row >= 0 && row < height ? x + (image * height + row) * width * channels : nullptr;
    }
};

// The tiles of a batch of maps, row by row.
struct Grid {
    int64_t batch, down, across, tiles = batch * down * across;
};

// Tiles of one row side by side; `first` is the first one's place in its block.
struct Run {
    int64_t image, row, column, first, count;
};

template <class Body> inline void over_runs(const Grid &grid, int64_t first, int64_t count, Body body) {
    for (int64_t t = 0; t < count;) {
        const int64_t tile = first + t, column = tile % grid.across, rest = grid.across - column;
        const int64_t length = rest < count - t ? rest : count - t;
        body(Run{tile / (grid.down * grid.across), tile / grid.across % grid.down, column, t, length});
        t += length;
    }
}

// Tiles of a block of products, and how far apart the products lie, so that they don't fall on the same
// lines of the first cache.
template <class K, class Mix> constexpr int64_t BLOCK = K::room / (Mix::TO * Mix::TO) / K::rows * K::rows;
template <class K, class Mix> constexpr int64_t APART = BLOCK<K, Mix> + K::each;

template <class K, class Mix, class Body> inline void over_tiles(const Grid &grid, int threads, Body body) {
    const int64_t size = BLOCK<K, Mix>, blocks = (grid.tiles + size - 1) / size, team = threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t member = 0; member < team; member++)
        body(member, blocks * member / team * size, std::min(blocks * (member + 1) / team * size, grid.tiles));
}

// A BatchNorm, and perhaps a ReLU, before the convolution.
struct Norm {
    const float *scale, *shift;
    float low;
};

// Where moments are summed up, if they are: the centre, and behind it for each thread two rows of `width`
// numbers, of x − centre and of its square, divided by the number of pixels (see match.cpp).
struct Sums {
    float *group;
    int64_t width;
    float share;
    float *part(int64_t member) const { return group + (2 + 2 * member) * width; }
};

// ---- Transforms ----------------------------------------------------------------------------------

// FROM×FROM pixels of every tile of a run become TO×TO numbers a channel, by Mix along rows and along
// columns; columns are shared by neighbouring tiles. put(place, tile, numbers) takes them.
template <class K, Half HALF, class Mix, bool NORM, class Put>
inline void mix(const Map<K> &map, const Run &run, int64_t c, const Norm &norm, Put put) {
    typedef typename K::Vector V;
    constexpr int FROM = Mix::FROM, TO = Mix::TO, KEPT = FROM - Mix::STRIDE;
    V scale{}, shift{}, low = V{} + norm.low;
    if (NORM) scale = pick<K, HALF>(norm.scale + c), shift = pick<K, HALF>(norm.shift + c);
    const typename K::Number *lines[FROM];
    for (int i = 0; i < FROM; i++) lines[i] = map.line(run.image, run.row * Mix::STRIDE + Mix::OFFSET + i);
    auto column = [&](int64_t j, V *out) {
        V d[FROM] = {};
        if (j >= 0 && j < map.width)
#pragma GCC unroll 8
            for (int i = 0; i < FROM; i++)
                if (lines[i]) {
                    d[i] = K::template fetch<HALF>(lines[i] + j * map.channels + c);
                    if (NORM) d[i] = K::larger(d[i] * scale + shift, low);
                }
        Mix::mix(d, out);
    };
    V columns[FROM][TO];
    const int64_t left = run.column * Mix::STRIDE + Mix::OFFSET;
#pragma GCC unroll 8
    for (int j = 0; j < KEPT; j++) column(left + j, columns[j]);
    for (int64_t t = 0; t < run.count; t++) {
#pragma GCC unroll 8
        for (int j = KEPT; j < FROM; j++) column(left + t * Mix::STRIDE + j, columns[j]);
#pragma GCC unroll 8
        for (int i = 0; i < TO; i++) {
            V row[FROM], out[TO];
#pragma GCC unroll 8
            for (int j = 0; j < FROM; j++) row[j] = columns[j][i];
            Mix::mix(row, out);
#pragma GCC unroll 8
            for (int j = 0; j < TO; j++) put(i * TO + j, run.first + t, out[j]);
        }
#pragma GCC unroll 8
        for (int j = 0; j < KEPT; j++)
#pragma GCC unroll 8
            for (int i = 0; i < TO; i++) columns[j][i] = columns[j + Mix::STRIDE][i];
    }
}

// The same on a square of numbers that read(i, j) gives.
template <class V, class Mix, class Read, class Write> inline void both_ways(Read read, Write write) {
    V half[Mix::TO][Mix::FROM];
#pragma GCC unroll 8
    for (int j = 0; j < Mix::FROM; j++) {
        V in[Mix::FROM], out[Mix::TO];
#pragma GCC unroll 8
        for (int i = 0; i < Mix::FROM; i++) in[i] = read(i, j);
        Mix::mix(in, out);
#pragma GCC unroll 8
        for (int i = 0; i < Mix::TO; i++) half[i][j] = out[i];
    }
#pragma GCC unroll 8
    for (int i = 0; i < Mix::TO; i++) {
        V out[Mix::TO];
        Mix::mix(half[i], out);
#pragma GCC unroll 8
        for (int j = 0; j < Mix::TO; j++) write(i, j, out[j]);
    }
}

// Adds up a run's own pixels, SIDE×SIDE a tile, for the moments.
template <class K, Half HALF, int64_t SIDE> inline void measure(const Map<K> &map, const Run &run, int64_t c, const Sums &sums, int64_t member) {
    const typename K::Vector centre = pick<K, HALF>(sums.group + c);
    typename K::Vector sum{}, squares{};
    const int64_t end = std::min((run.column + run.count) * SIDE, map.width);
    for (int64_t row = run.row * SIDE; row < std::min(run.row * SIDE + SIDE, map.height); row++) {
        const typename K::Number *line = map.line(run.image, row) + c;
        for (int64_t j = run.column * SIDE; j < end; j++) {
            const typename K::Vector d = K::template fetch<HALF>(line + j * map.channels) - centre;
            sum += d;
            squares += d * d;
        }
    }
    add_to<K, HALF>(sums.part(member) + c, sum, sums.share);
    add_to<K, HALF>(sums.part(member) + sums.width + c, squares, sums.share);
}

// ---- Products ------------------------------------------------------------------------------------

// COUNT × NV registers of sums of `steps` products: row r's element of step s is at
// left[r · row + s · step].
template <class K, int COUNT, int NV, bool ADD>
inline void products(const typename K::Element *left, int64_t row, int64_t step, const typename K::Element *right, int64_t next, float *out,
                     int64_t outputs, int64_t steps) {
    typename K::Vector sums[COUNT][NV] = {};
    for (int64_t s = 0; s < steps; s++)
#pragma GCC unroll 8
        for (int r = 0; r < COUNT; r++)
#pragma GCC unroll 2
            for (int n = 0; n < NV; n++) sums[r][n] = K::add_product(sums[r][n], left + r * row + s * step, right + s * next + K::count * n);
#pragma GCC unroll 8
    for (int r = 0; r < COUNT; r++)
#pragma GCC unroll 2
        for (int n = 0; n < NV; n++) {
            float *to = out + r * outputs + K::count * n;
            K::write(to, ADD ? K::read(to) + sums[r][n] : sums[r][n]);
        }
}

// `count` rows of products with weights that lie packed, two registers of outputs at a time. Past
// `count` there is room, and what is written there is never read.
template <class K>
inline void multiply(const typename K::Element *left, const typename K::Element *packed, float *out, int64_t count, int64_t steps, int64_t outputs) {
    for (int64_t k = 0; k < outputs; k += 2 * K::count)
        for (int64_t t = 0; t < count; t += K::rows) {
            const typename K::Element *from = left + t * steps, *right = packed + k * steps;
            float *to = out + t * outputs + k;
            if (k + 2 * K::count <= outputs) products<K, K::rows, 2, false>(from, steps, 1, right, 2 * K::count, to, outputs, steps);
            else products<K, K::rows, 1, false>(from, steps, 1, right, K::count, to, outputs, steps);
        }
}

// out += leftᵀ · right over `steps` elements, for NV registers of outputs.
template <class K, int NV>
inline void add_outer(const typename K::Element *left, const typename K::Element *right, float *out, int64_t inputs, int64_t outputs, int64_t steps) {
    constexpr int64_t ROWS = K::rows;
    int64_t c = 0;
    for (; c + ROWS <= inputs; c += ROWS) products<K, ROWS, NV, true>(left + c, 1, inputs, right, outputs, out + c * outputs, outputs, steps);
    for (; c < inputs; c += 2) products<K, 2, NV, true>(left + c, 1, inputs, right, outputs, out + c * outputs, outputs, steps);
}

// ---- Weights -------------------------------------------------------------------------------------

// 3×3 weights, and how far apart they lie along each axis. Turned about, a convolution's are those of
// its gradient.
template <class T> struct Weights {
    T *w;
    int64_t outputs, inputs, by_output, by_input, by_row, by_column;
    T &at(int64_t k, int64_t c, int64_t i, int64_t j) const { return w[k * by_output + c * by_input + i * by_row + j * by_column]; }
    Weights turned() const { return {w + 2 * by_row + 2 * by_column, inputs, outputs, by_input, by_output, -by_row, -by_column}; }
    Weights exchanged() const { return {w, inputs, outputs, by_input, by_output, by_row, by_column}; }
};

// The weights transformed by Mix, TO×TO products' worth, as `multiply` reads them; with `joined`, all of
// them follow each other as inputs of one product.
template <class K, class Mix>
void pack(const Weights<const float> &weights, typename K::Element *packed, bool joined, int threads) {
    constexpr int64_t PLACES = Mix::TO * Mix::TO;
    const int64_t inputs = weights.inputs, outputs = weights.outputs, steps = inputs / K::each;
    // Outputs in blocks: what a register gathers from them serves many inputs.
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t k = 0; k < outputs; k += K::count)
        for (int64_t step = 0; step < steps; step++)
            for (int64_t number = 0; number < K::each; number++) {
                const int64_t c = channel_at<K>(step * K::each + number, inputs);
                const int64_t begin = k / (2 * K::count) * 2 * K::count, across = std::min(2 * K::count, outputs - begin);
                both_ways<typename K::Vector, Mix>(
                    [&](int i, int j) {
                        typename K::Vector v;
                        for (int n = 0; n < K::count; n++) v[n] = weights.at(k + n, c, i, j);
                        return v;
                    },
                    [&](int i, int j, typename K::Vector v) {
                        const int64_t place = i * Mix::TO + j, all = joined ? PLACES * steps : steps;
                        const int64_t from = joined ? place * steps + step : step, base = joined ? 0 : place * outputs * steps;
                        K::put(packed + base + begin * all + from * across + k - begin, number, v);
                    });
            }
}

// What becomes of outputs: a bias and a residual are added, where there are any.
template <class K> struct Plain {
    typename K::Number *y;
    int64_t outputs;
    const float *bias;
    const typename K::Number *residual;

    struct Taker {
        const Plain &to;
        int64_t k;
        typename K::Vector bias;
        void operator()(int64_t pixel, typename K::Vector v) {
            v += bias;
            if (to.residual) v += K::read(to.residual + pixel * to.outputs + k);
            K::write(to.y + pixel * to.outputs + k, v);
        }
        void done() {}
    };
    Taker operator()(int64_t, int64_t k) const { return {*this, k, bias ? K::read(bias + k) : typename K::Vector{}}; }
};

// ---- Convolutions --------------------------------------------------------------------------------

// Input tiles by Mix, products, and output tiles by Unmix. `finish(member, k)` makes what takes outputs
// from the k-th on: called with a pixel of maps of height × width and a register of values, and at the
// end of a run of tiles by its done().
template <class K, class Mix, class Unmix, bool NORM, class Finish>
void convolve(const Map<K> &map, const Grid &grid, const Norm &norm, const Sums &sums, const typename K::Element *packed, int64_t height, int64_t width,
              int64_t outputs, int threads, Finish finish) {
    typedef typename K::Vector V;
    constexpr int64_t PLACES = Mix::TO * Mix::TO, SIDE = Unmix::TO, SIZE = BLOCK<K, Mix>, FAR = APART<K, Mix>;
    const int64_t inputs = map.channels, steps = inputs / K::each;
    over_tiles<K, Mix>(grid, threads, [=](int64_t member, int64_t begin, int64_t end) {
        std::unique_ptr<typename K::Number[]> mixed(new typename K::Number[PLACES * FAR * inputs]);
        std::unique_ptr<float[]> product(new float[PLACES * FAR * outputs]);
        for (int64_t first = begin; first < end; first += SIZE) {
            const int64_t count = std::min(SIZE, end - first);
            over_runs(grid, first, count, [&](const Run &run) {
                over_registers<K>(inputs, [&](auto half, int64_t c, int64_t place) {
                    mix<K, half, Mix, NORM>(map, run, c, norm, [&](int64_t p, int64_t t, V v) {
                        K::write(&mixed[(p * FAR + t) * inputs + place], v);
                    });
                    if (NORM && sums.group) measure<K, half, Mix::STRIDE>(map, run, c, sums, member);
                });
            });
            for (int64_t p = 0; p < PLACES; p++)
                multiply<K>((const typename K::Element *)&mixed[p * FAR * inputs], packed + p * outputs * steps, &product[p * FAR * outputs],
                            count, steps, outputs);
            over_runs(grid, first, count, [&](const Run &run) {
                for (int64_t k = 0; k < outputs; k += K::count) {
                    auto take = finish(member, k);
                    for (int64_t t = 0; t < run.count; t++) {
                        const int64_t row = run.row * SIDE, column = (run.column + t) * SIDE;
                        const int64_t pixel = (run.image * height + row) * width + column;
                        both_ways<V, Unmix>(
                            [&](int i, int j) { return K::read(&product[((i * Mix::TO + j) * FAR + run.first + t) * outputs + k]); },
                            [&](int i, int j, V v) {
                                if (row + i < height && column + j < width) take(pixel + i * width + j, v);
                            });
                    }
                    take.done();
                }
            });
        }
    });
}

// The same where an output is one pixel, the sum of all products: their inputs lie side by side.
template <class K, class Mix, class Finish>
void convolve_joined(const Map<K> &map, const Grid &grid, const typename K::Element *packed, int64_t outputs, int threads, Finish finish) {
    constexpr int64_t PLACES = Mix::TO * Mix::TO, SIZE = BLOCK<K, Mix>;
    const int64_t inputs = map.channels, numbers = PLACES * inputs;
    over_tiles<K, Mix>(grid, threads, [=](int64_t member, int64_t begin, int64_t end) {
        std::unique_ptr<typename K::Number[]> mixed(new typename K::Number[SIZE * numbers]);
        std::unique_ptr<float[]> product(new float[SIZE * outputs]);
        for (int64_t first = begin; first < end; first += SIZE) {
            const int64_t count = std::min(SIZE, end - first);
            over_runs(grid, first, count, [&](const Run &run) {
                over_registers<K>(inputs, [&](auto half, int64_t c, int64_t place) {
                    mix<K, half, Mix, false>(map, run, c, Norm{}, [&](int64_t p, int64_t t, typename K::Vector v) {
                        K::write(&mixed[t * numbers + p * inputs + place], v);
                    });
                });
            });
            multiply<K>((const typename K::Element *)mixed.get(), packed, product.get(), count, numbers / K::each, outputs);
            for (int64_t k = 0; k < outputs; k += K::count) {
                auto take = finish(member, k);
                for (int64_t t = 0; t < count; t++) take(first + t, K::read(&product[t * outputs + k]));
                take.done();
            }
        }
    });
}

// The gradient of the weights: input tiles by Mix, gradient tiles by MixGrad, TO×TO products over the
// tiles, and those by Unmix. `sums` has room for TO×TO × inputs × outputs of each of the team.
template <class K, class Mix, class MixGrad, class Unmix, bool NORM = false>
void weight_gradient(const Map<K> &map, const Norm &norm, const Map<K> &grad, const Grid &grid, float *sums, const Weights<float> &out, int64_t team, int threads) {
    typedef typename K::Vector V;
    typedef typename K::Element Element;
    constexpr int64_t PLACES = Mix::TO * Mix::TO, SIZE = BLOCK<K, Mix>, FAR = APART<K, Mix> / K::each;
    const int64_t inputs = map.channels, outputs = grad.channels, size = inputs * outputs;
    const int64_t blocks = (grid.tiles + SIZE - 1) / SIZE;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t member = 0; member < team; member++) {
        std::unique_ptr<Element[]> left(new Element[PLACES * FAR * inputs]), right(new Element[PLACES * FAR * outputs]);
        float *own = sums + member * PLACES * size;
        memset(own, 0, PLACES * size * sizeof(float));
        for (int64_t block = blocks * member / team; block < blocks * (member + 1) / team; block++) {
            const int64_t first = block * SIZE, count = std::min(SIZE, grid.tiles - first), steps = (count + K::each - 1) / K::each;
            over_runs(grid, first, count, [&](const Run &run) {
                for (int64_t c = 0; c < inputs; c += K::count)
                    mix<K, WHOLE, Mix, NORM>(map, run, c, norm, [&](int64_t p, int64_t t, V v) {
                        K::put(&left[(p * FAR + t / K::each) * inputs + c], t % K::each, v);
                    });
                for (int64_t k = 0; k < outputs; k += K::count)
                    mix<K, WHOLE, MixGrad, false>(grad, run, k, Norm{}, [&](int64_t p, int64_t t, V v) {
                        K::put(&right[(p * FAR + t / K::each) * outputs + k], t % K::each, v);
                    });
            });
            for (int64_t p = 0; p < PLACES; p++)
                for (int64_t k = 0; k < outputs; k += 2 * K::count) {
                    const Element *from = &left[p * FAR * inputs], *by = &right[p * FAR * outputs + k];
                    float *to = own + p * size + k;
                    if (k + 2 * K::count <= outputs) add_outer<K, 2>(from, by, to, inputs, outputs, steps);
                    else add_outer<K, 1>(from, by, to, inputs, outputs, steps);
                }
        }
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t c = 0; c < inputs; c++)
        for (int64_t k = 0; k < outputs; k += K::count)
            both_ways<V, Unmix>(
                [&](int i, int j) {
                    V sum{};
                    for (int64_t member = 0; member < team; member++)
                        sum += K::read(sums + (member * PLACES + i * Mix::TO + j) * size + c * outputs + k);
                    return sum;
                },
                [&](int i, int j, V v) {
                    for (int n = 0; n < K::count; n++) out.at(k + n, c, i, j) = v[n];
                });
}

}  // namespace

#endif
