// The tiles of 3×3 convolutions: F(2×2, 3×3), 16 multiplications instead of 36, for bfloat16, and
// F(4×4, 3×3), 36 instead of 144, for float32. Each part is a matrix of Lavin & Gray (2016), applied to
// a line of numbers.
#pragma once

#include "winograd.h"

#if defined(__AVX2__) && defined(__FMA__)

namespace {

struct Small {
    static constexpr int64_t SIDE = 2;
    struct Inputs {
        static constexpr int FROM = 4, TO = 4, STRIDE = 2, OFFSET = -1;
        template <class V> static void mix(const V *d, V *out) {
            out[0] = d[0] - d[2], out[1] = d[1] + d[2], out[2] = d[2] - d[1], out[3] = d[1] - d[3];
        }
    };
    struct Outputs {
        static constexpr int FROM = 4, TO = 2;
        template <class V> static void mix(const V *m, V *out) {
            out[0] = m[0] + m[1] + m[2], out[1] = m[1] - m[2] - m[3];
        }
    };
    struct Kernel {
        static constexpr int FROM = 3, TO = 4;
        template <class V> static void mix(const V *g, V *out) {
            out[0] = g[0], out[1] = .5f * (g[0] + g[1] + g[2]), out[2] = .5f * (g[0] - g[1] + g[2]), out[3] = g[2];
        }
    };
    struct Gradients {
        static constexpr int FROM = 2, TO = 4, STRIDE = 2, OFFSET = 0;
        template <class V> static void mix(const V *y, V *out) {
            out[0] = y[0], out[1] = y[0] + y[1], out[2] = y[0] - y[1], out[3] = -y[1];
        }
    };
    struct KernelGradient {
        static constexpr int FROM = 4, TO = 3;
        template <class V> static void mix(const V *u, V *out) {
            const V even = .5f * (u[1] + u[2]);
            out[0] = u[0] + even, out[1] = .5f * (u[1] - u[2]), out[2] = even + u[3];
        }
    };
};

struct Large {
    static constexpr int64_t SIDE = 4;
    struct Inputs {
        static constexpr int FROM = 6, TO = 6, STRIDE = 4, OFFSET = -1;
        template <class V> static void mix(const V *d, V *out) {
            const V even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1], far = d[4] - d[2], steep = 2 * (d[3] - d[1]);
            out[0] = 4 * d[0] - 5 * d[2] + d[4], out[1] = even + odd, out[2] = even - odd;
            out[3] = far + steep, out[4] = far - steep, out[5] = 4 * d[1] - 5 * d[3] + d[5];
        }
    };
    struct Outputs {
        static constexpr int FROM = 6, TO = 4;
        template <class V> static void mix(const V *m, V *out) {
            const V near = m[1] + m[2], slope = m[1] - m[2], far = m[3] + m[4], steep = m[3] - m[4];
            out[0] = m[0] + near + far, out[1] = slope + 2 * steep, out[2] = near + 4 * far,
            out[3] = slope + 8 * steep + m[5];
        }
    };
    struct Kernel {
        static constexpr int FROM = 3, TO = 6;
        template <class V> static void mix(const V *g, V *out) {
            const V ends = (g[0] + g[2]) / -6.f, middle = g[1] / 6.f, far = g[0] / 24.f + g[2] / 6.f,
                    steep = g[1] / 12.f;
            out[0] = g[0] / 4.f, out[1] = ends - middle, out[2] = ends + middle, out[3] = far + steep,
            out[4] = far - steep, out[5] = g[2];
        }
    };
    struct Gradients {
        static constexpr int FROM = 4, TO = 6, STRIDE = 4, OFFSET = 0;
        template <class V> static void mix(const V *y, V *out) {
            const V even = y[0] + y[2], odd = y[1] + y[3], far = y[0] + 4 * y[2], steep = 2 * y[1] + 8 * y[3];
            out[0] = y[0], out[1] = even + odd, out[2] = even - odd, out[3] = far + steep, out[4] = far - steep,
            out[5] = y[3];
        }
    };
    struct KernelGradient {
        static constexpr int FROM = 6, TO = 3;
        template <class V> static void mix(const V *u, V *out) {
            const V near = (u[1] + u[2]) / -6.f, slope = (u[2] - u[1]) / 6.f, far = u[3] + u[4],
                    steep = (u[3] - u[4]) / 12.f;
            out[0] = u[0] / 4.f + near + far / 24.f, out[1] = slope + steep, out[2] = near + far / 6.f + u[5];
        }
    };
};

template <class Tile> Grid grid_of(int64_t batch, int64_t height, int64_t width) {
    return {batch, (height + Tile::SIDE - 1) / Tile::SIDE, (width + Tile::SIDE - 1) / Tile::SIDE};
}

}  // namespace

#endif
