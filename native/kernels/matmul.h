// Matrices of the engine times activations. Quantized matrices take activations of 8 bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../engine/packed_matrix.h"
#include "transformer.h"

namespace fewbits {

// Vectors of activations, also rounded to 8 bits in blocks of 32 columns: x = scale * code. Where blocks lie is each
// instruction set's own affair: in tiles of so many inputs as it takes at once, those of a tile side by side.
struct Inputs {
    const float* values = nullptr;  // [count, columns]
    std::size_t count = 0, columns = 0;
    std::int8_t* codes = nullptr;          // 32 a block
    float* scales = nullptr;
    float* sums = nullptr;                 // of all scaled codes of a block,
    float* half_sums = nullptr;            // of each half
    std::int32_t* biases = nullptr;        // -128 times the sum of codes,
    std::int32_t* half_biases = nullptr;   // of each half
};

// Bytes of the buffer that `place_inputs` wants, and inputs in it; aligned to 64 bytes.
constexpr std::size_t input_bytes(std::size_t count, std::size_t columns) { return count * (columns / 32) * (32 + 7 * 4); }
inline Inputs place_inputs(const float* values, std::size_t count, std::size_t columns, void* buffer) {
    const std::size_t blocks = count * (columns / 32);
    Inputs found{values, count, columns};
    found.codes = static_cast<std::int8_t*>(buffer);
    found.scales = reinterpret_cast<float*>(found.codes + 32 * blocks);
    found.sums = found.scales + blocks;
    found.half_sums = found.sums + blocks;
    found.biases = reinterpret_cast<std::int32_t*>(found.half_sums + 2 * blocks);
    found.half_biases = found.biases + blocks;
    return found;
}

struct MatmulKernels {
    // Round inputs [first, last); not needed for matrices of floats.
    void (*round)(const Inputs& inputs, std::size_t first, std::size_t last);
    // What rounding took from an input: out [columns] = value - scale * code.
    void (*residual)(const Inputs& inputs, std::size_t index, float* out);
    // out[n * stride + row], or what is added to it, for all inputs n and the rows of bands [first, last).
    void (*multiply)(const engine::Matrix& matrix, const Inputs& inputs, std::size_t first, std::size_t last, float* out,
                     std::size_t stride, bool add);
};

namespace portable { extern const MatmulKernels matmul; }
namespace avx2 { extern const MatmulKernels matmul; }
namespace avx512vnni { extern const MatmulKernels matmul; }

struct MatmulIsa {
    const char* name;
    const MatmulKernels& kernels;
    const TransformerKernels& transformer;
};

// Those that this processor has, the fastest first; results differ between them by the rounding of float32 sums.
// FEWBITS_ISA leaves out those above the one that it names.
const std::vector<MatmulIsa>& matmul_isas();

}  // namespace fewbits
