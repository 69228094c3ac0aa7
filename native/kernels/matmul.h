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
//
// For matrices with super-blocks there are, of every 256 columns, one scale and each block's share in it:
// scale = super_scale * share / 2^15, to 16 bits.
struct Inputs {
    const float* values = nullptr;  // [count, columns]
    std::size_t count = 0, columns = 0;
    std::int8_t* codes = nullptr;             // 32 a block
    float* scales = nullptr;
    float* sums = nullptr;                    // of all scaled codes of a block
    std::int32_t* biases = nullptr;           // -128 times the sum of a block's codes,
    std::int32_t* rounded_biases = nullptr;   // with what rounding adds,
    std::int32_t* half_biases = nullptr;      // of each half with what rounding adds
    float* super_scales = nullptr;            // only for whole super-blocks, as the shares
    std::int16_t* shares = nullptr;           // 0 … 32767, two neighbouring blocks' together
    std::int16_t* share_sums = nullptr;       // of codes times the share, raised to 16 bits
    std::int16_t* half_share_sums = nullptr;  // of each half, both together
};

// Bytes of the buffer that `place_inputs` wants, and inputs in it; aligned to 64 bytes.
constexpr std::size_t input_bytes(std::size_t count, std::size_t columns) {
    return (count * (columns / 32) * (32 + 6 * 4 + 4 * 2) + count * (columns / 256) * 4 + 63) / 64 * 64;
}
inline Inputs place_inputs(const float* values, std::size_t count, std::size_t columns, void* buffer) {
    const std::size_t blocks = count * (columns / 32);
    Inputs found{values, count, columns};
    found.codes = static_cast<std::int8_t*>(buffer);
    found.scales = reinterpret_cast<float*>(found.codes + 32 * blocks);
    found.sums = found.scales + blocks;
    found.biases = reinterpret_cast<std::int32_t*>(found.sums + blocks);
    found.rounded_biases = found.biases + blocks;
    found.half_biases = found.rounded_biases + blocks;
    found.shares = reinterpret_cast<std::int16_t*>(found.half_biases + 2 * blocks);
    found.share_sums = found.shares + blocks;
    found.half_share_sums = found.share_sums + blocks;
    found.super_scales = reinterpret_cast<float*>(found.half_share_sums + 2 * blocks);
    return found;
}

// How far ahead of what is multiplied memory is fetched, in bytes; 0 where the processor does better by itself.
std::size_t fetch_ahead();

constexpr std::size_t kRoundedTogether = 8;  // inputs, counted from the first, that are best rounded in one call; others may be

struct MatmulKernels {
    // Round inputs [first, last); not needed for matrices of floats.
    void (*round)(const Inputs& inputs, std::size_t first, std::size_t last);
    // What rounding took from an input: out [columns] = value - scale * code.
    void (*residual)(const Inputs& inputs, std::size_t index, float* out);
    // out[n * stride + row], or what is added to it, for all inputs n and the rows of bands [first, last). Without a stride, the
    // inputs' results are added up.
    void (*multiply)(const engine::Matrix& matrix, const Inputs& inputs, std::size_t first, std::size_t last, float* out,
                     std::size_t stride, bool add);
};

namespace portable { extern const MatmulKernels matmul; }
namespace avx2 { extern const MatmulKernels matmul; }
namespace avxvnni { extern const MatmulKernels matmul; }
namespace avx512vnni { extern const MatmulKernels matmul; }
namespace neon { extern const MatmulKernels matmul; }
namespace neon_dotprod { extern const MatmulKernels matmul; }

struct MatmulIsa {
    const char* name;
    const MatmulKernels& kernels;
    const TransformerKernels& transformer;
};

// Those that this processor has, the fastest first; results differ between them by the rounding of float32 sums.
// FEWBITS_ISA leaves out those above the one that it names.
const std::vector<MatmulIsa>& matmul_isas();

}  // namespace fewbits
