// NEON's instructions for `matmul.inc`, with dot products where the compiler may use those: a vector of 64 bytes or 16 floats
// is four registers of four rows each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <arm_neon.h>

namespace fewbits::FEWBITS_ISA {

namespace {

constexpr int kTile = 4;   // 16 running dot products in 32 registers
constexpr int kDirect = 2;
constexpr bool kRaised = false;
constexpr bool kSignedWide = true;  // both factors have a sign
constexpr bool kSpreads = false;

struct Bytes {
    uint8x16_t of[4];
};
struct Rows {
    float32x4_t of[4];
};

template <typename F> inline Bytes bytes(F&& f) { return {{f(0), f(1), f(2), f(3)}}; }
template <typename F> inline Rows rows(F&& f) { return {{f(0), f(1), f(2), f(3)}}; }

inline Bytes load_bytes(const std::uint8_t* from) {
    return bytes([&](int i) { return vld1q_u8(from + 16 * i); });
}
inline void store_bytes(std::uint8_t* to, Bytes x) {
    for (int i = 0; i < 4; ++i) vst1q_u8(to + 16 * i, x.of[i]);
}
template <int kLeft> inline Bytes shifted(Bytes x) {
    if constexpr (kLeft > 0) return bytes([&](int i) { return vshlq_n_u8(x.of[i], kLeft); });
    if constexpr (kLeft < 0) return bytes([&](int i) { return vshrq_n_u8(x.of[i], -kLeft); });
    return x;
}
inline Bytes masked(Bytes x, std::uint8_t mask) {
    return bytes([&](int i) { return vandq_u8(x.of[i], vdupq_n_u8(mask)); });
}
inline Bytes either(Bytes a, Bytes b) {
    return bytes([&](int i) { return vorrq_u8(a.of[i], b.of[i]); });
}
inline Bytes flipped(Bytes x) {
    return bytes([&](int i) { return veorq_u8(x.of[i], vdupq_n_u8(0x80)); });
}
inline Bytes table_of(const std::uint8_t* sixteen) {
    return bytes([&](int) { return vld1q_u8(sixteen); });
}
inline Bytes look_up(Bytes table, Bytes codes) {
    return bytes([&](int i) { return vqtbl1q_u8(table.of[i], codes.of[i]); });
}

inline Rows zeros() {
    return rows([](int) { return vdupq_n_f32(0); });
}
inline Rows load_rows(const float* from) {
    return rows([&](int i) { return vld1q_f32(from + 4 * i); });
}
inline void store_rows(float* to, Rows x) {
    for (int i = 0; i < 4; ++i) vst1q_f32(to + 4 * i, x.of[i]);
}
inline Rows times(Rows a, Rows b) {
    return rows([&](int i) { return vmulq_f32(a.of[i], b.of[i]); });
}
inline Rows times(Rows a, float b) {
    return rows([&](int i) { return vmulq_n_f32(a.of[i], b); });
}
inline Rows plus(Rows total, Rows a, Rows b) {
    return rows([&](int i) { return vfmaq_f32(total.of[i], a.of[i], b.of[i]); });
}
inline Rows plus(Rows total, Rows a, float b) {
    return rows([&](int i) { return vfmaq_n_f32(total.of[i], a.of[i], b); });
}
inline Rows minus(Rows total, Rows a, Rows b) {
    return rows([&](int i) { return vfmsq_f32(total.of[i], a.of[i], b.of[i]); });
}
inline Rows minus(Rows total, Rows a, float b) {
    return rows([&](int i) { return vfmsq_n_f32(total.of[i], a.of[i], b); });
}

// A running dot product of 16 rows and one input.
struct Chain {
    int32x4_t of[4];
};
using Factor = Bytes;
inline Factor factor(Bytes codes) { return codes; }
inline int32x4_t add_four(int32x4_t total, int8x16_t codes, int8x16_t x) {
#ifdef __ARM_FEATURE_DOTPROD
    return vdotq_s32(total, codes, x);
#else
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(codes), vget_low_s8(x)));
    return vaddq_s32(total, vpaddq_s32(low, vpaddlq_s16(vmull_high_s8(codes, x))));
#endif
}
template <bool kSigned, int kLimit, int kStep, bool kStarted>
inline void add(Chain& chain, const Factor& codes, const std::int8_t* quad) {
    const int8x16_t x = vreinterpretq_s8_s32(vld1q_dup_s32(reinterpret_cast<const std::int32_t*>(quad)));
    for (int i = 0; i < 4; ++i) chain.of[i] = add_four(chain.of[i], vreinterpretq_s8_u8(codes.of[i]), x);
}
inline Chain start(std::int32_t bias = 0) {
    const int32x4_t all = vdupq_n_s32(bias);
    return {{all, all, all, all}};
}

