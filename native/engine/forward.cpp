#include "forward.h"

#include <cmath>
#include <cstring>

namespace fewbits::engine {

namespace {

// With fewer inputs the time of a product is that of reading the matrix.
constexpr std::size_t kFewInputs = 16;
// Bands of 16 rows that a thread takes at a time otherwise: few enough that all end together.
std::size_t grain_of(std::size_t bands, std::size_t threads) { return std::max<std::size_t>(1, bands / (threads * 48)); }

// Bytes of a matrix that stay in a core's second cache while they are multiplied by inputs, and by what rounding took from those.
constexpr std::size_t kReadTwice = 1 << 17;

void add_bias(float* out, const float* bias, std::size_t size) {
    for (std::size_t i = 0; i < size; ++i) out[i] += bias[i];
}

}  // namespace

void Forward::run() {
    const std::vector<Block>& blocks = weights_.blocks;
    begin_inputs(rows_.normed, batch_.count, config_.hidden, true);
    each_input([&](std::size_t row) {
        embed(row);
        norm(row, blocks[0].attention_norm);
    });
    for (std::size_t b = 0; b < config_.blocks; ++b) {
        attention(b);
        if (!count_) return;
        feed_forward(b);
    }
    head();
}

void Forward::embed(std::size_t row) {
    weights_.embed(static_cast<std::size_t>(batch_.tokens[row]), x(row));
    if (config_.embedding_factor != 1) other_.scale(x(row), config_.embedding_factor, config_.hidden);
    std::size_t at = row * scratch_.rope_offset.back();
    for (const Rope& rope : config_.ropes)
        for (const float frequency : rope.frequencies) {
            const double angle = frequency * static_cast<float>(batch_.position[row]);
            rows_.cosines[at] = static_cast<float>(std::cos(angle)) * rope.magnitude;
            rows_.sines[at++] = static_cast<float>(std::sin(angle)) * rope.magnitude;
        }
}

void Forward::begin_inputs(const float* values, std::size_t count, std::size_t columns, bool fine) {
    inputs_ = place_inputs(values, count, columns, rows_.inputs);
    rest_ = fine ? place_inputs(rows_.rest, alone_ ? 2 : count, columns, rows_.rest_inputs) : Inputs{};
}

void Forward::round(std::size_t first, std::size_t last) {
    if (inputs_.columns % kSlab) return;  // of matrices of floats
    matmul_.round(inputs_, first, last);
    if (!rest_.count) return;
    if (alone_) {
        std::memcpy(rows_.rest, inputs_.values, inputs_.columns * sizeof(float));
        matmul_.residual(inputs_, 0, rows_.rest + inputs_.columns);
        return matmul_.round(rest_, 0, 2);
    }
    for (std::size_t row = first; row < last; ++row) matmul_.residual(inputs_, row, rows_.rest + row * inputs_.columns);
    matmul_.round(rest_, first, last);
}

void Forward::norm(std::size_t row, const float* weight) {
    const std::size_t hidden = config_.hidden;
    float* to = rows_.normed + row * hidden;
    if (weight)
        other_.rms_norm(x(row), weight, hidden, config_.epsilon, to);
    else
        std::memcpy(to, x(row), hidden * sizeof(float));
}

void Forward::multiply(const Part* parts, std::size_t part_count, float* out, std::size_t stride) {
    std::size_t bands = 0;
    for (std::size_t p = 0; p < part_count; ++p) bands += parts[p].linear.bands();
    const auto multiply_some = [&](std::size_t first, std::size_t last) {
        std::size_t start = 0;
        for (std::size_t p = 0; p < part_count && start < last; ++p) {
            const Linear& linear = parts[p].linear;
            const std::size_t end = start + linear.bands(), from = std::max(first, start), to = std::min(last, end);
            if (from < to) multiply_bands(parts[p], from - start, to - start, out + parts[p].offset, stride);
            start = end;
        }
    };
    if (inputs_.count <= kFewInputs) member_.share_stretches(bands, multiply_some);
    else member_.share(bands, grain_of(bands, member_.size), multiply_some);
}

void Forward::multiply_bands(const Part& part, std::size_t first, std::size_t last, float* out, std::size_t stride) {
    const Matrix& matrix = part.linear.matrix;
    const bool has_fine = rest_.count && !are_floats(matrix.encoding.scales);
    const std::size_t fine = has_fine ? std::clamp(part.fine_from, first, last) : last;
    matmul_.multiply(matrix, inputs_, first, fine, out, stride, false);
    if (alone_) return matmul_.multiply(matrix, rest_, fine, last, out, 0, false);
    // So few bands at a time that they are still in the cache when they are needed again.
    const std::size_t together = std::max<std::size_t>(1, kReadTwice / matrix.encoding.band_bytes(matrix.columns));
    for (std::size_t from = fine; from < last; from += together) {
        const std::size_t to = std::min(last, from + together);
        matmul_.multiply(matrix, inputs_, from, to, out, stride, false);
        matmul_.multiply(matrix, rest_, from, to, out, stride, true);
    }
}

void Forward::multiply(const Linear& linear, float* out) {
    const Part part{linear, 0, 0};
    multiply(&part, 1, out, linear.rows);
}

void Forward::add_residual(std::size_t row, const Linear* biased, const float* after) {
    const std::size_t hidden = config_.hidden;
    float* own = rows_.normed + row * hidden;  // `result` belongs to all
    const float* result = scratch_.result + row * hidden;
    if (biased && biased->bias) {
        std::memcpy(own, result, hidden * sizeof(float));
        add_bias(own, biased->bias, hidden);
        result = own;
    }
    if (after) {
        other_.rms_norm(result, after, hidden, config_.epsilon, own);
        result = own;
    }
    other_.add_scaled(x(row), result, config_.residual_factor, hidden);
}

void Forward::attention(std::size_t b) {
    const Block& block = weights_.blocks[b];
    multiply(block.qkv.data(), block.qkv.size(), scratch_.qkv, scratch_.qkv_size);
    attend(b);
    if (last(b)) count_ = batch_.wanted.size();
    if (!count_) return;
    begin_inputs(scratch_.attended, count_, config_.query_size(), last(b));
    each_input([](std::size_t) {});
    multiply(block.out, scratch_.result);
    begin_inputs(rows_.normed, count_, config_.hidden, last(b));
    each_input([&](std::size_t row) {
        add_residual(row, &block.out, block.attention_after);
        norm(row, block.feed_norm);
    });
}

void Forward::activate(std::size_t row, std::size_t size) {
    const float* gate = scratch_.gate_up + row * 2 * size;
    other_.gate(gate, gate + size, size, config_.gelu, rows_.product + row * size);
}

void Forward::feed_forward(std::size_t b) {
    const Block& block = weights_.blocks[b];
    if (config_.experts) {
        experts(block);
    } else {
        const std::size_t size = block.feed_size;
        multiply(block.gate_up.data(), block.gate_up.size(), scratch_.gate_up, 2 * size);
        for (const Part& part : block.gate_up)
            if (part.linear.bias)
                member_.share(count_, 1, [&](std::size_t row, std::size_t) {
                    add_bias(scratch_.gate_up + row * 2 * size + part.offset, part.linear.bias, part.linear.rows);
                });
        begin_inputs(rows_.product, count_, size, last(b));
        each_input([&](std::size_t row) { activate(row, size); });
        multiply(block.down, scratch_.result);
    }
    const Linear* biased = config_.experts ? nullptr : &block.down;
    begin_inputs(rows_.normed, count_, config_.hidden, true);
    each_input([&](std::size_t row) {
        add_residual(row, biased, block.feed_after);
        norm(row, last(b) ? weights_.final_norm : weights_.blocks[b + 1].attention_norm);
    });
}

void Forward::head() {
    const std::size_t count = count_, vocabulary = config_.vocabulary;
    multiply(&weights_.head, 1, batch_.logits, vocabulary);
    if (config_.logit_factor == 1 && config_.logit_cap == 0 && !weights_.head.linear.bias) return;
    member_.share(count, 1, [&](std::size_t i, std::size_t) {
        float* row = batch_.logits + i * vocabulary;
        if (weights_.head.linear.bias) add_bias(row, weights_.head.linear.bias, vocabulary);
        if (config_.logit_factor != 1) other_.scale(row, config_.logit_factor, vocabulary);
        if (config_.logit_cap != 0) other_.soft_cap(row, config_.logit_cap, vocabulary);
    });
}

}  // namespace fewbits::engine
