// Float16 to float32 and back, side by side, to the nearest, of two as near the even one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "lanes.h"

namespace fewbits::FEWBITS_ISA {

namespace {

inline float half_to_float(std::uint16_t bits) {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16, magnitude = bits & 0x7FFFu;
    if (magnitude < 0x400) {
        const float small = static_cast<float>(magnitude) * 0x1p-24f;
        return sign ? -small : small;
    }
    const std::uint32_t wide = sign | (magnitude >= 0x7C00 ? 0x7F800000u | (magnitude & 0x3FF) << 13
                                                           : (magnitude << 13) + (112u << 23));
    float found;
    std::memcpy(&found, &wide, sizeof found);
    return found;
}

// Numbers beyond float16 become the largest that it has.
inline std::uint16_t float_to_half(float number) {
    const Lanes rounded = half(all(number));
    std::uint32_t bits;
    const float one = rounded[0];
    std::memcpy(&bits, &one, sizeof bits);
    const std::uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    if (magnitude >= 0x38800000u) return static_cast<std::uint16_t>(sign | (magnitude - (112u << 23)) >> 13);
    return static_cast<std::uint16_t>(sign | static_cast<std::uint32_t>((one < 0 ? -one : one) * 0x1p24f));
}

#if defined(__AVX512F__) && FEWBITS_LANES == 16

inline Lanes load_halves(const std::uint16_t* from) {
    return reinterpret_cast<Lanes>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}

inline void store_halves(Lanes x, std::uint16_t* to) {
    x = clip(x, all(-65504.0f), all(65504.0f));
    const __m256i found = _mm512_cvtps_ph(reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), found);
}

#elif defined(__F16C__) && FEWBITS_LANES == 8

inline Lanes load_halves(const std::uint16_t* from) {
    return reinterpret_cast<Lanes>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

inline void store_halves(Lanes x, std::uint16_t* to) {
    x = clip(x, all(-65504.0f), all(65504.0f));
    const __m128i found = _mm256_cvtps_ph(reinterpret_cast<__m256>(x), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), found);
}

#elif defined(FEWBITS_NEON) && FEWBITS_LANES == 4

inline Lanes load_halves(const std::uint16_t* from) {
    return reinterpret_cast<Lanes>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))));
}

inline void store_halves(Lanes x, std::uint16_t* to) {
    x = clip(x, all(-65504.0f), all(65504.0f));
    vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32(reinterpret_cast<float32x4_t>(x))));
}

#else

inline Lanes load_halves(const std::uint16_t* from) {
    Lanes found;
    for (std::size_t i = 0; i < kLanes; ++i) found[i] = half_to_float(from[i]);
    return found;
}

inline void store_halves(Lanes x, std::uint16_t* to) {
    for (std::size_t i = 0; i < kLanes; ++i) to[i] = float_to_half(x[i]);
}

#endif

}  // namespace

}  // namespace fewbits::FEWBITS_ISA
