// The CPU forms of the kernels: what torch would do in several passes over memory, in one.
// Plain C++ with GCC/Clang vector types and no torch headers: it compiles in a second. Inputs are rows
// of channels (channels last). Every function takes the number of threads; torch's own OpenMP runtime
// is linked.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

// Rows of one block: its partial sums stay in registers, its rows in the first cache.
constexpr int64_t ROWS = 128;

struct bf16 { uint16_t bits; };

// One vector register's worth of channels, computed in float (or double for double).
template <class T> struct Lanes {
    typedef float Number;
    typedef float Vector __attribute__((vector_size(64)));
    static constexpr int64_t count = 16;
};
template <> struct Lanes<double> {
    typedef double Number;
    typedef double Vector __attribute__((vector_size(64)));
    static constexpr int64_t count = 8;
};
typedef Lanes<float>::Vector Floats;
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

inline Floats widen(Halves h) { return (Floats)(__builtin_convertvector(h, Words) << 16); }

// Rounds to nearest, ties to even; NaN stays NaN.
inline Halves narrow(Floats v) {
    Words u = (Words)v;
    u = v != v ? Words{} + 0x7fc0 : (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    return __builtin_convertvector(u, Halves);
}

// `n` is a register's full count except in the last channels of a row that it does not divide.
inline Floats load(const float *p, int64_t n) {
    Floats v{};
    if (n == 16) memcpy(&v, p, 64); else memcpy(&v, p, 4 * n);
    return v;
}
inline Lanes<double>::Vector load(const double *p, int64_t n) {
    Lanes<double>::Vector v{};
    if (n == 8) memcpy(&v, p, 64); else memcpy(&v, p, 8 * n);
    return v;
}
inline Floats load(const bf16 *p, int64_t n) {
    Halves h{};
    if (n == 16) memcpy(&h, p, 32); else memcpy(&h, p, 2 * n);
    return widen(h);
}
inline void store(float *p, Floats v, int64_t n) { if (n == 16) memcpy(p, &v, 64); else memcpy(p, &v, 4 * n); }
inline void store(double *p, Lanes<double>::Vector v, int64_t n) { if (n == 8) memcpy(p, &v, 64); else memcpy(p, &v, 8 * n); }
inline void store(bf16 *p, Floats v, int64_t n) {
    Halves h = narrow(v);
    if (n == 16) memcpy(p, &h, 32); else memcpy(p, &h, 2 * n);
}

// Calls body(thread, first row, end row, first channel, channels) for all blocks of rows and registers
// of channels.
template <int64_t WIDTH, class Body> void over_blocks(int64_t rows, int64_t channels, int threads, Body body) {
    // The OpenMP runtime is not asked which thread this is: beside torch's own, the compiler's may
    // answer for another's threads.
    const int64_t blocks = (rows + ROWS - 1) / ROWS, full = channels / WIDTH * WIDTH, team = threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t thread = 0; thread < team; thread++) {
        for (int64_t block = blocks * thread / team; block < blocks * (thread + 1) / team; block++) {
            const int64_t first = block * ROWS, end = first + ROWS < rows ? first + ROWS : rows;
            // The width is a constant here, so there are no tails inside.
            for (int64_t c = 0; c < full; c += WIDTH) body(thread, first, end, c, WIDTH);
            if (full < channels) body(thread, first, end, full, channels - full);
        }
    }
}

template <class T, class N = typename Lanes<T>::Number>
void match_forward(const T *x, T *y, const N *centre, const N *scale, const N *shift, N *sums, int64_t rows, int64_t channels,
                   int64_t relu, int threads) {
    typedef typename Lanes<T>::Vector V;
    const V zero{}, low = zero + (relu ? N(0) : N(-INFINITY));
    over_blocks<Lanes<T>::count>(rows, channels, threads, [=](int64_t thread, int64_t first, int64_t end, int64_t c, int64_t n) {
        N *sum = sums + 2 * channels * thread + c, *squares = sum + channels;
        const V m = load(centre + c, n), k = load(scale + c, n), b = load(shift + c, n);
        V s1 = zero, s2 = zero;
        for (int64_t r = first; r < end; r++) {
            const V v = load(x + r * channels + c, n), d = v - m, out = v * k + b;
            s1 += d;
            s2 += d * d;
            store(y + r * channels + c, out < low ? low : out, n);
        }
        store(sum, load(sum, n) + s1, n);
        store(squares, load(squares, n) + s2, n);
    });
}

