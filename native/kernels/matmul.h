// Quantized matrix times activations of 8 bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../engine/packed_matrix.h"

namespace fewbits {

// Vectors of activations, rounded to 8 bits in blocks of 32 columns: x = scale * code.
struct Inputs {
    std::size_t count = 0, columns = 0;
    std::int8_t* codes = nullptr;    // [count, columns]
    float* scales = nullptr;         // [count, columns / 32]
    std::int16_t* sums = nullptr;    // [count, columns / 16], of codes
};

struct MatmulKernels {
    // Fill inputs [first, last) from float32 rows x [count, columns].
    void (*round)(const float* x, const Inputs& to, std::size_t first, std::size_t last);
    // out[n * stride + row] for all inputs n and the rows of bands [first, last).
    void (*multiply)(const engine::Matrix& matrix, const Inputs& inputs, std::size_t first, std::size_t last, float* out,
                     std::size_t stride);
};

namespace portable { extern const MatmulKernels matmul; }
namespace avx2 { extern const MatmulKernels matmul; }
namespace avx512vnni { extern const MatmulKernels matmul; }

}  // namespace fewbits
