// Instructions of AVX-512 VNNI for `matmul.inc`: a vector of 64 bytes or 16 floats is one register.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <immintrin.h>

namespace fewbits::FEWBITS_ISA {

namespace {

constexpr int kTile = 8;      // inputs side by side: 8 running dot products and 8 sums in 32 registers
constexpr int kDirect = 8;    // so many inputs at most have codes unpacked in registers
constexpr bool kRaised = true;       // codes may have 8 bits without a sign, so offsets are 128 and taken off by a start value
constexpr bool kSignedWide = false;  // whether codes of 8 bits multiply as signed numbers
constexpr bool kSpreads = false;     // whether those are multiplied as 16 bits where many inputs pass by

using Bytes = __m512i;
using Rows = __m512;

inline Bytes load_bytes(const std::uint8_t* from) { return _mm512_loadu_si512(from); }
inline void store_bytes(std::uint8_t* to, Bytes x) { _mm512_storeu_si512(to, x); }
template <int kLeft> inline Bytes shifted(Bytes x) {
    if constexpr (kLeft > 0) return _mm512_slli_epi16(x, kLeft);
    if constexpr (kLeft < 0) return _mm512_srli_epi16(x, -kLeft);
    return x;
}
inline Bytes masked(Bytes x, std::uint8_t mask) { return _mm512_and_si512(x, _mm512_set1_epi8(static_cast<char>(mask))); }
inline Bytes either(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }
inline Bytes flipped(Bytes x) { return _mm512_xor_si512(x, _mm512_set1_epi8(static_cast<char>(0x80))); }
inline Bytes table_of(const std::uint8_t* sixteen) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(sixteen)));
}
inline Bytes look_up(Bytes table, Bytes codes) { return _mm512_shuffle_epi8(table, codes); }

inline Rows zeros() { return _mm512_setzero_ps(); }
inline Rows load_rows(const float* from) { return _mm512_loadu_ps(from); }
inline void store_rows(float* to, Rows x) { _mm512_storeu_ps(to, x); }
inline Rows times(Rows a, Rows b) { return _mm512_mul_ps(a, b); }
inline Rows times(Rows a, float b) { return _mm512_mul_ps(a, _mm512_set1_ps(b)); }
inline Rows plus(Rows total, Rows a, Rows b) { return _mm512_fmadd_ps(a, b, total); }
inline Rows plus(Rows total, Rows a, float b) { return _mm512_fmadd_ps(a, _mm512_set1_ps(b), total); }
inline Rows minus(Rows total, Rows a, Rows b) { return _mm512_fnmadd_ps(a, b, total); }
inline Rows minus(Rows total, Rows a, float b) { return _mm512_fnmadd_ps(a, _mm512_set1_ps(b), total); }

// A running dot product of 16 rows and one input.
using Chain = __m512i;
using Factor = Bytes;
inline Factor factor(Bytes codes) { return codes; }
template <bool kSigned, int kLimit, int kStep, bool kStarted>
inline void add(Chain& chain, Factor codes, const std::int8_t* quad) {
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(chain) : "v"(codes), "m"(*reinterpret_cast<const std::int32_t*>(quad)));
}
inline Chain start(std::int32_t bias) { return _mm512_set1_epi32(bias); }
inline Chain start() { return _mm512_setzero_si512(); }

// Sixteen integers of 32 bits, and sixteen pairs of 16 bits.
using Ints = __m512i;
using Pairs = __m512i;
inline Ints ints(Chain chain) { return chain; }
inline Ints no_ints() { return _mm512_setzero_si512(); }
inline Rows floats(Ints x) { return _mm512_cvtepi32_ps(x); }
// (a / 2^kShift, b / 2^kShift), rounded down.
template <int kShift> inline Pairs joined(Ints a, Ints b) {
    if constexpr (kShift > 0) a = _mm512_srai_epi32(a, kShift);
    if constexpr (kShift < 0) a = _mm512_slli_epi32(a, -kShift);
    return _mm512_mask_blend_epi16(0xAAAAAAAA, a, _mm512_slli_epi32(b, 16 - kShift));
}
// a b / 2^15, to the nearest.
inline Pairs reduced(Pairs a, Pairs b) { return _mm512_mulhrs_epi16(a, b); }
// Both products of each pair, added.
inline Ints plus(Ints total, Pairs a, Pairs b) { return _mm512_dpwssd_epi32(total, a, b); }
inline Pairs pair(const std::int16_t* two) {
    std::int32_t both;
    std::memcpy(&both, two, sizeof both);
    return _mm512_set1_epi32(both);
}
inline Pairs twice(std::int16_t one) { return _mm512_set1_epi16(one); }
inline Pairs load_pairs(const std::int16_t* from) { return _mm512_loadu_si512(from); }
inline void store_pairs(std::int16_t* to, Pairs x) { _mm512_storeu_si512(to, x); }

