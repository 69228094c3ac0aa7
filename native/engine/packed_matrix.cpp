#include "packed_matrix.h"

#include <cstring>

namespace fewbits::engine {

namespace {

// Byte of a vector that holds row r and column c of the quad.
std::size_t lane(std::size_t row, std::size_t column) { return 4 * row + column % 4; }

void put_code(std::uint8_t* planes, unsigned bits, std::size_t row, std::size_t column, std::uint8_t code) {
    const std::size_t quad = column / 4, byte = lane(row, column);
    if (bits == 8) {
        planes[64 * quad + byte] = code;
        return;
    }
    unsigned shift = 0;
    if (bits >= 4) {
        planes[64 * (quad / 2) + byte] |= static_cast<std::uint8_t>((code & 15) << (4 * (quad % 2)));
        planes += 256;
        shift = 4;
    }
    if ((bits & 3) >= 2) {
        planes[64 * (quad / 4) + byte] |= static_cast<std::uint8_t>(((code >> shift) & 3) << (2 * (quad % 4)));
        planes += 128;
        shift += 2;
    }
    if (bits & 1) planes[byte] |= static_cast<std::uint8_t>(((code >> shift) & 1) << quad);
}

void put_half(std::uint8_t* to, std::size_t row, std::uint16_t bits) { std::memcpy(to + 2 * row, &bits, 2); }

void put_scales(std::uint8_t* to, Scales scales, std::size_t row, const Group& group) {
    switch (scales) {
        case Scales::kHalf: put_half(to, row, group.half[0]); break;
        case Scales::kHalfMin:
            put_half(to, row, group.half[0]);
            put_half(to + 2 * kBand, row, group.half[1]);
            break;
        case Scales::kExponent:
        case Scales::kByte: to[row] = group.byte[0]; break;
        default:
            to[row] = group.byte[0];
            to[kBand + row] = group.byte[1];
    }
}

void pack_floats(std::size_t bytes, const std::uint8_t* rows, std::size_t count, std::size_t columns, std::uint8_t* out) {
    for (std::size_t r = 0; r < count; ++r)
        for (std::size_t c = 0; c < columns; ++c)
            std::memcpy(out + bytes * (kBand * c + r), rows + bytes * (r * columns + c), bytes);
}

}  // namespace

void pack_band(const BlockFormat& format, const std::uint8_t* rows, std::size_t count, std::size_t columns, std::uint8_t* out) {
    const Encoding& encoding = format.encoding;
    std::memset(out, 0, encoding.band_bytes(columns));
    if (are_floats(encoding.scales)) return pack_floats(encoding.bits / 8, rows, count, columns, out);
    const std::size_t row_bytes = columns / format.columns * format.bytes, groups = columns / kSlab;
    const std::size_t code_bytes = kBand * kSlab * encoding.bits / 8, super = super_bytes(encoding.scales);
    for (std::size_t g = 0; g < groups; ++g) {
        const std::size_t supers = g / (kSuper / kSlab);
        std::uint8_t* slab = out + g * encoding.slab_bytes() + (supers + 1) * kBand * super;
        const std::size_t block = g * kSlab / format.columns, within = g - block * format.columns / kSlab;
        for (std::size_t r = 0; r < count; ++r) {
            Group group{};
            format.read(rows + r * row_bytes + block * format.bytes, within, group);
            for (std::size_t c = 0; c < kSlab; ++c) put_code(slab, encoding.bits, r, c, group.codes[c]);
            put_scales(slab + code_bytes, encoding.scales, r, group);
            if (super && g % (kSuper / kSlab) == 0) {
                std::uint8_t* factors = slab - kBand * super;
                put_half(factors, r, group.super[0]);
                if (super == 4) put_half(factors + 2 * kBand, r, group.super[1]);
            }
        }
    }
}

}  // namespace fewbits::engine
