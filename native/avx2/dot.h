// Instructions of AVX2, FMA and F16C for `matmul.inc`, and of AVX-VNNI where the compiler may use those: a vector of 64 bytes
// or 16 floats is two registers, rows 0 … 7 and 8 … 15.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <immintrin.h>

namespace fewbits::FEWBITS_ISA {

namespace {

constexpr int kTile = 4;    // 8 running dot products in 16 registers
constexpr int kDirect = 4;
#ifdef __AVXVNNI__
constexpr bool kRaised = true, kSignedWide = false, kSpreads = false;
#else
// Products of raised codes would overflow 16 bits, and those of signed ones take three instructions of 8 bits where two of 16 do.
constexpr bool kRaised = false, kSignedWide = true, kSpreads = true;
#endif

struct Bytes {
    __m256i a, b;
};
struct Rows {
    __m256 a, b;
};

inline __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline __m256i every_four(const void* from) {  // four bytes, again and again
    std::int32_t four;
    std::memcpy(&four, from, sizeof four);
    return _mm256_set1_epi32(four);
}
inline Bytes load_bytes(const std::uint8_t* from) { return {load(from), load(from + 32)}; }
inline void store_bytes(std::uint8_t* to, Bytes x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x.a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 32), x.b);
}
template <int kLeft> inline Bytes shifted(Bytes x) {
    if constexpr (kLeft > 0) return {_mm256_slli_epi16(x.a, kLeft), _mm256_slli_epi16(x.b, kLeft)};
    if constexpr (kLeft < 0) return {_mm256_srli_epi16(x.a, -kLeft), _mm256_srli_epi16(x.b, -kLeft)};
    return x;
}
inline Bytes masked(Bytes x, std::uint8_t mask) {
    const __m256i all = _mm256_set1_epi8(static_cast<char>(mask));
    return {_mm256_and_si256(x.a, all), _mm256_and_si256(x.b, all)};
}
inline Bytes either(Bytes x, Bytes y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
inline Bytes flipped(Bytes x) {
    const __m256i top = _mm256_set1_epi8(static_cast<char>(0x80));
    return {_mm256_xor_si256(x.a, top), _mm256_xor_si256(x.b, top)};
}
inline Bytes table_of(const std::uint8_t* sixteen) {
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(sixteen)));
    return {table, table};
}
inline Bytes look_up(Bytes table, Bytes codes) {
    return {_mm256_shuffle_epi8(table.a, codes.a), _mm256_shuffle_epi8(table.b, codes.b)};
}

