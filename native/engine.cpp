// The engine as Python sees it.
#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_set>
#include <utility>

#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "engine/model.h"
#include "engine/sampler.h"
#include "isa.h"
#include "kernels/matmul.h"

namespace nb = nanobind;

namespace fewbits {

namespace {

using engine::Config;
using engine::Model;
using Tokens = Array<const std::int32_t, 1>;
// Type, columns, rows and the bytes of a tensor.
using TensorTuple = std::tuple<std::uint32_t, std::size_t, std::size_t, Array<const std::uint8_t, 1>>;
// Frequencies and magnitude.
using RopeTuple = std::tuple<std::vector<float>, float>;

template <typename T>
T entry(const nb::dict& values, const char* key) {
    return nb::cast<T>(values[key]);
}

Config config_of(const nb::dict& values) {
    Config config;
    config.blocks = entry<std::size_t>(values, "blocks");
    config.hidden = entry<std::size_t>(values, "hidden");
    config.heads = entry<std::size_t>(values, "heads");
    config.kv_heads = entry<std::size_t>(values, "kv_heads");
    config.head_size = entry<std::size_t>(values, "head_size");
    config.vocabulary = entry<std::size_t>(values, "vocabulary");
    config.epsilon = entry<float>(values, "epsilon");
    config.gelu = entry<bool>(values, "gelu");
    config.interleaved = entry<bool>(values, "interleaved");
    config.embedding_factor = entry<float>(values, "embedding_factor");
    config.residual_factor = entry<float>(values, "residual_factor");
    config.logit_factor = entry<float>(values, "logit_factor");
    config.attention_factor = entry<float>(values, "attention_factor");
    config.attention_cap = entry<float>(values, "attention_cap");
    config.logit_cap = entry<float>(values, "logit_cap");
    config.experts = entry<std::size_t>(values, "experts");
    config.experts_used = entry<std::size_t>(values, "experts_used");
    config.experts_normalized = entry<bool>(values, "experts_normalized");
    for (RopeTuple& rope : entry<std::vector<RopeTuple>>(values, "ropes"))
        config.ropes.push_back({std::move(std::get<0>(rope)), std::get<1>(rope)});
    config.rope_of = entry<std::vector<std::size_t>>(values, "rope_of");
    config.window = entry<std::vector<std::size_t>>(values, "window");
    return config;
}

CacheType cache_type(const std::string& name) {
    if (name == "f16") return CacheType::kF16;
    if (name == "q8") return CacheType::kQ8;
    if (name == "q4") return CacheType::kQ4;
    throw nb::value_error("the cache is f16, q8 or q4");
}

// Owns nothing of the file: `keep` holds what the tensors' bytes belong to.
class Engine {
  public:
    Engine(const nb::dict& config, const std::map<std::string, TensorTuple>& tensors, std::size_t threads, std::size_t context,
           std::size_t sequences, const std::string& cache, bool mapped)
        : model_(make(config, tensors, threads, context, sequences, cache, mapped)) {}

    nb::ndarray<nb::numpy, float, nb::ndim<2>> step(Tokens sequences, Tokens tokens, Tokens wanted) {
        require(sequences.shape(0) == tokens.shape(0));
        const std::size_t rows = wanted.shape(0), columns = model_->config().vocabulary;
        float* logits = new float[rows * columns];
        nb::capsule owner(logits, [](void* p) noexcept { delete[] static_cast<float*>(p); });
        {
            nb::gil_scoped_release release;
            const std::lock_guard lock(mutex_);
            model_->step(sequences.data(), tokens.data(), tokens.shape(0), wanted.data(), rows, logits);
        }
        return {logits, {rows, columns}, owner};
    }

