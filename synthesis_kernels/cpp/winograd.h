// Small convolutions by Winograd's method (Lavin & Gray 2016): a tile of pixels becomes a few numbers a
// channel, those are mixed by as many products over the channels, and become a tile of outputs, with
// less multiplications than the convolution itself. A block of tiles stays in the second cache from
// beginning to end.
#pragma once

#include "ahead.h"
#include "numbers.h"

#if defined(__AVX2__) && defined(__FMA__)

namespace {

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
// The gradient of the weights takes more at once: its sums are read and written less often.
template <class K, class Mix> constexpr int64_t LARGE_BLOCK = 2 * BLOCK<K, Mix>;

template <class K, class Mix, class Body> inline void over_tiles(const Grid &grid, int threads, Body body) {
    const int64_t size = BLOCK<K, Mix>, blocks = (grid.tiles + size - 1) / size, team = threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t member = 0; member < team; member++)
        body(member, blocks * member / team * size, std::min(blocks * (member + 1) / team * size, grid.tiles));
}

// A BatchNorm, and perhaps a ReLU, before the convolution; in the order of slots where it is applied.
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
// `slot`. put(place, tile, numbers) takes them; a place is one of the TO×TO products.
template <class K, Half HALF, class Mix, bool NORM, class Put>
inline void mix(const Map<K> &map, const Run &run, int64_t c, int64_t slot, const Norm &norm, Put put) {
    typedef typename K::Vector V;
    constexpr int FROM = Mix::FROM, TO = Mix::TO, KEPT = std::max(FROM - Mix::STRIDE, 0);
    V scale{}, shift{}, low = V{} + norm.low;
    if (NORM) scale = K::read(norm.scale + slot), shift = K::read(norm.shift + slot);
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
        V all[(LARGE_BLOCK<K, Mix> * Mix::STRIDE + KEPT) * TO];
        for (int64_t j = 0; j < run.count * Mix::STRIDE + KEPT; j++) column(left + j, all + j * TO);
        for (int64_t t = 0; t < run.count; t++)
            finish(t, [&](int j, int i) { return all[(t * Mix::STRIDE + j) * TO + i]; });
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

// Tells what Mix will read of a block of tiles: the rows that those above have not read.
template <class Mix, class K>
inline void foresee(Ahead &ahead, const Map<K> &map, const Grid &grid, int64_t first, int64_t count) {
    over_runs(grid, first, count, [&](const Run &run) {
        const int64_t column = run.column * Mix::STRIDE, end = std::min(column + run.count * Mix::STRIDE, map.width);
        for (int64_t i = std::max(Mix::FROM - Mix::STRIDE, 0); i < Mix::FROM; i++)
            if (auto line = map.line(run.image, run.row * Mix::STRIDE + Mix::OFFSET + i))
                ahead.add(line + column * map.channels, (end - column) * map.channels * sizeof *line);
    });
}

// ---- Weights -------------------------------------------------------------------------------------

// 3×3 weights, and how far apart they lie along each axis. Turned about, a convolution's are those of
// its gradient.
template <class T> struct Weights {
    T *w;
    int64_t outputs, inputs, by_output, by_input, by_row, by_column;
    T &at(int64_t k, int64_t c, int64_t i, int64_t j) const {
        return w[k * by_output + c * by_input + i * by_row + j * by_column];
    }
    Weights turned() const {
        return {w + 2 * by_row + 2 * by_column, inputs, outputs, by_input, by_output, -by_row, -by_column};
    }
    Weights exchanged() const { return {w, inputs, outputs, by_input, by_output, by_row, by_column}; }
};

// The weights transformed by Mix, as `multiply` reads them: packed[place][block][step][output], where a
// block is two registers of outputs and a step one element of inputs. With `joined` there is one product
// for all places, whose steps follow each other: packed[block][place, step][output].
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
                const int64_t block = k / (2 * K::count) * 2 * K::count,
                              across = std::min(2 * K::count, outputs - block);
                both_ways<typename K::Vector, Mix>(
                    [&](int i, int j) {
                        typename K::Vector v;
                        for (int n = 0; n < K::count; n++) v[n] = weights.at(k + n, c, i, j);
                        return v;
                    },
                    [&](int i, int j, typename K::Vector v) {
                        const int64_t place = i * Mix::TO + j;
                        typename K::Element *product = joined ? packed : packed + place * outputs * steps;
                        const int64_t all = joined ? PLACES * steps : steps, at = joined ? place * steps + step : step;
                        K::put(product + block * all + at * across + k - block, number, v);
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
    void foresee(Ahead &ahead, int64_t pixel, int64_t pixels) const {
        const int64_t at = pixel * outputs, bytes = pixels * outputs * sizeof *y;
        if (residual) ahead.add(residual + at, bytes);
        ahead.add(y + at, bytes);
    }
    Taker operator()(int64_t, int64_t k) const { return {*this, k, bias ? K::read(bias + k) : typename K::Vector{}}; }
};

// ---- Convolutions --------------------------------------------------------------------------------

// Input tiles by Mix, products, and output tiles by Unmix. `finish(member, k)` makes what takes outputs
// from the k-th on: called with a pixel of maps of height × width and a register of values, and at the
// end of a run of tiles by its done(); its foresee() is told before of which pixels those will be.
template <class K, class Mix, class Unmix, bool NORM, class Finish>
void convolve(const Map<K> &map, const Grid &grid, const Norm &norm, const Sums &sums,
              const typename K::Element *packed, int64_t height, int64_t width, int64_t outputs, int threads,
              Finish finish) {
    typedef typename K::Vector V;
    constexpr int64_t PLACES = Mix::TO * Mix::TO, SIDE = Unmix::TO, SIZE = BLOCK<K, Mix>, FAR = APART<K, Mix>;
    const int64_t inputs = map.channels, steps = inputs / K::each;
    over_tiles<K, Mix>(grid, threads, [=](int64_t member, int64_t begin, int64_t end) {
        Room<typename K::Number> mixed(PLACES * FAR * inputs);
        Room<float> product(PLACES * FAR * outputs);
        // The BatchNorm in the order of slots, and sums likewise.
        Room<float> vectors(3 * inputs), sum(2 * inputs, true);
        float *centre = &vectors[2 * inputs];
        const Norm own{&vectors[0], &vectors[inputs], norm.low};
        if (NORM) to_slots<K>(norm.scale, &vectors[0], inputs), to_slots<K>(norm.shift, &vectors[inputs], inputs);
        if (sums.group) to_slots<K>(sums.group, centre, inputs);
        for (int64_t first = begin; first < end; first += SIZE) {
            const int64_t count = std::min(SIZE, end - first);
            over_runs(grid, first, count, [&](const Run &run) {
                over_registers<K>(inputs, [&](auto half, int64_t c, int64_t slot) {
                    mix<K, half, Mix, NORM>(map, run, c, slot, own, [&](int64_t p, int64_t t, V v) {
                        K::write(&mixed[(p * FAR + t) * inputs + slot], v);
                    });
                    if (NORM && sums.group) measure<K, half, Mix::STRIDE>(map, run, c, centre + slot, &sum[slot]);
                });
            });
            Ahead ahead;
            over_runs(grid, first, count, [&](const Run &run) {
                const int64_t column = run.column * SIDE, end = std::min(column + run.count * SIDE, width);
                for (int64_t row = run.row * SIDE; row < std::min(run.row * SIDE + SIDE, height); row++)
                    finish.foresee(ahead, (run.image * height + row) * width + column, end - column);
            });
            foresee<Mix>(ahead, map, grid, first + count, std::min(SIZE, end - first - count));
            for (int64_t p = 0; p < PLACES; p++) {
                ahead.fetch(PLACES);
                multiply<K>((const typename K::Element *)&mixed[p * FAR * inputs], steps, packed + p * outputs * steps,
                            &product[p * FAR * outputs], count, steps, outputs);
            }
            over_runs(grid, first, count, [&](const Run &run) {
                for (int64_t k = 0; k < outputs; k += K::count) {
                    auto take = finish(member, k);
                    for (int64_t t = 0; t < run.count; t++) {
                        const int64_t row = run.row * SIDE, column = (run.column + t) * SIDE;
                        const int64_t pixel = (run.image * height + row) * width + column;
                        auto read = [&](int i, int j) {
                            return K::read(&product[((i * Mix::TO + j) * FAR + run.first + t) * outputs + k]);
                        };
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
            add_slots<K>(sums.part(member), &sum[0], inputs, sums.share);
            add_slots<K>(sums.part(member) + sums.width, &sum[inputs], inputs, sums.share);
        }
    });
}

// The same where an output is one pixel, the sum of all products: their inputs lie side by side.
template <class K, class Mix, class Finish> void convolve_joined(const Map<K> &map, const Grid &grid,
                                                                 const typename K::Element *packed, int64_t outputs,
                                                                 int threads, Finish finish) {
    constexpr int64_t PLACES = Mix::TO * Mix::TO, SIZE = BLOCK<K, Mix>;
    const int64_t inputs = map.channels, numbers = PLACES * inputs;
    over_tiles<K, Mix>(grid, threads, [=](int64_t member, int64_t begin, int64_t end) {
        Room<typename K::Number> mixed(SIZE * numbers);
        Room<float> product(SIZE * outputs);
        for (int64_t first = begin; first < end; first += SIZE) {
            const int64_t count = std::min(SIZE, end - first);
            over_runs(grid, first, count, [&](const Run &run) {
                over_registers<K>(inputs, [&](auto half, int64_t c, int64_t slot) {
                    mix<K, half, Mix, false>(map, run, c, slot, Norm{},
                                             [&](int64_t p, int64_t t, typename K::Vector v) {
                                                 K::write(&mixed[t * numbers + p * inputs + slot], v);
                                             });
                });
            });
            multiply<K>((const typename K::Element *)mixed.get(), numbers / K::each, packed, product.get(), count,
                        numbers / K::each, outputs);
            for (int64_t k = 0; k < outputs; k += K::count) {
                auto take = finish(member, k);
                for (int64_t t = 0; t < count; t++) take(first + t, K::read(&product[t * outputs + k]));
                take.done();
            }
        }
    });
}

// Zeros for the numbers that the last elements lack.
template <class K>
inline void fill_last(typename K::Element *elements, int64_t places, int64_t far, int64_t step, int64_t channels) {
    for (int64_t p = 0; p < places; p++)
        for (int64_t c = 0; c < channels; c += K::count)
            K::put(&elements[(p * far + step) * channels + c], 1, typename K::Vector{});
}

// The gradient of the weights: input tiles by Mix, gradient tiles by MixGrad (of one number or as many
// as those), TO×TO products over the tiles, and those by Unmix. `sums` has room for TO×TO × inputs × outputs of each of the team.
template <class K, class Mix, class MixGrad, class Unmix, bool NORM = false>
void weight_gradient(const Map<K> &map, const Norm &norm, const Map<K> &grad, const Grid &grid, float *sums,
                     const Weights<float> &out, int64_t team, int threads) {
    typedef typename K::Vector V;
    typedef typename K::Element Element;
    constexpr int64_t PLACES = Mix::TO * Mix::TO, SIZE = LARGE_BLOCK<K, Mix>, FAR = SIZE / K::each + 1;
    constexpr int64_t GRADS = MixGrad::TO * MixGrad::TO;
    const int64_t inputs = map.channels, outputs = grad.channels, size = inputs * outputs;
    const int64_t blocks = (grid.tiles + SIZE - 1) / SIZE;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t member = 0; member < team; member++) {
        Room<Element> left(PLACES * FAR * inputs), right(GRADS * FAR * outputs);
        float *own = sums + member * PLACES * size;
        memset(own, 0, PLACES * size * sizeof(float));
        for (int64_t block = blocks * member / team; block < blocks * (member + 1) / team; block++) {
            const int64_t first = block * SIZE, count = std::min(SIZE, grid.tiles - first),
                          steps = (count + K::each - 1) / K::each;
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
            Ahead ahead;
            const int64_t next = std::min(SIZE, grid.tiles - first - count);
            foresee<Mix>(ahead, map, grid, first + count, next);
            foresee<MixGrad>(ahead, grad, grid, first + count, next);
            for (int64_t p = 0; p < PLACES; p++) {
                ahead.fetch(PLACES);
                for (int64_t k = 0; k < outputs; k += 2 * K::count) {
                    const Element *from = &left[p * FAR * inputs], *by = &right[p % GRADS * FAR * outputs + k];
                    float *to = own + p * size + k;
                    if (k + 2 * K::count <= outputs)
                        add_outer<K, 2>(from, by, to, inputs, outputs, steps);
                    else
                        add_outer<K, 1>(from, by, to, inputs, outputs, steps);
                }
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
