// Python's view of the searches for scales, and of blocks that are fitted, rounded and packed in one pass.
#include <optional>
#include <tuple>
#include <variant>
#include <vector>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "isa.h"

namespace nb = nanobind;

namespace fewbits {

namespace {

using Vector = Array<const float, 1>;
using Weights = Array<const float, 2>;
using Rows = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Importance = std::optional<nb::ndarray<const float, nb::c_contig, nb::device::cpu>>;

std::vector<float> copied(const Vector& numbers) {
    return {numbers.data(), numbers.data() + numbers.shape(0)};
}

Numbers numbers(const std::vector<float>& held) { return {held.data(), held.size()}; }

// What searches try, kept for as long as a kernel needs it.
struct ScaleSearch {
    using Options = ScaleOptions;
    float plain;
    std::vector<float> places;
    std::size_t refits;

    // Without places the scale is that of plain rounding.
    ScaleSearch(float plain, std::vector<float> places, std::size_t refits)
        : plain(plain), places(std::move(places)), refits(refits) {}
    Options options() const { return {plain, numbers(places), refits}; }
    static bool suits(std::size_t block, std::size_t group, const Grid&) { return block == 32 && group == 32; }
};

struct AffineSearch {
    using Options = AffineOptions;
    std::vector<float> steps, below;
    std::size_t refits;

    AffineSearch(Vector steps, Vector below, std::size_t refits)
        : steps(copied(steps)), below(copied(below)), refits(refits) {
        require(!this->steps.empty() && this->steps.size() == this->below.size());
    }
    Options options() const { return {numbers(steps), numbers(below), refits}; }
    static bool suits(std::size_t block, std::size_t group, const Grid& grid) {
        return block == 32 && group == 32 && !grid.levels;
    }
};

struct SuperScaleSearch {
    using Options = SuperScaleOptions;
    std::vector<float> places, super_places;
    float lowest, highest;
    std::vector<int> windows;
    int group_window;

    SuperScaleSearch(std::vector<float> places, std::vector<float> super_places, float lowest, float highest,
                     std::vector<int> windows, int group_window)
        : places(std::move(places)), super_places(std::move(super_places)), lowest(lowest), highest(highest),
          windows(std::move(windows)), group_window(group_window) {
        require(!this->places.empty() && !this->super_places.empty() && lowest >= -128 && highest <= 127);
    }
    Options options() const {
        return {numbers(places), numbers(super_places), lowest, highest, windows.data(), windows.size()};
    }
    static bool suits(std::size_t, std::size_t group, const Grid& grid) { return group == 32 || !grid.levels; }
};

struct SuperAffineSearch {
    using Options = SuperAffineOptions;
    std::vector<float> steps, below, super_places;
    float highest;
    std::size_t rounds;

    SuperAffineSearch(Vector steps, Vector below, std::vector<float> super_places, float highest, std::size_t rounds)
        : steps(copied(steps)), below(copied(below)), super_places(std::move(super_places)), highest(highest),
          rounds(rounds) {
        require(!this->steps.empty() && this->steps.size() == this->below.size() && !this->super_places.empty() &&
                highest >= 0 && highest <= 255);
    }
    Options options() const { return {numbers(steps), numbers(below), numbers(super_places), highest, rounds}; }
    static bool suits(std::size_t, std::size_t, const Grid& grid) { return !grid.levels; }
};

struct ExponentSearch {
    using Options = ExponentOptions;
    std::vector<int> offsets;
    int highest;

