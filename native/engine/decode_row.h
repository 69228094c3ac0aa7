// The numbers of a row of a GGUF tensor, for what isn't multiplied with: the embedding.
#pragma once

#include <cstddef>
#include <cstdint>

#include "packed_matrix.h"

namespace fewbits::engine {

float half_value(std::uint16_t bits);

// `columns` float32 from whole blocks.
void decode_row(const BlockFormat& format, const std::uint8_t* blocks, std::size_t columns, float* out);

}  // namespace fewbits::engine
