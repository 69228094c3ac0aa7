// Rows of numbers, as they are stored, to columns of lanes.
#pragma once

#include <cstring>
#include <utility>

#include "lanes.h"
#include "search.h"

namespace fewbits::FEWBITS_ISA {

namespace {

// Of two rows the first (second) halves, one number of each in turn.
template <bool Second, std::size_t... i>
FEWBITS_INLINE inline Bits interleave(Bits a, Bits b, std::index_sequence<i...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (i / 2 + (Second ? kLanes / 2 : 0) + (i % 2 ? kLanes : 0))...);
#else
    return __builtin_shuffle(a, b, Bits{(i / 2 + (Second ? kLanes / 2 : 0) + (i % 2 ? kLanes : 0))...});
#endif
}

// x[i][j] and x[j][i] change places: merging rows that lie half of all apart, as often as halving goes.
FEWBITS_INLINE inline void transpose(Bits (&x)[kLanes]) {
    constexpr auto each = std::make_index_sequence<kLanes>{};
    for (std::size_t rounds = kLanes; rounds > 1; rounds /= 2) {
        Bits merged[kLanes];
        for (std::size_t i = 0; i < kLanes / 2; ++i) {
            merged[2 * i] = interleave<false>(x[i], x[i + kLanes / 2], each);
            merged[2 * i + 1] = interleave<true>(x[i], x[i + kLanes / 2], each);
        }
        for (std::size_t i = 0; i < kLanes; ++i) x[i] = merged[i];
    }
}

FEWBITS_INLINE inline Bits load_bits(const void* from) {
    Bits found;
    std::memcpy(&found, from, sizeof found);
    return found;
}

// A row's kLanes numbers of 32 bits each from byte `at` on, columns first.
FEWBITS_INLINE inline void load_transposed(const void* const* rows, std::size_t at, Bits (&x)[kLanes]) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) x[lane] = load_bits(static_cast<const char*>(rows[lane]) + at);
    transpose(x);
}

inline void read_columns(const float* const* rows, std::size_t columns, Lanes* to) {
    const void* from[kLanes];
    for (std::size_t lane = 0; lane < kLanes; ++lane) from[lane] = rows[lane];
    for (std::size_t column = 0; column < columns; column += kLanes) {
        Bits x[kLanes];
        load_transposed(from, 4 * column, x);
        for (std::size_t i = 0; i < kLanes; ++i) to[column + i] = reinterpret_cast<Lanes>(x[i]);
    }
}

// Float16 in the low halves, to float32; infinities and NaN stay what they are.
FEWBITS_INLINE inline Lanes from_half(Bits x) {
    const Bits top = (x & 0x8000) << 16, size = x & 0x7FFF;
    const Lanes small = __builtin_convertvector(size, Lanes) * 0x1p-24f;
    const Bits normal = (size << 13) + (size >= 0x7C00 ? Bits{} + (224 << 23) : Bits{} + (112 << 23));
    return reinterpret_cast<Lanes>((size < 0x400 ? reinterpret_cast<Bits>(small) : normal) | top);
}

// Two neighbours of 16 bits each, the first one in the low half.
template <Stored stored>
FEWBITS_INLINE inline void split(Bits pair, Lanes& first, Lanes& second) {
    if constexpr (stored == Stored::kBfloat16) {
        first = reinterpret_cast<Lanes>(pair << 16);
        second = reinterpret_cast<Lanes>(pair & static_cast<std::int32_t>(0xFFFF0000u));
    } else {
        first = from_half(pair & 0xFFFF), second = from_half(pair >> 16 & 0xFFFF);
    }
}

template <Stored stored>
inline Bits read_kind(const void* const* rows, std::size_t columns, Lanes* to) {
    constexpr bool wide = stored == Stored::kFloat32;
    constexpr std::size_t step = wide ? kLanes : 2 * kLanes;
    Bits most{};
    for (std::size_t column = 0; column < columns; column += step) {
        Bits x[kLanes];
        load_transposed(rows, column * (wide ? 4 : 2), x);
        for (std::size_t i = 0; i < kLanes; ++i) {
            Lanes one, other{};
            if constexpr (wide) {
                to[column + i] = one = reinterpret_cast<Lanes>(x[i]);
            } else {
                split<stored>(x[i], one, other);
                to[column + 2 * i] = one, to[column + 2 * i + 1] = other;
            }
            const Bits size = reinterpret_cast<Bits>(magnitude(one)), size2 = reinterpret_cast<Bits>(magnitude(other));
            most = size > most ? size : most;
            if constexpr (!wide) most = size2 > most ? size2 : most;
        }
    }
    return most;
}

// Rows of so many numbers, a multiple of 32, columns first as float32; the largest magnitude in each lane, as an integer.
inline Bits read_stored(const void* const* rows, std::size_t columns, Stored stored, Lanes* to) {
    if (stored == Stored::kFloat32) return read_kind<Stored::kFloat32>(rows, columns, to);
    if (stored == Stored::kBfloat16) return read_kind<Stored::kBfloat16>(rows, columns, to);
    return read_kind<Stored::kFloat16>(rows, columns, to);
}

}  // namespace

}  // namespace fewbits::FEWBITS_ISA
