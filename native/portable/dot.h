// `matmul.inc`'s instructions in plain C++: what the others are compared with.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace fewbits::FEWBITS_ISA {

namespace {

constexpr int kTile = 4;
constexpr int kDirect = 1;
constexpr bool kRaised = true;
constexpr bool kSignedWide = false;
constexpr bool kSpreads = false;

typedef std::uint8_t Bytes __attribute__((vector_size(64)));
typedef float Rows __attribute__((vector_size(64)));

inline Bytes load_bytes(const std::uint8_t* from) {
    Bytes found;
    std::memcpy(&found, from, sizeof found);
    return found;
}
inline void store_bytes(std::uint8_t* to, Bytes x) { std::memcpy(to, &x, sizeof x); }
template <int kLeft> inline Bytes shifted(Bytes x) {
    if constexpr (kLeft > 0) return x << kLeft;
    if constexpr (kLeft < 0) return x >> -kLeft;
    return x;
}
inline Bytes masked(Bytes x, std::uint8_t mask) { return x & mask; }
inline Bytes either(Bytes a, Bytes b) { return a | b; }
inline Bytes flipped(Bytes x) { return x ^ 0x80; }
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

inline Rows zeros() { return Rows{}; }
inline Rows load_rows(const float* from) {
    Rows found;
    std::memcpy(&found, from, sizeof found);
    return found;
}
inline void store_rows(float* to, Rows x) { std::memcpy(to, &x, sizeof x); }
inline Rows times(Rows a, Rows b) { return a * b; }
inline Rows times(Rows a, float b) { return a * b; }
inline Rows plus(Rows total, Rows a, Rows b) { return total + a * b; }
inline Rows plus(Rows total, Rows a, float b) { return total + a * b; }
inline Rows minus(Rows total, Rows a, Rows b) { return total - a * b; }
inline Rows minus(Rows total, Rows a, float b) { return total - a * b; }

struct Chain {
    std::int32_t rows[16];
};
using Factor = Bytes;
inline Factor factor(Bytes codes) { return codes; }
template <bool kSigned, int kLimit, int kStep, bool kStarted>
inline void add(Chain& chain, const Factor& codes, const std::int8_t* quad) {
    std::uint8_t bytes[64];
    std::memcpy(bytes, &codes, sizeof bytes);
    for (int r = 0; r < 16; ++r)
        for (int c = 0; c < 4; ++c) chain.rows[r] += bytes[4 * r + c] * quad[c];
}
inline Chain start(std::int32_t bias = 0) {
    Chain found;
    for (std::int32_t& row : found.rows) row = bias;
    return found;
}

template <typename Number> Rows rows_of(Number&& number) {
    Rows found;
    for (int r = 0; r < 16; ++r) found[r] = static_cast<float>(number(r));
    return found;
}

// Sixteen integers of 32 bits, and sixteen pairs of 16 bits.
typedef std::int32_t Ints __attribute__((vector_size(64)));
typedef std::int16_t Pairs __attribute__((vector_size(64)));
inline Ints ints(const Chain& chain) {
    Ints found;
    std::memcpy(&found, chain.rows, sizeof found);
    return found;
}
inline Ints no_ints() { return Ints{}; }
inline Rows floats(Ints x) {
    return rows_of([&](int r) { return x[r]; });
}
template <typename Number> Pairs pairs_of(Number&& number) {
    Pairs found;
    for (int i = 0; i < 32; ++i) found[i] = static_cast<std::int16_t>(number(i));
    return found;
}
// (a / 2^kShift, b / 2^kShift), rounded down.
template <int kShift> inline Pairs joined(Ints a, Ints b) {
    return pairs_of([&](int i) {
        const std::int32_t x = i % 2 ? b[i / 2] : a[i / 2];
        return kShift > 0 ? x >> (kShift > 0 ? kShift : 0) : x * (1 << (kShift < 0 ? -kShift : 0));
    });
}
// a b / 2^15, to the nearest.
inline Pairs reduced(Pairs a, Pairs b) {
    return pairs_of([&](int i) { return (a[i] * b[i] + 0x4000) >> 15; });
}
// Both products of each pair, added.
inline Ints plus(Ints total, Pairs a, Pairs b) {
    for (int r = 0; r < 16; ++r) total[r] += a[2 * r] * b[2 * r] + a[2 * r + 1] * b[2 * r + 1];
    return total;
}
inline Pairs pair(const std::int16_t* two) {
    return pairs_of([&](int i) { return two[i % 2]; });
}
inline Pairs twice(std::int16_t one) {
    return pairs_of([&](int) { return one; });
}
inline Pairs load_pairs(const std::int16_t* from) {
    return pairs_of([&](int i) { return from[i]; });
}
inline void store_pairs(std::int16_t* to, Pairs x) { std::memcpy(to, &x, sizeof x); }
inline std::uint32_t pair_at(const std::uint8_t* from, int r) { return from[2 * r] | from[2 * r + 1] << 8; }
inline float bits_as_float(std::uint32_t bits) {
    float found;
    std::memcpy(&found, &bits, sizeof found);
    return found;
}
inline float half_as_float(std::uint32_t bits) {
    const std::uint32_t sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7FFFu;
    if (magnitude < 0x400) return (sign ? -0x1p-24f : 0x1p-24f) * static_cast<float>(magnitude);
    if (magnitude >= 0x7C00) return bits_as_float(sign | 0x7F800000u | (magnitude & 0x3FF) << 13);
    return bits_as_float(sign | ((magnitude << 13) + (112u << 23)));
}
inline Rows halves(const std::uint8_t* from) {
    return rows_of([&](int r) { return half_as_float(pair_at(from, r)); });
}
inline Rows brain_halves(const std::uint8_t* from) {
    return rows_of([&](int r) { return bits_as_float(pair_at(from, r) << 16); });
}
inline Pairs signed_pairs(const std::uint8_t* from) {
    return pairs_of([&](int i) { return static_cast<std::int8_t>(from[i]); });
}
inline Pairs unsigned_pairs(const std::uint8_t* from) {
    return pairs_of([&](int i) { return from[i]; });
}
inline Pairs low_nibble_pairs(const std::uint8_t* from) {
    return pairs_of([&](int i) { return from[i] & 15; });
}
inline Pairs high_nibble_pairs(const std::uint8_t* from) {
    return pairs_of([&](int i) { return from[i] >> 4; });
}
// 2^(byte - 127) / 2; bytes below 2 give numbers below float32's normal ones.
inline Rows exponents(const std::uint8_t* from) {
    return rows_of([&](int r) { return bits_as_float(from[r] > 1 ? (from[r] - 1u) << 23 : 0x200000u << from[r]); });
}
inline void prefetch(const std::uint8_t*) {}
inline void prefetch_far(const std::uint8_t*) {}

// 32 numbers as codes -127 … 127, what one step of the codes is worth (NaN where one isn't finite), and the codes' sums by halves.
inline float round_block(const float* x, std::int8_t* codes, std::int32_t (&sums)[2]) {
    float peak = 0;
    for (int i = 0; i < 32; ++i) peak = std::fabs(x[i]) > peak ? std::fabs(x[i]) : peak;
    const float steps = peak > 1e-30f ? 127.0f / peak : 0.0f;
    sums[0] = sums[1] = 0;
    bool finite = true;
    for (int i = 0; i < 32; ++i) {
        const float code = std::nearbyint(x[i] * steps);
        finite = finite && code == code;
        codes[i] = static_cast<std::int8_t>(code == code ? code : 0.0f);
        sums[i / 16] += codes[i];
    }
    return finite ? peak / 127.0f : NAN;
}

}  // namespace

}  // namespace fewbits::FEWBITS_ISA
