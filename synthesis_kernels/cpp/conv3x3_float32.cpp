// 3×3 convolutions in float32, and the gradient of their weights.
#include "lanes.h"

#if defined(__AVX2__) && defined(__FMA__)

namespace {

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

}  // namespace

extern "C" void conv3x3_float32(const float *x, const float *weights, const float *bias, float *packed, float *y, int64_t batch,
                                int64_t height, int64_t width, int64_t inputs, int64_t outputs, int threads) {
    conv3x3(x, weights, bias, packed, y, batch, height, width, inputs, outputs, threads);
}
extern "C" void conv3x3_weight_float32(const float *x, const float *grad, float *sums, float *out, int64_t batch, int64_t height,
                                       int64_t width, int64_t inputs, int64_t outputs, int64_t team, int threads) {
    conv3x3_weight(x, grad, sums, out, batch, height, width, inputs, outputs, team, threads);
}

#endif
