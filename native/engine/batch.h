// The rows of a batch, and how attention takes them together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "config.h"

namespace fewbits::engine {

constexpr std::size_t kBatch = 256;  // rows that go through the blocks together

// Rows of one sequence next to each other, whose queries are scored together.
struct QueryRows {
    std::size_t sequence, row, count;
    std::size_t to;  // the first one's place among the results
};

struct Batch {
    std::size_t count = 0;
    const std::int32_t* tokens = nullptr;
    std::vector<std::size_t> sequence, position;
    std::vector<std::size_t> wanted;  // rows whose logits are asked for; the others end with the last block's keys and values
    std::vector<QueryRows> groups, wanted_groups;  // of all rows, of those
    float* logits = nullptr;
};

}  // namespace fewbits::engine
