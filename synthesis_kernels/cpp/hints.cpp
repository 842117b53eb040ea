// What a student's maps lack of a teacher's, and means over rectangles of a map, each in one pass.
#include "lanes.h"

#include <algorithm>

namespace {

// For each thread three rows of sums over the pixels: of the teacher's values around its first pixel, of
// their squares, and of the squared differences.
template <class T>
void hint_sums(const float *student, const T *teacher, float *sums, int64_t rows, int64_t channels, int threads) {
    over_blocks<WIDE>(rows, channels, threads, [=](int64_t thread, int64_t first, int64_t end, int64_t c, int64_t n) {
        const Floats centre = load(teacher + c, n);
        Floats sum{}, squares{}, apart{};
        for (int64_t r = first; r < end; r++) {
            const Floats t = load(teacher + r * channels + c, n), d = t - centre,
                         e = load(student + r * channels + c, n) - t;
            sum += d;
            squares += d * d;
            apart += e * e;
        }
        float *own = sums + 3 * channels * thread + c;
        store(own, load(own, n) + sum, n);
        store(own + channels, load(own + channels, n) + squares, n);
        store(own + 2 * channels, load(own + 2 * channels, n) + apart, n);
    });
}

// From those sums: the share that is left unexplained, and its gradient by half a difference. A teacher's
// map that is the same everywhere has nothing to tell.
template <class T> void finish_hint(const T *teacher, const float *sums, float *found, int64_t rows, int64_t channels,
                                    float least, int threads) {
    double spread = 0, about_zero = 0, apart = 0;
    for (int64_t c = 0; c < channels; c++) {
        double total[3] = {};
        for (int64_t thread = 0; thread < threads; thread++)
            for (int64_t i = 0; i < 3; i++) total[i] += sums[(3 * thread + i) * channels + c];
        const double offset = total[0] / rows, mean = load(teacher + c, 1)[0] + offset;
        spread += std::max(total[1] / rows - offset * offset, 0.0);
        about_zero += mean * mean;
        apart += total[2];
    }
    const bool flat = spread <= least * (spread + about_zero);
    found[0] = flat ? 0 : apart / rows / spread;
    found[1] = flat ? 0 : 2 / (rows * spread);
}

template <class T> void hint_gradient(const float *student, const T *teacher, float *out, float scale, int64_t rows,
                                      int64_t channels, int threads) {
    over_blocks<WIDE>(rows, channels, threads, [=](int64_t, int64_t first, int64_t end, int64_t c, int64_t n) {
        for (int64_t r = first; r < end; r++) {
            const int64_t at = r * channels + c;
            store(out + at, (load(student + at, n) - load(teacher + at, n)) * scale, n);
        }
    });
}

// Rectangles of tall × broad pixels; height and width are those of the means.
template <class T> void means(const T *x, float *out, int64_t count, int64_t height, int64_t width, int64_t channels,
                              int64_t tall, int64_t broad, int threads) {
    const float share = 1.f / (tall * broad);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < count * height * width; p++) {
        const int64_t image = p / (height * width), row = p / width % height * tall, column = p % width * broad;
        for (int64_t c = 0; c < channels; c += WIDE) {
            const int64_t n = std::min<int64_t>(WIDE, channels - c);
            Floats sum{};
            for (int64_t i = 0; i < tall; i++)
                for (int64_t j = 0; j < broad; j++)
                    sum += load(x + ((image * height * tall + row + i) * width * broad + column + j) * channels + c, n);
            store(out + p * channels + c, sum * share, n);
        }
    }
}

template <class T> void spread(const float *grad, T *out, int64_t count, int64_t height, int64_t width,
                               int64_t channels, int64_t tall, int64_t broad, int threads) {
    const float share = 1.f / (tall * broad);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t line = 0; line < count * height * tall; line++) {
        const float *from = grad + line / tall * width * channels;
        T *to = out + line * width * broad * channels;
        for (int64_t j = 0; j < width * broad; j++)
            for (int64_t c = 0; c < channels; c += WIDE) {
                const int64_t n = std::min<int64_t>(WIDE, channels - c);
                store(to + j * channels + c, load(from + j / broad * channels + c, n) * share, n);
            }
    }
}

}  // namespace

#define HINTS(NAME, T)                                                                                               \
    extern "C" void hint_loss_##NAME(const float *student, const T *teacher, float *sums, float *found, float least, \
                                     int64_t rows, int64_t channels, int threads) {                                  \
        hint_sums(student, teacher, sums, rows, channels, threads);                                                  \
        finish_hint(teacher, sums, found, rows, channels, least, threads);                                           \
    }                                                                                                                \
    extern "C" void hint_gradient_##NAME(const float *student, const T *teacher, const float *found,                 \
                                         const float *grad, float *out, float share, int64_t rows, int64_t channels, \
                                         int threads) {                                                              \
        hint_gradient(student, teacher, out, found[1] * *grad * share, rows, channels, threads);                     \
    }                                                                                                                \
    extern "C" void means_##NAME(const T *x, float *out, int64_t count, int64_t height, int64_t width,               \
                                 int64_t channels, int64_t tall, int64_t broad, int threads) {                       \
        means(x, out, count, height, width, channels, tall, broad, threads);                                         \
    }                                                                                                                \
    extern "C" void spread_##NAME(const float *grad, T *out, int64_t count, int64_t height, int64_t width,           \
                                  int64_t channels, int64_t tall, int64_t broad, int threads) {                      \
        spread(grad, out, count, height, width, channels, tall, broad, threads);                                     \
    }
HINTS(float32, float)
HINTS(bfloat16, bf16)
