// A model's tensors as the engine computes with them: matrices repacked, vectors as float32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "arena.h"
#include "config.h"
#include "packed_matrix.h"
#include "thread_team.h"

namespace fewbits::engine {

// A tensor in a mapped GGUF file; `rows` of all outer dimensions together. The file stays mapped as long as the model lives.
struct TensorView {
    std::uint32_t type;  // ggml's number
    std::size_t columns, rows;
    const std::uint8_t* data;
    std::size_t bytes;
};
using Tensors = std::map<std::string, TensorView>;

// A linear map.
struct Linear {
    std::size_t rows = 0, columns = 0;
    Matrix matrix;
    const float* bias = nullptr;
    const BlockFormat* source = nullptr;    // how the file has it
    const std::uint8_t* blocks = nullptr;  // and where, until it is packed

    std::size_t bands() const { return (rows + kBand - 1) / kBand; }
};

// A map whose results go to columns `offset` … of a buffer.
struct Part {
    Linear linear;
    std::size_t offset = 0;
    // Bands from this one on take inputs of twice 8 bits: what they give isn't averaged by what follows.
    std::size_t fine_from = SIZE_MAX;
};

struct Block {
    const float *attention_norm = nullptr, *query_norm = nullptr, *key_norm = nullptr, *attention_after = nullptr;
    const float *feed_norm = nullptr, *feed_after = nullptr;
    std::size_t query_norm_size = 0, key_norm_size = 0;  // a head's, or that of all heads
    std::vector<Part> qkv, gate_up;
    Linear out, down, router;
    std::vector<std::vector<Part>> expert_gate_up;
    std::vector<Linear> expert_down;
    std::size_t feed_size = 0;
};

class Weights {
public:
    // Throws std::invalid_argument, naming the tensor, where one is missing or has another shape or type than it must have.
    // `mapped`: the tensors' bytes are of a file's mapping, whose pages are given back as soon as they have been packed.
    Weights(const Config& config, const Tensors& tensors, ThreadTeam& team, bool mapped);

    // A token's row of the embedding, float32 [hidden].
    void embed(std::size_t token, float* out) const;
    std::size_t bytes() const { return packed_.bytes() + vectors_.size() * sizeof(float); }

    std::vector<Block> blocks;
    const float* final_norm = nullptr;
    Part head;

private:
    const TensorView& find(const std::string& name) const;
    const TensorView* find_optional(const std::string& name) const;
    const float* vector(const std::string& name, std::size_t size, bool optional = false);
    Linear linear(const std::string& name, std::size_t rows, std::size_t columns, std::size_t skip = 0, std::size_t of = 0);
    void load_attention(const std::string& prefix, Block& block);
    void load_feed_forward(const std::string& prefix, Block& block);
    void load_experts(const std::string& prefix, Block& block);
    void pack(ThreadTeam& team, bool mapped);

    const Config& config_;
    const Tensors& tensors_;
    TensorView embedding_{};
    const BlockFormat* embedding_format_ = nullptr;
    std::vector<std::vector<float>> vectors_;
    Arena packed_;
};

}  // namespace fewbits::engine
