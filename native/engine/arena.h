// Memory that is zero until it is written and costs nothing until it is touched, in large pages where there are any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#else
#include <cstdlib>
#endif

namespace fewbits::engine {

// Whole pages among these bytes of a file's mapping leave memory; they can be read again.
inline void give_back(const std::uint8_t* from, std::size_t bytes) {
#if defined(MADV_DONTNEED)
    constexpr std::uintptr_t kPage = 16384;  // a multiple of every system's
    const std::uintptr_t first = (reinterpret_cast<std::uintptr_t>(from) + kPage - 1) / kPage * kPage;
    const std::uintptr_t last = (reinterpret_cast<std::uintptr_t>(from) + bytes) / kPage * kPage;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
#else
    (void)from, (void)bytes;
#endif
}

class Arena {
public:
    Arena() = default;
    // Throws std::bad_alloc. `large_pages` for what is read whole and often.
    explicit Arena(std::size_t bytes, bool large_pages) : bytes_(bytes) {
        if (!bytes) return;
#if defined(__unix__) || defined(__APPLE__)
        void* found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (found == MAP_FAILED) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
        if (large_pages) madvise(found, bytes, MADV_HUGEPAGE);
#endif
#else
        void* found = std::calloc(bytes, 1);
        if (!found) throw std::bad_alloc();
#endif
        (void)large_pages;
        data_ = static_cast<std::uint8_t*>(found);
    }
    ~Arena() { release(); }
    Arena(Arena&& other) noexcept : data_(other.data_), bytes_(other.bytes_) { other.data_ = nullptr, other.bytes_ = 0; }
    Arena& operator=(Arena&& other) noexcept {
        if (this != &other) {
            release();
            data_ = other.data_, bytes_ = other.bytes_;
            other.data_ = nullptr, other.bytes_ = 0;
        }
        return *this;
    }

    std::uint8_t* data() const { return data_; }
    std::size_t bytes() const { return bytes_; }

private:
    void release() {
        if (!data_) return;
#if defined(__unix__) || defined(__APPLE__)
        munmap(data_, bytes_);
#else
        std::free(data_);
#endif
        data_ = nullptr;
    }
    std::uint8_t* data_ = nullptr;
    std::size_t bytes_ = 0;
};

}  // namespace fewbits::engine
