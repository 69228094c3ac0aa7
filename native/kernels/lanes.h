// Some float32 side by side, in GCC's and Clang's vector types: FEWBITS_LANES of them, or sixteen, which is one register where
// there is AVX-512. Everything here rounds as NumPy does, one operation at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(FEWBITS_NEON)
#include <arm_neon.h>
#endif

#ifndef FEWBITS_LANES
#define FEWBITS_LANES 16
#endif

// Short functions that are always part of their callers; long ones that never are.
#define FEWBITS_INLINE __attribute__((always_inline))
#define FEWBITS_APART [[gnu::noinline]]

namespace fewbits::FEWBITS_ISA {

namespace {

constexpr std::size_t kLanes = FEWBITS_LANES;

typedef float Lanes __attribute__((vector_size(4 * FEWBITS_LANES)));
typedef std::int32_t Bits __attribute__((vector_size(4 * FEWBITS_LANES)));

// A difference, since a compiler may leave out what takes away 0, but not what adds it: -0 + 0 is 0.
inline Lanes all(float number) { return number - Lanes{}; }

// Compilers make several instructions of a comparison and a choice, where there is one for both: a > b ? a : b. Rounding is
// to the nearest integer, of two as near the even one; |x| at most 2^22, above 2^23 a float32 has no fraction. A product is
// added in one step or in two: for numbers that make no difference.
#if defined(__AVX512F__) && FEWBITS_LANES == 16

inline Lanes larger(Lanes a, Lanes b) {
    return reinterpret_cast<Lanes>(_mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
}
inline Lanes smaller(Lanes a, Lanes b) {
    return reinterpret_cast<Lanes>(_mm512_min_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
}
inline Lanes nearest(Lanes x) {
    constexpr int kToEven = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return reinterpret_cast<Lanes>(_mm512_roundscale_ps(reinterpret_cast<__m512>(x), kToEven));
}
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
    return reinterpret_cast<Lanes>(_mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b),
                                                   reinterpret_cast<__m512>(c)));
}
// x / y where nothing is subnormal, with 1 / y at hand: one step from its product gives what division rounds to (Markstein, 1990).
inline Lanes quotient(Lanes x, Lanes y, Lanes inverse) {
    const __m512 near = _mm512_mul_ps(reinterpret_cast<__m512>(x), reinterpret_cast<__m512>(inverse));
    const __m512 rest = _mm512_fnmadd_ps(near, reinterpret_cast<__m512>(y), reinterpret_cast<__m512>(x));
    return reinterpret_cast<Lanes>(_mm512_fmadd_ps(rest, reinterpret_cast<__m512>(inverse), near));
}
inline Lanes look_up(const float* table, Lanes position) {
    const __m512i at = _mm512_cvttps_epi32(reinterpret_cast<__m512>(position));
    return reinterpret_cast<Lanes>(_mm512_i32gather_ps(at, table, 4));
}
inline Lanes widen(const std::int8_t* from) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return reinterpret_cast<Lanes>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)));
}

#elif defined(__AVX2__) && FEWBITS_LANES == 8

inline Lanes larger(Lanes a, Lanes b) {
    return reinterpret_cast<Lanes>(_mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
}
inline Lanes smaller(Lanes a, Lanes b) {
    return reinterpret_cast<Lanes>(_mm256_min_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
}
inline Lanes nearest(Lanes x) {
    constexpr int kToEven = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return reinterpret_cast<Lanes>(_mm256_round_ps(reinterpret_cast<__m256>(x), kToEven));
}
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return a * b + c; }
inline Lanes quotient(Lanes x, Lanes y, Lanes) { return x / y; }
inline Lanes look_up(const float* table, Lanes position) {
    const __m256i at = _mm256_cvttps_epi32(reinterpret_cast<__m256>(position));
    return reinterpret_cast<Lanes>(_mm256_i32gather_ps(table, at, 4));
}
inline Lanes widen(const std::int8_t* from) {
    const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return reinterpret_cast<Lanes>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)));
}

#else

inline Lanes larger(Lanes a, Lanes b) { return a > b ? a : b; }
inline Lanes smaller(Lanes a, Lanes b) { return a < b ? a : b; }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return a * b + c; }
inline Lanes quotient(Lanes x, Lanes y, Lanes) { return x / y; }
// The entries of a table at whole numbers.
inline Lanes look_up(const float* table, Lanes position) {
    Lanes found{};
    for (std::size_t i = 0; i < kLanes; ++i) found[i] = table[static_cast<std::int32_t>(position[i])];
    return found;
}

#if defined(FEWBITS_NEON) && FEWBITS_LANES == 4

inline Lanes nearest(Lanes x) { return reinterpret_cast<Lanes>(vrndnq_f32(reinterpret_cast<float32x4_t>(x))); }
inline Lanes widen(const std::int8_t* from) {
    std::uint32_t four;
    std::memcpy(&four, from, sizeof four);
    const int16x8_t codes = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four)));
    return reinterpret_cast<Lanes>(vcvtq_f32_s32(vmovl_s16(vget_low_s16(codes))));
}

#else

inline Lanes nearest(Lanes x) {
    const Bits bits = reinterpret_cast<Bits>(x), top = Bits{} + static_cast<std::int32_t>(0x80000000u);
    const Lanes rounded = (reinterpret_cast<Lanes>(bits & ~top) + 0x1p23f) - 0x1p23f;
    return reinterpret_cast<Lanes>((reinterpret_cast<Bits>(rounded) & ~top) | (bits & top));
}
// Integers of 8 bits as numbers.
inline Lanes widen(const std::int8_t* from) {
    Lanes found{};
    for (std::size_t i = 0; i < kLanes; ++i) found[i] = from[i];
    return found;
}

#endif

#endif

// Numbers that are made here and not before: compilers reorder long rows of instructions until registers don't suffice.
FEWBITS_INLINE inline void pin(Lanes& x) {
#if defined(__AVX512F__)
    asm volatile("" : "+v"(x));
#elif defined(__SSE2__)
    asm volatile("" : "+x"(x));
#elif defined(__aarch64__)
    asm volatile("" : "+w"(x));
#else
    (void)x;
#endif
}

inline Lanes clip(Lanes x, Lanes low, Lanes high) { return smaller(larger(x, low), high); }
inline Lanes magnitude(Lanes x) { return reinterpret_cast<Lanes>(reinterpret_cast<Bits>(x) & 0x7FFFFFFF); }

inline Lanes with_sign_of(Lanes x, Lanes sign) {
    const Bits top = Bits{} + static_cast<std::int32_t>(0x80000000u);
    return reinterpret_cast<Lanes>((reinterpret_cast<Bits>(x) & ~top) | (reinterpret_cast<Bits>(sign) & top));
}

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
