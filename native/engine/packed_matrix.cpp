#include "packed_matrix.h"

#include <cstring>

namespace fewbits::engine {

namespace {

// The codes of 16 rows by quads of columns, as the vectors of a plane hold them.
using Quads = std::uint8_t[kSlab / 4][4 * kBand];

// A byte of a plane holds `per_byte` fields of `bits` bits, from bit `from` of the codes of as many quads.
void put_plane(const Quads& quads, unsigned bits, unsigned from, std::uint8_t* plane) {
    const unsigned per_byte = 8 / bits;
    const auto mask = static_cast<std::uint8_t>((1u << bits) - 1);
    for (std::size_t v = 0; v < kSlab / 4 / per_byte; ++v) {
        std::uint8_t vector[4 * kBand] = {};
        for (unsigned k = 0; k < per_byte; ++k)
            for (std::size_t i = 0; i < 4 * kBand; ++i)
                vector[i] |= static_cast<std::uint8_t>(((quads[v * per_byte + k][i] >> from) & mask) << (bits * k));
        std::memcpy(plane + v * sizeof vector, vector, sizeof vector);
    }
}

void put_codes(const Group (&groups)[kBand], unsigned bits, std::uint8_t* planes) {
    Quads quads;
    for (std::size_t q = 0; q < kSlab / 4; ++q)
        for (std::size_t r = 0; r < kBand; ++r) std::memcpy(quads[q] + 4 * r, groups[r].codes + 4 * q, 4);
    if (bits == 8) {
        std::memcpy(planes, quads, sizeof quads);
        return;
    }
    unsigned from = 0;
    if (bits >= 4) {
        put_plane(quads, 4, from, planes);
        planes += 256;
        from += 4;
    }
    if ((bits & 3) >= 2) {
        put_plane(quads, 2, from, planes);
        planes += 128;
        from += 2;
    }
    if (bits & 1) put_plane(quads, 1, from, planes);
}

void put_half(std::uint8_t* to, std::size_t row, std::uint16_t bits) { std::memcpy(to + 2 * row, &bits, 2); }

// What scales slab `slab` of a run without factors.
void put_scales(std::uint8_t* to, Scales scales, std::size_t row, std::size_t slab, const Group& group) {
    to += slab * kBand * scale_bytes(scales);
    if (scales == Scales::kExponent) {
        to[row] = group.byte[0];
        return;
    }
    put_half(to, row, group.half[0]);
    if (scales == Scales::kHalfMin) put_half(to + 2 * kBand, row, group.half[1]);
}

// What scales slab `slab` of a super-block.
void put_super(std::uint8_t* to, Scales scales, std::size_t row, std::size_t slab, const Group& group) {
    for (std::size_t i = 0; i < factor_bytes(scales) / 2; ++i) put_half(to + 2 * kBand * i, row, group.super[i]);
    to += kBand * factor_bytes(scales);
    if (scales == Scales::kByte || scales == Scales::kByteMin) {
        to += slab / 2 * 2 * kBand + 2 * row + slab % 2;
        *to = group.byte[0];
        if (scales == Scales::kByteMin) to[kBand * kSuper / kSlab] = group.byte[1];
    } else {
        std::memcpy(to + slab * 2 * kBand + 2 * row, group.byte, 2);
    }
}

inline void prefetch(const std::uint8_t* from, std::size_t bytes) {
#if defined(__GNUC__)
    for (std::size_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i);
#else
    (void)from, (void)bytes;
#endif
}

template <typename Number>
void pack_floats(const std::uint8_t* rows, std::size_t count, std::size_t columns, std::uint8_t* out) {
    constexpr std::size_t kBytes = sizeof(Number);
    for (std::size_t c = 0; c < columns; ++c)
        for (std::size_t r = 0; r < count; ++r) std::memcpy(out + kBytes * (kBand * c + r), rows + kBytes * (r * columns + c), kBytes);
}

}  // namespace

void pack_band(const BlockFormat& format, const std::uint8_t* rows, std::size_t count, std::size_t columns, std::uint8_t* out) {
    const Encoding& encoding = format.encoding;
    if (count < kBand) std::memset(out, 0, encoding.band_bytes(columns));
    if (encoding.scales == Scales::kFloat32) return pack_floats<std::uint32_t>(rows, count, columns, out);
    if (are_floats(encoding.scales)) return pack_floats<std::uint16_t>(rows, count, columns, out);
    const std::size_t row_bytes = columns / format.columns * format.bytes, slabs = columns / kSlab;
    const std::size_t together = run_slabs(encoding.scales), head = head_bytes(encoding.scales);
    std::uint8_t* of_run = out;
    // Sixteen rows are read at once, more than processors follow: what comes after them is fetched meanwhile.
    const std::uint8_t* next = rows + kBand * row_bytes;
    const std::size_t fetched = kBand * row_bytes / slabs;
    for (std::size_t g = 0; g < slabs; ++g) {
        const std::size_t slab = g % together;
        prefetch(next + g * fetched, fetched);
        if (slab == 0) {
            of_run = out;
            std::memset(of_run, 0, head);
            out += head;
        }
        const std::size_t block = g * kSlab / format.columns, within = g - block * format.columns / kSlab;
        Group groups[kBand] = {};
        for (std::size_t r = 0; r < count; ++r) {
            format.read(rows + r * row_bytes + block * format.bytes, within, groups[r]);
            if (factor_bytes(encoding.scales)) put_super(of_run, encoding.scales, r, slab, groups[r]);
            else put_scales(of_run, encoding.scales, r, slab, groups[r]);
        }
        put_codes(groups, encoding.bits, out);
        out += encoding.code_bytes();
    }
}

}  // namespace fewbits::engine
