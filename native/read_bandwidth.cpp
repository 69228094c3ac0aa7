// Python's view of the measurement of memory.
#include "engine/read_bandwidth.h"

#include "isa.h"

namespace nb = nanobind;

namespace fewbits {

namespace {

double read_bandwidth(std::size_t bytes, std::size_t threads, std::size_t passes) {
    if (!threads || !passes || bytes / threads < 1024) throw nb::value_error("nothing to read, or nobody to read it");
    nb::gil_scoped_release release;
    return engine::read_bandwidth(bytes, threads, passes);
}

}  // namespace

void bind_read_bandwidth(nb::module_& module) {
    module.def("read_bandwidth", &read_bandwidth, nb::arg("bytes"), nb::arg("threads"), nb::arg("passes") = 5,
               "Bytes per second at which threads read a buffer together, the fastest pass; see native/engine/read_bandwidth.h.");
}

}  // namespace fewbits
