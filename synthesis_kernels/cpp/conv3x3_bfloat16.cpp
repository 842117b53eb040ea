// 3×3 convolutions in bfloat16 for networks that are not trained.
#include "lanes.h"

#ifdef __AVX512BF16__

namespace {

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

}  // namespace

extern "C" void conv3x3_bfloat16(const bf16 *x, const bf16 *weights, const float *bias, bf16 *y, int64_t batch, int64_t height,
                                 int64_t width, int64_t inputs, int64_t outputs, int threads) {
    conv3x3(x, weights, bias, y, batch, height, width, inputs, outputs, threads);
}

#endif