inline Rows zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Rows load_rows(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void store_rows(float* to, Rows x) {
    _mm256_storeu_ps(to, x.a);
    _mm256_storeu_ps(to + 8, x.b);
}
inline Rows times(Rows x, Rows y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Rows times(Rows x, float y) { return times(x, Rows{_mm256_set1_ps(y), _mm256_set1_ps(y)}); }
inline Rows plus(Rows total, Rows x, Rows y) {
    return {_mm256_fmadd_ps(x.a, y.a, total.a), _mm256_fmadd_ps(x.b, y.b, total.b)};
}
inline Rows plus(Rows total, Rows x, float y) { return plus(total, x, Rows{_mm256_set1_ps(y), _mm256_set1_ps(y)}); }
inline Rows minus(Rows total, Rows x, Rows y) {
    return {_mm256_fnmadd_ps(x.a, y.a, total.a), _mm256_fnmadd_ps(x.b, y.b, total.b)};
}
inline Rows minus(Rows total, Rows x, float y) {
    const __m256 all = _mm256_set1_ps(y);
    return {_mm256_fnmadd_ps(x.a, all, total.a), _mm256_fnmadd_ps(x.b, all, total.b)};
}

#ifdef __AVXVNNI__

// A running dot product of 16 rows and one input.
struct Chain {
    __m256i a, b;
};
using Factor = Bytes;
inline Factor factor(Bytes codes) { return codes; }
template <bool kSigned, int kLimit, int kStep, bool kStarted>
inline void add(Chain& chain, const Factor& codes, const std::int8_t* quad) {
    const __m256i x = every_four(quad);
    chain.a = _mm256_dpbusd_avx_epi32(chain.a, codes.a, x);
    chain.b = _mm256_dpbusd_avx_epi32(chain.b, codes.b, x);
}
inline Chain start(std::int32_t bias = 0) { return {_mm256_set1_epi32(bias), _mm256_set1_epi32(bias)}; }

#else

// A running dot product of 16 rows and one input: pairs of columns in 16 bits, collected into 32 bits before they overflow.
struct Chain {
    __m256i short_a, short_b, a, b;
};
struct Factor {
    __m256i a, b, magnitude_a, magnitude_b;  // the latter of signed codes
};
inline Factor factor(Bytes codes) { return {codes.a, codes.b, _mm256_abs_epi8(codes.a), _mm256_abs_epi8(codes.b)}; }

// Step kStep of a dot product that was started with a number or, if not `kStarted`, with nothing. Of codes with a sign the magnitude is
// multiplied, and the sign goes to the input.
template <bool kSigned, int kLimit, int kStep, bool kStarted>
inline void add(Chain& chain, const Factor& codes, const std::int8_t* quad) {
    const __m256i x = every_four(quad);
    __m256i a, b;
    if constexpr (kSigned) {
        a = _mm256_maddubs_epi16(codes.magnitude_a, _mm256_sign_epi8(x, codes.a));
        b = _mm256_maddubs_epi16(codes.magnitude_b, _mm256_sign_epi8(x, codes.b));
    } else {
        a = _mm256_maddubs_epi16(codes.a, x);
        b = _mm256_maddubs_epi16(codes.b, x);
    }
    if constexpr (kStep % kLimit != 0) {
        a = _mm256_add_epi16(chain.short_a, a);
        b = _mm256_add_epi16(chain.short_b, b);
    }
    // Keeps the order of the sums, here and below: GCC would rather add in pairs, and write all products to memory meanwhile.
    asm("" : "+x"(a), "+x"(b));
    if constexpr (kStep % kLimit != kLimit - 1) {
        chain.short_a = a;
        chain.short_b = b;
    } else {
        const __m256i ones = _mm256_set1_epi16(1);
        a = _mm256_madd_epi16(a, ones);
        b = _mm256_madd_epi16(b, ones);
        constexpr bool kFirst = kStep < kLimit && !kStarted;
        chain.a = kFirst ? a : _mm256_add_epi32(chain.a, a);
        chain.b = kFirst ? b : _mm256_add_epi32(chain.b, b);
        asm("" : "+x"(chain.a), "+x"(chain.b));
    }
}
inline Chain start(std::int32_t bias = 0) {
    const __m256i zero = _mm256_setzero_si256(), all = _mm256_set1_epi32(bias);
    return {zero, zero, all, all};
}

// The first and the last two columns of a quad of signed codes as 16 bits, of rows 0 … 7 and 8 … 15 each.
inline void spread(Bytes codes, std::int16_t* to) {
    constexpr char kNone = -1;  // Zero below each byte; shifted down, its sign fills what was above.
    const __m128i first = _mm_setr_epi8(kNone, 0, kNone, 1, kNone, 4, kNone, 5, kNone, 8, kNone, 9, kNone, 12, kNone, 13);
    const __m256i firsts = _mm256_broadcastsi128_si256(first), lasts = _mm256_or_si256(firsts, _mm256_set1_epi16(0x200));
    const __m256i parts[] = {_mm256_shuffle_epi8(codes.a, firsts), _mm256_shuffle_epi8(codes.b, firsts),
                             _mm256_shuffle_epi8(codes.a, lasts), _mm256_shuffle_epi8(codes.b, lasts)};
    for (int i = 0; i < 4; ++i)
        _mm256_store_si256(reinterpret_cast<__m256i*>(to + 16 * i), _mm256_srai_epi16(parts[i], 8));
}
// Quads of inputs likewise.
inline void spread(const std::int8_t* quads, std::size_t count, std::int16_t* to) {
    for (std::size_t i = 0; i < 4 * count; i += 16)
        _mm256_store_si256(reinterpret_cast<__m256i*>(to + i),
                           _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(quads + i))));
}
struct SpreadFactor {
    __m256i first_a, first_b, last_a, last_b;
};
template <typename Spread>
inline SpreadFactor spread_factor(Spread quad) {
    return {load(quad.codes), load(quad.codes + 16), load(quad.codes + 32), load(quad.codes + 48)};
}
// A quad of codes times one of an input, both spread.
inline void add(Chain& chain, const SpreadFactor& codes, const std::int16_t* quad) {
    const __m256i first = every_four(quad), last = every_four(quad + 2);
    const auto add = [](__m256i& sum, __m256i x, __m256i y) {
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(x, y));
        asm("" : "+x"(sum));  // as above
    };
    add(chain.a, first, codes.first_a);
    add(chain.b, first, codes.first_b);
    add(chain.a, last, codes.last_a);
    add(chain.b, last, codes.last_b);
}

