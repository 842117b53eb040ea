// How far two answers are apart, KL(p ‖ q)·T², and whether they decide alike; and its gradient. Logits
// are rows of classes (classes last in memory), or planes of places, one class after another.
#include "lanes.h"

namespace {

// A logit of classes that a register has beyond the last one: finite, so that differences are 0.
constexpr float NOWHERE = -1e30f;
// Fewer logits than this are no work for a second thread.
constexpr int64_t SHARED = 1 << 14;

typedef Lanes<double>::Vector Doubles;

// e^x for x ≤ 0, within two units in the last place; NaN stays NaN.
inline Floats exponential(Floats x) {
    const float magic = 12582912.0f;  // 1.5·2²³: adding it rounds to an integer
    const Floats n = (x * 1.44269504f + magic) - magic;
    const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Floats y = Floats{} + 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    const Floats power = (Floats)((__builtin_convertvector(n, Integers) + 127) << 23);
    return x < -87.0f ? Floats{} : y * power;
}
inline Doubles exponential(Doubles x) {
    for (int lane = 0; lane < WIDE / 2; lane++) x[lane] = std::exp(x[lane]);
    return x;
}

template <class T> inline typename Lanes<T>::Vector load_classes(const T *p, int64_t n) {
    typename Lanes<T>::Vector v = typename Lanes<T>::Vector{} + T(NOWHERE);
    if (n == Lanes<T>::count) memcpy(&v, p, sizeof v); else memcpy(&v, p, sizeof(T) * n);
    return v;
}
template <class V> inline auto sum_of(V v) {
    auto sum = v[0];
    for (size_t lane = 1; lane < sizeof(V) / sizeof(v[0]); lane++) sum += v[lane];
    return sum;
}
template <class V> inline auto most_of(V v) {
    auto most = v[0];
    for (size_t lane = 1; lane < sizeof(V) / sizeof(v[0]); lane++) most = v[lane] > most ? v[lane] : most;
    return most;
}

// What a sample's gradient needs of the way there, each for all samples: both largest logits, both 1/Σe,
// the mean of the difference that p sees, and 1 (0 where nothing is to be gained).
enum { TEACHER_MOST, STUDENT_MOST, TEACHER_PART, STUDENT_PART, APART, COUNTS, KEPT };

struct Shape {
    int64_t images, classes, places, in_rows;
    int64_t samples() const { return images * places; }
    int team(int threads) const { return samples() * classes < SHARED ? 1 : threads; }
};

// Calls body(sample, place of its first class, samples of one register) for all of them.
template <class T, class Body> void over_samples(Shape shape, int threads, Body body) {
    const int64_t width = shape.in_rows ? 1 : Lanes<T>::count, blocks = (shape.places + width - 1) / width;
#pragma omp parallel for num_threads(shape.team(threads))
    for (int64_t block = 0; block < shape.images * blocks; block++) {
        const int64_t b = block / blocks, s = block % blocks * width, sample = b * shape.places + s;
        if (shape.in_rows) body(sample, sample * shape.classes, int64_t(1));
        else body(sample, b * shape.classes * shape.places + s, shape.places - s < width ? shape.places - s : width);
    }
}

// One row: the register holds classes.
template <class T> void compare_row(const T *teacher, const T *student, int64_t classes, T inverse, T *value, T *alike, T *kept, int64_t samples) {
    typedef typename Lanes<T>::Vector Vector;
    const int64_t width = Lanes<T>::count;
    Vector mosts[2] = {load_classes(teacher, classes < width ? classes : width), load_classes(student, classes < width ? classes : width)};
    auto over = [&](auto body) {
        for (int64_t k = 0; k < classes; k += width) {
            const int64_t n = classes - k < width ? classes - k : width;
            body(load_classes(teacher + k, n), load_classes(student + k, n));
        }
    };
    over([&](Vector t, Vector s) {
        mosts[0] = t > mosts[0] ? t : mosts[0];
        mosts[1] = s > mosts[1] ? s : mosts[1];
    });
    const T most_t = most_of(mosts[0]), most_s = most_of(mosts[1]);
    Vector sum_t{}, sum_s{}, apart{};
    over([&](Vector t, Vector s) {
        t = (t - most_t) * inverse;
        s = (s - most_s) * inverse;
        const Vector e = exponential(t);
        sum_t += e;
        sum_s += exponential(s);
        apart += e * (t - s);
    });
    int64_t first_t = 0, first_s = 0;
    while (first_t < classes && teacher[first_t] != most_t) first_t++;
    while (first_s < classes && student[first_s] != most_s) first_s++;
    const T total_t = sum_of(sum_t), total_s = sum_of(sum_s), mean = sum_of(apart) / total_t;
    *value = (mean - std::log(total_t / total_s)) / (inverse * inverse);
    *alike = first_t == first_s;
    if (!kept) return;
    const T all[KEPT] = {most_t, most_s, 1 / total_t, 1 / total_s, mean, 1};
    for (int each = 0; each < KEPT; each++) kept[each * samples] = all[each];
}

// Some places: the register holds them.
template <class T>
void compare_places(const T *teacher, const T *student, int64_t classes, int64_t step, int64_t n, T inverse, T *value, T *alike, T *kept, int64_t samples) {
    typedef typename Lanes<T>::Vector Vector;
    Vector most_t = load(teacher, n), most_s = load(student, n), which_t{}, which_s{};
    for (int64_t k = 1; k < classes; k++) {
        const Vector t = load(teacher + k * step, n), s = load(student + k * step, n), here = Vector{} + T(k);
        which_t = t > most_t ? here : which_t;
        which_s = s > most_s ? here : which_s;
        most_t = t > most_t ? t : most_t;
        most_s = s > most_s ? s : most_s;
    }
    Vector sum_t{}, sum_s{}, apart{};
    for (int64_t k = 0; k < classes; k++) {
        const Vector t = (load(teacher + k * step, n) - most_t) * inverse, s = (load(student + k * step, n) - most_s) * inverse;
        const Vector e = exponential(t);
        sum_t += e;
        sum_s += exponential(s);
        apart += e * (t - s);
    }
    const Vector mean = apart / sum_t, part_t = T(1) / sum_t, part_s = T(1) / sum_s;
    for (int64_t lane = 0; lane < n; lane++) {
        value[lane] = (mean[lane] - std::log(sum_t[lane] / sum_s[lane])) / (inverse * inverse);
        alike[lane] = which_t[lane] == which_s[lane];
    }
    if (!kept) return;
    const Vector all[KEPT] = {most_t, most_s, part_t, part_s, mean, Vector{} + T(1)};
    for (int each = 0; each < KEPT; each++) store(kept + each * samples, all[each], n);
}

// `values` and `alike` are of each sample, `apart` and `agreed` means of each image, `loss` of all, by
// `weights`; each may be missing, but for the first two.
template <class T>
void forward(const T *teacher, const T *student, const T *weights, T *values, T *alike, T *kept, T *apart, T *agreed, T *loss, Shape shape,
             T temperature, int64_t gated, int threads) {
    const int64_t samples = shape.samples();
    const T inverse = 1 / temperature;
    over_samples<T>(shape, threads, [&](int64_t sample, int64_t place, int64_t n) {
        T *to = kept ? kept + sample : nullptr;
        if (shape.in_rows) compare_row(teacher + place, student + place, shape.classes, inverse, values + sample, alike + sample, to, samples);
        else compare_places(teacher + place, student + place, shape.classes, shape.places, n, inverse, values + sample, alike + sample, to, samples);
        if (!gated) return;
        for (int64_t lane = 0; lane < n; lane++) {
            values[sample + lane] *= alike[sample + lane];
            if (to) to[COUNTS * samples + lane] = alike[sample + lane];
        }
    });
    if (!apart && !loss) return;
    T total = 0;
    for (int64_t b = 0; b < shape.images; b++) {
        T sum = 0, same = 0;
        for (int64_t s = 0; s < shape.places; s++) sum += values[b * shape.places + s], same += alike[b * shape.places + s];
        if (apart) apart[b] = sum / shape.places, agreed[b] = same / shape.places;
        total += (weights ? weights[b] : T(1)) * (sum / shape.places);
    }
    if (loss) *loss = total / shape.images;
}

// `grad` is of each sample, or of the loss alone.
template <class T>
void backward(const T *teacher, const T *student, const T *weights, const T *kept, const T *grad, T *to_teacher, T *to_student, Shape shape,
              T temperature, int64_t of_loss, int threads) {
    typedef typename Lanes<T>::Vector Vector;
    const int64_t width = Lanes<T>::count, samples = shape.samples();
    const T inverse = 1 / temperature;
    over_samples<T>(shape, threads, [&](int64_t sample, int64_t place, int64_t n) {
        Vector all[KEPT], factor{};
        for (int each = 0; each < KEPT; each++)
            all[each] = shape.in_rows ? Vector{} + kept[each * samples + sample] : load(kept + each * samples + sample, n);
        const T weight = weights ? weights[sample / shape.places] : T(1);
        if (of_loss) factor += *grad * weight / samples;
        else factor += shape.in_rows ? Vector{} + grad[sample] : load(grad + sample, n);
        factor *= all[COUNTS] * temperature;
        auto at = [&](int64_t k, int64_t lanes) {
            const Vector t = (load(teacher + k, lanes) - all[TEACHER_MOST]) * inverse, s = (load(student + k, lanes) - all[STUDENT_MOST]) * inverse;
            const Vector p = exponential(t) * all[TEACHER_PART], q = exponential(s) * all[STUDENT_PART];
            if (to_student) store(to_student + k, factor * (q - p), lanes);
            if (to_teacher) store(to_teacher + k, factor * p * (t - s - all[APART]), lanes);
        };
        if (shape.in_rows)
            for (int64_t k = 0; k < shape.classes; k += width) at(place + k, shape.classes - k < width ? shape.classes - k : width);
        else
            for (int64_t k = 0; k < shape.classes; k++) at(place + k * shape.places, n);
    });
}

}  // namespace