    // Tokens int32 [M] by logits [M, V], each with a sampler of its own and the tokens before it; -1 where no logit is finite.
    std::vector<std::int32_t> choose(const std::vector<engine::Sampler*>& samplers, Array<const float, 2> logits,
                                     const std::vector<Tokens>& recents) {
        const std::size_t rows = logits.shape(0), columns = logits.shape(1);
        require(samplers.size() == rows && recents.size() == rows);
        if (std::unordered_set(samplers.begin(), samplers.end()).size() != rows)
            throw nb::value_error("two tokens can't be chosen by one sampler at a time");
        std::vector<engine::Choice> choices;
        for (std::size_t row = 0; row < rows; ++row) {
            const Tokens& recent = recents[row];
            for (std::size_t i = 0; i < recent.shape(0); ++i)
                if (recent(i) < 0 || static_cast<std::size_t>(recent(i)) >= columns) throw nb::value_error("a token has no logit");
            choices.push_back({samplers[row], logits.data() + row * columns, recent.data(), recent.shape(0), -1});
        }
        if (rows) {
            nb::gil_scoped_release release;
            const std::lock_guard lock(mutex_);
            engine::choose_all(model_->team(), choices, columns);
        }
        std::vector<std::int32_t> tokens;
        for (const engine::Choice& choice : choices) tokens.push_back(choice.token);
        return tokens;
    }

    std::size_t length(std::size_t sequence) const { return model_->length(checked(sequence)); }
    void truncate(std::size_t sequence, std::size_t length) {
        nb::gil_scoped_release release;
        const std::lock_guard lock(mutex_);
        model_->truncate(checked(sequence), length);
    }
    void copy(std::size_t source, std::size_t target, std::size_t length) {
        nb::gil_scoped_release release;
        const std::lock_guard lock(mutex_);
        model_->copy(checked(source), checked(target), length);
    }
    std::size_t bytes() const { return model_->bytes(); }

  private:
    static std::unique_ptr<Model> make(const nb::dict& config, const std::map<std::string, TensorTuple>& tensors,
                                       std::size_t threads, std::size_t context, std::size_t sequences, const std::string& cache,
                                       bool mapped) {
        engine::Tensors views;
        for (const auto& [name, tensor] : tensors) {
            const auto& [type, columns, rows, bytes] = tensor;
            views[name] = {type, columns, rows, bytes.data(), bytes.shape(0)};
        }
        Config read = config_of(config);
        const CacheType type = cache_type(cache);
        const MatmulIsa& isa = matmul_isas().front();
        nb::gil_scoped_release release;
        return std::make_unique<Model>(std::move(read), views, engine::Kernels{isa.kernels, isa.transformer}, threads, context,
                                       sequences, type, mapped);
    }

    std::size_t checked(std::size_t sequence) const {
        if (sequence >= model_->sequences()) throw std::invalid_argument("there is no such sequence");
        return sequence;
    }

    std::unique_ptr<Model> model_;
    std::mutex mutex_;  // one call at a time has the team and the cache
};

}  // namespace

void bind_engine(nb::module_& module) {
    nb::class_<Engine>(module, "Engine")
        .def(nb::init<const nb::dict&, const std::map<std::string, TensorTuple>&, std::size_t, std::size_t, std::size_t,
                      const std::string&, bool>(),
             nb::arg("config"), nb::arg("tensors"), nb::arg("threads"), nb::arg("context"), nb::arg("sequences"), nb::arg("cache"),
             nb::arg("mapped") = false)
        .def("step", &Engine::step, nb::arg("sequences"), nb::arg("tokens"), nb::arg("wanted"))
        .def("choose", &Engine::choose, nb::arg("samplers"), nb::arg("logits"), nb::arg("recents"))
        .def("length", &Engine::length, nb::arg("sequence"))
        .def("truncate", &Engine::truncate, nb::arg("sequence"), nb::arg("length"))
        .def("copy", &Engine::copy, nb::arg("source"), nb::arg("target"), nb::arg("length"))
        .def_prop_ro("bytes", &Engine::bytes);
}

}  // namespace fewbits
