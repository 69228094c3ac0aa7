#include "kv_cache.h"

#include <cstring>

namespace fewbits::engine {

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