#endif

// Sixteen integers of 32 bits, and sixteen pairs of 16 bits.
struct Ints {
    __m256i a, b;
};
struct Pairs {
    __m256i a, b;
};
inline Ints ints(const Chain& chain) { return {chain.a, chain.b}; }
inline Ints no_ints() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Rows floats(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
// (a / 2^kShift, b / 2^kShift), rounded down.
template <int kShift> inline __m256i joined(__m256i a, __m256i b) {
    if constexpr (kShift > 0) a = _mm256_srai_epi32(a, kShift);
    if constexpr (kShift < 0) a = _mm256_slli_epi32(a, -kShift);
    return _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16 - kShift), 0xAA);
}
template <int kShift> inline Pairs joined(Ints x, Ints y) { return {joined<kShift>(x.a, y.a), joined<kShift>(x.b, y.b)}; }
// x y / 2^15, to the nearest.
inline Pairs reduced(Pairs x, Pairs y) { return {_mm256_mulhrs_epi16(x.a, y.a), _mm256_mulhrs_epi16(x.b, y.b)}; }
// Both products of each pair, added.
inline Ints plus(Ints total, Pairs x, Pairs y) {
    return {_mm256_add_epi32(total.a, _mm256_madd_epi16(x.a, y.a)), _mm256_add_epi32(total.b, _mm256_madd_epi16(x.b, y.b))};
}
inline Pairs pair(const std::int16_t* two) {
    const __m256i both = every_four(two);
    return {both, both};
}
inline Pairs twice(std::int16_t one) { return {_mm256_set1_epi16(one), _mm256_set1_epi16(one)}; }
inline Pairs load_pairs(const std::int16_t* from) { return {load(from), load(from + 16)}; }
inline void store_pairs(std::int16_t* to, Pairs x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x.a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 16), x.b);
}

