// The blocks of GGUF's types, read as codes and scales. Layouts: fewbits/formats/gguf_*.py, which draw them.
#include <cstring>

#include "packed_matrix.h"

namespace fewbits::engine {

namespace {

std::uint16_t half_at(const std::uint8_t* p) {
    std::uint16_t bits;
    std::memcpy(&bits, p, 2);
    return bits;
}

void nibbles(const std::uint8_t* p, std::uint8_t* codes) {
    for (std::size_t i = 0; i < 16; ++i) {
        codes[i] = p[i] & 15;
        codes[i + 16] = p[i] >> 4;
    }
}

void fifth_bits(const std::uint8_t* p, std::uint8_t* codes) {
    for (std::size_t byte = 0; byte < 4; ++byte)
        for (std::size_t i = 0; i < 8; ++i) codes[8 * byte + i] |= static_cast<std::uint8_t>(((p[byte] >> i) & 1) << 4);
}

// {f16 d; 16 bytes of nibbles}: Q4_0, IQ4_NL
void read_q4_0(const std::uint8_t* b, std::size_t, Group& g) {
    g.half[0] = half_at(b);
    nibbles(b + 2, g.codes);
}

// {f16 d, m; 16 bytes of nibbles}
void read_q4_1(const std::uint8_t* b, std::size_t, Group& g) {
    g.half[0] = half_at(b);
    g.half[1] = half_at(b + 2);
    nibbles(b + 4, g.codes);
}

// {f16 d; 4 bytes of fifth bits; nibbles}
void read_q5_0(const std::uint8_t* b, std::size_t, Group& g) {
    g.half[0] = half_at(b);
    nibbles(b + 6, g.codes);
    fifth_bits(b + 2, g.codes);
}

void read_q5_1(const std::uint8_t* b, std::size_t, Group& g) {
    g.half[0] = half_at(b);
    g.half[1] = half_at(b + 2);
    nibbles(b + 8, g.codes);
    fifth_bits(b + 4, g.codes);
}

// {f16 d; 32 signed bytes}
void read_q8_0(const std::uint8_t* b, std::size_t, Group& g) {
    g.half[0] = half_at(b);
    for (std::size_t i = 0; i < 32; ++i) g.codes[i] = b[2 + i] ^ 0x80;
}

// {u8 exponent; nibbles}
void read_mxfp4(const std::uint8_t* b, std::size_t, Group& g) {
    g.byte[0] = b[0];
    nibbles(b + 1, g.codes);
}

// 6-bit scale and minimum of group j from the 12 bytes of Q4_K and Q5_K.
void six_bits(const std::uint8_t* s, std::size_t j, Group& g) {
    if (j < 4) {
        g.byte[0] = s[j] & 63;
        g.byte[1] = s[j + 4] & 63;
    } else {
        g.byte[0] = static_cast<std::uint8_t>((s[j + 4] & 15) | ((s[j - 4] >> 6) << 4));
        g.byte[1] = static_cast<std::uint8_t>((s[j + 4] >> 4) | ((s[j] >> 6) << 4));
    }
}

void q45_nibbles(const std::uint8_t* qs, std::size_t j, std::uint8_t* codes) {
    for (std::size_t i = 0; i < 32; ++i) codes[i] = (qs[32 * (j / 2) + i] >> (4 * (j % 2))) & 15;
}

// {f16 d, dmin; 12 bytes of scales; 128 of nibbles}
void read_q4_k(const std::uint8_t* b, std::size_t j, Group& g) {
    g.super[0] = half_at(b);
    g.super[1] = half_at(b + 2);
    six_bits(b + 4, j, g);
    q45_nibbles(b + 16, j, g.codes);
}

// {f16 d, dmin; 12 bytes of scales; 32 of fifth bits; 128 of nibbles}
void read_q5_k(const std::uint8_t* b, std::size_t j, Group& g) {
    g.super[0] = half_at(b);
    g.super[1] = half_at(b + 2);
    six_bits(b + 4, j, g);
    q45_nibbles(b + 48, j, g.codes);
    for (std::size_t i = 0; i < 32; ++i) g.codes[i] |= static_cast<std::uint8_t>(((b[16 + i] >> j) & 1) << 4);
}

// {128 bytes of low nibbles; 64 of high pairs; 16 signed scales; f16 d}
void read_q6_k(const std::uint8_t* b, std::size_t j, Group& g) {
    const std::size_t part = j / 4, quarter = j % 4;
    for (std::size_t i = 0; i < 32; ++i) {
        const std::uint8_t low = (b[64 * part + 32 * (quarter % 2) + i] >> (4 * (quarter / 2))) & 15;
        const std::uint8_t high = (b[128 + 32 * part + i] >> (2 * quarter)) & 3;
        g.codes[i] = static_cast<std::uint8_t>(low | (high << 4));
    }
    g.byte[0] = b[192 + 2 * j];
    g.byte[1] = b[193 + 2 * j];
    g.super[0] = half_at(b + 208);
}

void pairs(const std::uint8_t* qs, std::size_t j, std::uint8_t* codes) {
    for (std::size_t i = 0; i < 32; ++i) codes[i] = (qs[32 * (j / 4) + i] >> (2 * (j % 4))) & 3;
}

// {16 bytes of scale and minimum nibbles; 64 of pairs; f16 d, dmin}
void read_q2_k(const std::uint8_t* b, std::size_t j, Group& g) {
    pairs(b + 16, j, g.codes);
    g.byte[0] = b[2 * j];
    g.byte[1] = b[2 * j + 1];
    g.super[0] = half_at(b + 80);
    g.super[1] = half_at(b + 82);
}

// {32 bytes of third bits; 64 of pairs; 12 bytes of 6-bit scales; f16 d}
void read_q3_k(const std::uint8_t* b, std::size_t j, Group& g) {
    pairs(b + 32, j, g.codes);
    for (std::size_t i = 0; i < 32; ++i) g.codes[i] |= static_cast<std::uint8_t>(((b[i] >> j) & 1) << 2);
    const std::uint8_t* s = b + 96;
    for (std::size_t h = 0; h < 2; ++h) {
        const std::size_t k = 2 * j + h;
        const int low = k < 8 ? s[k] & 15 : s[k - 8] >> 4;
        const int high = (s[8 + k % 4] >> (2 * (k / 4))) & 3;
        g.byte[h] = static_cast<std::uint8_t>((low | (high << 4)) - 32);
    }
    g.super[0] = half_at(b + 108);
}

// {f16 d; u16 high pairs of scales; 4 bytes of low nibbles; 128 of nibbles}
void read_iq4_xs(const std::uint8_t* b, std::size_t j, Group& g) {
    g.super[0] = half_at(b);
    const int high = (half_at(b + 2) >> (2 * j)) & 3, low = (b[4 + j / 2] >> (4 * (j % 2))) & 15;
    g.byte[0] = static_cast<std::uint8_t>((low | (high << 4)) - 32);
    nibbles(b + 8 + 16 * j, g.codes);
}

// Levels raised by 128, so that they are bytes without a sign.
constexpr Encoding levels(Scales scales, const int (&values)[16]) {
    Encoding found{4, scales, 128, true, {}};
    for (std::size_t i = 0; i < 16; ++i) found.table[i] = static_cast<std::uint8_t>(values[i] + 128);
    return found;
}

constexpr int kIq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int kFp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

const BlockFormat kFormats[] = {
    {0, "F32", 1, 4, {32, Scales::kFloat32, 0, false, {}}, nullptr},
    {1, "F16", 1, 2, {16, Scales::kFloat16, 0, false, {}}, nullptr},
    {2, "Q4_0", 32, 18, {4, Scales::kHalf, 8, false, {}}, read_q4_0},
    {3, "Q4_1", 32, 20, {4, Scales::kHalfMin, 0, false, {}}, read_q4_1},
    {6, "Q5_0", 32, 22, {5, Scales::kHalf, 16, false, {}}, read_q5_0},
    {7, "Q5_1", 32, 24, {5, Scales::kHalfMin, 0, false, {}}, read_q5_1},
    {8, "Q8_0", 32, 34, {8, Scales::kHalf, 128, false, {}}, read_q8_0},
    {10, "Q2_K", 256, 84, {2, Scales::kTwoNibbles, 0, false, {}}, read_q2_k},
    {11, "Q3_K", 256, 110, {3, Scales::kTwoBytes, 4, false, {}}, read_q3_k},
    {12, "Q4_K", 256, 144, {4, Scales::kByteMin, 0, false, {}}, read_q4_k},
    {13, "Q5_K", 256, 176, {5, Scales::kByteMin, 0, false, {}}, read_q5_k},
    {14, "Q6_K", 256, 210, {6, Scales::kTwoBytes, 32, false, {}}, read_q6_k},
    {20, "IQ4_NL", 32, 18, levels(Scales::kHalf, kIq4), read_q4_0},
    {23, "IQ4_XS", 256, 136, levels(Scales::kByte, kIq4), read_iq4_xs},
    {30, "BF16", 1, 2, {16, Scales::kBfloat16, 0, false, {}}, nullptr},
    {39, "MXFP4", 32, 17, levels(Scales::kExponent, kFp4), read_mxfp4},
};

}  // namespace

const BlockFormat* find_format(std::uint32_t type) {
    for (const BlockFormat& format : kFormats)
        if (format.type == type) return &format;
    return nullptr;
}

}  // namespace fewbits::engine
