// Searches for the scales of blocks, and blocks rounded and packed with them: formats/gguf_search.py, gguf_super_search.py and
// gguf_mxfp4.py are the specification of the searches, formats/block_layout.py that of packing.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fewbits {

// The values that codes stand for before scaling: the integers low … high, whose codes are these plus zero, or, where there are
// tables, integers within ±128: the one nearest to t, and its code, at floor(2 t) + 256 for |t| < 128.
struct Grid {
    float low, high, zero;
    const float *levels, *codes;  // 512 numbers each, or null
};

enum class Stored : std::uint8_t { kFloat32, kFloat16, kBfloat16 };

// R blocks of B weights, in groups that share the innermost scale: 16 or 32 columns each.
struct Blocks {
    std::size_t rows, columns, group;
    const void* weight;  // [R, B]
    Stored stored;
    const float* importance;        // [P, B], those of block r at r mod P; or null
    std::size_t importance_period;  // P
    float largest;                  // weights beyond are taken for this large
    Grid grid;
};

struct Numbers {
    const float* data;
    std::size_t count;
};

// Where candidates put the largest weight of a group; the largest scale of a block; the limits of sub-scales.
struct ScaleOptions {
    float plain;
    Numbers places;
    std::size_t refits;
};

struct SuperScaleOptions {
    Numbers places, super_places;
    float lowest, highest;
    const int* windows;
    std::size_t rounds;
};

// Candidates cut off shares of a group's range: what remains in steps of the grid, and what is cut off below.
struct AffineOptions {
    Numbers steps, below;
    std::size_t refits;
};

struct SuperAffineOptions {
    Numbers steps, below, super_places;
    float highest;
    std::size_t rounds;
};

// Powers of two, as exponents from the one that suits the largest weight; which is the first that is tried.
struct ExponentOptions {
    const int* offsets;
    std::size_t count;
    int highest;
};

// Bits shift … of number first + i * stride, those of the mask, stand from bit `left` of byte `byte` + i on, i < count.
struct Piece {
    std::int32_t of_scales, first, count, stride, shift, mask, byte, left;
};

// Where everything lies in a block's bytes.
struct Layout {
    std::size_t nbytes;
    int halves[2];       // bytes where d and dmin (or m) stand, as float16; -1: there is none
    std::size_t scales;  // integers that belong to scales: sub-scales, then minima
    int raise;           // what is added to them, modulo 256
    int flip;            // bits of codes that are stored inverted
    const Piece* pieces;
    std::size_t count;
};

// What a search finds: d, dmin (or m) [R], null where the layout has none; integers as they are stored [R, scales].
struct Found {
    float* halves[2];
    std::uint8_t* scales;
};

template <typename Options>
struct BlockKernels {
    void (*fit)(const Blocks&, const Options&, const Layout&, const Found&);
    // Fits, rounds and packs to [R, nbytes]; whether all weights are finite, without which the bytes mean nothing.
    bool (*quantize)(const Blocks&, const Options&, const Layout&, std::uint8_t* packed);
};

struct Searches {
    BlockKernels<ScaleOptions> scale;
    BlockKernels<AffineOptions> affine;
    BlockKernels<SuperScaleOptions> super_scale;
    BlockKernels<SuperAffineOptions> super_affine;
    BlockKernels<ExponentOptions> exponent;
    // Of one group with d (and dmin) given; sub (and low) are what may not get worse, and are changed.
    void (*group_scale)(const Blocks&, const SuperScaleOptions&, const float* d, float* sub);
    void (*group_affine)(const Blocks&, const SuperAffineOptions&, const float* d, const float* dmin, float* sub,
                         float* low);
};

// Compiled once for each instruction set; arithmetic is the same to the last bit.
namespace portable { extern const Searches searches; }
namespace avx2 { extern const Searches searches; }
namespace avx512 { extern const Searches searches; }

}  // namespace fewbits