template <class T, class N = typename Lanes<T>::Number>
void match_backward(const T *x, const T *grad, T *out, const N *scale, const N *shift, const N *mean, const N *slope,
                    const N *base, int64_t rows, int64_t channels, int64_t relu, int threads) {
    typedef typename Lanes<T>::Vector V;
    const V zero{}, low = zero + (relu ? N(0) : N(-INFINITY));
    over_blocks<Lanes<T>::count>(rows, channels, threads, [=](int64_t, int64_t first, int64_t end, int64_t c, int64_t n) {
        const V k = load(scale + c, n), b = load(shift + c, n), m = load(mean + c, n), s = load(slope + c, n), q = load(base + c, n);
        for (int64_t r = first; r < end; r++) {
            const V v = load(x + r * channels + c, n), g = load(grad + r * channels + c, n);
            store(out + r * channels + c, (v * k + b > low ? g * k : zero) + ((v - m) * s + q), n);
        }
    });
}

// A number in [0, 1) as one of `count` integers; the product may round up to `count` itself.
inline int64_t whole(float draw, int64_t count) {
    const int64_t value = int64_t(draw * float(count));
    return value < count ? value : count - 1;
}

// One view of each image: where a pixel comes from is computed once and serves every channel.
// `draws` is lanes × count.
void views(const uint8_t *pool, const int64_t *index, const float *draws, float *out, int64_t images, int64_t count, int64_t channels,
           int64_t height, int64_t width, int64_t crop, int64_t flip, int64_t cutout, float mixup, int threads) {
    const int64_t area = height * width;
#pragma omp parallel for num_threads(threads)
    for (int64_t b = 0; b < count; b++) {
        auto draw = [&](int lane) { return draws[lane * count + b]; };
        const int64_t down = whole(draw(0), 2 * crop + 1) - crop, right = whole(draw(1), 2 * crop + 1) - crop;
        const bool mirrored = flip && draw(2) < 0.5f, blended = draw(5) < mixup;
        const int64_t top = whole(draw(3), height) - cutout / 2, left = whole(draw(4), width) - cutout / 2;
        const uint8_t *image = pool + index[b] * channels * area;
        const uint8_t *other = pool + (blended ? whole(draw(6), images) : 0) * channels * area;
        const float share = draw(7);
        float *to = out + b * area * channels;
        for (int64_t i = 0; i < height; i++)
            for (int64_t j = 0; j < width; j++, to += channels) {
                const int64_t y = i + down, x = (mirrored ? width - 1 - j : j) + right;
                const bool cut = i >= top && i < top + cutout && j >= left && j < left + cutout;
                const bool black = cut || y < 0 || y >= height || x < 0 || x >= width;
                for (int64_t c = 0; c < channels; c++) {
                    const int64_t place = c * area + y * width + x;
                    float value = black ? 0 : image[place] / 255.0f;
                    if (blended && !black) {
                        const float start = other[place] / 255.0f;
                        value = share < 0.5f ? start + share * (value - start) : value - (value - start) * (1 - share);
                    }
                    to[c] = value;
                }
            }
    }
}

#ifdef __AVX512BF16__

