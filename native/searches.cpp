// Python's view of the searches for scales.
#include <optional>
#include <vector>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include "isa.h"

namespace nb = nanobind;

namespace fewbits {

namespace {

using Weights = Array<const float, 2>;
using Importance = std::optional<nb::ndarray<const float, nb::c_contig, nb::device::cpu>>;
using Vector = Array<const float, 1>;

bool is_power_of_two(std::size_t n) { return n != 0 && (n & (n - 1)) == 0; }

Blocks blocks_of(const Weights& weight, const Importance& importance, std::size_t group, float largest, float low,
                 float high, const Vector& table) {
    const std::size_t rows = weight.shape(0), columns = weight.shape(1);
    require(is_power_of_two(group) && group >= 4 && group <= 64 && columns % group == 0 && columns / group <= 64 &&
            is_power_of_two(columns / group));
    require(table.shape(0) == 0 || table.shape(0) == 512);
    const float* shares = nullptr;
    std::size_t stride = 0;
    if (importance) {
        const std::size_t rank = importance->ndim();
        require((rank == 1 || (rank == 2 && importance->shape(0) == rows)) && importance->shape(rank - 1) == columns);
        shares = importance->data(), stride = rank == 2 ? columns : 0;
    }
    const Grid grid{low, high, table.shape(0) ? table.data() : nullptr};
    return {rows, columns, group, weight.data(), shares, stride, largest, grid};
}

Numbers numbers(const Vector& vector) {
    require(vector.shape(0) != 0);
    return {vector.data(), vector.shape(0)};
}

bool holds(const Array<float, 1>& of_blocks, const Blocks& blocks) { return of_blocks.shape(0) == blocks.rows; }

bool holds(const Array<float, 2>& of_groups, const Blocks& blocks) {
    return of_groups.shape(0) == blocks.rows && of_groups.shape(1) == blocks.columns / blocks.group;
}

void search_scale(Weights weight, Importance importance, std::size_t group, float largest, float low, float high,
                  Vector table, float plain, Vector places, std::size_t refits, Array<float, 1> d) {
    const Blocks blocks = blocks_of(weight, importance, group, largest, low, high, table);
    const ScaleOptions options{plain, numbers(places), refits};
    require(holds(d, blocks) && blocks.columns == group);
    nb::gil_scoped_release release;
    isa().searches.scale(blocks, options, d.data());
}

void search_affine(Weights weight, Importance importance, std::size_t group, float largest, float low, float high,
                   Vector table, Vector steps, Vector below, std::size_t refits, Array<float, 1> d,
                   Array<float, 1> m) {
    const Blocks blocks = blocks_of(weight, importance, group, largest, low, high, table);
    const AffineOptions options{numbers(steps), numbers(below), refits};
    require(holds(d, blocks) && holds(m, blocks) && blocks.columns == group && options.steps.count == options.below.count);
    nb::gil_scoped_release release;
    isa().searches.affine(blocks, options, d.data(), m.data());
}

void search_super_scale(Weights weight, Importance importance, std::size_t group, float largest, float low, float high,
                        Vector table, Vector places, Vector super_places, float lowest, float highest,
                        std::vector<int> windows, Array<float, 1> d, Array<float, 2> sub) {
    const Blocks blocks = blocks_of(weight, importance, group, largest, low, high, table);
    const SuperScaleOptions options{numbers(places), numbers(super_places), lowest, highest, windows.data(),
                                    windows.size()};
    require(holds(d, blocks) && holds(sub, blocks));
    nb::gil_scoped_release release;
    isa().searches.super_scale(blocks, options, d.data(), sub.data());
}

void search_super_affine(Weights weight, Importance importance, std::size_t group, float largest, float low,
                         float high, Vector table, Vector steps, Vector below, Vector super_places, float highest,
                         std::size_t rounds, Array<float, 1> d, Array<float, 1> dmin, Array<float, 2> sub,
                         Array<float, 2> lows) {
    const Blocks blocks = blocks_of(weight, importance, group, largest, low, high, table);
    const SuperAffineOptions options{numbers(steps), numbers(below), numbers(super_places), highest, rounds};
    require(holds(d, blocks) && holds(dmin, blocks) && holds(sub, blocks) && holds(lows, blocks) &&
            options.steps.count == options.below.count);
    nb::gil_scoped_release release;
    isa().searches.super_affine(blocks, options, d.data(), dmin.data(), sub.data(), lows.data());
}

void search_group_scale(Weights weight, Importance importance, std::size_t group, float largest, float low, float high,
                        Vector table, Vector places, float lowest, float highest, int window, Vector d,
                        Array<float, 1> sub) {
    const Blocks blocks = blocks_of(weight, importance, group, largest, low, high, table);
    const SuperScaleOptions options{numbers(places), {}, lowest, highest, &window, 1};
    require(d.shape(0) == blocks.rows && holds(sub, blocks) && blocks.columns == group);
    nb::gil_scoped_release release;
    isa().searches.group_scale(blocks, options, d.data(), sub.data());
}

void search_group_affine(Weights weight, Importance importance, std::size_t group, float largest, float low,
                         float high, Vector table, Vector steps, Vector below, float highest, Vector d, Vector dmin,
                         Array<float, 1> sub, Array<float, 1> lows) {
    const Blocks blocks = blocks_of(weight, importance, group, largest, low, high, table);
    const SuperAffineOptions options{numbers(steps), numbers(below), {}, highest, 1};
    require(d.shape(0) == blocks.rows && dmin.shape(0) == blocks.rows && holds(sub, blocks) && holds(lows, blocks) &&
            blocks.columns == group && options.steps.count == options.below.count);
    nb::gil_scoped_release release;
    isa().searches.group_affine(blocks, options, d.data(), dmin.data(), sub.data(), lows.data());
}

}  // namespace

void bind_searches(nb::module_& module) {
    const auto importance = nb::arg("importance").none();
    const char* about = "See fewbits.formats.gguf_search and gguf_super_search, the specification.";
    module.def("search_scale", &search_scale, nb::arg("weight"), importance, nb::arg("group"), nb::arg("largest"),
               nb::arg("low"), nb::arg("high"), nb::arg("table"), nb::arg("plain"), nb::arg("places"),
               nb::arg("refits"), nb::arg("d").noconvert(), about);
    module.def("search_affine", &search_affine, nb::arg("weight"), importance, nb::arg("group"), nb::arg("largest"),
               nb::arg("low"), nb::arg("high"), nb::arg("table"), nb::arg("steps"), nb::arg("below"),
               nb::arg("refits"), nb::arg("d").noconvert(), nb::arg("m").noconvert(), about);
    module.def("search_super_scale", &search_super_scale, nb::arg("weight"), importance, nb::arg("group"),
               nb::arg("largest"), nb::arg("low"), nb::arg("high"), nb::arg("table"), nb::arg("places"),
               nb::arg("super_places"), nb::arg("lowest"), nb::arg("highest"), nb::arg("windows"), nb::arg("d").noconvert(),
               nb::arg("sub").noconvert(), about);
    module.def("search_super_affine", &search_super_affine, nb::arg("weight"), importance, nb::arg("group"),
               nb::arg("largest"), nb::arg("low"), nb::arg("high"), nb::arg("table"), nb::arg("steps"),
               nb::arg("below"), nb::arg("super_places"), nb::arg("highest"), nb::arg("rounds"), nb::arg("d").noconvert(),
               nb::arg("dmin").noconvert(), nb::arg("sub").noconvert(), nb::arg("lows").noconvert(), about);
    module.def("search_group_scale", &search_group_scale, nb::arg("weight"), importance, nb::arg("group"),
               nb::arg("largest"), nb::arg("low"), nb::arg("high"), nb::arg("table"), nb::arg("places"),
               nb::arg("lowest"), nb::arg("highest"), nb::arg("window"), nb::arg("d"), nb::arg("sub").noconvert(), about);
    module.def("search_group_affine", &search_group_affine, nb::arg("weight"), importance, nb::arg("group"),
               nb::arg("largest"), nb::arg("low"), nb::arg("high"), nb::arg("table"), nb::arg("steps"),
               nb::arg("below"), nb::arg("highest"), nb::arg("d"), nb::arg("dmin"), nb::arg("sub").noconvert(), nb::arg("lows").noconvert(),
               about);
}

}  // namespace fewbits
