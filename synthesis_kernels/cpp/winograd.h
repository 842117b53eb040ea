// Small convolutions by Winograd's method (Lavin & Gray 2016): a tile of pixels becomes a few numbers a
// channel, those are mixed by as many products over the channels, and become a tile of outputs, with
// less multiplications than the convolution itself. A block of tiles stays in the second cache from
// beginning to end.
#pragma once

#include "lanes.h"

#include <new>

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
    static constexpr int64_t room = 384;

    template <Half HALF> static Vector fetch(const bf16 *p) {
        if (HALF == WHOLE) return read(p);
        const __m512i both = _mm512_loadu_si512(p);
        return (Vector)(HALF == EVEN ? _mm512_slli_epi32(both, 16) : _mm512_and_si512(both, _mm512_set1_epi32(0xffff0000)));
    }
    static Vector read(const bf16 *p) { return load(p, 16); }
    static Vector read(const float *p) { return load(p, 16); }
    static void write(bf16 *p, Vector v) { store(p, v, 16); }
    static void write(float *p, Vector v) { store(p, v, 16); }
    // One number of each of 16 elements. The first one comes first, and waits as it is for the second.
    static void put(int32_t *elements, int64_t number, Vector v) {
        if (number) {
            const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)v, _mm512_loadu_ps(elements));
            const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
                                                   19, 3, 18, 2, 17, 1, 16, 0);
            v = (Vector)_mm512_permutexvar_epi16(order, both);
        }
        memcpy(elements, &v, 64);
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

// Numbers of which there is one a channel, in the order of places; and back.
template <class K> inline void to_places(const float *channels, float *places, int64_t count) {
    for (int64_t p = 0; p < count; p++) places[p] = channels[channel_at<K>(p, count)];
}
template <class K> inline void add_places(float *channels, const float *places, int64_t count, float share) {
    for (int64_t p = 0; p < count; p++) channels[channel_at<K>(p, count)] += places[p] * share;
}

// Memory for a while, at the beginning of a cache line: registers that lie across two of them take twice
// the time to be written.
template <class T> struct Room {
    T *begin;
    explicit Room(int64_t count, bool zeros = false) : begin((T *)operator new[](count * sizeof(T), std::align_val_t(64))) {
        if (zeros) memset((void *)begin, 0, count * sizeof(T));
    }
    ~Room() { operator delete[](begin, std::align_val_t(64)); }
    Room(const Room &) = delete;
    T &operator[](int64_t i) const { return begin[i]; }
    T *get() const { return begin; }
};

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

