// A fuzzer's bytes as choices.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <random>

namespace fewbits::fuzz {

// Used up, it chooses the first of everything.
class Choices {
  public:
    Choices(const std::uint8_t* data, std::size_t size) : at_(data), end_(data + size) {}

    bool used_up() const { return at_ == end_; }
    std::uint8_t byte() { return at_ == end_ ? std::uint8_t{0} : *at_++; }
    std::uint32_t word() {
        std::uint32_t found = 0;
        for (int i = 0; i < 4; ++i) found = found << 8 | byte();
        return found;
    }
    // 0 … count - 1
    std::size_t below(std::size_t count) { return (count > 256 ? word() : byte()) % std::max<std::size_t>(1, count); }
    std::size_t between(std::size_t least, std::size_t most) { return least + below(most - least + 1); }
    // Whether something rare happens.
    bool rarely() { return byte() > 250; }
    template <typename T, std::size_t N>
    T one_of(const T (&all)[N]) { return all[below(N)]; }

    // Numbers that sizes overflow at.
    std::size_t extreme() {
        const unsigned shift = static_cast<unsigned>(below(64));
        return (std::size_t{1} << shift) + below(3) - 1;
    }
    float number() {
        const float wild[] = {0.0f, -0.0f, 1.0f, -1.0f, 1e-45f, 3e38f, -3e38f, 1.0f / 0.0f, -1.0f / 0.0f, 0.0f / 0.0f};
        return rarely() ? one_of(wild) : (static_cast<float>(byte()) - 128) / 64;
    }
    // A few bytes repeated, or random ones.
    void fill(std::uint8_t* to, std::size_t size) {
        std::uint8_t few[4] = {byte(), byte(), byte(), byte()};
        if (few[0] < 48) {
            for (std::size_t i = 0; i < size; ++i) to[i] = few[1 + i % 3];
            return;
        }
        std::minstd_rand random(few[1] | few[2] << 8u);
        // Bytes without the highest bits give small scales, so that most numbers stay finite.
        const std::uint8_t mask = few[3] < 128 ? 0x33 : 0xFF;
        for (std::size_t i = 0; i < size; ++i) to[i] = static_cast<std::uint8_t>(random() >> 8) & mask;
    }

  private:
    const std::uint8_t *at_, *end_;
};

// Memory of exactly this size, so that the sanitizer sees what is read beyond it.
template <typename T>
class Exactly {
  public:
    explicit Exactly(std::size_t count) : count_(count) {
        data_ = static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64}));
        std::memset(static_cast<void*>(data_), 0, count * sizeof(T));
    }
    Exactly(Exactly&& other) noexcept : data_(other.data_), count_(other.count_) { other.data_ = nullptr; }
    Exactly& operator=(Exactly&&) = delete;
    ~Exactly() { ::operator delete(data_, std::align_val_t{64}); }

    T* data() const { return data_; }
    std::size_t size() const { return count_; }
    T& operator[](std::size_t i) const { return data_[i]; }

  private:
    T* data_;
    std::size_t count_;
};

}  // namespace fewbits::fuzz