// TILES × 16·NV outputs of one product, in registers: `pairs` holds the weights of two input channels
// at a time, as the processor's bfloat16 instruction takes them.
template <int TILES, int NV>
inline void multiply(const bf16 *tiles, const bf16 *pairs, float *out, int64_t inputs, int64_t outputs) {
    __m512 sums[TILES][NV] = {};
    for (int64_t c = 0; c < inputs; c += 2) {
        __m512bh weights[NV];
        for (int n = 0; n < NV; n++) weights[n] = (__m512bh)_mm512_loadu_si512(pairs + c * outputs + 32 * n);
#pragma GCC unroll 8
        for (int t = 0; t < TILES; t++) {
            int32_t pair;
            memcpy(&pair, tiles + t * inputs + c, 4);
            for (int n = 0; n < NV; n++) sums[t][n] = _mm512_dpbf16_ps(sums[t][n], (__m512bh)_mm512_set1_epi32(pair), weights[n]);
        }
    }
    for (int t = 0; t < TILES; t++)
        for (int n = 0; n < NV; n++) _mm512_storeu_ps(out + t * outputs + 16 * n, sums[t][n]);
}

// 3×3 convolution, stride 1, padding 1, by Winograd's F(2×2, 3×3): each tile of 4×4 inputs becomes 16
// numbers a channel, those are mixed by 16 products over the channels, and become 2×2 outputs: 16
// multiplications instead of 36. A block of tiles stays in the second cache from beginning to end.
// Channels are multiples of 16.
void conv3x3(const bf16 *x, const bf16 *weights, const float *bias, bf16 *y, int64_t batch, int64_t height, int64_t width,
             int64_t inputs, int64_t outputs, int threads) {
    const int64_t BLOCK = 48, STEP = 8;
    const int64_t down = (height + 1) / 2, across = (width + 1) / 2, tiles = batch * down * across;
#pragma omp parallel num_threads(threads)
    {
        std::vector<bf16> mixed(16 * BLOCK * inputs), zeros(inputs);
        std::vector<float> product(16 * BLOCK * outputs);
#pragma omp for schedule(static)
        for (int64_t first = 0; first < tiles; first += BLOCK) {
            const int64_t count = first + BLOCK < tiles ? BLOCK : tiles - first;
            for (int64_t t = 0; t < count; t++) {
                const int64_t tile = first + t, image = tile / (down * across);
                const int64_t top = tile / across % down * 2 - 1, left = tile % across * 2 - 1;
                const bf16 *from[4][4];
                for (int i = 0; i < 4; i++)
                    for (int j = 0; j < 4; j++) {
                        const int64_t row = top + i, column = left + j;
                        const bool inside = row >= 0 && row < height && column >= 0 && column < width;
                        from[i][j] = inside ? x + ((image * height + row) * width + column) * inputs : zeros.data();
                    }
                for (int64_t c = 0; c < inputs; c += 16) {
                    Floats half[4][4];
                    for (int j = 0; j < 4; j++) {
                        const Floats a = load(from[0][j] + c, 16), b = load(from[1][j] + c, 16);
                        const Floats d = load(from[2][j] + c, 16), e = load(from[3][j] + c, 16);
                        half[0][j] = a - d, half[1][j] = b + d, half[2][j] = d - b, half[3][j] = b - e;
                    }
                    for (int i = 0; i < 4; i++) {
                        const Floats *h = half[i], out[4] = {h[0] - h[2], h[1] + h[2], h[2] - h[1], h[1] - h[3]};
                        for (int j = 0; j < 4; j++) {
                            const __m256bh rounded = _mm512_cvtneps_pbh((__m512)out[j]);
                            memcpy(&mixed[((i * 4 + j) * BLOCK + t) * inputs + c], &rounded, 32);
                        }
                    }
                }
            }
            for (int64_t p = 0; p < 16; p++)
                for (int64_t k = 0; k < outputs; k += 32)
                    // Past `count` there is room, and what is written there is never read.
                    for (int64_t t = 0; t < count; t += STEP) {
                        const bf16 *from = &mixed[(p * BLOCK + t) * inputs], *pairs = weights + p * inputs * outputs + 2 * k;
                        float *to = &product[(p * BLOCK + t) * outputs + k];
                        if (k + 32 <= outputs) multiply<STEP, 2>(from, pairs, to, inputs, outputs);
                        else multiply<STEP, 1>(from, pairs, to, inputs, outputs);
                    }
            for (int64_t t = 0; t < count; t++) {
                const int64_t tile = first + t, image = tile / (down * across);
                const int64_t row = tile / across % down * 2, column = tile % across * 2;
                bf16 *to = y + ((image * height + row) * width + column) * outputs;
                for (int64_t k = 0; k < outputs; k += 16) {
                    Floats half[2][4];
                    for (int j = 0; j < 4; j++) {
                        Floats m[4];
                        for (int i = 0; i < 4; i++) m[i] = load(&product[((i * 4 + j) * BLOCK + t) * outputs + k], 16);
                        half[0][j] = m[0] + m[1] + m[2], half[1][j] = m[1] - m[2] - m[3];
                    }
                    const Floats b = load(bias + k, 16);
                    for (int i = 0; i < 2 && row + i < height; i++) {
                        const Floats *h = half[i];
                        store(to + i * width * outputs + k, h[0] + h[1] + h[2] + b, 16);
                        if (column + 1 < width) store(to + (i * width + 1) * outputs + k, h[1] - h[2] - h[3] + b, 16);
                    }
                }
            }
        }
    }
}

