// What the engine needs to know of a model besides its tensors; made by fewbits/engine/description.py.
#pragma once

#include <cstddef>
#include <vector>

#include "../kernels/transformer.h"

namespace fewbits::engine {

// Rotary position embedding: one angle a pair, times the position.
struct Rope {
    std::vector<float> frequencies;  // half of what is rotated of a head; empty for none
    float magnitude = 1;             // of cosine and sine
};

struct Config {
    std::size_t blocks = 0, hidden = 0, heads = 0, kv_heads = 0, head_size = 0, vocabulary = 0;
    float epsilon = 1e-5f;
    bool gelu = false;         // else silu
    bool interleaved = false;  // rotated pairs are neighbours
    float embedding_factor = 1, residual_factor = 1, logit_factor = 1, attention_factor = 1;
    float attention_cap = 0, logit_cap = 0;  // 0 for none
    std::size_t experts = 0, experts_used = 0;
    bool experts_normalized = true;  // the weights of those that are used add up to 1
    std::vector<Rope> ropes;
    std::vector<std::size_t> rope_of;  // of each block, an index of `ropes`
    std::vector<std::size_t> window;   // of each block, in positions; 0 for all

    std::size_t query_size() const { return heads * head_size; }
    std::size_t kv_size() const { return kv_heads * head_size; }
    std::size_t padded_head() const { return (head_size + 15) / 16 * 16; }
};

// Throws std::invalid_argument where parts don't fit together.
void require_sound(const Config& config);

}  // namespace fewbits::engine
