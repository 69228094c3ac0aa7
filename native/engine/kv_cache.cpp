#include "kv_cache.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace fewbits::engine {

namespace {

constexpr std::size_t kMostContext = std::size_t{1} << 24;  // whole numbers that a float32 can tell apart

}  // namespace

KvCache::KvCache(CacheType type, std::size_t blocks, std::size_t heads, std::size_t size, std::size_t context,
                 std::size_t sequences)
    : type(type), blocks_(blocks), heads_(heads), size_(size) {
    if (context > kMostContext) throw std::invalid_argument("a context of more than " + std::to_string(kMostContext) + " positions");
    positions_ = (context + kTile - 1) / kTile * kTile;
    codes_ = code_bytes(type, size, positions_);
    scales_ = scale_count(type, size, positions_) * sizeof(float);
    const double bytes = static_cast<double>(head_bytes()) * static_cast<double>(blocks * heads), all = bytes * static_cast<double>(sequences);
    if (all > 0x1p60) throw OutOfMemory("keys and values", all);
    try {
        arenas_.reserve(sequences);
        for (std::size_t i = 0; i < sequences; ++i) arenas_.emplace_back(blocks * heads * head_bytes(), false);
    } catch (const std::bad_alloc&) {
        throw OutOfMemory("keys and values", all);
    }
}

void KvCache::copy(std::size_t source, std::size_t target, std::size_t length) const {
    // All arrays have positions outermost, in groups of 16; whole tiles are copied.
    const std::size_t tiles = (length + kTile - 1) / kTile * kTile;
    const std::size_t codes = code_bytes(type, size_, tiles), scales = scale_count(type, size_, tiles) * sizeof(float);
    for (std::size_t block = 0; block < blocks_; ++block)
        for (std::size_t h = 0; h < heads_; ++h) {
            const HeadCache from = head(source, block, h), to = head(target, block, h);
            std::memcpy(to.keys, from.keys, codes);
            std::memcpy(to.values, from.values, codes);
            if (!scales) continue;
            std::memcpy(to.key_scales, from.key_scales, scales);
            std::memcpy(to.value_scales, from.value_scales, scales);
        }
}

}  // namespace fewbits::engine
