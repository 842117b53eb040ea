// Random numbers that are a function of their place: the counter of counter.py, in the 32 bits that it
// keeps.
#pragma once

#include <cstdint>

namespace {

inline uint32_t mix(uint32_t x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}
struct Stream {
    uint32_t key;
    Stream(int64_t index, int64_t view, int64_t place) : key(mix(mix(uint32_t(index) + uint32_t(place)) + uint32_t(view))) {}
    float operator()(uint32_t lane) const { return float(mix(key + (lane + 1) * 0x9e3779b9u) >> 8) * 0x1p-24f; }
};

}  // namespace
