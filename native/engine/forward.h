// One batch through the blocks, by a team of threads that go through it together.
#pragma once

#include <cstdint>
#include <vector>

#include "../kernels/matmul.h"
#include "batch.h"
#include "kv_cache.h"
#include "model.h"
#include "thread_team.h"
#include "weights.h"

namespace fewbits::engine {

// Memory of a batch, reserved for the largest and touched as far as it is used.
struct Scratch {
    Scratch(const Config& config, const Weights& weights);

    float *x, *normed, *qkv, *attended, *gate_up, *product, *result, *router, *gathered, *expert_out;
    std::vector<float> cosines, sines;       // [rope][row][half]
    std::vector<std::size_t> rope_offset;    // of each rope, per row; the last is a row's total
    Inputs inputs;
    void* input_buffer;
    std::size_t qkv_size, feed_size, input_size;
    std::vector<float> parts;                // partial attention, when the context is split
    std::vector<std::uint32_t> chosen;       // [row][used] experts
    std::vector<float> chosen_weight;
    std::vector<std::vector<std::uint32_t>> rows_of;  // of each expert: row * used + place
    std::size_t bytes() const { return arena_.bytes(); }

private:
    Arena arena_;
};

class Forward {
public:
    Forward(const Config& config, const Weights& weights, const KvCache& cache, const Kernels& kernels, Scratch& scratch,
            const Batch& batch)
        : config_(config), weights_(weights), cache_(cache), matmul_(kernels.matmul), other_(kernels.transformer),
          scratch_(scratch), batch_(batch) {}

    // Every member of the team calls it.
    void run(Member& member);

private:
    struct Task;
    void embed(Member& member);
    void attention(Member& member, std::size_t b);
    void turn_and_store(std::size_t b, std::size_t row);
    void attend(Member& member, std::size_t b);
    void attend_part(const Task& task, std::size_t b, std::size_t chunk, float* part) const;
    template <typename PartOf>
    void finish(std::size_t b, std::size_t index, PartOf&& part_of);
    void feed_forward(Member& member, std::size_t b);
    void experts(Member& member, std::size_t b);
    void choose_experts(std::size_t row);
    void expert(Member& member, const Block& block, std::size_t e);
    void head(Member& member);

    // Inputs of the next products: x [count, columns], float and rounded. Every member calls it; it ends with all waiting.
    void round(Member& member, const float* x, std::size_t count, std::size_t columns);
    // out[n * stride + offset + row] for all parts and the inputs that were rounded last. It ends with all waiting.
    void multiply(Member& member, const Part* parts, std::size_t part_count, float* out, std::size_t stride);
    void multiply(Member& member, const Linear& linear, float* out);
    void norm_rows(Member& member, const float* weight);
    void add_residual(Member& member, const Linear* biased, const float* after);
    void activate(Member& member, std::size_t size, std::size_t count);

    Task task_of(std::size_t b, std::size_t index) const;
    std::size_t task_count() const;

    const Config& config_;
    const Weights& weights_;
    const KvCache& cache_;
    const MatmulKernels& matmul_;
    const TransformerKernels& other_;
    Scratch& scratch_;
    const Batch& batch_;
};

}  // namespace fewbits::engine
