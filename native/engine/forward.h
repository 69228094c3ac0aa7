// One batch through the blocks, as one of a team of threads sees it: all go through the same steps, and wait for each other where
// one needs what another has computed.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../kernels/matmul.h"
#include "batch.h"
#include "kv_cache.h"
#include "model.h"
#include "scratch.h"
#include "thread_team.h"
#include "weights.h"

namespace fewbits::engine {

class Forward {
public:
    Forward(const Config& config, const Weights& weights, const KvCache& cache, const Kernels& kernels, Scratch& scratch,
            const Batch& batch, Member& member)
        : config_(config), weights_(weights), cache_(cache), matmul_(kernels.matmul), other_(kernels.transformer),
          scratch_(scratch), batch_(batch), member_(member), alone_(batch.count == 1),
          rows_(alone_ ? scratch.own[member.index] : scratch.shared), count_(batch.count) {}

    void run();
    // Numbers of `Scratch::parts` that a batch needs.
    static std::size_t parts_of(const Config& config, const Batch& batch, std::size_t threads);

private:
    struct Task;

    void embed(std::size_t row);
    void attention(std::size_t b);
    void turn(std::size_t b, std::size_t row);
    void turn_head(std::size_t b, std::size_t row, std::size_t kv_head);
    void attend(std::size_t b);
    void attend_split(std::size_t b, std::size_t chunks);
    void attend_part(const Task& task, std::size_t b, std::size_t chunk, float* part) const;
    template <typename PartOf>
    void finish(const Task& task, PartOf&& part_of);
    Task task_of(std::size_t b, std::size_t index) const;

    void feed_forward(std::size_t b);
    void experts(const Block& block);
    void choose_experts(std::size_t row);
    void expert(const Block& block, std::size_t e);
    void head();

    // x += result, with a bias and a norm of its own before if there are.
    void add_residual(std::size_t row, const Linear* biased, const float* after);
    void norm(std::size_t row, const float* weight);
    void activate(std::size_t row, std::size_t size);
    // The inputs of the next product: `values` [count, columns], which `each_input` computes and rounds. `fine`: what rounding takes
    // from them is rounded too, for parts that want it; of a single row both are inputs side by side, so that matrices are read once.
    void begin_inputs(const float* values, std::size_t count, std::size_t columns, bool fine = false);
    void round(std::size_t first, std::size_t last);
    // out[n * stride + offset + row] for all parts and the inputs. It ends with all waiting.
    void multiply(const Part* parts, std::size_t part_count, float* out, std::size_t stride);
    void multiply_bands(const Part& part, std::size_t first, std::size_t last, float* out, std::size_t stride);
    void multiply(const Linear& linear, float* out);

    // f(first, last) for all rows, shared; then all wait.
    template <typename Function>
    void share_rows(std::size_t count, Function&& f) {
        const std::size_t grain = count / (member_.size * 8);
        member_.share(count, grain < kRoundedTogether ? std::max<std::size_t>(1, grain) : grain / kRoundedTogether * kRoundedTogether, f);
    }
    // The same row by row, or by every thread for itself.
    template <typename Function>
    void each_row(std::size_t count, Function&& f) {
        const auto rows = [&](std::size_t first, std::size_t last) {
            for (std::size_t row = first; row < last; ++row) f(row);
        };
        alone_ ? rows(0, count) : share_rows(count, rows);
    }
    // The same for the rows of the next product's inputs, which are rounded then.
    template <typename Function>
    void each_input(Function&& f) {
        const auto rows = [&](std::size_t first, std::size_t last) {
            for (std::size_t row = first; row < last; ++row) f(row);
            round(first, last);
        };
        alone_ ? rows(0, inputs_.count) : share_rows(inputs_.count, rows);
    }

    // The last block's products all take fine inputs: nothing comes after it that would average what rounding does. Its attention
    // and what follows are for the rows whose logits are wanted.
    bool last(std::size_t b) const { return b + 1 == config_.blocks; }
    const std::vector<QueryRows>& groups(std::size_t b) const { return last(b) ? batch_.wanted_groups : batch_.groups; }
    float* x(std::size_t row) const { return rows_.x + (count_ < batch_.count ? batch_.wanted[row] : row) * config_.hidden; }

    const Config& config_;
    const Weights& weights_;
    const KvCache& cache_;
    const MatmulKernels& matmul_;
    const TransformerKernels& other_;
    Scratch& scratch_;
    const Batch& batch_;
    Member& member_;
    const bool alone_;
    Rows& rows_;
    std::size_t count_;  // of rows that are still computed; `x` has all, other arrays have these
    Inputs inputs_, rest_;
};

}  // namespace fewbits::engine
