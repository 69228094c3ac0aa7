// Threads that go through one piece of work together, the caller as the first of them.
#pragma once

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

    const std::size_t index, size;

private:
    std::size_t take(std::size_t grain);
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
};

}  // namespace fewbits::engine