#endif

#if defined(__AVX2__) && defined(__FMA__)

// 3×3 convolutions in float32, stride 1, padding 1, and the gradient of their weights, by Winograd's
// F(4×4, 3×3): a tile of 6×6 inputs becomes 36 numbers a channel, those are mixed by 36 products over
// the channels, and become 4×4 outputs: 36 multiplications instead of 144. Channels are multiples
// of 16. WIDE is how many numbers a register has.
#ifndef WIDE
#ifdef __AVX512F__
#define WIDE 16
#else
#define WIDE 8
#endif
#endif
typedef float Wide __attribute__((vector_size(4 * WIDE)));
// Tiles of one block, which stays in the second cache from beginning to end.
constexpr int64_t TILES = 12;

inline Wide wide(const float *p) { Wide v; memcpy(&v, p, sizeof v); return v; }
inline void keep(float *p, Wide v) { memcpy(p, &v, sizeof v); }

// The rows of Bᵀ, Aᵀ, A, G and Gᵀ, each on one line of numbers.
inline void mix_inputs(const Wide *d, Wide *out) {
    const Wide even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1], far = d[4] - d[2], steep = 2 * (d[3] - d[1]);
    out[0] = 4 * d[0] - 5 * d[2] + d[4], out[1] = even + odd, out[2] = even - odd;
    out[3] = far + steep, out[4] = far - steep, out[5] = 4 * d[1] - 5 * d[3] + d[5];
}
inline void unmix_outputs(const Wide *m, Wide *out) {
    const Wide near = m[1] + m[2], slope = m[1] - m[2], far = m[3] + m[4], steep = m[3] - m[4];
    out[0] = m[0] + near + far, out[1] = slope + 2 * steep, out[2] = near + 4 * far, out[3] = slope + 8 * steep + m[5];
}
inline void mix_outputs(const Wide *y, Wide *out) {
    const Wide even = y[0] + y[2], odd = y[1] + y[3], far = y[0] + 4 * y[2], steep = 2 * y[1] + 8 * y[3];
    out[0] = y[0], out[1] = even + odd, out[2] = even - odd, out[3] = far + steep, out[4] = far - steep, out[5] = y[3];
}
inline void mix_weights(const Wide *g, Wide *out) {
    const Wide ends = (g[0] + g[2]) / -6.f, middle = g[1] / 6.f, far = g[0] / 24.f + g[2] / 6.f, steep = g[1] / 12.f;
    out[0] = g[0] / 4.f, out[1] = ends - middle, out[2] = ends + middle, out[3] = far + steep, out[4] = far - steep, out[5] = g[2];
}
inline void unmix_weights(const Wide *u, Wide *out) {
    const Wide near = (u[1] + u[2]) / -6.f, slope = (u[2] - u[1]) / 6.f, far = u[3] + u[4], steep = (u[3] - u[4]) / 12.f;
    out[0] = u[0] / 4.f + near + far / 24.f, out[1] = slope + steep, out[2] = near + far / 6.f + u[5];
}

