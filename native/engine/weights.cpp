#include "weights.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "decode_row.h"

namespace fewbits::engine {

namespace {

constexpr std::uint32_t kF32 = 0, kF16 = 1, kBF16 = 30;

[[noreturn]] void refuse(const std::string& name, const std::string& why) {
    throw std::invalid_argument("tensor " + name + ": " + why);
}

std::string shape(std::size_t rows, std::size_t columns) { return std::to_string(rows) + " x " + std::to_string(columns); }

bool is_float(std::uint32_t type) { return type == kF32 || type == kF16 || type == kBF16; }

float float_at(const TensorView& view, std::size_t at) {
    float found;
    if (view.type == kF32) {
        std::memcpy(&found, view.data + 4 * at, 4);
        return found;
    }
    std::uint16_t bits;
    std::memcpy(&bits, view.data + 2 * at, 2);
    if (view.type == kF16) return half_value(bits);
    const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
    std::memcpy(&found, &wide, 4);
    return found;
}

std::size_t row_bytes(const std::string& name, const TensorView& view) {
    const BlockFormat* format = find_format(view.type);
    if (!format) refuse(name, "the engine has no type " + std::to_string(view.type));
    if (view.columns % format->columns) refuse(name, "rows of " + std::to_string(view.columns) + " numbers aren't whole blocks");
    if (view.columns / format->columns > std::numeric_limits<std::size_t>::max() / format->bytes) refuse(name, "rows are too long");
    return view.columns / format->columns * format->bytes;
}

// Bands that a thread packs before it looks for more.
constexpr std::size_t kBandsAtOnce = 32;

// What of the tensors' bytes is in memory still: ends of what was given back piece by piece, and what the system had read ahead.
void give_back_all(const Tensors& tensors) {
    std::map<const std::uint8_t*, std::size_t> parts;
    for (const auto& [name, view] : tensors) parts[view.data] = std::max(parts[view.data], view.bytes);
    const std::uint8_t *first = nullptr, *last = nullptr;
    for (const auto& [data, bytes] : parts) {
        constexpr std::ptrdiff_t kGap = 4096;  // no page of anything else lies in less
        if (first && data - last < kGap) {
            last = std::max(last, data + bytes);
            continue;
        }
        if (first) give_back(first, static_cast<std::size_t>(last - first));
        first = data, last = data + bytes;
    }
    if (first) give_back(first, static_cast<std::size_t>(last - first));
}

}  // namespace

const TensorView* Weights::find_optional(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) return nullptr;
    const TensorView& view = found->second;
    const std::size_t of_row = row_bytes(name, view);
    if (!of_row || !view.rows) refuse(name, "it is empty");
    if (view.rows > view.bytes / of_row) refuse(name, "the file has fewer bytes than it needs");  // rows * of_row may overflow
    return &found->second;
}

const TensorView& Weights::find(const std::string& name) const {
    const TensorView* found = find_optional(name);
    if (!found) refuse(name, "the file doesn't have it");
    return *found;
}

const float* Weights::vector(const std::string& name, std::size_t size, bool optional) {
    const TensorView* view = optional ? find_optional(name) : &find(name);
    if (!view) return nullptr;
    if (!is_float(view->type)) refuse(name, "a vector must be of floats");
    if (view->rows * view->columns != size) refuse(name, shape(view->rows, view->columns) + " numbers, not " + std::to_string(size));
    std::vector<float>& kept = vectors_.emplace_back(size);
    for (std::size_t i = 0; i < size; ++i) kept[i] = float_at(*view, i);
    return kept.data();
}

// Rows `skip` … of a tensor of `of` rows (0 for just these), and the bias beside it.
Linear Weights::linear(const std::string& name, std::size_t rows, std::size_t columns, std::size_t skip, std::size_t of) {
    const TensorView& view = find(name + ".weight");
    if (view.columns != columns || view.rows != (of ? of : rows))
        refuse(name + ".weight", shape(view.rows, view.columns) + ", not " + shape(of ? of : rows, columns));
    Linear made;
    made.rows = rows, made.columns = columns;
    made.source = find_format(view.type);
    made.blocks = view.data + skip * row_bytes(name, view);
    made.matrix = {made.source->encoding, rows, columns, nullptr};
    if (!of) made.bias = vector(name + ".bias", rows, true);
    return made;
}

void Weights::load_attention(const std::string& prefix, Block& block) {
    const std::size_t q = config_.query_size(), kv = config_.kv_size(), hidden = config_.hidden;
    block.attention_norm = vector(prefix + "attn_norm.weight", hidden, true);
    if (find_optional(prefix + "attn_qkv.weight")) {
        block.qkv.push_back({linear(prefix + "attn_qkv", q + 2 * kv, hidden), 0, (q + kv + kBand - 1) / kBand});
    } else {
        block.qkv.push_back({linear(prefix + "attn_q", q, hidden), 0});
        block.qkv.push_back({linear(prefix + "attn_k", kv, hidden), q});
        block.qkv.push_back({linear(prefix + "attn_v", kv, hidden), q + kv, 0});
    }
    if (const TensorView* norm = find_optional(prefix + "attn_q_norm.weight")) {
        block.query_norm_size = norm->columns == config_.head_size ? config_.head_size : q;
        block.key_norm_size = norm->columns == config_.head_size ? config_.head_size : kv;
        block.query_norm = vector(prefix + "attn_q_norm.weight", block.query_norm_size);
        block.key_norm = vector(prefix + "attn_k_norm.weight", block.key_norm_size);
    }
    block.out = linear(prefix + "attn_output", hidden, q);
    block.attention_after = vector(prefix + "post_attention_norm.weight", hidden, true);
}

