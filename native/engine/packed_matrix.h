// How the engine holds a quantized matrix: the numbers of a GGUF tensor, its rows interleaved so that one vector register
// holds the same four columns of sixteen rows. Repacked once, when a model is loaded.
//
//   A slab is 16 rows times 32 columns. Slabs follow each other along the columns in runs: all that scales a run, then the codes of
//   its slabs. Both fill whole lines of the cache (a register of 64 bytes that lies in two costs up to a third of the memory's bandwidth).
//   The last run of a row may have fewer slabs. A band is all slabs of the same 16 rows.
//
//   codes     planes of 4, 2 and 1 bits, highest bits in the smallest plane; byte 4 r + c of a vector belongs to row r and to
//             column 4 q + c for a quad q of columns:
//               4 bits: vector v of 4, low nibble quad 2 v, high nibble quad 2 v + 1
//               2 bits: vector v of 2, bits 2 i and 2 i + 1 quad 4 v + i
//               1 bit:  one vector, bit q quad q
//               8 bits: vector q of 8
//   scales    by `Scales`, slab by slab, each an array over the 16 rows
//   of a super-block, which is a run: factors, arrays over the rows, then scales as pairs, those that are multiplied together:
//               kByte        [4 pairs of slabs][16 rows][2]
//               kByteMin     the same, then the minimums likewise
//               kTwoBytes, kTwoNibbles  [8 slabs][16 rows][2 halves]
//
// A value is scale * (code - offset) - minimum, or scale * (level[code] - offset).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace fewbits::engine {

constexpr std::size_t kBand = 16, kSlab = 32, kSuper = 256, kLine = 64;

enum class Scales : std::uint8_t {
    kHalf,       // f16 scale
    kHalfMin,    // f16 scale, f16 minimum
    kExponent,   // u8: 2^(byte - 127) / 2, the half since levels are doubled (MXFP4)
    kByte,       // i8 scale; f16 factor of the super-block
    kByteMin,    // u8 scale, u8 minimum; f16 factors of both
    kTwoBytes,   // i8 scale of each half of the columns; f16 factor
    kTwoNibbles,  // u8 of each half: scale in the low nibble, minimum in the high one; f16 factors of both
    kFloat16,     // none: values are floats, byte 2 (16 c + r) for row r and column c; any number of columns
    kBfloat16,
    kFloat32,
};

// Of a row and slab.
constexpr std::size_t scale_bytes(Scales scales) {
    switch (scales) {
        case Scales::kHalf: return 2;
        case Scales::kHalfMin: return 4;
        case Scales::kExponent: return 1;
        case Scales::kByte: return 1;
        case Scales::kFloat16:
        case Scales::kBfloat16:
        case Scales::kFloat32: return 0;
        default: return 2;
    }
}

// Of a row's factors in a super-block; 0 for formats without.
constexpr std::size_t factor_bytes(Scales scales) {
    switch (scales) {
        case Scales::kByte:
        case Scales::kTwoBytes: return 2;
        case Scales::kByteMin:
        case Scales::kTwoNibbles: return 4;
        default: return 0;
    }
}

// Slabs of a run.
constexpr std::size_t run_slabs(Scales scales) {
    if (factor_bytes(scales)) return kSuper / kSlab;
    return scales == Scales::kHalf ? 2 : scales == Scales::kExponent ? 4 : 1;
}

// Of what scales a run.
constexpr std::size_t head_bytes(Scales scales) {
    return (kBand * (factor_bytes(scales) + run_slabs(scales) * scale_bytes(scales)) + kLine - 1) / kLine * kLine;
}

constexpr bool are_floats(Scales scales) { return scales >= Scales::kFloat16; }

// Everything that kernels need to know of a format.
struct Encoding {
    std::uint8_t bits;    // 2, 3, 4, 5, 6 or 8; of floats 16 or 32
    Scales scales;
    std::uint8_t offset;  // what is taken from a code (or its level)
    bool levels;          // codes of 4 bits stand for entries of `table`
    std::uint8_t table[16];

    std::size_t code_bytes() const { return kBand * kSlab * bits / 8; }  // of a slab
    std::size_t band_bytes(std::size_t columns) const {
        if (are_floats(scales)) return kBand * columns * bits / 8;
        const std::size_t slabs = columns / kSlab, together = run_slabs(scales);
        return slabs * code_bytes() + (slabs + together - 1) / together * head_bytes(scales);
    }
};

// Codes and scales of some rows and 32 columns, between a format's blocks and a slab. Unused scales are 0.
struct Group {
    std::uint8_t codes[kSlab];
    std::uint16_t half[2];   // scale and minimum, f16 bits
    std::uint8_t byte[2];    // as `Scales` says: scales (i8 as two's complement) or minimums
    std::uint16_t super[2];  // f16 bits
};

struct Matrix {
    Encoding encoding{};
    std::size_t rows = 0, columns = 0;  // rows as the model has them; bands beyond are zeros
    const std::uint8_t* data = nullptr;

    std::size_t bands() const { return (rows + kBand - 1) / kBand; }
    std::size_t bytes() const { return bands() * encoding.band_bytes(columns); }
    const std::uint8_t* band(std::size_t index) const { return data + index * encoding.band_bytes(columns); }
};

// A GGUF type that the engine computes with.
struct BlockFormat {
    std::uint32_t type;  // ggml's number
    const char* name;
    std::size_t columns, bytes;  // of a block
    Encoding encoding;
    void (*read)(const std::uint8_t* block, std::size_t group, Group& found);  // the group-th 32 columns of a block; no floats
};

// nullptr for a type that isn't known.
const BlockFormat* find_format(std::uint32_t type);

// One band of a matrix from 16 rows (or the last few) of blocks; `out` has `band_bytes(columns)`.
void pack_band(const BlockFormat& format, const std::uint8_t* rows, std::size_t count, std::size_t columns, std::uint8_t* out);

}  // namespace fewbits::engine
