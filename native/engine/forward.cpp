#include "forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace fewbits::engine {

namespace {

// Bands of 16 rows of a matrix that a thread takes at a time: few enough that all end together.
std::size_t grain_of(std::size_t bands, std::size_t threads) { return std::max<std::size_t>(1, bands / (threads * 6)); }

void add_bias(float* out, const float* bias, std::size_t size) {
    for (std::size_t i = 0; i < size; ++i) out[i] += bias[i];
}

}  // namespace

void Forward::run(Member& member) {
    embed(member);
    for (std::size_t b = 0; b < config_.blocks; ++b) {
        attention(member, b);
        feed_forward(member, b);
    }
    if (!batch_.wanted.empty()) head(member);
}

void Forward::embed(Member& member) {
    const std::size_t hidden = config_.hidden;
    member.share(batch_.count, 1, [&](std::size_t row, std::size_t) {
        float* x = scratch_.x + row * hidden;
        weights_.embed(static_cast<std::size_t>(batch_.tokens[row]), x);
        if (config_.embedding_factor != 1) other_.scale(x, config_.embedding_factor, hidden);
        for (std::size_t r = 0; r < config_.ropes.size(); ++r) {
            const Rope& rope = config_.ropes[r];
            const std::size_t at = row * scratch_.rope_offset.back() + scratch_.rope_offset[r];
            for (std::size_t i = 0; i < rope.frequencies.size(); ++i) {
                const double angle = rope.frequencies[i] * static_cast<float>(batch_.position[row]);
                scratch_.cosines[at + i] = static_cast<float>(std::cos(angle)) * rope.magnitude;
                scratch_.sines[at + i] = static_cast<float>(std::sin(angle)) * rope.magnitude;
            }
        }
    });
}

void Forward::round(Member& member, const float* x, std::size_t count, std::size_t columns) {
    if (member.index == 0) scratch_.inputs = place_inputs(x, count, columns, scratch_.input_buffer);
    member.wait();
    if (columns % kSlab == 0)
        member.share(count, 4, [&](std::size_t first, std::size_t last) { matmul_.round(scratch_.inputs, first, last); });
}

void Forward::multiply(Member& member, const Part* parts, std::size_t part_count, float* out, std::size_t stride) {
    std::size_t bands = 0;
    for (std::size_t p = 0; p < part_count; ++p) bands += parts[p].linear.bands();
    member.share(bands, grain_of(bands, member.size), [&](std::size_t first, std::size_t last) {
        std::size_t start = 0;
        for (std::size_t p = 0; p < part_count && start < last; ++p) {
            const Linear& linear = parts[p].linear;
            const std::size_t end = start + linear.bands(), from = std::max(first, start), to = std::min(last, end);
            if (from < to)
                matmul_.multiply(linear.matrix, scratch_.inputs, from - start, to - start, out + parts[p].offset, stride);
            start = end;
        }
    });
}

void Forward::multiply(Member& member, const Linear& linear, float* out) {
    const Part part{linear, 0};
    multiply(member, &part, 1, out, linear.rows);
}

void Forward::norm_rows(Member& member, const float* weight) {
    const std::size_t hidden = config_.hidden;
    member.share(batch_.count, 1, [&](std::size_t row, std::size_t) {
        const float* x = scratch_.x + row * hidden;
        float* to = scratch_.normed + row * hidden;
        if (weight)
            other_.rms_norm(x, weight, hidden, config_.epsilon, to);
        else
            std::memcpy(to, x, hidden * sizeof(float));
    });
}

// x += result, with a bias and a norm of its own before if there are.
void Forward::add_residual(Member& member, const Linear* biased, const float* after) {
    const std::size_t hidden = config_.hidden;
    member.share(batch_.count, 1, [&](std::size_t row, std::size_t) {
        float* result = scratch_.result + row * hidden;
        if (biased && biased->bias) add_bias(result, biased->bias, hidden);
        if (after) other_.rms_norm(result, after, hidden, config_.epsilon, result);
        other_.add_scaled(scratch_.x + row * hidden, result, config_.residual_factor, hidden);
    });
}

void Forward::attention(Member& member, std::size_t b) {
    const Block& block = weights_.blocks[b];
    norm_rows(member, block.attention_norm);
    round(member, scratch_.normed, batch_.count, config_.hidden);
    multiply(member, block.qkv.data(), block.qkv.size(), scratch_.qkv, scratch_.qkv_size);
    member.share(batch_.count, 1, [&](std::size_t row, std::size_t) { turn_and_store(b, row); });
    attend(member, b);
    round(member, scratch_.attended, batch_.count, config_.query_size());
    multiply(member, block.out, scratch_.result);
    add_residual(member, &block.out, block.attention_after);
}

