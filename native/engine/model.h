// The forward pass: tokens of any mixture of sequences through all blocks, as one batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "config.h"
#include "kv_cache.h"
#include "thread_team.h"
#include "weights.h"

namespace fewbits {
struct MatmulKernels;
}

namespace fewbits::engine {

struct Kernels {
    const MatmulKernels& matmul;
    const TransformerKernels& transformer;
};

struct Scratch;

class Model {
public:
    // The tensors' memory must outlive the model. `mapped`: see Weights.
    Model(Config config, const Tensors& tensors, Kernels kernels, std::size_t threads, std::size_t context,
          std::size_t sequences, CacheType cache, bool mapped = false);
    ~Model();

    // Appends tokens[i] to sequences[i] for all i < count, in order; logits [wanted_count, vocabulary] of the places in `wanted`,
    // ascending. Throws std::invalid_argument, std::bad_alloc; nothing has changed then.
    void step(const std::int32_t* sequences, const std::int32_t* tokens, std::size_t count, const std::int32_t* wanted,
              std::size_t wanted_count, float* logits);
    std::size_t length(std::size_t sequence) const { return lengths_.at(sequence); }
    void truncate(std::size_t sequence, std::size_t length);
    void copy(std::size_t source, std::size_t target, std::size_t length);
    std::size_t bytes() const;
    std::size_t context() const { return context_; }
    std::size_t sequences() const { return lengths_.size(); }
    const Config& config() const { return config_; }
    ThreadTeam& team() { return team_; }

private:
    void run(const std::int32_t* sequences, const std::int32_t* tokens, std::size_t count, const std::int32_t* wanted,
             std::size_t wanted_count, float* logits);
    void require(const std::int32_t* sequences, const std::int32_t* tokens, std::size_t count, const std::int32_t* wanted,
                 std::size_t wanted_count) const;

    const Config config_;
    const std::size_t context_;
    ThreadTeam team_;
    Weights weights_;
    KvCache cache_;
    std::vector<std::size_t> lengths_;
    std::unique_ptr<Scratch> scratch_;
    const Kernels kernels_;
};

}  // namespace fewbits::engine