    ExponentSearch(std::vector<int> offsets, int highest) : offsets(std::move(offsets)), highest(highest) {
        require(!this->offsets.empty() && highest >= 0 && highest <= 252);
    }
    Options options() const { return {offsets.data(), offsets.size(), highest}; }
    static bool suits(std::size_t block, std::size_t group, const Grid& grid) {
        return block == 32 && group == 32 && grid.levels;
    }
};

using Search = std::variant<ScaleSearch, AffineSearch, SuperScaleSearch, SuperAffineSearch, ExponentSearch>;

const BlockKernels<ScaleOptions>& kernels_for(const ScaleSearch&) { return isa().searches.scale; }
const BlockKernels<AffineOptions>& kernels_for(const AffineSearch&) { return isa().searches.affine; }
const BlockKernels<SuperScaleOptions>& kernels_for(const SuperScaleSearch&) { return isa().searches.super_scale; }
const BlockKernels<SuperAffineOptions>& kernels_for(const SuperAffineSearch&) { return isa().searches.super_affine; }
const BlockKernels<ExponentOptions>& kernels_for(const ExponentSearch&) { return isa().searches.exponent; }

// Halves and integers that belong to the scales of a block in so many groups.
std::size_t halves_of(const Search& search) {
    static constexpr std::size_t counts[] = {1, 2, 1, 2, 0};
    return counts[search.index()];
}
std::size_t scales_of(const Search& search, std::size_t groups) {
    const std::size_t counts[] = {0, 0, groups, 2 * groups, 1};
    return counts[search.index()];
}

using GridArguments = std::tuple<float, float, float, Vector, Array<const std::uint8_t, 1>>;
using LayoutArguments = std::tuple<std::size_t, std::vector<int>, std::size_t, int, int, Array<const std::int32_t, 2>>;

// One format's blocks.
class BlockKernel {
   public:
    BlockKernel(std::size_t block, std::size_t group, float largest, const GridArguments& grid,
                const LayoutArguments& layout, Search search)
        : block_(block), group_(group), largest_(largest), search_(std::move(search)) {
        require((group == 16 || group == 32) && (block == 32 || block == 256));
        take_grid(grid);
        take_layout(layout);
        require(std::visit([&](const auto& s) { return s.suits(block, group, grid_); }, search_));
    }

    void fit(Weights weight, Importance importance, Array<float, 2> halves, Array<std::uint8_t, 2> scales) const {
        require(weight.shape(1) == block_ && halves.shape(0) == halves_of(search_) &&
                halves.shape(1) == weight.shape(0) && scales.shape(0) == weight.shape(0) &&
                scales.shape(1) == layout_.scales);
        const Blocks blocks = blocks_of(weight.data(), Stored::kFloat32, weight.shape(0), block_, 1, importance);
        Found found{{nullptr, nullptr}, scales.data()};
        for (std::size_t h = 0; h < halves.shape(0); ++h) found.halves[h] = halves.data() + h * weight.shape(0);
        nb::gil_scoped_release release;
        std::visit([&](const auto& s) { kernels_for(s).fit(blocks, s.options(), layout_, found); }, search_);
    }

    void fit_group(Weights weight, Importance importance, Weights halves, Array<float, 2> scales) const {
        const std::size_t rows = weight.shape(0), count = halves_of(search_);
        require(weight.shape(1) == group_ && halves.shape(0) == count && scales.shape(0) == count &&
                halves.shape(1) == rows && scales.shape(1) == rows);
        const Blocks blocks = blocks_of(weight.data(), Stored::kFloat32, rows, group_, 1, importance);
        nb::gil_scoped_release release;
        if (const auto* scale = std::get_if<SuperScaleSearch>(&search_)) {
            SuperScaleOptions options = scale->options();
            options.windows = &scale->group_window, options.rounds = 1;
            isa().searches.group_scale(blocks, options, halves.data(), scales.data());
        } else if (const auto* affine = std::get_if<SuperAffineSearch>(&search_)) {
            isa().searches.group_affine(blocks, affine->options(), halves.data(), halves.data() + rows, scales.data(),
                                        scales.data() + rows);
        } else {
            require(false);
        }
    }

    bool quantize(Rows rows, Importance importance, Array<std::uint8_t, 2> packed) const {
        const std::size_t count = rows.shape(0), columns = rows.shape(1), blocks_in_row = columns / block_;
        require(columns % block_ == 0 && packed.shape(0) == count && packed.shape(1) == blocks_in_row * layout_.nbytes);
        const Blocks blocks =
            blocks_of(rows.data(), stored(rows.dtype()), count * blocks_in_row, block_, blocks_in_row, importance);
        nb::gil_scoped_release release;
        return std::visit(
            [&](const auto& s) { return kernels_for(s).quantize(blocks, s.options(), layout_, packed.data()); }, search_);
    }

   private:
    void take_grid(const GridArguments& grid) {
        const auto& [low, high, zero, levels, codes] = grid;
        require(levels.shape(0) == codes.shape(0) && (levels.shape(0) == 0 || levels.shape(0) == 512));
        levels_ = copied(levels);
        codes_.assign(codes.data(), codes.data() + codes.shape(0));  // as float32, as levels are
        grid_ = {low, high, zero, levels_.empty() ? nullptr : levels_.data(), codes_.empty() ? nullptr : codes_.data()};
    }

