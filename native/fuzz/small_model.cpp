#include "small_model.h"

namespace fewbits::fuzz {

namespace {

constexpr std::uint32_t kTypes[] = {0, 1, 30, 2, 3, 6, 7, 8, 20, 39, 10, 11, 12, 13, 14, 23};
constexpr std::uint32_t kFloats[] = {0, 1, 30};

std::uint32_t type_for(Choices& choices, std::size_t columns, bool vector) {
    const std::uint32_t type = vector ? choices.one_of(kFloats) : choices.one_of(kTypes);
    return columns % engine::find_format(type)->columns ? choices.one_of(kFloats) : type;
}

}  // namespace

void SmallModel::add(Choices& choices, const std::string& name, std::size_t rows, std::size_t columns, bool vector) {
    const std::uint32_t type = type_for(choices, columns, vector);
    const engine::BlockFormat& format = *engine::find_format(type);
    const Exactly<std::uint8_t>& data = held_.emplace_back(rows * (columns / format.columns) * format.bytes);
    choices.fill(data.data(), data.size());
    tensors[name] = {type, columns, rows, data.data(), data.size()};
}

void SmallModel::add_block(Choices& choices, const std::string& prefix) {
    const std::size_t hidden = config.hidden, q = config.query_size(), kv = config.kv_size();
    const std::uint8_t has = choices.byte();
    if (has & 1) add(choices, prefix + "attn_norm.weight", 1, hidden, true);
    if (has & 2) {
        add(choices, prefix + "attn_qkv.weight", q + 2 * kv, hidden);
        if (has & 4) add(choices, prefix + "attn_qkv.bias", 1, q + 2 * kv, true);
    } else {
        add(choices, prefix + "attn_q.weight", q, hidden);
        add(choices, prefix + "attn_k.weight", kv, hidden);
        add(choices, prefix + "attn_v.weight", kv, hidden);
        if (has & 4) add(choices, prefix + "attn_k.bias", 1, kv, true);
    }
    if (has & 8) {
        const bool whole = has & 16;
        add(choices, prefix + "attn_q_norm.weight", 1, whole ? q : config.head_size, true);
        add(choices, prefix + "attn_k_norm.weight", 1, whole ? kv : config.head_size, true);
    }
    add(choices, prefix + "attn_output.weight", hidden, q);
    if (has & 32) add(choices, prefix + "attn_output.bias", 1, hidden, true);
    if (has & 64) add(choices, prefix + "post_attention_norm.weight", 1, hidden, true);
    if (has & 128) add(choices, prefix + "ffn_norm.weight", 1, hidden, true);
    add_feed_forward(choices, prefix);
}

void SmallModel::add_feed_forward(Choices& choices, const std::string& prefix) {
    constexpr std::size_t kSizes[] = {32, 256, 1, 48, 96, 512};
    const std::size_t hidden = config.hidden, feed = choices.one_of(kSizes);
    if (const std::size_t count = config.experts) {
        add(choices, prefix + "ffn_gate_inp.weight", count, hidden);
        add(choices, prefix + "ffn_gate_exps.weight", count * feed, hidden);
        add(choices, prefix + "ffn_up_exps.weight", count * feed, hidden);
        add(choices, prefix + "ffn_down_exps.weight", count * hidden, feed);
        return;
    }
    const bool together = choices.byte() & 1, biased = choices.byte() & 1;
    if (!together) add(choices, prefix + "ffn_gate.weight", feed, hidden);
    add(choices, prefix + "ffn_up.weight", together ? 2 * feed : feed, hidden);
    if (biased) add(choices, prefix + "ffn_up.bias", 1, together ? 2 * feed : feed, true);
    add(choices, prefix + "ffn_down.weight", hidden, feed);
    if (biased) add(choices, prefix + "ffn_down.bias", 1, hidden, true);
}

void SmallModel::damage_tensor(Choices& choices) {
    auto found = tensors.begin();
    std::advance(found, static_cast<std::ptrdiff_t>(choices.below(tensors.size())));
    engine::TensorView& view = found->second;
    switch (choices.below(7)) {
        case 0: tensors.erase(found); return;
        case 1: view.type = choices.rarely() ? choices.word() : static_cast<std::uint32_t>(choices.below(45)); return;
        case 2: view.rows = choices.extreme(); return;
        case 3: view.columns = choices.extreme(); return;
        case 4: view.rows = choices.extreme(), view.columns = choices.extreme(); return;
        case 5: view.rows = choices.below(view.rows + 3); return;
        default: view.bytes = choices.below(view.bytes + 1);
    }
}

void SmallModel::damage_config(Choices& choices) {
    std::size_t* const sizes[] = {&config.blocks,    &config.hidden,     &config.heads,   &config.kv_heads,
                                  &config.head_size, &config.vocabulary, &config.experts, &config.experts_used};
    const std::size_t which = choices.below(11);
    if (which < 8) {
        *sizes[which] = choices.byte() & 1 ? choices.extreme() : choices.below(70);
        // Products that overflow to what the tensors have.
        if (choices.rarely()) config.heads = config.kv_heads = (std::size_t{1} << choices.between(32, 60)) + 1;
        return;
    }
    if (which == 8) config.rope_of.resize(choices.below(4), choices.below(4));
    if (which == 9) config.window.assign(choices.below(4), choices.extreme());
    if (which == 10) config.ropes.assign(choices.below(3), {std::vector<float>(choices.below(100), choices.number()), choices.number()});
}

SmallModel::SmallModel(Choices& choices, bool damage) {
    constexpr std::size_t kHidden[] = {32, 256, 64, 1, 17, 96, 288};
    constexpr std::size_t kHeads[] = {16, 64, 1, 8, 20, 32, 80};
    config.blocks = choices.between(1, 2);
    config.hidden = choices.one_of(kHidden);
    config.kv_heads = choices.between(1, 3);
    // More than 48 heads of a group are split.
    config.heads = config.kv_heads * (choices.rarely() ? choices.between(1, 110) : choices.between(1, 4));
    config.head_size = choices.one_of(kHeads);
    config.vocabulary = choices.between(1, 70);
    config.epsilon = choices.number();
    config.gelu = choices.byte() & 1, config.interleaved = choices.byte() & 1;
    for (float* factor : {&config.embedding_factor, &config.residual_factor, &config.logit_factor, &config.attention_factor})
        if (choices.byte() & 1) *factor = choices.number();
    for (float* cap : {&config.attention_cap, &config.logit_cap})
        if (choices.byte() & 1) *cap = choices.number();
    if (choices.byte() % 3 == 0) {
        config.experts = choices.between(1, 5);
        config.experts_used = choices.between(1, config.experts);
        config.experts_normalized = choices.byte() & 1;
    }
    for (std::size_t i = choices.between(1, 2); i; --i)
        config.ropes.push_back({std::vector<float>(choices.below(config.head_size / 2 + 1), choices.number()), choices.number()});
    for (std::size_t b = 0; b < config.blocks; ++b) {
        config.rope_of.push_back(choices.below(config.ropes.size()));
        config.window.push_back(choices.byte() & 1 ? choices.between(1, 100) : 0);
    }
    add(choices, "token_embd.weight", config.vocabulary, config.hidden);
    for (std::size_t b = 0; b < config.blocks; ++b) add_block(choices, "blk." + std::to_string(b) + ".");
    add(choices, "output_norm.weight", 1, config.hidden, true);
    if (choices.byte() & 1) add(choices, "output.weight", config.vocabulary, config.hidden);
    if (choices.rarely()) add(choices, "output.bias", 1, config.vocabulary, true);
    if (!damage) return;
    for (std::size_t i = choices.between(1, 2); i; --i) choices.byte() & 1 ? damage_tensor(choices) : damage_config(choices);
}

}  // namespace fewbits::fuzz
