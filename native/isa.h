// The kernels that this processor runs.
#pragma once

#include <string>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "kernels/columns.h"
#include "kernels/integers.h"
#include "kernels/search.h"
#include "kernels/visit_codes.h"

namespace fewbits {

template <typename T, std::size_t Rank>
using Array = nanobind::ndarray<T, nanobind::ndim<Rank>, nanobind::c_contig, nanobind::device::cpu>;

struct Isa {
    std::string name;
    VisitCodes visit_codes;
    const Searches& searches;
    const ColumnKernels& columns;
    const IntegerKernels& integers;
};

const Isa& isa();

// Refuses arrays that a kernel can't be given.
inline void require(bool fits) {
    if (!fits) throw nanobind::value_error("the shapes of the arrays don't fit together");
}

void bind_columns(nanobind::module_& module);
void bind_searches(nanobind::module_& module);
void bind_integers(nanobind::module_& module);
void bind_matmul(nanobind::module_& module);
void bind_engine(nanobind::module_& module);
void bind_sampler(nanobind::module_& module);
void bind_read_bandwidth(nanobind::module_& module);

}  // namespace fewbits
