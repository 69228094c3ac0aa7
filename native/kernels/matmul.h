// Matrices of the engine times activations. Quantized matrices take activations of 8 bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../engine/packed_matrix.h"

namespace fewbits {

// Vectors of activations, also rounded to 8 bits in blocks of 32 columns: x = scale * code. What lies where in `codes` and
// behind is each instruction set's own affair.
struct Inputs {
    const float* values = nullptr;  // [count, columns]
    std::size_t count = 0, columns = 0;
    std::int8_t* codes = nullptr;    // [count, columns]
    float* scales = nullptr;         // [count, columns / 32]
    std::int16_t* sums = nullptr;    // [count, columns / 16], of codes
};

// Bytes of the buffer that `place_inputs` wants, and inputs in it; aligned to 64 bytes.
constexpr std::size_t input_bytes(std::size_t count, std::size_t columns) {
    return count * (columns + columns / 32 * sizeof(float) + columns / 16 * sizeof(std::int16_t)) + 64;
}
inline Inputs place_inputs(const float* values, std::size_t count, std::size_t columns, void* buffer) {
    Inputs found{values, count, columns};
    found.codes = static_cast<std::int8_t*>(buffer);
    found.scales = reinterpret_cast<float*>(found.codes + count * columns);
    found.sums = reinterpret_cast<std::int16_t*>(found.scales + count * (columns / 32));
    return found;
}

struct MatmulKernels {
    // Round inputs [first, last); not needed for matrices of floats.
    void (*round)(const Inputs& inputs, std::size_t first, std::size_t last);
    // out[n * stride + row] for all inputs n and the rows of bands [first, last).
    void (*multiply)(const engine::Matrix& matrix, const Inputs& inputs, std::size_t first, std::size_t last, float* out,
                     std::size_t stride);
};

namespace portable { extern const MatmulKernels matmul; }
namespace avx2 { extern const MatmulKernels matmul; }
namespace avx512vnni { extern const MatmulKernels matmul; }

struct MatmulIsa {
    const char* name;
    const MatmulKernels& kernels;
};

// Those that this processor has, the fastest first; results differ between them by the rounding of float32 sums.
// FEWBITS_ISA leaves out those above the one that it names.
const std::vector<MatmulIsa>& matmul_isas();

}  // namespace fewbits