// Applies the transform to both sides of a square of FROM×FROM vectors, of which element (i, j) is
// read(i, j).
template <int FROM, int TO, class Transform, class Read, class Write> inline void both_sides(Transform transform, Read read, Write write) {
    Wide half[TO][FROM];
    for (int j = 0; j < FROM; j++) {
        Wide in[FROM], out[TO];
        for (int i = 0; i < FROM; i++) in[i] = read(i, j);
        transform(in, out);
        for (int i = 0; i < TO; i++) half[i][j] = out[i];
    }
    for (int i = 0; i < TO; i++) {
        Wide out[TO];
        transform(half[i], out);
        for (int j = 0; j < TO; j++) write(i, j, out[j]);
    }
}

// COUNT × WIDE·NV sums of `steps` products in registers: row r's factor of step s is at
// left[r · row + s · step].
template <int COUNT, int NV, bool ADD>
inline void products(const float *left, int64_t row, int64_t step, const float *right, int64_t next, float *out, int64_t outputs,
                     int64_t steps) {
    Wide sums[COUNT][NV] = {};
    for (int64_t s = 0; s < steps; s++) {
        Wide factors[NV];
        for (int n = 0; n < NV; n++) factors[n] = wide(right + s * next + WIDE * n);
#pragma GCC unroll 8
        for (int r = 0; r < COUNT; r++)
#pragma GCC unroll 2
            for (int n = 0; n < NV; n++) sums[r][n] += left[r * row + s * step] * factors[n];
    }
    for (int r = 0; r < COUNT; r++)
        for (int n = 0; n < NV; n++) {
            float *to = out + r * outputs + WIDE * n;
            keep(to, ADD ? wide(to) + sums[r][n] : sums[r][n]);
        }
}

// out += leftᵀ · right over `count` tiles, for WIDE·NV outputs; channels are even.
template <int NV>
inline void add_outer(const float *left, const float *right, float *out, int64_t inputs, int64_t outputs, int64_t count) {
    int64_t c = 0;
    for (; c + 6 <= inputs; c += 6) products<6, NV, true>(left + c, 1, inputs, right, outputs, out + c * outputs, outputs, count);
    for (; c < inputs; c += 2) products<2, NV, true>(left + c, 1, inputs, right, outputs, out + c * outputs, outputs, count);
}

struct Tile {
    int64_t image, top, left;
};
// The tiles of a batch of images, row by row.
struct Tiling {
    int64_t batch, height, width, down = (height + 3) / 4, across = (width + 3) / 4, count = batch * down * across;
    Tile operator[](int64_t t) const { return {t / (down * across), t / across % down * 4, t % across * 4}; }
    bool has(int64_t row, int64_t column) const { return row >= 0 && row < height && column >= 0 && column < width; }
    int64_t pixel(const Tile &tile, int64_t row, int64_t column) const { return (tile.image * height + row) * width + column; }
};

// SIDE×SIDE pixels of `count` tiles, which begin `offset` off the tiles' corners, transformed:
// out[place][tile][channel].
template <int SIDE, class Transform>
inline void gather(const Tiling &tiling, const float *x, const float *zeros, float *out, int64_t first, int64_t count, int64_t offset,
                   int64_t channels, Transform transform) {
    for (int64_t t = 0; t < count; t++) {
        const Tile tile = tiling[first + t];
        const float *from[SIDE][SIDE];
        for (int i = 0; i < SIDE; i++)
            for (int j = 0; j < SIDE; j++) {
                const int64_t row = tile.top + offset + i, column = tile.left + offset + j;
                from[i][j] = tiling.has(row, column) ? x + tiling.pixel(tile, row, column) * channels : zeros;
            }
        for (int64_t c = 0; c < channels; c += WIDE)
            both_sides<SIDE, 6>(transform, [&](int i, int j) { return wide(from[i][j] + c); },
                                [&](int i, int j, Wide v) { keep(out + ((i * 6 + j) * TILES + t) * channels + c, v); });
    }
}