// A BatchNorm, and perhaps a ReLU, before the convolution; in the order of places where it is applied.
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
// columns; columns are shared by neighbouring tiles. The channels begin at c, and their numbers at
// `place`. put(product, tile, numbers) takes them.
template <class K, Half HALF, class Mix, bool NORM, class Put>
inline void mix(const Map<K> &map, const Run &run, int64_t c, int64_t place, const Norm &norm, Put put) {
    typedef typename K::Vector V;
    constexpr int FROM = Mix::FROM, TO = Mix::TO, KEPT = std::max(FROM - Mix::STRIDE, 0);
    V scale{}, shift{}, low = V{} + norm.low;
    if (NORM) scale = K::read(norm.scale + place), shift = K::read(norm.shift + place);
    const typename K::Number *lines[FROM];
    bool whole = true;
    for (int i = 0; i < FROM; i++) {
        lines[i] = map.line(run.image, run.row * Mix::STRIDE + Mix::OFFSET + i);
        whole = whole && lines[i];
    }
    auto read = [&](int i, int64_t j) {
        const V v = K::template fetch<HALF>(lines[i] + j * map.channels + c);
        return NORM ? K::larger(v * scale + shift, low) : v;
    };
    auto column = [&](int64_t j, V *out) {
        V d[FROM] = {};
        const bool inside = j >= 0 && j < map.width;
        if (inside && whole)
#pragma GCC unroll 8
            for (int i = 0; i < FROM; i++) d[i] = read(i, j);
        else if (inside)
            for (int i = 0; i < FROM; i++)
                if (lines[i]) d[i] = read(i, j);
        Mix::mix(d, out);
    };
    const int64_t left = run.column * Mix::STRIDE + Mix::OFFSET;
    // Rows of a tile whose columns are transformed already.
    auto finish = [&](int64_t t, auto at) {
#pragma GCC unroll 8
        for (int i = 0; i < TO; i++) {
            V row[FROM], out[TO];
#pragma GCC unroll 8
            for (int j = 0; j < FROM; j++) row[j] = at(j, i);
            Mix::mix(row, out);
#pragma GCC unroll 8
            for (int j = 0; j < TO; j++) put(i * TO + j, run.first + t, out[j]);
        }
    };
    if constexpr (FROM * TO > 16) {  // more than registers can hold: by way of the first cache
        V all[(BLOCK<K, Mix> * Mix::STRIDE + KEPT) * TO];
        for (int64_t j = 0; j < run.count * Mix::STRIDE + KEPT; j++) column(left + j, all + j * TO);
        for (int64_t t = 0; t < run.count; t++) finish(t, [&](int j, int i) { return all[(t * Mix::STRIDE + j) * TO + i]; });
    } else {
        V columns[FROM][TO];
#pragma GCC unroll 8
        for (int j = 0; j < KEPT; j++) column(left + j, columns[j]);
        for (int64_t t = 0; t < run.count; t++) {
#pragma GCC unroll 8
            for (int j = KEPT; j < FROM; j++) column(left + t * Mix::STRIDE + j, columns[j]);
            finish(t, [&](int j, int i) { return columns[j][i]; });
#pragma GCC unroll 8
            for (int j = 0; j < KEPT; j++)
#pragma GCC unroll 8
                for (int i = 0; i < TO; i++) columns[j][i] = columns[j + Mix::STRIDE][i];
        }
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

// Adds up a run's own pixels, SIDE×SIDE a tile, for the moments: `sums` has two rows of all channels.
template <class K, Half HALF, int64_t SIDE>
inline void measure(const Map<K> &map, const Run &run, int64_t c, const float *centre, float *sums) {
    const typename K::Vector around = K::read(centre);
    typename K::Vector sum{}, squares{};
    const int64_t end = std::min((run.column + run.count) * SIDE, map.width);
    for (int64_t row = run.row * SIDE; row < std::min(run.row * SIDE + SIDE, map.height); row++) {
        const typename K::Number *line = map.line(run.image, row) + c;
        for (int64_t j = run.column * SIDE; j < end; j++) {
            const typename K::Vector d = K::template fetch<HALF>(line + j * map.channels) - around;
            sum += d;
            squares += d * d;
        }
    }
    K::write(sums, K::read(sums) + sum);
    K::write(sums + map.channels, K::read(sums + map.channels) + squares);
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

// `count` rows of products with weights that lie packed, two registers of outputs at a time; rows of
// the left side are `row` elements apart. Past `count` there is room, and what is written there is
// never read.
template <class K, bool ADD = false>
inline void multiply(const typename K::Element *left, int64_t row, const typename K::Element *packed, float *out, int64_t count, int64_t steps,
                     int64_t outputs) {
    for (int64_t k = 0; k < outputs; k += 2 * K::count)
        for (int64_t t = 0; t < count; t += K::rows) {
            const typename K::Element *from = left + t * row, *right = packed + k * steps;
            float *to = out + t * outputs + k;
            if (k + 2 * K::count <= outputs) products<K, K::rows, 2, ADD>(from, row, 1, right, 2 * K::count, to, outputs, steps);
            else products<K, K::rows, 1, ADD>(from, row, 1, right, K::count, to, outputs, steps);
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
        Room<typename K::Number> mixed(PLACES * FAR * inputs);
        Room<float> product(PLACES * FAR * outputs);
        // The BatchNorm in the order of places, and sums likewise.
        Room<float> vectors(3 * inputs), sum(2 * inputs, true);
        float *centre = &vectors[2 * inputs];
        const Norm own{&vectors[0], &vectors[inputs], norm.low};
        if (NORM) to_places<K>(norm.scale, &vectors[0], inputs), to_places<K>(norm.shift, &vectors[inputs], inputs);
        if (sums.group) to_places<K>(sums.group, centre, inputs);
        for (int64_t first = begin; first < end; first += SIZE) {
            const int64_t count = std::min(SIZE, end - first);
            over_runs(grid, first, count, [&](const Run &run) {
                over_registers<K>(inputs, [&](auto half, int64_t c, int64_t place) {
                    mix<K, half, Mix, NORM>(map, run, c, place, own, [&](int64_t p, int64_t t, V v) {
                        K::write(&mixed[(p * FAR + t) * inputs + place], v);
                    });
                    if (NORM && sums.group) measure<K, half, Mix::STRIDE>(map, run, c, centre + place, &sum[place]);
                });
            });
            for (int64_t p = 0; p < PLACES; p++)
                multiply<K>((const typename K::Element *)&mixed[p * FAR * inputs], steps, packed + p * outputs * steps, &product[p * FAR * outputs],
                            count, steps, outputs);
            over_runs(grid, first, count, [&](const Run &run) {
                for (int64_t k = 0; k < outputs; k += K::count) {
                    auto take = finish(member, k);
                    for (int64_t t = 0; t < run.count; t++) {
                        const int64_t row = run.row * SIDE, column = (run.column + t) * SIDE;
                        const int64_t pixel = (run.image * height + row) * width + column;
                        auto read = [&](int i, int j) { return K::read(&product[((i * Mix::TO + j) * FAR + run.first + t) * outputs + k]); };
                        if (row + SIDE <= height && column + SIDE <= width)
                            both_ways<V, Unmix>(read, [&](int i, int j, V v) { take(pixel + i * width + j, v); });
                        else
                            both_ways<V, Unmix>(read, [&](int i, int j, V v) {
                                if (row + i < height && column + j < width) take(pixel + i * width + j, v);
                            });
                    }
                    take.done();
                }
            });
        }
        if (sums.group) {
            add_places<K>(sums.part(member), &sum[0], inputs, sums.share);
            add_places<K>(sums.part(member) + sums.width, &sum[inputs], inputs, sums.share);
        }
    });
}

// The same where an output is one pixel, the sum of all products: their inputs lie side by side.
template <class K, class Mix, class Finish>
void convolve_joined(const Map<K> &map, const Grid &grid, const typename K::Element *packed, int64_t outputs, int threads, Finish finish) {
    constexpr int64_t PLACES = Mix::TO * Mix::TO, SIZE = BLOCK<K, Mix>;
    const int64_t inputs = map.channels, numbers = PLACES * inputs;
    over_tiles<K, Mix>(grid, threads, [=](int64_t member, int64_t begin, int64_t end) {
        Room<typename K::Number> mixed(SIZE * numbers);
        Room<float> product(SIZE * outputs);
        for (int64_t first = begin; first < end; first += SIZE) {
            const int64_t count = std::min(SIZE, end - first);
            over_runs(grid, first, count, [&](const Run &run) {
                over_registers<K>(inputs, [&](auto half, int64_t c, int64_t place) {
                    mix<K, half, Mix, false>(map, run, c, place, Norm{}, [&](int64_t p, int64_t t, typename K::Vector v) {
                        K::write(&mixed[t * numbers + p * inputs + place], v);
                    });
                });
            });
            multiply<K>((const typename K::Element *)mixed.get(), numbers / K::each, packed, product.get(), count, numbers / K::each, outputs);
            for (int64_t k = 0; k < outputs; k += K::count) {
                auto take = finish(member, k);
                for (int64_t t = 0; t < count; t++) take(first + t, K::read(&product[t * outputs + k]));
                take.done();
            }
        }
    });
}

// Zeros for the numbers that the last elements lack.
template <class K> inline void fill_last(typename K::Element *elements, int64_t places, int64_t far, int64_t step, int64_t channels) {
    for (int64_t p = 0; p < places; p++)
        for (int64_t c = 0; c < channels; c += K::count) K::put(&elements[(p * far + step) * channels + c], 1, typename K::Vector{});
}

// The gradient of the weights: input tiles by Mix, gradient tiles by MixGrad (of one number or as many
// as those), TO×TO products over the tiles, and those by Unmix. `sums` has room for TO×TO × inputs × outputs of each of the team.
template <class K, class Mix, class MixGrad, class Unmix, bool NORM = false>
void weight_gradient(const Map<K> &map, const Norm &norm, const Map<K> &grad, const Grid &grid, float *sums, const Weights<float> &out, int64_t team, int threads) {
    typedef typename K::Vector V;
    typedef typename K::Element Element;
    // More tiles at once than elsewhere: sums are read and written less often.
    constexpr int64_t PLACES = Mix::TO * Mix::TO, SIZE = K::each * BLOCK<K, Mix>, FAR = SIZE / K::each + 1;
    constexpr int64_t GRADS = MixGrad::TO * MixGrad::TO;
    const int64_t inputs = map.channels, outputs = grad.channels, size = inputs * outputs;
    const int64_t blocks = (grid.tiles + SIZE - 1) / SIZE;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t member = 0; member < team; member++) {
        Room<Element> left(PLACES * FAR * inputs), right(GRADS * FAR * outputs);
        float *own = sums + member * PLACES * size;
        memset(own, 0, PLACES * size * sizeof(float));
        for (int64_t block = blocks * member / team; block < blocks * (member + 1) / team; block++) {
            const int64_t first = block * SIZE, count = std::min(SIZE, grid.tiles - first), steps = (count + K::each - 1) / K::each;
            over_runs(grid, first, count, [&](const Run &run) {
                for (int64_t c = 0; c < inputs; c += K::count)
                    mix<K, WHOLE, Mix, NORM>(map, run, c, c, norm, [&](int64_t p, int64_t t, V v) {
                        K::put(&left[(p * FAR + t / K::each) * inputs + c], t % K::each, v);
                    });
                for (int64_t k = 0; k < outputs; k += K::count)
                    mix<K, WHOLE, MixGrad, false>(grad, run, k, k, Norm{}, [&](int64_t p, int64_t t, V v) {
                        K::put(&right[(p * FAR + t / K::each) * outputs + k], t % K::each, v);
                    });
            });
            if (count % K::each) {
                fill_last<K>(left.get(), PLACES, FAR, steps - 1, inputs);
                fill_last<K>(right.get(), GRADS, FAR, steps - 1, outputs);
            }
            for (int64_t p = 0; p < PLACES; p++)
                for (int64_t k = 0; k < outputs; k += 2 * K::count) {
                    const Element *from = &left[p * FAR * inputs], *by = &right[p % GRADS * FAR * outputs + k];
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
