// Threads that go through one piece of work together, the caller as the first of them.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <vector>

#include "thread.h"

namespace fewbits::engine {

class ThreadTeam;

// One thread's view of the team.
class Member {
public:
    Member(ThreadTeam& team, std::size_t index, std::size_t size) : index(index), size(size), team_(team) {}

    // Returns when all have called it. What they wrote before is seen by all after it.
    void wait();
    // Calls body(first, last) until [0, count) is done, `grain` at a time, whoever is free; then waits for all.
    template <typename Body>
    void share(std::size_t count, std::size_t grain, Body&& body) {
        for (;;) {
            const std::size_t first = take(grain);
            if (first >= count) break;
            body(first, first + grain < count ? first + grain : count);
        }
        wait();
    }

    // The same for what lies one after another in memory and is read once: a core that goes on where it was reads faster, so every
    // thread has a stretch of its own, most of it in one piece. Who is done takes pieces of what the others have left. Pieces begin
    // at even numbers.
    template <typename Body>
    void share_stretches(std::size_t count, Body&& body) {
        const std::size_t each = even_part(count, size), most = even_part(3 * each, 4), grain = even_part(each - most, kPieces);
        begin_pieces();
        for (std::size_t turn = 0; turn < size; ++turn) {
            const std::size_t owner = (index + turn) % size, begin = owner * each, end = std::min(count, begin + each);
            if (turn == 0 && begin < end) body(begin, std::min(end, begin + most));
            for (std::size_t first; (first = begin + most + grain * take_piece(owner)) < end;) body(first, std::min(end, first + grain));
        }
        wait();
    }

    const std::size_t index, size;

private:
    static constexpr std::size_t kPieces = 2;  // of what isn't in the first
    // At least count / parts.
    static std::size_t even_part(std::size_t count, std::size_t parts) {
        return std::max<std::size_t>(2, ((count + parts - 1) / parts + 1) / 2 * 2);
    }
    std::size_t take(std::size_t grain);
    void begin_pieces();
    std::size_t take_piece(std::size_t owner);
    ThreadTeam& team_;
};

class ThreadTeam {
public:
    // Throws std::invalid_argument if the system has no room for so many threads.
    explicit ThreadTeam(std::size_t size);
    ~ThreadTeam();
    ThreadTeam(const ThreadTeam&) = delete;
    ThreadTeam& operator=(const ThreadTeam&) = delete;

    // Every thread calls `work` with its member. `work` must not throw.
    void run(const std::function<void(Member&)>& work);
    std::size_t size() const { return size_; }

private:
    friend class Member;
    void serve(std::size_t index);
    void end();
    void barrier();

    const std::size_t size_;
    std::vector<Thread> threads_;
    const std::function<void(Member&)>* work_ = nullptr;
    std::mutex mutex_;
    std::condition_variable awake_;
    std::atomic<std::size_t> runs_{0};
    bool ending_ = false;
    alignas(64) std::atomic<std::size_t> arrived_{0};
    alignas(64) std::atomic<std::size_t> phase_{0};
    alignas(64) std::atomic<std::size_t> next_{0};
    // Of each thread's stretch: the pieces that were taken, in turns of two, so that a thread can clear those of its next one.
    struct alignas(64) Pieces {
        std::atomic<std::size_t> taken[2]{};
        std::size_t turn = 0;  // only the thread itself knows; all are in the same
    };
    std::vector<Pieces> pieces_;
};

}  // namespace fewbits::engine