    void take_layout(const LayoutArguments& layout) {
        const auto& [nbytes, halves, scales, raise, flip, pieces] = layout;
        require(pieces.shape(1) == 8 && halves.size() == halves_of(search_) &&
                scales == scales_of(search_, block_ / group_));
        layout_ = {nbytes, {-1, -1}, scales, raise, flip, nullptr, pieces.shape(0)};
        for (std::size_t h = 0; h < halves.size(); ++h) {
            require(halves[h] >= 0 && static_cast<std::size_t>(halves[h]) + 2 <= nbytes);
            layout_.halves[h] = halves[h];
        }
        for (std::size_t i = 0; i < pieces.shape(0); ++i) {
            const std::int32_t* p = pieces.data() + 8 * i;
            const Piece piece{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]};
            const std::size_t numbers = piece.of_scales ? scales : block_;
            require(piece.first >= 0 && piece.count > 0 && piece.stride > 0 && piece.byte >= 0 && piece.mask >= 0 &&
                    piece.shift >= 0 && piece.left >= 0 && piece.shift < 8 && piece.left < 8 &&
                    (piece.mask << piece.left) <= 255 && (piece.mask << piece.shift) <= 255 &&
                    static_cast<std::size_t>(piece.first + (piece.count - 1) * piece.stride) < numbers &&
                    static_cast<std::size_t>(piece.byte + piece.count) <= nbytes);
            pieces_.push_back(piece);
        }
        layout_.pieces = pieces_.data();
    }

    static Stored stored(const nb::dlpack::dtype& type) {
        if (type == nb::dtype<float>()) return Stored::kFloat32;
        if (type == nb::dtype<std::uint16_t>()) return Stored::kBfloat16;
        require(type.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float) && type.bits == 16);
        return Stored::kFloat16;
    }

    // Importance of so many columns for each row of so many blocks; of one row for all of them, or of each row.
    Blocks blocks_of(const void* weight, Stored kind, std::size_t count, std::size_t columns, std::size_t blocks_in_row,
                     const Importance& importance) const {
        const float* shares = nullptr;
        std::size_t period = blocks_in_row;
        if (importance) {
            const std::size_t rank = importance->ndim();
            require(rank == 1 || rank == 2);
            require(importance->shape(rank - 1) == columns * blocks_in_row);
            if (rank == 2 && importance->shape(0) != 1) {
                require(importance->shape(0) * blocks_in_row == count);
                period = count;
            }
            shares = importance->data();
        }
        return {count, columns, group_, weight, kind, shares, period, largest_, grid_};
    }

    std::size_t block_, group_;
    float largest_;
    Search search_;
    Grid grid_;
    Layout layout_;
    std::vector<float> levels_, codes_;
    std::vector<Piece> pieces_;
};

}  // namespace

void bind_searches(nb::module_& module) {
    nb::class_<ScaleSearch>(module, "ScaleSearch").def(nb::init<float, std::vector<float>, std::size_t>());
    nb::class_<AffineSearch>(module, "AffineSearch").def(nb::init<Vector, Vector, std::size_t>());
    nb::class_<SuperScaleSearch>(module, "SuperScaleSearch")
        .def(nb::init<std::vector<float>, std::vector<float>, float, float, std::vector<int>, int>());
    nb::class_<SuperAffineSearch>(module, "SuperAffineSearch")
        .def(nb::init<Vector, Vector, std::vector<float>, float, std::size_t>());
    nb::class_<ExponentSearch>(module, "ExponentSearch").def(nb::init<std::vector<int>, int>());
    // Arrays that are filled must be what they seem: a converted copy would take the numbers with it.
    const auto importance = nb::arg("importance").none();
    nb::class_<BlockKernel>(module, "BlockKernel",
                            "See fewbits.formats.gguf_block, gguf_search, gguf_super_search: the specification.")
        .def(nb::init<std::size_t, std::size_t, float, const GridArguments&, const LayoutArguments&, Search>())
        .def("fit", &BlockKernel::fit, nb::arg("weight"), importance, nb::arg("halves").noconvert(),
             nb::arg("scales").noconvert())
        .def("fit_group", &BlockKernel::fit_group, nb::arg("weight"), importance, nb::arg("halves"),
             nb::arg("scales").noconvert())
        .def("quantize", &BlockKernel::quantize, nb::arg("rows").noconvert(), importance, nb::arg("packed").noconvert());
}

}  // namespace fewbits