// y = x ⋆ weights + bias; `weights` are 3 × 3 × inputs × outputs, and `packed` has room for
// 36 × inputs × outputs: the transformed ones, 2·WIDE outputs at a time, as they are read.
void conv3x3(const float *x, const float *weights, const float *bias, float *packed, float *y, int64_t batch, int64_t height, int64_t width,
             int64_t inputs, int64_t outputs, int threads) {
    const Tiling tiling{batch, height, width};
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t c = 0; c < inputs; c++)
            for (int64_t k = 0; k < outputs; k += WIDE) {
                const int64_t begin = k / (2 * WIDE) * 2 * WIDE, across = begin + 2 * WIDE <= outputs ? 2 * WIDE : WIDE;
                both_sides<3, 6>(mix_weights, [&](int i, int j) { return wide(weights + ((i * 3 + j) * inputs + c) * outputs + k); },
                                 [&](int i, int j, Wide v) {
                                     keep(packed + ((i * 6 + j) * outputs + begin) * inputs + c * across + k - begin, v);
                                 });
            }
        std::vector<float> mixed(36 * TILES * inputs), zeros(inputs), product(36 * TILES * outputs);
#pragma omp for schedule(static)
        for (int64_t first = 0; first < tiling.count; first += TILES) {
            const int64_t count = first + TILES < tiling.count ? TILES : tiling.count - first;
            gather<6>(tiling, x, zeros.data(), mixed.data(), first, count, -1, inputs, mix_inputs);
            for (int64_t p = 0; p < 36; p++)
                for (int64_t k = 0; k < outputs; k += 2 * WIDE)
                    // Past `count` there is room, and what is written there is never read.
                    for (int64_t t = 0; t < count; t += 6) {
                        const float *tiles = &mixed[(p * TILES + t) * inputs], *right = packed + (p * outputs + k) * inputs;
                        float *to = &product[(p * TILES + t) * outputs + k];
                        if (k + 2 * WIDE <= outputs) products<6, 2, false>(tiles, inputs, 1, right, 2 * WIDE, to, outputs, inputs);
                        else products<6, 1, false>(tiles, inputs, 1, right, WIDE, to, outputs, inputs);
                    }
            for (int64_t t = 0; t < count; t++) {
                const Tile tile = tiling[first + t];
                const int64_t rows = height - tile.top, columns = width - tile.left;
                float *to = y + tiling.pixel(tile, tile.top, tile.left) * outputs;
                for (int64_t k = 0; k < outputs; k += WIDE) {
                    const Wide b = wide(bias + k);
                    both_sides<6, 4>(unmix_outputs,
                                     [&](int i, int j) { return wide(&product[((i * 6 + j) * TILES + t) * outputs + k]); },
                                     [&](int i, int j, Wide v) {
                                         if (i < rows && j < columns) keep(to + (i * width + j) * outputs + k, v + b);
                                     });
                }
            }
        }
    }
}

