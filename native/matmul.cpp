// Which matrix products this processor runs, and Python's view of them, for tests and benchmarks.
#include "kernels/matmul.h"

#include <cstdlib>
#include <new>
#include <string>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "isa.h"

namespace nb = nanobind;

namespace fewbits {

namespace {

std::vector<MatmulIsa> found_isas() {
    const char* asked = std::getenv("FEWBITS_ISA");
    const std::string limit = asked ? asked : "";
    std::vector<MatmulIsa> found;
#ifdef FEWBITS_X86
    __builtin_cpu_init();
    const bool with_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool with_avx512 = with_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    if (with_avx512 && __builtin_cpu_supports("avx512vnni") && limit != "avx2" && limit != "portable")
        found.push_back({"avx512vnni", avx512vnni::matmul, avx512vnni::transformer});
    if (with_avx2 && limit != "portable") found.push_back({"avx2", avx2::matmul, avx2::transformer});
#endif
    found.push_back({"portable", portable::matmul, portable::transformer});
    return found;
}

const MatmulKernels& kernels_of(const std::string& name) {
    for (const MatmulIsa& isa : matmul_isas())
        if (name.empty() || isa.name == name) return isa.kernels;
    throw nb::value_error("this processor doesn't have the instruction set");
}

using BlockRows = Array<const std::uint8_t, 2>;
using Vectors = Array<const float, 2>;

// Memory in huge pages where there are some: matrices are read faster from those.
class Buffer {
  public:
    explicit Buffer(std::size_t bytes)
        : bytes_((bytes + kPage - 1) / kPage * kPage), data_(new (std::align_val_t{kPage}) std::uint8_t[bytes_]) {
#ifdef __linux__
        madvise(data_, bytes_, MADV_HUGEPAGE);
#endif
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { ::operator delete[](data_, std::align_val_t{kPage}); }
    std::uint8_t* data() const { return data_; }

  private:
    static constexpr std::size_t kPage = std::size_t{1} << 21;
    std::size_t bytes_;
    std::uint8_t* data_;
};

engine::Matrix matrix_of(std::uint32_t type, const BlockRows& blocks, std::size_t columns) {
    const engine::BlockFormat* format = engine::find_format(type);
    require(format && columns % format->columns == 0 && blocks.shape(1) == columns / format->columns * format->bytes);
    return {format->encoding, blocks.shape(0), columns, nullptr};
}

// A matrix as the engine holds it.
class Packed {
  public:
    Packed(std::uint32_t type, BlockRows blocks, std::size_t columns)
        : matrix_(matrix_of(type, blocks, columns)), buffer_(matrix_.bytes()) {
        const engine::BlockFormat* format = engine::find_format(type);
        matrix_.data = buffer_.data();
        const std::size_t band_bytes = matrix_.encoding.band_bytes(columns), row_bytes = blocks.shape(1);
        for (std::size_t band = 0; band < matrix_.bands(); ++band) {
            const std::size_t row = band * engine::kBand, rest = matrix_.rows - row;
            engine::pack_band(*format, blocks.data() + row * row_bytes, rest < engine::kBand ? rest : engine::kBand, columns,
                              buffer_.data() + band * band_bytes);
        }
    }

    void multiply(Vectors x, Array<float, 2> out, const std::string& isa, std::size_t repeats) const {
        const std::size_t count = x.shape(0);
        require(x.shape(1) == matrix_.columns && out.shape(0) == count && out.shape(1) == matrix_.rows);
        const MatmulKernels& kernels = kernels_of(isa);
        Buffer buffer(input_bytes(count, matrix_.columns));
        nb::gil_scoped_release release;
        const Inputs inputs = place_inputs(x.data(), count, matrix_.columns, buffer.data());
        for (std::size_t i = 0; i < repeats; ++i) {
            if (!engine::are_floats(matrix_.encoding.scales)) kernels.round(inputs, 0, count);
            kernels.multiply(matrix_, inputs, 0, matrix_.bands(), out.data(), matrix_.rows, false);
        }
    }

    std::size_t bytes() const { return matrix_.bytes(); }

  private:
    engine::Matrix matrix_;
    Buffer buffer_;
};

}  // namespace

const std::vector<MatmulIsa>& matmul_isas() {
    static const std::vector<MatmulIsa> found = found_isas();
    return found;
}

void bind_matmul(nb::module_& module) {
    module.def("packed_isas", [] {
        std::vector<std::string> names;
        for (const MatmulIsa& isa : matmul_isas()) names.emplace_back(isa.name);
        return names;
    }, "Instruction sets of the matrix products that this processor has, the fastest first.");
    nb::class_<Packed>(module, "PackedMatrix", "A matrix of a GGUF type as the engine holds it.")
        .def(nb::init<std::uint32_t, BlockRows, std::size_t>(), nb::arg("type"), nb::arg("blocks"), nb::arg("columns"))
        .def("multiply", &Packed::multiply, nb::arg("x"), nb::arg("out"), nb::arg("isa") = "", nb::arg("repeats") = 1,
             "Fill out [N, rows] with the products of x [N, columns], as often as asked.")
        .def_prop_ro("nbytes", &Packed::bytes);
}

}  // namespace fewbits
