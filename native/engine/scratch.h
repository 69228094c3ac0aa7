// Memory of a batch, reserved for the largest and touched as far as it is used.
#pragma once

#include <cstdint>
#include <vector>

#include "../kernels/matmul.h"
#include "arena.h"
#include "batch.h"
#include "config.h"
#include "weights.h"

namespace fewbits::engine {

// What is computed row by row. A single row is cheaper computed by every thread for itself than shared, so there is one for
// each thread, and one for all.
struct Rows {
    Rows(const Config& config, std::size_t feed_size, std::size_t rows);

    float *x, *normed, *rest, *product, *gathered, *expert_out;
    // Room of rounded inputs, and of what that took from them, `rest`; of a single row `rest` has the row before that.
    void *inputs, *rest_inputs;
    std::vector<float> cosines, sines;     // [row][rope][half]
    std::vector<std::uint32_t> chosen;     // [row][used] experts
    std::vector<float> chosen_weight;
    std::vector<std::vector<std::uint32_t>> rows_of;  // of each expert: row * used + place
    Arena arena;
};

struct Scratch {
    Scratch(const Config& config, const Weights& weights, std::size_t threads);

    // Results of products, of all rows and for all threads.
    float *qkv, *attended, *gate_up, *result, *router;
    std::vector<float> parts;              // partial attention, when the context is split
    std::vector<std::size_t> rope_offset;  // of each rope in a row's cosines; the last is a row's total
    std::size_t qkv_size;
    Rows shared;
    std::vector<Rows> own;
    std::size_t bytes() const;

private:
    Arena arena_;
};

}  // namespace fewbits::engine
