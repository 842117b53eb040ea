// Memory that will be read or written soon. What a block of tiles reads lies in many short lines, which
// no processor foresees: it is asked for while products keep the processor busy.
#pragma once

#include "lanes.h"

namespace {

class Ahead {
  public:
    // What does not fit is not asked for, which costs time alone.
    void add(const void *begin, int64_t bytes) {
        if (count == MOST) return;
        all[count++] = {(const char *)begin, (bytes + LINE - 1) / LINE};
        lines += all[count - 1].lines;
    }
    // Ask for one of so many parts.
    void fetch(int64_t parts) {
        for (int64_t n = (lines + parts - 1) / parts; n > 0 && at < count; n--) {
            __builtin_prefetch(all[at].begin + LINE * line);
            if (++line == all[at].lines) at++, line = 0;
        }
    }

  private:
    static constexpr int64_t MOST = 64, LINE = 64;
    struct {
        const char *begin;
        int64_t lines;
    } all[MOST];
    int64_t count = 0, lines = 0, at = 0, line = 0;
};

}  // namespace
