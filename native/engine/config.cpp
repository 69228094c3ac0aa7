#include "config.h"

#include <stdexcept>

namespace fewbits::engine {

namespace {

constexpr std::size_t kMostOfASize = std::size_t{1} << 31;
constexpr std::size_t kMostHeadsOfAGroup = 2048;  // they are split evenly among calls of kAttendRows

}  // namespace

void require_sound(const Config& config) {
    const auto require = [](bool fits, const char* what) {
        if (!fits) throw std::invalid_argument(what);
    };
    require(config.blocks && config.hidden && config.heads && config.kv_heads && config.head_size && config.vocabulary,
            "sizes of the model must be positive");
    // No product of them overflows, and no pointer goes astray before the tensors' shapes have been compared with them.
    for (const std::size_t size : {config.blocks, config.hidden, config.heads, config.kv_heads, config.vocabulary, config.experts})
        require(size <= kMostOfASize, "a size of the model is larger than 2^31");
    require(config.head_size <= kMaxHead, "heads of more than 512 numbers");
    require(config.heads % config.kv_heads == 0, "query heads must be a multiple of key-value heads");
    require(config.heads / config.kv_heads <= kMostHeadsOfAGroup, "more than 2048 query heads share a key");
    require(config.rope_of.size() == config.blocks && config.window.size() == config.blocks,
            "every block needs a rope and a window");
    for (const std::size_t rope : config.rope_of) require(rope < config.ropes.size(), "there is no such rope");
    for (const Rope& rope : config.ropes)
        require(2 * rope.frequencies.size() <= config.head_size, "a rope rotates more than a head has");
    require(config.experts_used <= config.experts && (config.experts == 0) == (config.experts_used == 0),
            "more experts are used than there are");
}

}  // namespace fewbits::engine
