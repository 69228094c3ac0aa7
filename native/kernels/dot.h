// What differs between instruction sets in `matmul.inc`: 64 bytes at a time, as many registers as that takes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "lanes.h"

namespace fewbits::FEWBITS_ISA {

namespace {

typedef std::uint8_t Bytes __attribute__((vector_size(64)));

inline Bytes load_bytes(const std::uint8_t* from) {
    Bytes found;
    std::memcpy(&found, from, sizeof found);
    return found;
}

inline Lanes floats(Bits x) { return __builtin_convertvector(x, Lanes); }

#if defined(__AVX512VNNI__)

constexpr int kTogether = 8;         // inputs that share unpacked codes: 8 sums and 8 vectors of codes in 32 registers
constexpr bool kSignedOnly = false;  // whether codes of 8 bits only multiply as signed numbers

inline __m512i raw(Bytes x) { return reinterpret_cast<__m512i>(x); }
inline Bytes bytes(__m512i x) { return reinterpret_cast<Bytes>(x); }

template <int n> inline Bytes shift_right(Bytes x) { return bytes(_mm512_srli_epi16(raw(x), n)); }
template <int n> inline Bytes shift_left(Bytes x) { return bytes(_mm512_slli_epi16(raw(x), n)); }

inline Bytes table_of(const std::uint8_t* sixteen) {
    return bytes(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(sixteen))));
}
inline Bytes look_up(Bytes table, Bytes codes) { return bytes(_mm512_shuffle_epi8(raw(table), raw(codes))); }

// total + the sum over a quad of code (unsigned) times input (signed).
inline Bits dot(Bits total, Bytes codes, std::int32_t quad) {
    return reinterpret_cast<Bits>(
        _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(total), raw(codes), _mm512_set1_epi32(quad)));
}
inline Bits dot_raised(Bits total, Bytes, std::int32_t) { return total; }

inline __m128i sixteen(const std::uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
inline Lanes lanes(__m512i x) { return reinterpret_cast<Lanes>(_mm512_cvtepi32_ps(x)); }
inline Lanes halves(const std::uint8_t* from) {
    return reinterpret_cast<Lanes>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}
inline Lanes signed_bytes(const std::uint8_t* from) { return lanes(_mm512_cvtepi8_epi32(sixteen(from))); }
inline Lanes unsigned_bytes(const std::uint8_t* from) { return lanes(_mm512_cvtepu8_epi32(sixteen(from))); }
inline Lanes low_nibbles(const std::uint8_t* from) {
    return lanes(_mm512_and_si512(_mm512_cvtepu8_epi32(sixteen(from)), _mm512_set1_epi32(15)));
}
inline Lanes high_nibbles(const std::uint8_t* from) {
    return lanes(_mm512_srli_epi32(_mm512_cvtepu8_epi32(sixteen(from)), 4));
}
inline Bits words(const std::uint8_t* from) { return reinterpret_cast<Bits>(_mm512_cvtepu8_epi32(sixteen(from))); }
inline Bits pairs(const std::uint8_t* from) {
    return reinterpret_cast<Bits>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}
inline void prefetch(const std::uint8_t* from) { _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0); }

#elif defined(__AVX2__)

constexpr int kTogether = 4;
constexpr bool kSignedOnly = true;

struct Pair {
    __m256i a, b;
};
inline Pair raw(Bytes x) {
    Pair found;
    std::memcpy(&found, &x, sizeof found);
    return found;
}
inline Bytes bytes(__m256i a, __m256i b) {
    const Pair both{a, b};
    Bytes found;
    std::memcpy(&found, &both, sizeof found);
    return found;
}

template <int n> inline Bytes shift_right(Bytes x) {
    const Pair p = raw(x);
    return bytes(_mm256_srli_epi16(p.a, n), _mm256_srli_epi16(p.b, n));
}
template <int n> inline Bytes shift_left(Bytes x) {
    const Pair p = raw(x);
    return bytes(_mm256_slli_epi16(p.a, n), _mm256_slli_epi16(p.b, n));
}

inline Bytes table_of(const std::uint8_t* sixteen) {
    const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(sixteen)));
    return bytes(t, t);
}
inline Bytes look_up(Bytes table, Bytes codes) {
    const Pair t = raw(table), c = raw(codes);
    return bytes(_mm256_shuffle_epi8(t.a, c.a), _mm256_shuffle_epi8(t.b, c.b));
}

inline Bits sums(__m256i a, __m256i b) { return reinterpret_cast<Bits>(bytes(a, b)); }

