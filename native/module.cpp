// Python's view of the kernels: arrays are checked here, once, and kernels trust them.
#include <cstdlib>

#include <nanobind/stl/string.h>

#include "isa.h"

namespace nb = nanobind;

namespace fewbits {

namespace {

// The widest instruction set that this processor has, or a lower one that FEWBITS_ISA names.
Isa choose() {
    const char* asked = std::getenv("FEWBITS_ISA");
    const std::string limit = asked ? asked : "";
#ifdef FEWBITS_X86
    __builtin_cpu_init();
    const bool with_avx2 = __builtin_cpu_supports("avx2");
    const bool with_avx512 = with_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    if (with_avx512 && (limit.empty() || limit == "avx512"))
        return {"avx512", avx512::visit_codes, avx512::searches, avx512::columns, avx512::integers};
    if (with_avx2 && limit != "portable") return {"avx2", avx2::visit_codes, avx2::searches, avx2::columns, avx2::integers};
#endif
    return {"portable", portable::visit_codes, portable::searches, portable::columns, portable::integers};
}

std::size_t visit_codes(Array<float, 2> values, Array<std::uint8_t, 2> ranks, Array<const float, 3> grids,
                        Array<float, 2> gradient, Array<const float, 2> outputs, Array<const float, 2> hessian,
                        Array<float, 2> response) {
    const std::size_t rows = values.shape(0), columns = values.shape(1), groups = grids.shape(1);
    const auto same = [&](const auto& a) { return a.shape(0) == rows && a.shape(1) == columns; };
    require(same(ranks) && same(gradient) && same(response) && grids.shape(0) == rows && groups != 0 &&
            columns % groups == 0 && outputs.shape(0) == rows && outputs.shape(1) == rows &&
            hessian.shape(0) == columns && hessian.shape(1) == columns && grids.shape(2) != 0);
    const Codes codes{rows, columns, columns / groups, grids.shape(2), values.data(), ranks.data(),
                      grids.data(), gradient.data(), outputs.data(), hessian.data(), response.data()};
    nb::gil_scoped_release release;
    return isa().visit_codes(codes);
}

}  // namespace

const Isa& isa() {
    static const Isa chosen = choose();
    return chosen;
}

}  // namespace fewbits

NB_MODULE(_native, module) {
    // Formats keep their kernels in Python's caches until the interpreter ends: no leak, and no news for users.
    nb::set_leak_warnings(false);
    module.doc() = "Kernels of fewbits in C++.";
    module.def("isa", [] { return fewbits::isa().name; }, "The instruction set in use: portable, avx2 or avx512.");
    module.def("visit_codes", &fewbits::visit_codes, nb::arg("values"), nb::arg("ranks"), nb::arg("grids"),
               nb::arg("gradient"), nb::arg("outputs"), nb::arg("hessian"), nb::arg("response"),
               "See fewbits.algorithms.joint_descent.visit_codes, the specification.");
    fewbits::bind_columns(module);
    fewbits::bind_searches(module);
    fewbits::bind_integers(module);
    fewbits::bind_matmul(module);
    fewbits::bind_engine(module);
    fewbits::bind_sampler(module);
    fewbits::bind_read_bandwidth(module);
}
