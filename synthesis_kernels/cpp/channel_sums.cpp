// The sum of every channel: the gradient of a bias. Libraries widen all of a bfloat16 map for it first.
#include "lanes.h"

namespace {

template <class T, class N = typename Lanes<T>::Number>
void channel_sums(const T *x, N *sums, int64_t rows, int64_t channels, int threads) {
    over_blocks<Lanes<T>::count>(rows, channels, threads,
                                 [=](int64_t thread, int64_t first, int64_t end, int64_t c, int64_t n) {
                                     typename Lanes<T>::Vector sum{};
                                     for (int64_t r = first; r < end; r++) sum += load(x + r * channels + c, n);
                                     N *own = sums + channels * thread + c;
                                     store(own, load(own, n) + sum, n);
                                 });
    for (int64_t thread = 1; thread < threads; thread++)
        for (int64_t c = 0; c < channels; c++) sums[c] += sums[channels * thread + c];
}

}  // namespace

// `sums` begin as zeros, `channels` of them for each thread; the first thread's become the result.
#define CHANNEL_SUMS(NAME, T, N)                                                                            \
    extern "C" void channel_sums_##NAME(const T *x, N *sums, int64_t rows, int64_t channels, int threads) { \
        channel_sums(x, sums, rows, channels, threads);                                                     \
    }
CHANNEL_SUMS(float32, float, float)
CHANNEL_SUMS(float64, double, double)
CHANNEL_SUMS(bfloat16, bf16, float)
