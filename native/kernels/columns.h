// Rounding columns of many rows one after another: the inner loops of algorithms/columns.py, whose Python is the
// specification.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fewbits {

// What codes of a run of columns stand for: scale * level - minimum, levels as in search.h's Grid. Column c belongs to
// group (first + c) / width of G.
struct ScaledGrid {
    float low, high, zero;      // code = level + zero
    const float* levels;        // or, where there are tables, both at floor(2 t) + 256 for |t| < 128
    const std::uint8_t* codes;
    const float *scale, *minimum;  // [G, R]
};

// W columns of R rows, columns first: [W, R].
struct Columns {
    std::size_t count, rows;
    const std::int32_t* group;  // [W] of each column
    ScaledGrid grid;
};

struct RoundedColumns {
    float* aim;              // [W, R] what to round; later columns hear of errors; changed
    const float* target;     // [W, R] the weights
    float* error;            // [W, R] becomes target - decoded, within ±largest_error
    std::uint8_t* codes;     // [W, R]
    const float* feedback;   // [W, W] row j: what column j hears of the errors before it
    float largest_error;
};

struct MovedColumns {
    float* gradient;         // [W, R] H e; changed
    float* values;           // [W, R] changed
    std::uint8_t* codes;     // [W, R] changed
    float* moved;            // [W, R] becomes what values were moved by
    const float* hessian;    // [W, W]
    const float* inverse;    // [W] of its diagonal
};

struct ColumnKernels {
    void (*round)(const Columns&, const RoundedColumns&);
    void (*move)(const Columns&, const MovedColumns&);
};

namespace portable { extern const ColumnKernels columns; }
namespace avx2 { extern const ColumnKernels columns; }
namespace avx512 { extern const ColumnKernels columns; }

}  // namespace fewbits