// Sixteen integers of 32 bits, and sixteen pairs of 16 bits.
using Ints = Chain;
struct Pairs {
    int16x8_t of[4];
};
template <typename F> inline Pairs pairs(F&& f) { return {{f(0), f(1), f(2), f(3)}}; }
inline Ints ints(const Chain& chain) { return chain; }
inline Ints no_ints() { return start(); }
inline Rows floats(const Ints& x) {
    return rows([&](int i) { return vcvtq_f32_s32(x.of[i]); });
}
template <int kShift> inline int32x4_t shifted_down(int32x4_t x) {
    if constexpr (kShift > 0) return vshrq_n_s32(x, kShift);
    if constexpr (kShift < 0) return vshlq_n_s32(x, -kShift);
    return x;
}
// (a / 2^kShift, b / 2^kShift), rounded down.
template <int kShift> inline Pairs joined(const Ints& a, const Ints& b) {
    return pairs([&](int i) {
        return vreinterpretq_s16_s32(vsliq_n_s32(shifted_down<kShift>(a.of[i]), shifted_down<kShift>(b.of[i]), 16));
    });
}
// a b / 2^15, to the nearest.
inline Pairs reduced(const Pairs& a, const Pairs& b) {
    return pairs([&](int i) { return vqrdmulhq_s16(a.of[i], b.of[i]); });
}
// Both products of each pair, added.
inline Ints plus(Ints total, const Pairs& a, const Pairs& b) {
    for (int i = 0; i < 4; ++i) {
        const int32x4_t low = vmull_s16(vget_low_s16(a.of[i]), vget_low_s16(b.of[i])), high = vmull_high_s16(a.of[i], b.of[i]);
        total.of[i] = vaddq_s32(total.of[i], vpaddq_s32(low, high));
    }
    return total;
}
inline Pairs pair(const std::int16_t* two) {
    std::int32_t both;
    std::memcpy(&both, two, sizeof both);
    return pairs([&](int) { return vreinterpretq_s16_s32(vdupq_n_s32(both)); });
}
inline Pairs twice(std::int16_t one) {
    return pairs([&](int) { return vdupq_n_s16(one); });
}
inline Pairs load_pairs(const std::int16_t* from) {
    return pairs([&](int i) { return vld1q_s16(from + 8 * i); });
}
inline void store_pairs(std::int16_t* to, const Pairs& x) {
    for (int i = 0; i < 4; ++i) vst1q_s16(to + 8 * i, x.of[i]);
}

inline Rows halves(const std::uint8_t* from) {
    return rows([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(from + 8 * i))); });
}
inline Rows brain_halves(const std::uint8_t* from) {
    return rows([&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(from + 8 * i)), 16)); });
}
struct Words {
    uint32x4_t of[4];
};
inline Words words(uint8x16_t x) {
    const uint16x8_t low = vmovl_u8(vget_low_u8(x)), high = vmovl_high_u8(x);
    return {{vmovl_u16(vget_low_u16(low)), vmovl_high_u16(low), vmovl_u16(vget_low_u16(high)), vmovl_high_u16(high)}};
}
inline Pairs signed_pairs(const std::uint8_t* from) {
    return pairs([&](int i) { return vmovl_s8(vreinterpret_s8_u8(vld1_u8(from + 8 * i))); });
}
inline Pairs unsigned_pairs(const std::uint8_t* from) {
    return pairs([&](int i) { return vreinterpretq_s16_u16(vmovl_u8(vld1_u8(from + 8 * i))); });
}
inline Pairs low_nibble_pairs(const std::uint8_t* from) {
    return pairs([&](int i) { return vreinterpretq_s16_u16(vmovl_u8(vand_u8(vld1_u8(from + 8 * i), vdup_n_u8(15)))); });
}
inline Pairs high_nibble_pairs(const std::uint8_t* from) {
    return pairs([&](int i) { return vreinterpretq_s16_u16(vmovl_u8(vshr_n_u8(vld1_u8(from + 8 * i), 4))); });
}
// 2^(byte - 127) / 2; bytes below 2 give numbers below float32's normal ones.
inline Rows exponents(const std::uint8_t* from) {
    const Words byte = words(vld1q_u8(from));
    const uint32x4_t one = vdupq_n_u32(1), least = vdupq_n_u32(0x200000);
    return rows([&](int i) {
        const uint32x4_t small = vshlq_u32(least, vreinterpretq_s32_u32(byte.of[i]));
        const uint32x4_t normal = vshlq_n_u32(vsubq_u32(byte.of[i], one), 23);
        return vreinterpretq_f32_u32(vbslq_u32(vcgtq_u32(byte.of[i], one), normal, small));
    });
}

inline void prefetch(const std::uint8_t* from) { __builtin_prefetch(from); }
inline void prefetch_far(const std::uint8_t* from) { __builtin_prefetch(from, 0, 2); }

// 32 numbers as codes -127 … 127, what one step of the codes is worth, and the codes' sums by halves.
inline float round_block(const float* x, std::int8_t* codes, std::int32_t (&sums)[2]) {
    float32x4_t most = vdupq_n_f32(0);
    for (int i = 0; i < 8; ++i) most = vmaxq_f32(most, vabsq_f32(vld1q_f32(x + 4 * i)));
    const float peak = vmaxvq_f32(most), steps = peak > 1e-30f ? 127.0f / peak : 0.0f;
    for (int half = 0; half < 2; ++half) {
        int32x4_t found[4];
        for (int i = 0; i < 4; ++i) found[i] = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 16 * half + 4 * i), steps));
        sums[half] = vaddvq_s32(vaddq_s32(vaddq_s32(found[0], found[1]), vaddq_s32(found[2], found[3])));
        const int16x8_t low = vcombine_s16(vmovn_s32(found[0]), vmovn_s32(found[1]));
        const int16x8_t high = vcombine_s16(vmovn_s32(found[2]), vmovn_s32(found[3]));
        vst1q_s8(codes + 16 * half, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
    }
    return peak / 127.0f;
}

}  // namespace

}  // namespace fewbits::FEWBITS_ISA
