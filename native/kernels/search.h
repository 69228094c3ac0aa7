// Searches for the scales of blocks: formats/gguf_search.py and gguf_super_search.py, whose Python is the specification.
#pragma once

#include <cstddef>

namespace fewbits {

// The values that codes stand for before scaling: the integers low … high, or, where there is a table, the value nearest
// to t in table[floor(2 t) + 256] for |t| < 128.
struct Grid {
    float low, high;
    const float* table;  // 512 numbers, or null
};

// R blocks of B weights, in groups that share the innermost scale.
struct Blocks {
    std::size_t rows, columns, group;
    const float* weight;            // [R, B]
    const float* importance;        // [R, B], [B] or null
    std::size_t importance_stride;  // from one row's to the next one's: B or 0
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

struct Searches {
    void (*scale)(const Blocks&, const ScaleOptions&, float* d);
    void (*affine)(const Blocks&, const AffineOptions&, float* d, float* m);
    void (*super_scale)(const Blocks&, const SuperScaleOptions&, float* d, float* sub);
    void (*super_affine)(const Blocks&, const SuperAffineOptions&, float* d, float* dmin, float* sub, float* low);
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
