// Python's view of the fits of integer grids.
#include <optional>

#include <nanobind/stl/optional.h>

#include "isa.h"

namespace nb = nanobind;

namespace fewbits {

namespace {

using Matrix = Array<const float, 2>;
using Importance = std::optional<nb::ndarray<const float, nb::c_contig, nb::device::cpu>>;

void fit_integers(Matrix weight, Importance importance, int width, bool symmetric, int significant,
                  float smallest, float largest, bool signed_scales, bool rounds_products,
                  Array<const float, 1> shares, bool cuts_ends, Array<float, 1> scale, Array<std::uint8_t, 1> zero) {
    const std::size_t rows = weight.shape(0), columns = weight.shape(1);
    require(width >= 2 && width <= 8 && significant >= 2 && significant <= 24 && columns != 0 &&
            scale.shape(0) == rows && zero.shape(0) == rows);
    IntegerBlocks blocks{rows, columns, weight.data(), nullptr, 1};
    if (importance) {
        const std::size_t rank = importance->ndim();
        require((rank == 1 || (rank == 2 && importance->shape(0) == rows)) && importance->shape(rank - 1) == columns);
        blocks.importance = importance->data();
        blocks.importance_period = rank == 2 && rows ? rows : 1;
    }
    const IntegerOptions options{width, symmetric, significant, smallest, largest, signed_scales, rounds_products,
                                 {shares.data(), shares.shape(0)}, cuts_ends};
    nb::gil_scoped_release release;
    isa().integers.fit(blocks, options, scale.data(), zero.data());
}

void row_dots(Matrix left, Matrix right, Array<float, 1> to) {
    require(left.shape(0) == right.shape(0) && left.shape(1) == right.shape(1) && to.shape(0) == left.shape(0));
    nb::gil_scoped_release release;
    isa().integers.dots(left.data(), right.data(), left.shape(0), left.shape(1), to.data());
}

}  // namespace

void bind_integers(nb::module_& module) {
    module.def("fit_integers", &fit_integers, nb::arg("weight"), nb::arg("importance").none(), nb::kw_only(),
               nb::arg("width"), nb::arg("symmetric"), nb::arg("significant"), nb::arg("smallest"), nb::arg("largest"),
               nb::arg("signed_scales"), nb::arg("rounds_products"), nb::arg("shares"), nb::arg("cuts_ends"),
               nb::arg("scale").noconvert(), nb::arg("zero").noconvert(),
               "See fewbits.formats.integer_fit, the specification.");
    module.def("row_dots", &row_dots, nb::arg("left"), nb::arg("right"), nb::arg("to").noconvert(),
               "See fewbits.formats.scale_search.specified_dot, the specification.");
}

}  // namespace fewbits
