// A thread with room for the kernels' arrays: where the system's default stack is 128 KiB (musl) or 512 KiB (macOS), std::thread's
// is too small for attention.
#pragma once

#include <functional>
#include <memory>
#include <system_error>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#else
#include <thread>
#endif

namespace fewbits::engine {

#if defined(__unix__) || defined(__APPLE__)

class Thread {
public:
    // Throws std::system_error.
    explicit Thread(std::function<void()> body) {
        constexpr std::size_t kStack = std::size_t{4} << 20;
        auto owned = std::make_unique<std::function<void()>>(std::move(body));
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setstacksize(&attributes, kStack);
        const int error = pthread_create(&handle_, &attributes, run, owned.get());
        pthread_attr_destroy(&attributes);
        if (error) throw std::system_error(error, std::generic_category());
        owned.release();  // `run` has it
    }
    void join() { pthread_join(handle_, nullptr); }

private:
    static void* run(void* body) {
        const std::unique_ptr<std::function<void()>> owned(static_cast<std::function<void()>*>(body));
        (*owned)();
        return nullptr;
    }
    pthread_t handle_;
};

#else

using Thread = std::thread;

#endif

}  // namespace fewbits::engine
