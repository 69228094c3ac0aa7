#include "thread_team.h"

#include <stdexcept>
#include <string>
#include <thread>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace fewbits::engine {

namespace {

// Waits shorter than this are cheaper than a system call; longer ones must not keep a core from other work.
constexpr int kSpins = 4000;

inline void pause() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Spins, then gives the core to others, until `done`.
template <typename Done>
void spin_until(Done&& done) {
    for (int i = 0; !done(); ++i) {
        if (i < kSpins)
            pause();
        else
            std::this_thread::yield();
    }
}

}  // namespace

void Member::wait() { team_.barrier(); }

std::size_t Member::take(std::size_t grain) { return team_.next_.fetch_add(grain, std::memory_order_relaxed); }

void Member::begin_pieces() {
    ThreadTeam::Pieces& own = team_.pieces_[index];
    own.turn ^= 1;
    own.taken[own.turn ^ 1].store(0, std::memory_order_relaxed);
}

// Its number; kPieces or more if none is left.
std::size_t Member::take_piece(std::size_t owner) {
    std::atomic<std::size_t>& taken = team_.pieces_[owner].taken[team_.pieces_[index].turn];
    const std::size_t seen = taken.load(std::memory_order_relaxed);  // cheaper where others write
    return seen < kPieces ? taken.fetch_add(1, std::memory_order_relaxed) : seen;
}

ThreadTeam::ThreadTeam(std::size_t size) : size_(size < 1 ? 1 : size), pieces_(size_) {
    try {
        for (std::size_t i = 1; i < size_; ++i) threads_.emplace_back([this, i] { serve(i); });
    } catch (const std::exception&) {
        end();
        throw std::invalid_argument("the system starts " + std::to_string(threads_.size() + 1) + " threads, not " +
                                    std::to_string(size_));
    }
}

ThreadTeam::~ThreadTeam() { end(); }

void ThreadTeam::end() {
    {
        const std::lock_guard lock(mutex_);
        ending_ = true;
    }
    awake_.notify_all();
    for (Thread& thread : threads_) thread.join();
}

void ThreadTeam::run(const std::function<void(Member&)>& work) {
    {
        const std::lock_guard lock(mutex_);
        work_ = &work;
        runs_.fetch_add(1, std::memory_order_release);
    }
    if (size_ > 1) awake_.notify_all();
    Member member(*this, 0, size_);
    work(member);
    barrier();
}

void ThreadTeam::serve(std::size_t index) {
    for (std::size_t seen = 0;;) {
        for (int i = 0; i < kSpins && runs_.load(std::memory_order_acquire) == seen; ++i) pause();
        const std::function<void(Member&)>* work;
        {
            std::unique_lock lock(mutex_);
            awake_.wait(lock, [&] { return ending_ || runs_.load(std::memory_order_relaxed) != seen; });
            if (ending_) return;
            ++seen;
            work = work_;
        }
        Member member(*this, index, size_);
        (*work)(member);
        barrier();
    }
}

void ThreadTeam::barrier() {
    const std::size_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
        arrived_.store(0, std::memory_order_relaxed);
        next_.store(0, std::memory_order_relaxed);
        phase_.store(phase + 1, std::memory_order_release);
        return;
    }
    spin_until([&] { return phase_.load(std::memory_order_acquire) != phase; });
}

}  // namespace fewbits::engine