// Codes of at most 6 bits: two products stay below 2^15.
inline Bits dot(Bits total, Bytes codes, std::int32_t quad) {
    const Pair w = raw(codes);
    const __m256i x = _mm256_set1_epi32(quad), ones = _mm256_set1_epi16(1);
    return total + sums(_mm256_madd_epi16(_mm256_maddubs_epi16(w.a, x), ones),
                        _mm256_madd_epi16(_mm256_maddubs_epi16(w.b, x), ones));
}
// Codes of 8 bits, raised by 128, as the signed numbers that they stand for: |w| is at most 128, inputs at most 127.
inline Bits dot_raised(Bits total, Bytes codes, std::int32_t quad) {
    const Pair w = raw(codes ^ 0x80);
    const __m256i x = _mm256_set1_epi32(quad), ones = _mm256_set1_epi16(1);
    const __m256i a = _mm256_maddubs_epi16(_mm256_abs_epi8(w.a), _mm256_sign_epi8(x, w.a));
    const __m256i b = _mm256_maddubs_epi16(_mm256_abs_epi8(w.b), _mm256_sign_epi8(x, w.b));
    return total + sums(_mm256_madd_epi16(a, ones), _mm256_madd_epi16(b, ones));
}

inline __m256i eight(const std::uint8_t* from) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}
inline Bits words(const std::uint8_t* from) { return sums(eight(from), eight(from + 8)); }
inline __m256i eight_pairs(const std::uint8_t* from) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline Bits pairs(const std::uint8_t* from) { return sums(eight_pairs(from), eight_pairs(from + 16)); }
inline Lanes halves(const std::uint8_t* from) {
    const __m256 both[2] = {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))),
                            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16)))};
    Lanes found;
    std::memcpy(&found, both, sizeof found);
    return found;
}
inline Lanes signed_bytes(const std::uint8_t* from) { return floats((words(from) << 24) >> 24); }
inline Lanes unsigned_bytes(const std::uint8_t* from) { return floats(words(from)); }
inline Lanes low_nibbles(const std::uint8_t* from) { return floats(words(from) & 15); }
inline Lanes high_nibbles(const std::uint8_t* from) { return floats(words(from) >> 4); }
inline void prefetch(const std::uint8_t* from) { _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0); }

#else

constexpr int kTogether = 4;
constexpr bool kSignedOnly = false;

template <int n> inline Bytes shift_right(Bytes x) { return x >> n; }
template <int n> inline Bytes shift_left(Bytes x) { return x << n; }

inline Bytes table_of(const std::uint8_t* sixteen) {
    Bytes found;
    for (std::size_t i = 0; i < sizeof found; ++i) found[i] = sixteen[i % 16];
    return found;
}
inline Bytes look_up(Bytes table, Bytes codes) {
    Bytes found;
    for (std::size_t i = 0; i < sizeof found; ++i) found[i] = table[codes[i]];
    return found;
}

inline Bits dot(Bits total, Bytes codes, std::int32_t quad) {
    std::int8_t x[4];
    std::memcpy(x, &quad, sizeof x);
    for (std::size_t row = 0; row < kLanes; ++row)
        for (std::size_t c = 0; c < 4; ++c) total[row] += codes[4 * row + c] * x[c];
    return total;
}
inline Bits dot_raised(Bits total, Bytes, std::int32_t) { return total; }

inline Bits words(const std::uint8_t* from) {
    Bits found;
    for (std::size_t i = 0; i < kLanes; ++i) found[i] = from[i];
    return found;
}
inline Bits pairs(const std::uint8_t* from) {
    Bits found;
    for (std::size_t i = 0; i < kLanes; ++i) found[i] = from[2 * i] | from[2 * i + 1] << 8;
    return found;
}
inline float from_half(std::uint16_t bits) {
    const std::uint32_t sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7FFFu;
    std::uint32_t wide = sign | ((magnitude << 13) + (112u << 23));
    float found;
    if (magnitude < 0x400) {
        found = static_cast<float>(magnitude) * 0x1p-24f;
        return sign ? -found : found;
    }
    if (magnitude >= 0x7C00) wide = sign | 0x7F800000u | (magnitude & 0x3FF) << 13;
    std::memcpy(&found, &wide, sizeof found);
    return found;
}
inline Lanes halves(const std::uint8_t* from) {
    Lanes found;
    for (std::size_t i = 0; i < kLanes; ++i) {
        std::uint16_t bits;
        std::memcpy(&bits, from + 2 * i, 2);
        found[i] = from_half(bits);
    }
    return found;
}
inline Lanes signed_bytes(const std::uint8_t* from) { return floats((words(from) << 24) >> 24); }
inline Lanes unsigned_bytes(const std::uint8_t* from) { return floats(words(from)); }
inline Lanes low_nibbles(const std::uint8_t* from) { return floats(words(from) & 15); }
inline Lanes high_nibbles(const std::uint8_t* from) { return floats(words(from) >> 4); }
inline void prefetch(const std::uint8_t*) {}

#endif

// 2^(byte - 127) / 2, of MXFP4; bytes below 2 give numbers too small for float32's exponent.
inline Lanes exponents(const std::uint8_t* from) {
    const Bits byte = words(from);
    const Lanes normal = reinterpret_cast<Lanes>((byte - 1) << 23);
    const Lanes small = byte > 0 ? all(0x1p-127f) : all(0x1p-128f);
    return byte > 1 ? normal : small;
}

}  // namespace

}  // namespace fewbits::FEWBITS_ISA
