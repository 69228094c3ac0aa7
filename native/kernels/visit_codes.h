// Coordinate descent on codes: the inner loop of algorithms/joint_descent.py, whose Python is the specification.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fewbits {

// R rows of K weights; groups of `group` columns share a grid of `levels` values.
struct Codes {
    std::size_t rows, columns, group, levels;
    float* values;          // [R, K] what the codes stand for; changed
    std::uint8_t* ranks;    // [R, K] position of each value in its grid; changed
    const float* grids;     // [R, K / group, levels] rising
    float* gradient;        // [R, K] what pulls at the values, before any of these rows was changed; changed
    const float* outputs;   // [R, R] second moment of the outputs' gradients
    const float* hessian;   // [K, K] symmetric, positive on the diagonal
    float* response;        // [R, K] zeros; what has been moved, times the Hessian
};

// Returns how many codes were moved.
using VisitCodes = std::size_t (*)(const Codes&);

// Compiled once for each instruction set; arithmetic is the same to the last bit.
namespace portable { std::size_t visit_codes(const Codes&); }
namespace avx2 { std::size_t visit_codes(const Codes&); }
namespace avx512 { std::size_t visit_codes(const Codes&); }

}  // namespace fewbits
