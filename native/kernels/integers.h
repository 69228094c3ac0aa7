// Scales and zero points of integer grids: formats/integer_fit.py and scale_search.py, whose Python is the specification.
#pragma once

#include <cstddef>
#include <cstdint>

#include "search.h"

namespace fewbits {

// Weights of which each block of B has a scale.
struct IntegerBlocks {
    std::size_t rows, columns;      // R, B
    const float* weight;            // [R, B]
    const float* importance;        // [P, B], those of block r at r mod P; or null
    std::size_t importance_period;  // P
};

struct IntegerOptions {
    int width;
    bool symmetric;
    int significant;          // bits that scales (and products, where they are rounded) keep; 11: those of float16
    float smallest, largest;  // magnitudes of scales
    bool signed_scales, rounds_products;
    Numbers shares;  // narrower ranges that are tried, as shares of the whole one
    bool cuts_ends;  // whether ranges are tried too whose ends are cut at one magnitude
};

struct IntegerKernels {
    void (*fit)(const IntegerBlocks&, const IntegerOptions&, float* scale, std::uint8_t* zero);
    // Inner products of rows [R, B]; see `dot` in scale_search.py.
    void (*dots)(const float* left, const float* right, std::size_t rows, std::size_t columns, float* to);
};

// Compiled once for each instruction set; arithmetic is the same to the last bit.
namespace portable { extern const IntegerKernels integers; }
namespace avx2 { extern const IntegerKernels integers; }
namespace avx512 { extern const IntegerKernels integers; }

}  // namespace fewbits
