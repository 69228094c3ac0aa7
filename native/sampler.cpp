// Python's view of the sampler.
#include "engine/sampler.h"

#include "isa.h"

namespace nb = nanobind;

namespace fewbits {

namespace {

void construct(engine::Sampler* self, double temperature, std::size_t top_k, double top_p, double min_p,
               double repetition_penalty, std::size_t repetition_window, std::uint64_t seed) {
    // Written so that NaN is refused too.
    if (!(temperature >= 0) || !(top_p > 0 && top_p <= 1) || !(min_p >= 0 && min_p <= 1) || !(repetition_penalty > 0))
        throw nb::value_error("a number of the sampler is out of range");
    new (self) engine::Sampler({temperature, top_k, top_p, min_p, repetition_penalty, repetition_window, seed});
}

std::int32_t choose(engine::Sampler& self, Array<const float, 1> logits, Array<const std::int32_t, 1> recent) {
    const std::size_t count = logits.shape(0);
    for (std::size_t i = 0; i < recent.shape(0); ++i)
        if (recent(i) < 0 || static_cast<std::size_t>(recent(i)) >= count)
            throw nb::value_error("a token has no logit");
    nb::gil_scoped_release release;
    return self.choose(logits.data(), count, recent.data(), recent.shape(0));
}

}  // namespace

void bind_sampler(nb::module_& module) {
    nb::class_<engine::Sampler>(module, "Sampler", "See fewbits.engine.sampling; the order of its steps is in native/engine/sampler.h.")
        .def("__init__", &construct, nb::kw_only(), nb::arg("temperature") = 0.0, nb::arg("top_k") = 0,
             nb::arg("top_p") = 1.0, nb::arg("min_p") = 0.0, nb::arg("repetition_penalty") = 1.0,
             nb::arg("repetition_window") = 64, nb::arg("seed") = 0)
        .def("choose", &choose, nb::arg("logits"), nb::arg("recent"),
             "The next token from logits float32 [V] and the tokens so far int32 [N], the newest last.");
}

}  // namespace fewbits
