#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "forward.h"

namespace fewbits::engine {

// The experts of a row and their weights: the largest of the softmax over all, of equals the first.
void Forward::choose_experts(std::size_t row) {
    const std::size_t count = config_.experts, used = config_.experts_used;
    const float* scores = scratch_.router + row * count;
    std::uint32_t* chosen = rows_.chosen.data() + row * used;
    float* weight = rows_.chosen_weight.data() + row * used;
    std::vector<std::uint32_t> order(count);
    std::iota(order.begin(), order.end(), 0u);
    // NaN, which no order has a place for, counts as the smallest.
    const auto rank = [&](std::uint32_t e) { return scores[e] == scores[e] ? scores[e] : -std::numeric_limits<float>::infinity(); };
    std::stable_sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) { return rank(a) > rank(b); });
    double all = 0, those = 0;
    for (std::size_t e = 0; e < count; ++e) {
        const double share = std::exp(static_cast<double>(scores[order[e]]) - scores[order[0]]);
        all += share;
        if (e < used) chosen[e] = order[e], weight[e] = static_cast<float>(share), those += share;
    }
    for (std::size_t e = 0; e < used; ++e) weight[e] = static_cast<float>(weight[e] / (config_.experts_normalized ? those : all));
}

void Forward::experts(const Block& block) {
    const std::size_t used = config_.experts_used, hidden = config_.hidden;
    multiply(block.router, scratch_.router);
    each_row(count_, [&](std::size_t row) { choose_experts(row); });
    if (alone_ || member_.index == 0) {
        for (std::vector<std::uint32_t>& rows : rows_.rows_of) rows.clear();
        for (std::uint32_t i = 0; i < count_ * used; ++i) rows_.rows_of[rows_.chosen[i]].push_back(i);
    }
    if (!alone_) member_.wait();
    for (std::size_t e = 0; e < config_.experts; ++e)
        if (!rows_.rows_of[e].empty()) expert(block, e);
    member_.wait();  // `result` has been read
    // Added up in the order of a row's choice, whichever other rows there are.
    member_.share(count_, 1, [&](std::size_t row, std::size_t) {
        float* result = scratch_.result + row * hidden;
        std::memset(result, 0, hidden * sizeof(float));
        for (std::size_t i = row * used; i < (row + 1) * used; ++i)
            other_.add_scaled(result, rows_.expert_out + i * hidden, rows_.chosen_weight[i], hidden);
    });
}

// One expert on the rows that chose it.
void Forward::expert(const Block& block, std::size_t e) {
    const std::vector<std::uint32_t>& rows = rows_.rows_of[e];
    const std::size_t hidden = config_.hidden, size = block.feed_size, used = config_.experts_used;
    begin_inputs(rows_.gathered, rows.size(), hidden);
    each_input([&](std::size_t i) {
        std::memcpy(rows_.gathered + i * hidden, rows_.normed + rows[i] / used * hidden, hidden * sizeof(float));
    });
    const std::vector<Part>& parts = block.expert_gate_up[e];
    multiply(parts.data(), parts.size(), scratch_.gate_up, 2 * size);
    begin_inputs(rows_.product, rows.size(), size);
    each_input([&](std::size_t i) { activate(i, size); });
    multiply(block.expert_down[e], scratch_.result);
    each_row(rows.size(), [&](std::size_t i) {
        std::memcpy(rows_.expert_out + rows[i] * hidden, scratch_.result + i * hidden, hidden * sizeof(float));
    });
}

}  // namespace fewbits::engine
