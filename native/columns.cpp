// Python's view of the rounding of columns.
#include "isa.h"

namespace nb = nanobind;

namespace fewbits {

namespace {

using Vector = Array<const float, 1>;
using Matrix = Array<const float, 2>;

Columns columns_of(const Array<float, 2>& like, const Array<const std::int32_t, 1>& group, float low, float high,
                   float zero, const Vector& levels, const Array<const std::uint8_t, 1>& codes, const Matrix& scale,
                   const Matrix& minimum) {
    const std::size_t count = like.shape(0), rows = like.shape(1);
    require(group.shape(0) == count && scale.shape(1) == rows && minimum.shape(1) == rows &&
            scale.shape(0) == minimum.shape(0));
    require(levels.shape(0) == codes.shape(0) && (levels.shape(0) == 0 || levels.shape(0) == 512));
    for (std::size_t column = 0; column < count; ++column)
        require(group(column) >= 0 && static_cast<std::size_t>(group(column)) < scale.shape(0));
    const bool tabled = levels.shape(0) != 0;
    return {count, rows, group.data(), {low, high, zero, tabled ? levels.data() : nullptr,
            tabled ? codes.data() : nullptr, scale.data(), minimum.data()}};
}

template <typename A>
bool alike(const A& array, const Columns& columns) {
    return array.shape(0) == columns.count && array.shape(1) == columns.rows;
}

bool square(const Matrix& matrix, const Columns& columns) {
    return matrix.shape(0) == columns.count && matrix.shape(1) == columns.count;
}

void round_columns(Array<float, 2> aim, Matrix target, Array<float, 2> error, Array<std::uint8_t, 2> codes,
                   Matrix feedback, float largest_error, Array<const std::int32_t, 1> group, float low, float high,
                   float zero, Vector levels, Array<const std::uint8_t, 1> code_table, Matrix scale, Matrix minimum) {
    const Columns columns = columns_of(aim, group, low, high, zero, levels, code_table, scale, minimum);
    require(alike(target, columns) && alike(error, columns) && alike(codes, columns) && square(feedback, columns));
    nb::gil_scoped_release release;
    isa().columns.round(columns, {aim.data(), target.data(), error.data(), codes.data(), feedback.data(),
                                  largest_error});
}

void move_columns(Array<float, 2> gradient, Array<float, 2> values, Array<std::uint8_t, 2> codes,
                  Array<float, 2> moved, Matrix hessian, Vector inverse, Array<const std::int32_t, 1> group, float low,
                  float high, float zero, Vector levels, Array<const std::uint8_t, 1> code_table, Matrix scale,
                  Matrix minimum) {
    const Columns columns = columns_of(gradient, group, low, high, zero, levels, code_table, scale, minimum);
    require(alike(values, columns) && alike(codes, columns) && alike(moved, columns) && square(hessian, columns) &&
            inverse.shape(0) == columns.count);
    nb::gil_scoped_release release;
    isa().columns.move(columns, {gradient.data(), values.data(), codes.data(), moved.data(), hessian.data(),
                                 inverse.data()});
}

}  // namespace

void bind_columns(nb::module_& module) {
    // Arrays that are changed must be what they seem: a converted copy would take the changes with it.
    module.def("round_columns", &round_columns, nb::arg("aim").noconvert(), nb::arg("target"),
               nb::arg("error").noconvert(), nb::arg("codes").noconvert(), nb::arg("feedback"),
               nb::arg("largest_error"), nb::arg("group"), nb::arg("low"), nb::arg("high"), nb::arg("zero"),
               nb::arg("levels"), nb::arg("code_table"), nb::arg("scale"), nb::arg("minimum"),
               "See fewbits.algorithms.columns.round_columns, the specification.");
    module.def("move_columns", &move_columns, nb::arg("gradient").noconvert(), nb::arg("values").noconvert(),
               nb::arg("codes").noconvert(), nb::arg("moved").noconvert(), nb::arg("hessian"), nb::arg("inverse"),
               nb::arg("group"), nb::arg("low"), nb::arg("high"), nb::arg("zero"), nb::arg("levels"),
               nb::arg("code_table"), nb::arg("scale"), nb::arg("minimum"),
               "See fewbits.algorithms.columns.move_columns, the specification.");
}

}  // namespace fewbits