#define DIVERGENCE(TYPE, NAME)                                                                                                     \
    extern "C" void divergence_##NAME(const TYPE *teacher, const TYPE *student, const TYPE *weights, TYPE *values, TYPE *alike,    \
                                      TYPE *kept, TYPE *apart, TYPE *agreed, TYPE *loss, int64_t images, int64_t classes,          \
                                      int64_t places, int64_t in_rows, float temperature, int64_t gated, int threads) {            \
        forward<TYPE>(teacher, student, weights, values, alike, kept, apart, agreed, loss, {images, classes, places, in_rows},     \
                      temperature, gated, threads);                                                                                \
    }                                                                                                                              \
    extern "C" void divergence_backward_##NAME(const TYPE *teacher, const TYPE *student, const TYPE *weights, const TYPE *kept,    \
                                               const TYPE *grad, TYPE *to_teacher, TYPE *to_student, int64_t images,               \
                                               int64_t classes, int64_t places, int64_t in_rows, float temperature,                \
                                               int64_t of_loss, int threads) {                                                     \
        backward<TYPE>(teacher, student, weights, kept, grad, to_teacher, to_student, {images, classes, places, in_rows},          \
                       temperature, of_loss, threads);                                                                             \
    }
DIVERGENCE(float, float32)
DIVERGENCE(double, float64)
