// Training views of a pool, each pixel fetched once, and the way back from a view's gradient to the
// pool's.
#include "counter.h"
#include "lanes.h"

namespace {

// A number in [0, 1) as one of `count` integers; the product may round up to `count` itself.
inline int64_t whole(float draw, int64_t count) {
    const int64_t value = int64_t(draw * float(count));
    return value < count ? value : count - 1;
}

// What a byte becomes: to look it up is quicker than to divide.
struct Units {
    float of[256] = {};
    constexpr Units() {
        for (int i = 0; i < 256; i++) of[i] = i / 255.0f;
    }
};
constexpr Units UNITS;

inline float load_one(const uint8_t *p) { return UNITS.of[*p]; }
inline float load_one(const float *p) { return *p; }
inline double load_one(const double *p) { return *p; }
inline float load_one(const bf16 *p) {
    const uint32_t bits = uint32_t(p->bits) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
inline void store_one(float *p, float v) { *p = v; }
inline void store_one(double *p, double v) { *p = v; }
inline void store_one(bf16 *p, float v) { store(p, Floats{} + v, 1); }

// What a number becomes that meets the pool's: of bfloat16 it is rounded to it.
template <class T> inline typename Lanes<T>::Number as_in(float draw) { return draw; }
template <> inline float as_in<bf16>(float draw) {
    bf16 rounded;
    store_one(&rounded, draw);
    return load_one(&rounded);
}

struct Plan {
    int64_t images, channels, height, width, crop, flip, cutout;
    float mixup, cutmix;
    int64_t place, paste_place;
};

// The sides of a rectangle along one axis: from the first to before the end.
struct Span {
    int64_t first, end;
    bool holds(int64_t i) const { return i >= first && i < end; }
};

// The pixels within half of `part` of the side from the centre. `volatile`: a product that is fused
// with the sum after it rounds otherwise than torch's.
inline Span span_around(float centre, float part, int64_t side) {
    const volatile float middle = centre * float(side), length = (part < 1 ? part : 1.0f) * float(side);
    Span span{side, 0};
    for (int64_t i = 0; i < side; i++)
        if (std::fabs(float(i) + 0.5f - middle) * 2 <= length) {
            if (span.first > i) span.first = i;
            span.end = i + 1;
        }
    return span;
}

// Where everything in a view comes from.
struct View {
    int64_t image, other = 0, donor = 0, down, right;
    bool mirrored, blended, pasted;
    float share = 1;
    Span cut_rows, cut_columns, rows{}, columns{};

    View(int64_t index, int64_t view, const Plan &plan) : image(index) {
        const Stream draw(index, view, plan.place), paste(index, view, plan.paste_place);
        down = whole(draw(0), 2 * plan.crop + 1) - plan.crop;
        right = whole(draw(1), 2 * plan.crop + 1) - plan.crop;
        mirrored = plan.flip && draw(2) < 0.5f;
        const int64_t top = whole(draw(3), plan.height) - plan.cutout / 2, left = whole(draw(4), plan.width) - plan.cutout / 2;
        cut_rows = {top, top + plan.cutout};
        cut_columns = {left, left + plan.cutout};
        blended = draw(5) < plan.mixup;
        if (blended) other = whole(draw(6), plan.images), share = draw(7);
        pasted = plan.cutmix > 0 && paste(0) < plan.cutmix;
        if (pasted) {
            const float part = std::sqrt(paste(5));
            donor = whole(paste(1), plan.images);
            rows = span_around(paste(2), part, plan.height);
            columns = span_around(paste(3), part, plan.width);
        }
    }
    // Calls pasted_at(i, j) or shown_at(i, j, y, x) for every pixel (i, j) that is not black.
    template <class Pasted, class Shown> void over(const Plan &plan, Pasted pasted_at, Shown shown_at) const {
        // Where a mirrored image moves to the right, its view moves to the left.
        const int64_t moved = mirrored ? right : -right, origin = (mirrored ? plan.width - 1 : 0) + right;
        const int64_t step = mirrored ? -1 : 1;
        for (int64_t i = 0; i < plan.height; i++) {
            const int64_t y = i + down;
            // What the pasted box and the black one leave of the row: at most three parts.
            const Span box = pasted && rows.holds(i) ? columns : Span{plan.width, 0};
            const Span hole = cut_rows.holds(i) ? cut_columns : Span{plan.width, 0};
            const int64_t begin = std::max(moved, int64_t(0)), end = std::min(plan.width, plan.width + moved);
            for (int64_t j = box.first; j < box.end; j++) pasted_at(i, j);
            if (y < 0 || y >= plan.height) continue;
            for (int64_t j = begin; j < end;) {
                if (box.holds(j)) { j = box.end; continue; }
                if (hole.holds(j)) { j = hole.end; continue; }
                int64_t stop = end;
                if (j < box.first) stop = std::min(stop, box.first);
                if (j < hole.first) stop = std::min(stop, hole.first);
                for (; j < stop; j++) shown_at(i, j, y, origin + step * j);
            }
        }
    }
};

struct Strides { int64_t image, channel, row, column; };

// 1 where an index is none of the pool's, and nothing is done; else 0.
int is_outside(const int64_t *index, int64_t count, int64_t images) {
    for (int64_t b = 0; b < count; b++)
        if (index[b] < 0 || index[b] >= images) return 1;
    return 0;
}

// CHANNELS is their number where it is known beforehand, else 0.
template <int64_t CHANNELS, class In, class Out>
void show(const In *pool, Strides from, const int64_t *index, const int64_t *view, int64_t view_step, Out *out, int64_t count,
          Plan plan, int threads) {
    typedef typename Lanes<Out>::Number Number;
    const int64_t area = plan.height * plan.width, channels = CHANNELS ? CHANNELS : plan.channels;
#pragma omp parallel for num_threads(threads)
    for (int64_t b = 0; b < count; b++) {
        const View seen(index[b], view[b * view_step], plan);
        const Number share = as_in<Out>(seen.share);
        const In *image = pool + seen.image * from.image, *other = pool + seen.other * from.image, *donor = pool + seen.donor * from.image;
        Out *to = out + b * area * channels;
        memset((void *)to, 0, area * channels * sizeof(Out));
        auto pasted = [&](int64_t i, int64_t j) {
            for (int64_t c = 0; c < channels; c++)
                store_one(to + (i * plan.width + j) * channels + c, load_one(donor + c * from.channel + i * from.row + j * from.column));
        };
        auto shown = [&](int64_t i, int64_t j, int64_t y, int64_t x) {
            for (int64_t c = 0; c < channels; c++) {
                const int64_t place = c * from.channel + y * from.row + x * from.column;
                Number value = load_one(image + place);
                if (seen.blended) {
                    const Number start = load_one(other + place), apart = value - start;
                    value = share < Number(0.5) ? start + share * apart : value - apart * (1 - share);
                }
                store_one(to + (i * plan.width + j) * channels + c, value);
            }
        };
        seen.over(plan, pasted, shown);
    }
}

template <class In, class Out>
int forward(const In *pool, Strides from, const int64_t *index, const int64_t *view, int64_t view_step, Out *out, int64_t count,
            Plan plan, int threads) {
    if (is_outside(index, count, plan.images)) return 1;
    auto run = show<0, In, Out>;
    // A pool in training is one of bytes, mostly.
    if constexpr (std::is_same<In, uint8_t>::value) {
        if (plan.channels == 1) run = show<1, In, Out>;
        if (plan.channels == 3) run = show<3, In, Out>;
    }
    run(pool, from, index, view, view_step, out, count, plan, threads);
    return 0;
}

// The pool's gradient, image by image: whatever shows it adds to it, in the order of the batch.
template <class T>
int backward(const T *grad, Strides from, const int64_t *index, const int64_t *view, int64_t view_step, T *out, int64_t count,
             Plan plan, int threads) {
    typedef typename Lanes<T>::Number Number;
    const int64_t area = plan.height * plan.width, channels = plan.channels;
    std::vector<View> views;
    std::vector<std::vector<int64_t>> showing(plan.images);
    for (int64_t b = 0; b < count; b++) {
        views.emplace_back(index[b], view[b * view_step], plan);
        const View &seen = views.back();
        showing[seen.image].push_back(b);
        if (seen.blended && seen.other != seen.image) showing[seen.other].push_back(b);
        const bool known = seen.donor == seen.image || (seen.blended && seen.donor == seen.other);
        if (seen.pasted && !known) showing[seen.donor].push_back(b);
    }
#pragma omp parallel for num_threads(threads)
    for (int64_t n = 0; n < plan.images; n++) {
        std::vector<Number> sum(area * channels);
        for (int64_t b : showing[n]) {
            const View &seen = views[b];
            const Number share = as_in<T>(seen.share);
            Number part = seen.image == n ? share : 0;
            if (seen.blended && seen.other == n) part += 1 - share;
            auto add = [&](int64_t i, int64_t j, int64_t y, int64_t x, Number part) {
                for (int64_t c = 0; c < channels; c++)
                    sum[(y * plan.width + x) * channels + c] +=
                        part * load_one(grad + b * from.image + c * from.channel + i * from.row + j * from.column);
            };
            auto pasted = [&](int64_t i, int64_t j) { if (seen.donor == n) add(i, j, i, j, 1); };
            auto shown = [&](int64_t i, int64_t j, int64_t y, int64_t x) { add(i, j, y, x, part); };
            seen.over(plan, pasted, shown);
        }
        for (int64_t k = 0; k < area * channels; k++) store_one(out + n * area * channels + k, sum[k]);
    }
    return 0;
}

}  // namespace

// `from` are the strides of what is read; `out` has its channels last. A `view_step` of 0 is one view
// for all.
#define VIEWS(NAME, FUNCTION, IN, OUT)                                                                                            \
    extern "C" int NAME(const IN *from, int64_t image, int64_t channel, int64_t row, int64_t column, const int64_t *index,        \
                        const int64_t *view, int64_t view_step, OUT *out, int64_t count, int64_t images, int64_t channels,        \
                        int64_t height, int64_t width, int64_t crop, int64_t flip, int64_t cutout, float mixup, float cutmix,     \
                        int64_t place, int64_t paste_place, int threads) {                                                        \
        const Plan plan{images, channels, height, width, crop, flip, cutout, mixup, cutmix, place, paste_place};                  \
        return FUNCTION(from, Strides{image, channel, row, column}, index, view, view_step, out, count, plan, threads);           \
    }
VIEWS(views_of_bytes_float32, forward, uint8_t, float)
VIEWS(views_float32, forward, float, float)
VIEWS(views_float64, forward, double, double)
VIEWS(views_bfloat16, forward, bf16, bf16)
VIEWS(views_backward_float32, backward, float, float)
VIEWS(views_backward_float64, backward, double, double)
VIEWS(views_backward_bfloat16, backward, bf16, bf16)
