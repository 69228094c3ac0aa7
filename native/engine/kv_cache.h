// Keys and values of all sequences. Each has room for the whole context, which costs memory only as it fills.
#pragma once

#include <cstddef>
#include <vector>

#include "../kernels/transformer.h"
#include "arena.h"

namespace fewbits::engine {

class KvCache {
public:
    KvCache() = default;
    // `size` numbers a head, a multiple of 16; `context` is rounded up to whole tiles. Throws std::invalid_argument for a context
    // beyond `kMostContext`, OutOfMemory.
    KvCache(CacheType type, std::size_t blocks, std::size_t heads, std::size_t size, std::size_t context, std::size_t sequences);

    HeadCache head(std::size_t sequence, std::size_t block, std::size_t head) const {
        std::uint8_t* at = arenas_[sequence].data() + (block * heads_ + head) * head_bytes();
        float* scales = reinterpret_cast<float*>(at + 2 * codes_);
        return {at, at + codes_, scales, scales + scales_ / sizeof(float)};
    }

    // The first `length` positions of one sequence become those of another.
    void copy(std::size_t source, std::size_t target, std::size_t length) const;
    // Bytes that `length` positions of a sequence hold.
    std::size_t bytes(std::size_t length) const {
        const std::size_t tiles = (length + kTile - 1) / kTile * kTile;
        return blocks_ * heads_ * 2 *
               (code_bytes(type, size_, tiles) + scale_count(type, size_, tiles) * sizeof(float));
    }

    CacheType type = CacheType::kF16;

private:
    std::size_t head_bytes() const { return 2 * codes_ + 2 * scales_; }
    std::size_t blocks_ = 0, heads_ = 0, size_ = 0, positions_ = 0, codes_ = 0, scales_ = 0;
    std::vector<Arena> arenas_;
};

}  // namespace fewbits::engine
