// Images rotated, scaled and shifted about their middle, each by four numbers of its own.
#include "counter.h"
#include "lanes.h"

namespace {

typedef float Quad __attribute__((vector_size(16)));
constexpr int64_t COUNT = WIDE;

inline Quad read(const float *p) {
    Quad v;
    memcpy(&v, p, sizeof v);
    return v;
}

struct Plan { float rotate, scale, shift; };

// Where the pixel (i, j) comes from, both counted from the middle: row * i + column * j + start.
struct Line {
    float row, column, start;
};
struct Turn {
    Line y, x;
    Turn(const Stream &draw, Plan plan, float height, float width) {
        const float angle = (draw(0) * 2 - 1) * plan.rotate, zoom = 1 + (draw(1) * 2 - 1) * plan.scale;
        const float cosine = std::cos(angle) * zoom, sine = std::sin(angle) * zoom;
        const float side = std::min(height, width);
        // Times a side and over it: square images keep the last bit that they always had.
        x = {-sine * side / side, cosine, (draw(2) * 2 - 1) * plan.shift * side};
        y = {cosine, sine * side / side, (draw(3) * 2 - 1) * plan.shift * side};
    }
};

// An image with black around it, so that no pixel need be asked whether it is inside: one pixel in front
// of each side, two behind it.
struct Framed {
    int64_t height, width, channels, row;
    std::vector<float> pixels;
    // What is read goes up to three numbers beyond the last pixel.
    Framed(int64_t height, int64_t width, int64_t channels)
        : height(height), width(width), channels(channels), row((width + 3) * channels), pixels((height + 3) * row + 3) {}
    void fill(const float *image) {
        for (int64_t y = 0; y < height; y++)
            memcpy(&pixels[(y + 1) * row + channels], image + y * width * channels, 4 * width * channels);
    }
};

// Where pixels come from: the upper left one of the four around a place, and how far from it to the next.
struct Sources {
    int32_t corner[COUNT];
    float to_right[COUNT], to_below[COUNT];

    // `x` and `y` are in pixels of the frame, or beyond it, where all is black.
    Sources(Floats x, Floats y, const Framed &from) {
        const Floats right = Floats{} + float(from.width + 1), bottom = Floats{} + float(from.height + 1);
        x = x > 0 ? x : Floats{}, y = y > 0 ? y : Floats{};
        x = x < right ? x : right, y = y < bottom ? y : bottom;
        const Integers column = __builtin_convertvector(x, Integers), row = __builtin_convertvector(y, Integers);
        const Integers place = row * int32_t(from.row) + column * int32_t(from.channels);
        memcpy(corner, &place, sizeof place);
        store(to_right, x - __builtin_convertvector(column, Floats), COUNT);
        store(to_below, y - __builtin_convertvector(row, Floats), COUNT);
    }
};

// CHANNELS is their number where it is known beforehand, else 0.
template <int64_t CHANNELS> void resample(const Framed &from, const Turn &turn, float *out) {
    const int64_t channels = CHANNELS ? CHANNELS : from.channels, width = from.width, row = from.row;
    const float middle_x = 0.5f * (width - 1), middle_y = 0.5f * (from.height - 1), *pixels = from.pixels.data();
    Floats steps{};
    for (int64_t lane = 0; lane < COUNT; lane++) steps[lane] = lane;
    for (int64_t i = 0; i < from.height; i++) {
        // The frame begins one pixel before the image.
        const float x = turn.x.row * (i - middle_y) + turn.x.start + middle_x + 1;
        const float y = turn.y.row * (i - middle_y) + turn.y.start + middle_y + 1;
        for (int64_t first = 0; first < width; first += COUNT) {
            const Floats j = steps + (first - middle_x);
            const Sources at(turn.x.column * j + x, turn.y.column * j + y, from);
            const int64_t count = std::min(COUNT, width - first);
            for (int64_t k = 0; k < count; k++, out += channels)
                for (int64_t c = 0; c < channels; c += 4) {
                    const float *above = pixels + at.corner[k] + c, *below = above + row;
                    const Quad a = read(above), b = read(below);
                    const Quad top = a + at.to_right[k] * (read(above + channels) - a);
                    const Quad bottom = b + at.to_right[k] * (read(below + channels) - b);
                    const Quad value = top + at.to_below[k] * (bottom - top);
                    if (channels - c < 4) memcpy(out + c, &value, 4 * (channels - c)); else memcpy(out + c, &value, 16);
                }
        }
    }
}

}  // namespace

// Channels last; a `view_step` of 0 is one view for all. `rotate` is in radians.
extern "C" void turn_float32(const float *images, const int64_t *index, const int64_t *view, int64_t view_step, float *out,
                             int64_t count, int64_t channels, int64_t height, int64_t width, float rotate, float scale,
                             float shift, int64_t place, int threads) {
    const int64_t size = height * width * channels, team = threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t thread = 0; thread < team; thread++) {
        Framed framed(height, width, channels);
        for (int64_t b = count * thread / team; b < count * (thread + 1) / team; b++) {
            const Turn turn(Stream(index[b], view[b * view_step], place), {rotate, scale, shift}, height, width);
            framed.fill(images + b * size);
            const auto run = channels == 1 ? resample<1> : channels == 3 ? resample<3> : resample<0>;
            run(framed, turn, out + b * size);
        }
    }
}
