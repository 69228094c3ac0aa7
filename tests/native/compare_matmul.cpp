// Whether instruction sets multiply every type of matrix as the portable kernels do. Prints a line for each; exits with 1 if
// some differ by more than the rounding of sums.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/matmul.h"

namespace {

using namespace fewbits;

constexpr std::size_t kRows = 41, kColumns = 768;

// Blocks of anything but with scales of a size that float16 and sums can hold.
std::vector<std::uint8_t> blocks_of(const engine::BlockFormat& format, std::mt19937& random) {
    const std::size_t count = kRows * kColumns / format.columns;
    std::vector<std::uint8_t> found(count * format.bytes);
    for (std::uint8_t& byte : found) byte = static_cast<std::uint8_t>(random());
    const auto put_half = [&](std::size_t block, std::size_t at) {
        const std::uint16_t half = static_cast<std::uint16_t>(0x3000 + random() % 0x400);
        std::memcpy(found.data() + block * format.bytes + at, &half, 2);
    };
    for (std::size_t block = 0; block < count; ++block) switch (format.type) {
            case 0:
            case 1:
            case 30: {  // floats: the bytes of a number of either size near 1
                const float number = static_cast<float>(random() % 2000) / 1000 - 1;
                std::uint32_t bits;
                std::memcpy(&bits, &number, 4);
                if (format.type == 0) std::memcpy(found.data() + 4 * block, &bits, 4);
                if (format.type == 30) std::memcpy(found.data() + 2 * block, reinterpret_cast<char*>(&bits) + 2, 2);
                if (format.type == 1) put_half(block, 0);
                break;
            }
            case 10: put_half(block, 80), put_half(block, 82); break;
            case 11: put_half(block, 108); break;
            case 14: put_half(block, 208); break;
            case 39: found[block * format.bytes] = static_cast<std::uint8_t>(120 + random() % 16); break;
            case 3:
            case 7:
            case 12:
            case 13: put_half(block, 2); [[fallthrough]];
            default: put_half(block, 0);
        }
    return found;
}

std::vector<float> product(const MatmulKernels& kernels, const engine::Matrix& matrix, const std::vector<float>& x, std::size_t count) {
    std::vector<std::uint8_t> buffer(input_bytes(count, kColumns) + 64);
    std::uint8_t* aligned = buffer.data() + (64 - reinterpret_cast<std::uintptr_t>(buffer.data()) % 64);
    const Inputs inputs = place_inputs(x.data(), count, kColumns, aligned);
    std::vector<float> out(count * kRows);
    kernels.round(inputs, 0, count);
    kernels.multiply(matrix, inputs, 0, matrix.bands(), out.data(), kRows, false);
    return out;
}

// Largest difference, in units of the root mean square of all products.
double distance(const std::vector<float>& a, const std::vector<float>& b) {
    double most = 0, squares = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        if (!std::isfinite(a[i]) || !std::isfinite(b[i])) return INFINITY;
        most = std::fmax(most, std::fabs(a[i] - b[i]));
        squares += static_cast<double>(a[i]) * a[i];
    }
    return most / std::sqrt(squares / static_cast<double>(a.size()));
}

}  // namespace

int main() {
    std::mt19937 random(1);
    const struct {
        const char* name;
        const MatmulKernels& kernels;
    } isas[] = {{"neon", neon::matmul}, {"neon_dotprod", neon_dotprod::matmul}};
    bool same = true;
    for (std::uint32_t type = 0; type < 64; ++type) {
        const engine::BlockFormat* format = engine::find_format(type);
        if (!format) continue;
        const std::vector<std::uint8_t> blocks = blocks_of(*format, random);
        engine::Matrix matrix{format->encoding, kRows, kColumns, nullptr};
        std::vector<std::uint8_t> data(matrix.bytes());
        const std::size_t row_bytes = kColumns / format->columns * format->bytes;
        for (std::size_t band = 0; band < matrix.bands(); ++band) {
            const std::size_t row = band * engine::kBand, rest = kRows - row;
            engine::pack_band(*format, blocks.data() + row * row_bytes, rest < engine::kBand ? rest : engine::kBand, kColumns,
                              data.data() + band * matrix.encoding.band_bytes(kColumns));
        }
        matrix.data = data.data();
        for (const std::size_t count : {1, 2, 3, 8, 17}) {
            std::vector<float> x(count * kColumns);
            for (float& number : x) number = static_cast<float>(random() % 2001) / 1000 - 1;
            const std::vector<float> expected = product(portable::matmul, matrix, x, count);
            for (const auto& isa : isas) {
                const double found = distance(expected, product(isa.kernels, matrix, x, count));
                const bool near = found < 1e-5;
                if (!near) std::printf("%s, %s, %zu inputs: %g\n", format->name, isa.name, count, found);
                same = same && near;
            }
        }
        std::printf("%s\n", format->name);
    }
    return same ? 0 : 1;
}
