// Sixteen float32 side by side, in GCC's and Clang's vector types: one register where there is AVX-512, several where not.
// Everything here rounds as NumPy does, one operation at a time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fewbits::FEWBITS_ISA {

namespace {

constexpr std::size_t kLanes = 16;

typedef float Lanes __attribute__((vector_size(64)));
typedef std::int32_t Bits __attribute__((vector_size(64)));

inline Lanes all(float number) { return Lanes{} + number; }
inline Lanes larger(Lanes a, Lanes b) { return a > b ? a : b; }
inline Lanes smaller(Lanes a, Lanes b) { return a < b ? a : b; }
inline Lanes clip(Lanes x, Lanes low, Lanes high) { return smaller(larger(x, low), high); }
inline Lanes magnitude(Lanes x) { return reinterpret_cast<Lanes>(reinterpret_cast<Bits>(x) & 0x7FFFFFFF); }

inline Lanes with_sign_of(Lanes x, Lanes sign) {
    const Bits top = Bits{} + static_cast<std::int32_t>(0x80000000u);
    return reinterpret_cast<Lanes>((reinterpret_cast<Bits>(x) & ~top) | (reinterpret_cast<Bits>(sign) & top));
}

// To the nearest integer, of two as near the even one; |x| at most 2^22. Above 2^23 a float32 has no fraction.
inline Lanes nearest(Lanes x) { return with_sign_of((magnitude(x) + 0x1p23f) - 0x1p23f, x); }

// 1 / x, and 0 where x is 0.
inline Lanes reciprocal(Lanes x) { return x != 0 ? 1.0f / x : Lanes{}; }

// Where a table of the nearest values, one for every half, has its entries for x: floor(2 x) + 256.
inline Lanes table_position(Lanes x) { return clip(x, all(-127.75f), all(127.75f)) * 2.0f + 256.0f; }

// numerator / denominator for a denominator that isn't negative; 0 for 0 / 0.
inline Lanes ratio(Lanes numerator, Lanes denominator) { return numerator / larger(denominator, all(1e-37f)); }

// The nearest numbers that a float16 holds, of two as near the even one; finite.
inline Lanes half(Lanes x) {
    x = clip(x, all(-65504.0f), all(65504.0f));
    const Bits bits = reinterpret_cast<Bits>(magnitude(x));
    const Bits normal = (bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF;
    // Below 2^-14 float16 has a fixed point: multiples of 2^-24.
    const Lanes small = nearest(magnitude(x) * 0x1p24f) * 0x1p-24f;
    return with_sign_of(magnitude(x) < 0x1p-14f ? small : reinterpret_cast<Lanes>(normal), x);
}

}  // namespace

}  // namespace fewbits::FEWBITS_ISA