void Weights::load_feed_forward(const std::string& prefix, Block& block) {
    const std::size_t hidden = config_.hidden;
    block.feed_norm = vector(prefix + "ffn_norm.weight", hidden, true);
    block.feed_after = vector(prefix + "post_ffw_norm.weight", hidden, true);
    if (config_.experts) return load_experts(prefix, block);
    block.feed_size = find(prefix + "ffn_down.weight").columns;
    if (find_optional(prefix + "ffn_gate.weight")) {
        block.gate_up.push_back({linear(prefix + "ffn_gate", block.feed_size, hidden), 0});
        block.gate_up.push_back({linear(prefix + "ffn_up", block.feed_size, hidden), block.feed_size});
    } else {
        block.gate_up.push_back({linear(prefix + "ffn_up", 2 * block.feed_size, hidden), 0});
    }
    block.down = linear(prefix + "ffn_down", hidden, block.feed_size);
}

void Weights::load_experts(const std::string& prefix, Block& block) {
    const std::size_t hidden = config_.hidden, count = config_.experts;
    block.feed_size = find(prefix + "ffn_down_exps.weight").columns;
    const std::size_t size = block.feed_size;
    block.router = linear(prefix + "ffn_gate_inp", count, hidden);
    for (std::size_t e = 0; e < count; ++e) {
        block.expert_gate_up.push_back(
            {{linear(prefix + "ffn_gate_exps", size, hidden, e * size, count * size), 0},
             {linear(prefix + "ffn_up_exps", size, hidden, e * size, count * size), size}});
        block.expert_down.push_back(linear(prefix + "ffn_down_exps", hidden, size, e * hidden, count * hidden));
    }
}

Weights::Weights(const Config& config, const Tensors& tensors, ThreadTeam& team, bool mapped)
    : config_(config), tensors_(tensors) {
    embedding_ = find("token_embd.weight");
    embedding_format_ = find_format(embedding_.type);
    if (embedding_.columns != config.hidden || embedding_.rows != config.vocabulary)
        refuse("token_embd.weight", shape(embedding_.rows, embedding_.columns) + ", not " + shape(config.vocabulary, config.hidden));
    for (std::size_t b = 0; b < config.blocks; ++b) {
        const std::string prefix = "blk." + std::to_string(b) + ".";
        Block& block = blocks.emplace_back();
        load_attention(prefix, block);
        load_feed_forward(prefix, block);
    }
    for (std::vector<Part>* parts : {&blocks.back().qkv, &blocks.back().gate_up})
        for (Part& part : *parts) part.fine_from = 0;
    final_norm = vector("output_norm.weight", config.hidden);
    head = {linear(find_optional("output.weight") ? "output" : "token_embd", config.vocabulary, config.hidden), 0, 0};
    pack(team, mapped);
}

void Weights::pack(ThreadTeam& team, bool mapped) {
    std::vector<Linear*> all;
    const auto add = [&](Linear& linear) {
        if (linear.source) all.push_back(&linear);
    };
    for (Block& block : blocks) {
        for (Part& part : block.qkv) add(part.linear);
        for (Part& part : block.gate_up) add(part.linear);
        for (std::vector<Part>& parts : block.expert_gate_up)
            for (Part& part : parts) add(part.linear);
        for (Linear& down : block.expert_down) add(down);
        add(block.out), add(block.down), add(block.router);
    }
    add(head.linear);
    std::size_t size = 0;
    std::vector<std::size_t> offsets, first_band{0};
    for (const Linear* linear : all) {
        offsets.push_back(size);
        size += (linear->matrix.bytes() + 63) / 64 * 64 + Arena::kFence;
        first_band.push_back(first_band.back() + linear->bands());
    }
    packed_ = Arena(size, true);
    for (std::size_t i = 0; i < all.size(); ++i) {
        all[i]->matrix.data = packed_.data() + offsets[i];
        packed_.fence(offsets[i] + all[i]->matrix.bytes(), i + 1 < all.size() ? offsets[i + 1] : size);
    }
    team.run([&](Member& member) {
        member.share(first_band.back(), kBandsAtOnce, [&](std::size_t first, std::size_t last) {
            for (std::size_t unit = first; unit < last;) {
                const std::size_t i = std::upper_bound(first_band.begin(), first_band.end(), unit) - first_band.begin() - 1;
                const std::size_t end = std::min(last, first_band[i + 1]);
                const Linear& linear = *all[i];
                const std::size_t bytes_of_row = linear.columns / linear.source->columns * linear.source->bytes;
                const std::size_t row = (unit - first_band[i]) * kBand;
                const std::uint8_t* from = linear.blocks + row * bytes_of_row;
                const std::size_t bytes = (std::min((end - first_band[i]) * kBand, linear.rows) - row) * bytes_of_row;
                if (mapped) fetch(from, bytes);
                for (; unit < end; ++unit) {
                    const std::size_t band = unit - first_band[i], start = band * kBand;
                    pack_band(*linear.source, linear.blocks + start * bytes_of_row, std::min(kBand, linear.rows - start),
                              linear.columns, const_cast<std::uint8_t*>(linear.matrix.band(band)));
                }
                if (mapped) give_back(from, bytes);
            }
        });
    });
    if (mapped) give_back_all(tensors_);
}

void Weights::embed(std::size_t token, float* out) const {
    if (is_float(embedding_.type)) {
        for (std::size_t i = 0; i < embedding_.columns; ++i) out[i] = float_at(embedding_, token * embedding_.columns + i);
        return;
    }
    const BlockFormat& format = *embedding_format_;
    const std::uint8_t* row = embedding_.data + token * (embedding_.columns / format.columns * format.bytes);
    decode_row(format, row, embedding_.columns, out);
}

}  // namespace fewbits::engine
