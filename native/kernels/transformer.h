// What a transformer does besides multiplying by quantized matrices. All numbers are float32 unless said.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fewbits {

enum class CacheType : std::uint8_t { kF16, kQ8, kQ4 };

constexpr std::size_t kTile = 64;         // positions of the cache that attention takes at a time
constexpr std::size_t kChunk = 256;       // positions after which partial results are merged
constexpr std::size_t kAttendRows = 48;   // queries that one call may have
constexpr std::size_t kMaxHead = 512;     // numbers of a head, padded to 16

// The keys and values of one head in one layer and sequence. D is the head's size padded to a multiple of 16.
//
//   f16  keys    [position / 16][D][16 positions]       values  [position][D]
//   q8   keys    codes i8 [position / 16][D][16], scales f32 [position / 16][D / 16][16]
//        values  codes i8 [position][D],          scales f32 [position][D / 16]
//   q4   as q8, but two codes of 4 bits, raised by 8, in a byte: d in the low nibble and d + 8 in the high one, of the 16 of a scale
struct HeadCache {
    std::uint8_t* keys;
    std::uint8_t* values;
    float* key_scales;    // not for f16
    float* value_scales;
};

// Queries of one head against a stretch of its cache. Row r sees positions [first[r], last[r]).
struct Attention {
    CacheType type;
    HeadCache cache;
    std::size_t size;          // D
    std::size_t begin, end;    // positions; begin is a multiple of kTile, end - begin at most kChunk
    std::size_t rows;          // at most kAttendRows
    const float* queries;      // [rows, D], scaled
    const std::size_t *first, *last;
    float cap;                 // scores become cap * tanh(score / cap); 0 for none
    // Results, not divided by the sums: peak and sum [rows], out [rows, D]. A row that sees nothing has a sum of 0.
    float *peak, *sum, *out;
};

struct TransformerKernels {
    // y = x / sqrt(mean(x²) + epsilon) * weight
    void (*rms_norm)(const float* x, const float* weight, std::size_t size, float epsilon, float* y);
    // x += factor * y
    void (*add_scaled)(float* x, const float* y, float factor, std::size_t size);
    void (*scale)(float* x, float factor, std::size_t size);
    // out = silu(gate) * up, or gelu (tanh form)
    void (*gate)(const float* gate, const float* up, std::size_t size, bool gelu, float* out);
    // x = cap * tanh(x / cap)
    void (*soft_cap)(float* x, float cap, std::size_t size);
    // Rotates pairs (i, i + half), or (2 i, 2 i + 1) if interleaved, of x [2 half]; cosines and sines [half].
    void (*rotate)(float* x, const float* cosines, const float* sines, std::size_t half, bool interleaved);
    // Puts a key and a value [D] at a position.
    void (*store)(CacheType type, const HeadCache& cache, std::size_t size, std::size_t position, const float* key,
                  const float* value);
    void (*attend)(const Attention& task);
    // Adds a stretch's result to that of the stretches before it: total and part as in Attention.
    void (*merge)(std::size_t rows, std::size_t size, float* peak, float* sum, float* out, const float* part_peak,
                  const float* part_sum, const float* part_out);
};

// Bytes of a head's cache for so many positions, a multiple of kTile.
constexpr std::size_t code_bytes(CacheType type, std::size_t size, std::size_t positions) {
    const std::size_t count = size * positions;
    return type == CacheType::kF16 ? 2 * count : type == CacheType::kQ8 ? count : count / 2;
}
constexpr std::size_t scale_count(CacheType type, std::size_t size, std::size_t positions) {
    return type == CacheType::kF16 ? 0 : size / 16 * positions;
}

namespace portable { extern const TransformerKernels transformer; }
namespace avx2 { extern const TransformerKernels transformer; }
namespace avx512vnni { extern const TransformerKernels transformer; }
namespace neon { extern const TransformerKernels transformer; }

}  // namespace fewbits
