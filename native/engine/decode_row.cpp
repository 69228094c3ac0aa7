#include "decode_row.h"

#include <cmath>
#include <cstring>

namespace fewbits::engine {

namespace {

struct Line {
    float scale, shift;  // value = scale * code + shift
};

// Of one half of a group's columns; codes already less the offset.
Line line_of(const Encoding& encoding, const Group& group, std::size_t half) {
    const float super = half_value(group.super[0]);
    const auto signed_byte = [](std::uint8_t byte) { return static_cast<float>(static_cast<std::int8_t>(byte)); };
    switch (encoding.scales) {
        case Scales::kHalf: return {half_value(group.half[0]), 0};
        case Scales::kHalfMin: return {half_value(group.half[0]), half_value(group.half[1])};
        case Scales::kExponent: return {std::ldexp(0.5f, static_cast<int>(group.byte[0]) - 127), 0};
        case Scales::kByte: return {super * signed_byte(group.byte[0]), 0};
        case Scales::kByteMin: return {super * group.byte[0], -half_value(group.super[1]) * group.byte[1]};
        case Scales::kTwoBytes: return {super * signed_byte(group.byte[half]), 0};
        default: return {super * (group.byte[half] & 15), -half_value(group.super[1]) * (group.byte[half] >> 4)};
    }
}

}  // namespace

float half_value(std::uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float magnitude = exponent == 0    ? std::ldexp(static_cast<float>(fraction), -24)
                            : exponent == 31 ? (fraction ? NAN : INFINITY)
                                             : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
    return bits & 0x8000 ? -magnitude : magnitude;
}

void decode_row(const BlockFormat& format, const std::uint8_t* blocks, std::size_t columns, float* out) {
    const Encoding& encoding = format.encoding;
    const std::size_t groups = format.columns / kSlab;
    for (std::size_t g = 0; g < columns / kSlab; ++g, out += kSlab) {
        Group group{};
        format.read(blocks + g / groups * format.bytes, g % groups, group);
        for (std::size_t half = 0; half < 2; ++half) {
            const Line line = line_of(encoding, group, half);
            for (std::size_t i = 16 * half; i < 16 * half + 16; ++i) {
                const int code = encoding.levels ? encoding.table[group.codes[i]] : group.codes[i];
                out[i] = line.scale * static_cast<float>(code - encoding.offset) + line.shift;
            }
        }
    }
}

}  // namespace fewbits::engine