// Biases, norms and rotation of a row's queries and keys; keys and values go to the cache.
void Forward::turn_and_store(std::size_t b, std::size_t row) {
    const Block& block = weights_.blocks[b];
    const std::size_t q = config_.query_size(), kv = config_.kv_size(), size = config_.head_size;
    float *query = scratch_.qkv + row * scratch_.qkv_size, *key = query + q, *value = key + kv;
    for (const Part& part : block.qkv)
        if (part.linear.bias) add_bias(query + part.offset, part.linear.bias, part.linear.rows);
    if (block.query_norm) {
        for (std::size_t i = 0; i < q; i += block.query_norm_size)
            other_.rms_norm(query + i, block.query_norm, block.query_norm_size, config_.epsilon, query + i);
        for (std::size_t i = 0; i < kv; i += block.key_norm_size)
            other_.rms_norm(key + i, block.key_norm, block.key_norm_size, config_.epsilon, key + i);
    }
    const std::size_t r = config_.rope_of[b], half = config_.ropes[r].frequencies.size();
    const std::size_t at = row * scratch_.rope_offset.back() + scratch_.rope_offset[r];
    if (half)
        for (std::size_t i = 0; i < q + kv; i += size)
            other_.rotate(query + i, scratch_.cosines.data() + at, scratch_.sines.data() + at, half, config_.interleaved);
    const std::size_t padded = config_.padded_head();
    float padded_key[kMaxHead] = {}, padded_value[kMaxHead] = {};
    for (std::size_t h = 0; h < config_.kv_heads; ++h) {
        std::memcpy(padded_key, key + h * size, size * sizeof(float));
        std::memcpy(padded_value, value + h * size, size * sizeof(float));
        other_.store(cache_.type, cache_.head(batch_.sequence[row], b, h), padded, batch_.position[row], padded_key, padded_value);
    }
}

void Forward::activate(Member& member, std::size_t size, std::size_t count) {
    member.share(count, 1, [&](std::size_t row, std::size_t) {
        const float* gate = scratch_.gate_up + row * 2 * size;
        other_.gate(gate, gate + size, size, config_.gelu, scratch_.product + row * size);
    });
}

void Forward::feed_forward(Member& member, std::size_t b) {
    const Block& block = weights_.blocks[b];
    norm_rows(member, block.feed_norm);
    if (config_.experts) {
        experts(member, b);
        return add_residual(member, nullptr, block.feed_after);
    }
    round(member, scratch_.normed, batch_.count, config_.hidden);
    const std::size_t size = block.feed_size;
    multiply(member, block.gate_up.data(), block.gate_up.size(), scratch_.gate_up, 2 * size);
    for (const Part& part : block.gate_up)
        if (part.linear.bias)
            member.share(batch_.count, 1, [&](std::size_t row, std::size_t) {
                add_bias(scratch_.gate_up + row * 2 * size + part.offset, part.linear.bias, part.linear.rows);
            });
    activate(member, size, batch_.count);
    round(member, scratch_.product, batch_.count, size);
    multiply(member, block.down, scratch_.result);
    add_residual(member, &block.down, block.feed_after);
}

void Forward::head(Member& member) {
    const std::size_t hidden = config_.hidden, count = batch_.wanted.size(), vocabulary = config_.vocabulary;
    member.share(count, 1, [&](std::size_t i, std::size_t) {
        other_.rms_norm(scratch_.x + batch_.wanted[i] * hidden, weights_.final_norm, hidden, config_.epsilon,
                        scratch_.normed + i * hidden);
    });
    round(member, scratch_.normed, count, hidden);
    multiply(member, weights_.head, batch_.logits);
    if (config_.logit_factor == 1 && config_.logit_cap == 0 && !weights_.head.bias) return;
    member.share(count, 1, [&](std::size_t i, std::size_t) {
        float* row = batch_.logits + i * vocabulary;
        if (weights_.head.bias) add_bias(row, weights_.head.bias, vocabulary);
        if (config_.logit_factor != 1) other_.scale(row, config_.logit_factor, vocabulary);
        if (config_.logit_cap != 0) other_.soft_cap(row, config_.logit_cap, vocabulary);
    });
}

}  // namespace fewbits::engine
