// e^x and tanh, side by side, to about 1 in 10^7.
#pragma once

#include "lanes.h"

namespace fewbits::FEWBITS_ISA {

namespace {

// x = n log 2 + r with |r| at most log(2) / 2; e^r by its Taylor series. Below e^-87 it is 0, above e^88 that.
inline Lanes exponential(Lanes x) {
    const Lanes inside = clip(x, all(-87.0f), all(88.0f));
    const Lanes n = nearest(inside * 1.44269504f);
    const Lanes r = (inside - n * 0.693359375f) + n * 2.12194440e-4f;
    Lanes y = 1.0f / 5040.0f * r + 1.0f / 720.0f;
    y = y * r + 1.0f / 120.0f;
    y = y * r + 1.0f / 24.0f;
    y = y * r + 1.0f / 6.0f;
    y = y * r + 0.5f;
    y = y * r * r + r + 1.0f;
    const Bits power = (__builtin_convertvector(n, Bits) + 127) << 23;
    return x < -87.0f ? Lanes{} : y * reinterpret_cast<Lanes>(power);
}

// Where x is small, 1 - 2 / (e^2x + 1) loses its digits to the 1; its series doesn't.
inline Lanes tangent(Lanes x) {
    const Lanes wide = 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f);
    const Lanes square = x * x;
    const Lanes small = x * (1.0f + square * (-1.0f / 3.0f + square * (2.0f / 15.0f - square * (17.0f / 315.0f))));
    return magnitude(x) < 0.15f ? small : wide;
}

}  // namespace

}  // namespace fewbits::FEWBITS_ISA
