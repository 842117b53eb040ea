// What a visit leaves in the buffer.
#include "lanes.h"

// A slot drawn twice counts once, with the larger divergence, and keeps the last weight. 1 where there
// is no such slot, and nothing is done; else 0.
extern "C" int record_visits_float32(const int64_t *drawn, const float *apart, const float *weights, int64_t count, int64_t slots,
                                     float *priority, float *weight, float *disagreement, float *trend, float *visits, int) {
    for (int64_t b = 0; b < count; b++)
        if (drawn[b] < 0 || drawn[b] >= slots) return 1;
    for (int64_t b = 0; b < count; b++) {
        const int64_t slot = drawn[b];
        bool is_first = true;
        for (int64_t other = 0; other < b && is_first; other++) is_first = drawn[other] != slot;
        if (!is_first) continue;
        float most = apart[b], last = weights[b];
        for (int64_t other = b + 1; other < count; other++)
            if (drawn[other] == slot) {
                if (!(apart[other] <= most)) most = apart[other];
                last = weights[other];
            }
        const float before = disagreement[slot], least = 1e-4f;
        const float change = std::log(most > least ? most : least) - std::log(before > least ? before : least);
        trend[slot] = visits[slot] > 0 ? change : 0;
        disagreement[slot] = most;
        priority[slot] = weight[slot] * most;
        weight[slot] = last;
        visits[slot] += 1;
    }
    return 0;
}