inline __m128i eight_halves(const std::uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
inline __m128i eight_bytes(const std::uint8_t* from) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)); }
inline Rows halves(const std::uint8_t* from) { return {_mm256_cvtph_ps(eight_halves(from)), _mm256_cvtph_ps(eight_halves(from + 16))}; }
inline __m256 eight_brain_halves(const std::uint8_t* from) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight_halves(from)), 16));
}
inline Rows brain_halves(const std::uint8_t* from) { return {eight_brain_halves(from), eight_brain_halves(from + 16)}; }
inline __m256i wide(const std::uint8_t* from) { return _mm256_cvtepu8_epi32(eight_bytes(from)); }
inline Pairs signed_pairs(const std::uint8_t* from) {
    return {_mm256_cvtepi8_epi16(eight_halves(from)), _mm256_cvtepi8_epi16(eight_halves(from + 16))};
}
inline Pairs unsigned_pairs(const std::uint8_t* from) {
    return {_mm256_cvtepu8_epi16(eight_halves(from)), _mm256_cvtepu8_epi16(eight_halves(from + 16))};
}
inline Pairs low_nibble_pairs(const std::uint8_t* from) {
    const Pairs bytes = unsigned_pairs(from);
    const __m256i mask = _mm256_set1_epi16(15);
    return {_mm256_and_si256(bytes.a, mask), _mm256_and_si256(bytes.b, mask)};
}
inline Pairs high_nibble_pairs(const std::uint8_t* from) {
    const Pairs bytes = unsigned_pairs(from);
    return {_mm256_srli_epi16(bytes.a, 4), _mm256_srli_epi16(bytes.b, 4)};
}
// 2^(byte - 127) / 2; bytes below 2 give numbers below float32's normal ones.
inline __m256 eight_exponents(const std::uint8_t* from) {
    const __m256i byte = wide(from), one = _mm256_set1_epi32(1);
    const __m256i small = _mm256_sllv_epi32(_mm256_set1_epi32(0x200000), byte);
    const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(byte, one), 23);
    return _mm256_castsi256_ps(_mm256_blendv_epi8(small, normal, _mm256_cmpgt_epi32(byte, one)));
}
inline Rows exponents(const std::uint8_t* from) { return {eight_exponents(from), eight_exponents(from + 8)}; }

inline void prefetch(const std::uint8_t* from) { _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0); }
inline void prefetch_far(const std::uint8_t* from) { _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T1); }

// 32 numbers as codes -127 … 127, what one step of the codes is worth (NaN where one isn't finite), and the codes' sums by halves.
inline float round_block(const float* x, std::int8_t* codes, std::int32_t (&sums)[2]) {
    // Absolute values in the order of their bits: what isn't finite comes last.
    const __m256i magnitude = _mm256_set1_epi32(0x7FFFFFFF);
    __m256 part[4];
    __m256i largest = _mm256_setzero_si256();
    for (int i = 0; i < 4; ++i) {
        part[i] = _mm256_loadu_ps(x + 8 * i);
        largest = _mm256_max_epi32(largest, _mm256_and_si256(_mm256_castps_si256(part[i]), magnitude));
    }
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xB1));
    const bool finite = _mm_cvtsi128_si32(four) < 0x7F800000;
    const float peak = _mm_cvtss_f32(_mm_castsi128_ps(four));
    const __m256 steps = _mm256_set1_ps(finite && peak > 1e-30f ? 127.0f / peak : 0.0f);
    const __m256i kept = _mm256_set1_epi32(finite ? -1 : 0);
    __m256i rounded[4];
    for (int i = 0; i < 4; ++i) rounded[i] = _mm256_and_si256(kept, _mm256_cvtps_epi32(_mm256_mul_ps(part[i], steps)));
    // Packing works in halves of registers: 4 columns each of 0 1 2 3 0 1 2 3.
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(rounded[0], rounded[1]), _mm256_packs_epi32(rounded[2], rounded[3]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i bytes = _mm256_permutevar8x32_epi32(packed, order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), bytes);
    // Sums of eight bytes without a sign: of codes + 128.
    const __m256i eights = _mm256_sad_epu8(_mm256_xor_si256(bytes, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
    const __m256i halves = _mm256_add_epi64(eights, _mm256_srli_si256(eights, 8));
    sums[0] = _mm_cvtsi128_si32(_mm256_castsi256_si128(halves)) - 16 * 128;
    sums[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(halves, 1)) - 16 * 128;
    return finite ? peak / 127.0f : NAN;
}

}  // namespace

}  // namespace fewbits::FEWBITS_ISA
