// Blocks of every type with arbitrary bytes: read as a row, repacked, and multiplied on every instruction set. All memory is of
// exactly the size that it must have.
#include "../engine/decode_row.h"
#include "../kernels/matmul.h"
#include "choices.h"
#include "expect.h"

namespace {

using fewbits::Inputs;
using fewbits::MatmulIsa;
using fewbits::fuzz::Choices;
using fewbits::fuzz::Exactly;
namespace engine = fewbits::engine;

constexpr std::uint32_t kTypes[] = {0, 1, 30, 2, 3, 6, 7, 8, 20, 39, 10, 11, 12, 13, 14, 23};

void multiply(const MatmulIsa& isa, const engine::Matrix& matrix, const Exactly<float>& x, std::size_t count) {
    const Exactly<std::uint8_t> room(fewbits::input_bytes(count, matrix.columns));
    const Exactly<float> out(count * matrix.rows);
    const Inputs inputs = fewbits::place_inputs(x.data(), count, matrix.columns, room.data());
    if (matrix.columns % engine::kSlab == 0) isa.kernels.round(inputs, 0, count);
    isa.kernels.multiply(matrix, inputs, 0, matrix.bands(), out.data(), matrix.rows, false);
}

void use_vectors(const MatmulIsa& isa, const Exactly<float>& x, Choices& choices) {
    const Exactly<float> y(x.size()), z(x.size());
    isa.transformer.rms_norm(x.data(), x.data(), x.size(), choices.number(), y.data());
    isa.transformer.add_scaled(y.data(), x.data(), choices.number(), x.size());
    isa.transformer.gate(x.data(), y.data(), x.size(), choices.byte() & 1, z.data());
    isa.transformer.soft_cap(z.data(), choices.number(), x.size());
    isa.transformer.rotate(y.data(), x.data(), z.data(), x.size() / 2, choices.byte() & 1);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Choices choices(data, size);
    const engine::BlockFormat& format = *engine::find_format(choices.one_of(kTypes));
    const bool floats = engine::are_floats(format.encoding.scales);
    const std::size_t rows = choices.between(1, 50), columns = floats ? choices.between(1, 200) : format.columns * choices.between(1, 40);
    const std::size_t count = choices.rarely() ? choices.between(1, 300) : choices.between(1, 20);
    const std::size_t row_bytes = columns / format.columns * format.bytes;
    const Exactly<std::uint8_t> blocks(rows * row_bytes);
    choices.fill(blocks.data(), blocks.size());

    if (!floats) {
        const Exactly<float> row(columns);
        engine::decode_row(format, blocks.data() + (rows - 1) * row_bytes, columns, row.data());
    }
    engine::Matrix matrix{format.encoding, rows, columns, nullptr};
    const Exactly<std::uint8_t> packed(matrix.bytes());
    matrix.data = packed.data();
    for (std::size_t row = 0; row < rows; row += engine::kBand)
        engine::pack_band(format, blocks.data() + row * row_bytes, std::min(engine::kBand, rows - row), columns,
                          packed.data() + row / engine::kBand * format.encoding.band_bytes(columns));

    const Exactly<float> x(count * columns);
    if (choices.byte() & 1) choices.fill(reinterpret_cast<std::uint8_t*>(x.data()), x.size() * sizeof(float));
    else
        for (std::size_t i = 0; i < x.size(); ++i) x[i] = choices.number();
    for (const MatmulIsa& isa : fewbits::matmul_isas()) {
        multiply(isa, matrix, x, count);
        use_vectors(isa, x, choices);
    }
    return 0;
}