// The weights' gradient, 3 × 3 × inputs × outputs; `sums` has room for 36 × inputs × outputs of each
// of the team.
void conv3x3_weight(const float *x, const float *grad, float *sums, float *out, int64_t batch, int64_t height, int64_t width,
                    int64_t inputs, int64_t outputs, int64_t team, int threads) {
    const Tiling tiling{batch, height, width};
    const int64_t size = inputs * outputs, blocks = (tiling.count + TILES - 1) / TILES;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> mixed(36 * TILES * inputs), zeros(inputs > outputs ? inputs : outputs), mixed_grad(36 * TILES * outputs);
#pragma omp for schedule(static)
        for (int64_t member = 0; member < team; member++) {
            float *mine = sums + member * 36 * size;
            memset(mine, 0, 36 * size * sizeof(float));
            for (int64_t block = blocks * member / team; block < blocks * (member + 1) / team; block++) {
                const int64_t first = block * TILES, count = first + TILES < tiling.count ? TILES : tiling.count - first;
                gather<6>(tiling, x, zeros.data(), mixed.data(), first, count, -1, inputs, mix_inputs);
                gather<4>(tiling, grad, zeros.data(), mixed_grad.data(), first, count, 0, outputs, mix_outputs);
                for (int64_t p = 0; p < 36; p++)
                    for (int64_t k = 0; k < outputs; k += 2 * WIDE) {
                        const float *left = &mixed[p * TILES * inputs], *right = &mixed_grad[p * TILES * outputs + k];
                        float *to = mine + p * size + k;
                        if (k + 2 * WIDE <= outputs) add_outer<2>(left, right, to, inputs, outputs, count);
                        else add_outer<1>(left, right, to, inputs, outputs, count);
                    }
            }
        }
#pragma omp for schedule(static)
        for (int64_t at = 0; at < size; at += WIDE)
            both_sides<6, 3>(unmix_weights,
                             [&](int i, int j) {
                                 Wide sum = wide(sums + (i * 6 + j) * size + at);
                                 for (int64_t member = 1; member < team; member++)
                                     sum += wide(sums + (member * 36 + i * 6 + j) * size + at);
                                 return sum;
                             },
                             [&](int i, int j, Wide v) { keep(out + (i * 3 + j) * size + at, v); });
    }
}

#endif

}  // namespace

#ifdef __AVX512BF16__
extern "C" void conv3x3_bfloat16(const bf16 *x, const bf16 *weights, const float *bias, bf16 *y, int64_t batch, int64_t height,
                                 int64_t width, int64_t inputs, int64_t outputs, int threads) {
    conv3x3(x, weights, bias, y, batch, height, width, inputs, outputs, threads);
}
#endif

#if defined(__AVX2__) && defined(__FMA__)
extern "C" void conv3x3_float32(const float *x, const float *weights, const float *bias, float *packed, float *y, int64_t batch,
                                int64_t height, int64_t width, int64_t inputs, int64_t outputs, int threads) {
    conv3x3(x, weights, bias, packed, y, batch, height, width, inputs, outputs, threads);
}
extern "C" void conv3x3_weight_float32(const float *x, const float *grad, float *sums, float *out, int64_t batch, int64_t height,
                                       int64_t width, int64_t inputs, int64_t outputs, int64_t team, int threads) {
    conv3x3_weight(x, grad, sums, out, batch, height, width, inputs, outputs, team, threads);
}
#endif

#define FORMS(NAME, T, N)                                                                                                        \
    extern "C" void match_forward_##NAME(const T *x, T *y, const N *centre, const N *scale, const N *shift, N *sums,             \
                                         int64_t rows, int64_t channels, int64_t relu, int threads) {                            \
        match_forward(x, y, centre, scale, shift, sums, rows, channels, relu, threads);                                          \
    }                                                                                                                            \
    extern "C" void match_backward_##NAME(const T *x, const T *grad, T *out, const N *scale, const N *shift, const N *mean,      \
                                          const N *slope, const N *base, int64_t rows, int64_t channels, int64_t relu,           \
                                          int threads) {                                                                         \
        match_backward(x, grad, out, scale, shift, mean, slope, base, rows, channels, relu, threads);                            \
    }
FORMS(float32, float, float)
FORMS(float64, double, double)
FORMS(bfloat16, bf16, float)
extern "C" void views_float32(const uint8_t *pool, const int64_t *index, const float *draws, float *out, int64_t images, int64_t count,
                              int64_t channels, int64_t height, int64_t width, int64_t crop, int64_t flip, int64_t cutout,
                              float mixup, int threads) {
    views(pool, index, draws, out, images, count, channels, height, width, crop, flip, cutout, mixup, threads);
}
