// The counter's numbers by themselves, for what draws in torch.
#include "counter.h"

// `out` is lanes × count; a `view_step` of 0 is one view for all.
extern "C" void uniforms_float32(const int64_t *index, const int64_t *view, int64_t view_step, float *out, int64_t count, int64_t lanes,
                                 int64_t place, int threads) {
#pragma omp parallel for num_threads(count * lanes < 1 << 15 ? 1 : threads)
    for (int64_t b = 0; b < count; b++) {
        const Stream draw(index[b], view[b * view_step], place);
        for (int64_t lane = 0; lane < lanes; lane++) out[lane * count + b] = draw(uint32_t(lane));
    }
}
