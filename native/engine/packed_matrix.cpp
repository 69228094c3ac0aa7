#include "packed_matrix.h"

#include <cstring>

namespace fewbits::engine {

namespace {

// A quad of codes, each a byte: what of it goes to a plane, moved to `place`.
std::uint32_t bits_of(std::uint32_t quad, std::uint32_t mask, unsigned shift, unsigned place) {
    return (quad >> shift & mask) << place;
}

// A row's 32 codes, quad by quad: lanes of 32 bits, so that sixteen rows fill a vector.
void put_codes(std::uint8_t* planes, unsigned bits, std::size_t row, const std::uint8_t* codes) {
    constexpr std::size_t kQuads = kSlab / 4, kVector = 4 * kBand;
    std::uint32_t quads[kQuads];
    std::memcpy(quads, codes, sizeof quads);
    std::uint8_t* at = planes + 4 * row;
    const auto put = [&at](std::uint32_t word) {
        std::memcpy(at, &word, sizeof word);
        at += kVector;
    };
    if (bits == 8) {
        for (const std::uint32_t quad : quads) put(quad);
        return;
    }
    unsigned shift = 0;
    if (bits >= 4) {
        for (std::size_t q = 0; q < kQuads; q += 2)
            put(bits_of(quads[q], 0x0F0F0F0F, 0, 0) | bits_of(quads[q + 1], 0x0F0F0F0F, 0, 4));
        shift = 4;
    }
    if ((bits & 3) >= 2) {
        for (std::size_t q = 0; q < kQuads; q += 4)
            put(bits_of(quads[q], 0x03030303, shift, 0) | bits_of(quads[q + 1], 0x03030303, shift, 2) |
                bits_of(quads[q + 2], 0x03030303, shift, 4) | bits_of(quads[q + 3], 0x03030303, shift, 6));
        shift += 2;
    }
    if (bits & 1) {
        std::uint32_t word = 0;
        for (unsigned q = 0; q < kQuads; ++q) word |= bits_of(quads[q], 0x01010101, shift, q);
        put(word);
    }
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
    if (count < kBand) std::memset(out, 0, encoding.band_bytes(columns));
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
            put_codes(slab, encoding.bits, r, group.codes);
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