inline __m128i sixteen(const std::uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
inline __m256i thirty_two(const std::uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
inline Rows halves(const std::uint8_t* from) { return _mm512_cvtph_ps(thirty_two(from)); }
inline Rows brain_halves(const std::uint8_t* from) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(thirty_two(from)), 16));
}
inline Pairs signed_pairs(const std::uint8_t* from) { return _mm512_cvtepi8_epi16(thirty_two(from)); }
inline Pairs unsigned_pairs(const std::uint8_t* from) { return _mm512_cvtepu8_epi16(thirty_two(from)); }
inline Pairs low_nibble_pairs(const std::uint8_t* from) { return _mm512_and_si512(unsigned_pairs(from), _mm512_set1_epi16(15)); }
inline Pairs high_nibble_pairs(const std::uint8_t* from) { return _mm512_srli_epi16(unsigned_pairs(from), 4); }
// 2^(byte - 127) / 2; bytes below 2 give numbers below float32's normal ones.
inline Rows exponents(const std::uint8_t* from) {
    const __m512i byte = _mm512_cvtepu8_epi32(sixteen(from)), one = _mm512_set1_epi32(1);
    const __m512i small = _mm512_sllv_epi32(_mm512_set1_epi32(0x200000), byte);
    const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(byte, one), 23);
    return _mm512_castsi512_ps(_mm512_mask_mov_epi32(normal, _mm512_cmple_epi32_mask(byte, one), small));
}

inline void prefetch(const std::uint8_t* from) { _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0); }
inline void prefetch_far(const std::uint8_t* from) { _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T1); }

// 32 numbers as codes -127 … 127, what one step of the codes is worth (NaN where one isn't finite), and the codes' sums by halves.
inline float round_block(const float* x, std::int8_t* codes, std::int32_t (&sums)[2]) {
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    // Absolute values in the order of their bits: what isn't finite comes last.
    const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
    const int most = _mm512_reduce_max_epi32(
        _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(a), magnitude), _mm512_and_si512(_mm512_castps_si512(b), magnitude)));
    const bool finite = most < 0x7F800000;
    const float peak = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(most)));
    const __m512 steps = _mm512_set1_ps(finite && peak > 1e-30f ? 127.0f / peak : 0.0f);
    const __mmask16 kept = finite ? 0xFFFF : 0;
    const __m128i first = _mm512_cvtepi32_epi8(_mm512_maskz_cvtps_epi32(kept, _mm512_mul_ps(a, steps)));
    const __m128i second = _mm512_cvtepi32_epi8(_mm512_maskz_cvtps_epi32(kept, _mm512_mul_ps(b, steps)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), first);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + 16), second);
    // Sums of eight bytes without a sign: of codes + 128.
    const __m256i bytes = _mm256_xor_si256(_mm256_set_m128i(second, first), _mm256_set1_epi8(-128));
    const __m256i eights = _mm256_sad_epu8(bytes, _mm256_setzero_si256());
    const __m256i halves = _mm256_add_epi64(eights, _mm256_srli_si256(eights, 8));
    sums[0] = _mm_cvtsi128_si32(_mm256_castsi256_si128(halves)) - 16 * 128;
    sums[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(halves, 1)) - 16 * 128;
    return finite ? peak / 127.0f : NAN;
}

}  // namespace

}  // namespace fewbits::FEWBITS_ISA
