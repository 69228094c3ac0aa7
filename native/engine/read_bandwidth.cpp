#include "read_bandwidth.h"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fewbits::engine {

namespace {

constexpr std::align_val_t kHugePage{std::size_t{1} << 21};
constexpr std::size_t kLanes = 16;  // 128 bytes at a time

struct Free {
    void operator()(std::uint64_t* memory) const { ::operator delete(memory, kHugePage); }
};

std::uint64_t sum_of(const std::uint64_t* words, std::size_t count) {
    std::uint64_t lanes[kLanes] = {};
    for (std::size_t i = 0; i + kLanes <= count; i += kLanes)
        for (std::size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += words[i + lane];
    std::uint64_t sum = 0;
    for (const std::uint64_t lane : lanes) sum += lane;
    return sum;
}

}  // namespace

double read_bandwidth(std::size_t bytes, std::size_t threads, std::size_t passes) {
    const std::size_t each = bytes / threads / (kLanes * 8) * kLanes;  // words of a thread
    const std::size_t size = std::max<std::size_t>(each * threads * 8, 1);
    const std::unique_ptr<std::uint64_t, Free> memory(static_cast<std::uint64_t*>(::operator new(size, kHugePage)));
#ifdef __linux__
    madvise(memory.get(), size, MADV_HUGEPAGE);  // so that page tables don't count; without it, it is only slower
#endif
    using Clock = std::chrono::steady_clock;
    Clock::time_point started;
    double fastest = 0;
    std::atomic<std::uint64_t> sums{0};  // without a use of what was read, reading could be left out
    std::size_t ends = 0;
    auto note = [&]() noexcept {
        const Clock::time_point now = Clock::now();
        if (ends++ > 0) {
            const double seconds = std::chrono::duration<double>(now - started).count();
            if (seconds > 0) fastest = std::max(fastest, static_cast<double>(each * threads * 8) / seconds);
        }
        started = Clock::now();
    };
    std::barrier together(static_cast<std::ptrdiff_t>(threads), note);
    const auto work = [&](std::size_t index) {
        std::uint64_t* own = memory.get() + index * each;
        std::memset(own, 1, each * 8);
        together.arrive_and_wait();
        for (std::size_t pass = 0; pass < passes; ++pass) {
            sums += sum_of(own, each);
            together.arrive_and_wait();
        }
    };
    std::vector<std::thread> others;
    for (std::size_t index = 1; index < threads; ++index) others.emplace_back(work, index);
    work(0);
    for (std::thread& other : others) other.join();
    return fastest;
}

}  // namespace fewbits::engine
