// Memory that is zero until it is written and costs nothing until it is touched, in large pages where there are any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#else
#include <cstdlib>
#endif

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FEWBITS_ADDRESS_SANITIZER
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define FEWBITS_ADDRESS_SANITIZER
#endif
#ifdef FEWBITS_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#endif

namespace fewbits::engine {

// These bytes of a file's mapping become part of the process's memory at once, not page by page as they are read.
inline void fetch(const std::uint8_t* from, std::size_t bytes) {
#if defined(MADV_POPULATE_READ)
    constexpr std::uintptr_t kPage = 4096;
    const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(from) / kPage * kPage;
    madvise(reinterpret_cast<void*>(first), reinterpret_cast<std::uintptr_t>(from) + bytes - first, MADV_POPULATE_READ);
#else
    (void)from, (void)bytes;
#endif
}

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

// Says what there was no room for.
class OutOfMemory : public std::bad_alloc {
public:
    OutOfMemory(const char* what, double bytes) { std::snprintf(text_, sizeof text_, "%.1f GiB for %s", bytes / (1 << 30), what); }
    const char* what() const noexcept override { return text_; }

private:
    char text_[80];
};

class Arena {
public:
    Arena() = default;
    // Throws std::bad_alloc. `large_pages` for what is read whole and often.
    explicit Arena(std::size_t bytes, bool large_pages) : bytes_(bytes) {
        if (!bytes) return;
#ifdef FEWBITS_ADDRESS_SANITIZER
        if (bytes >> 30) throw std::bad_alloc();
        void* found = std::memset(::operator new(bytes, std::align_val_t{64}), 0, bytes);
#elif defined(__unix__) || defined(__APPLE__)
        spare_ = large_pages ? kLargePage : 0;
        base_ = mmap(nullptr, bytes + spare_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base_ == MAP_FAILED) throw std::bad_alloc();
        void* found = base_;
        std::size_t room = bytes + spare_;
        if (large_pages) std::align(kLargePage, bytes, found, room);
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
    Arena(Arena&& other) noexcept { *this = std::move(other); }
    Arena& operator=(Arena&& other) noexcept {
        if (this != &other) {
            release();
            data_ = other.data_, base_ = other.base_, bytes_ = other.bytes_, spare_ = other.spare_;
            other.data_ = nullptr, other.bytes_ = 0;
        }
        return *this;
    }

    std::uint8_t* data() const { return data_; }
    std::size_t bytes() const { return bytes_; }

    // Between arrays in an arena, for the address sanitizer: bytes that nobody may touch, from `begin` to `end`.
#ifdef FEWBITS_ADDRESS_SANITIZER
    static constexpr std::size_t kFence = 64;
    void fence(std::size_t begin, std::size_t end) const { ASAN_POISON_MEMORY_REGION(data_ + begin, end - begin); }
#else
    static constexpr std::size_t kFence = 0;
    void fence(std::size_t, std::size_t) const {}
#endif

private:
    void release() {
        if (!data_) return;
#ifdef FEWBITS_ADDRESS_SANITIZER
        ::operator delete(data_, std::align_val_t{64});
#elif defined(__unix__) || defined(__APPLE__)
        munmap(base_, bytes_ + spare_);
#else
        std::free(data_);
#endif
        data_ = nullptr;
    }
    static constexpr std::size_t kLargePage = std::size_t{1} << 21;
    std::uint8_t* data_ = nullptr;
    void* base_ = nullptr;     // where the mapping begins, up to `spare_` bytes before the data
    std::size_t bytes_ = 0, spare_ = 0;
};

}  // namespace fewbits::engine
