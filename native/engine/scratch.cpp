#include "scratch.h"

#include <algorithm>

namespace fewbits::engine {

namespace {

std::size_t largest_feed(const Weights& weights) {
    std::size_t found = 0;
    for (const Block& block : weights.blocks) found = std::max(found, block.feed_size);
    return found;
}

struct Wish {
    float** to;
    std::size_t size;  // of a row
};

// Arrays of so many rows behind each other, on boundaries of cache lines, and `more` bytes after them.
Arena allot(std::initializer_list<Wish> wishes, std::size_t rows, std::size_t more, void** rest) {
    const auto bytes_of = [rows](const Wish& wish) { return (rows * wish.size * sizeof(float) + 63) / 64 * 64 + Arena::kFence; };
    std::size_t bytes = more;
    for (const Wish& wish : wishes) bytes += bytes_of(wish);
    Arena arena(bytes + 64, false);
    std::size_t at = 0;
    for (const Wish& wish : wishes) {
        *wish.to = reinterpret_cast<float*>(arena.data() + at);
        arena.fence(at + rows * wish.size * sizeof(float), at + bytes_of(wish));
        at += bytes_of(wish);
    }
    arena.fence(at + more, bytes + 64);
    if (rest) *rest = arena.data() + at;
    return arena;
}

}  // namespace

Rows::Rows(const Config& config, std::size_t feed_size, std::size_t rows) {
    const std::size_t used = std::max<std::size_t>(1, config.experts_used), hidden = config.hidden;
    const std::size_t input = (std::max({hidden, config.query_size(), feed_size}) + kSlab - 1) / kSlab * kSlab;
    const std::size_t rest_rows = rows == 1 ? 2 : rows;
    // An expert's rows are at most the batch's: a row chooses it once.
    arena = allot({{&x, hidden}, {&normed, hidden}, {&rest, rest_rows / rows * input}, {&product, feed_size}, {&gathered, config.experts ? hidden : 0},
                   {&expert_out, config.experts ? used * hidden : 0}},
                  rows, input_bytes(rows, input) + input_bytes(rest_rows, input), &inputs);
    rest_inputs = static_cast<std::uint8_t*>(inputs) + input_bytes(rows, input);
    std::size_t pairs = 0;
    for (const Rope& rope : config.ropes) pairs += rope.frequencies.size();
    cosines.resize(rows * pairs);
    sines.resize(rows * pairs);
    if (!config.experts) return;
    chosen.resize(rows * used);
    chosen_weight.resize(rows * used);
    rows_of.resize(config.experts);
}

Scratch::Scratch(const Config& config, const Weights& weights, std::size_t threads)
    : qkv_size(config.query_size() + 2 * config.kv_size()), shared(config, largest_feed(weights), kBatch) {
    const std::size_t feed = largest_feed(weights);
    for (std::size_t i = 0; i < threads; ++i) own.emplace_back(config, feed, 1);
    arena_ = allot({{&qkv, qkv_size}, {&attended, config.query_size()}, {&gate_up, 2 * feed}, {&result, config.hidden},
                    {&router, config.experts}},
                   kBatch, 0, nullptr);
    rope_offset.push_back(0);
    for (const Rope& rope : config.ropes) rope_offset.push_back(rope_offset.back() + rope.frequencies.size());
}

std::size_t Scratch::bytes() const {
    std::size_t found = arena_.bytes() + shared.arena.bytes() + parts.size() * sizeof(float);
    for (const Rows& rows : own) found += rows.arena.bytes();
    return found;
}

}  // namespace fewbits::engine
