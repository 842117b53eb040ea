// Training views of a pool, each pixel fetched once.
#include "lanes.h"

namespace {

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

}  // namespace

extern "C" void views_float32(const uint8_t *pool, const int64_t *index, const float *draws, float *out, int64_t images, int64_t count,
                              int64_t channels, int64_t height, int64_t width, int64_t crop, int64_t flip, int64_t cutout,
                              float mixup, int threads) {
    views(pool, index, draws, out, images, count, channels, height, width, crop, flip, cutout, mixup, threads);
}
