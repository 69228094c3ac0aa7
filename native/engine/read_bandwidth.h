// How fast memory can be read: what bounds decoding.
#pragma once

#include <cstddef>

namespace fewbits::engine {

// Bytes per second at which `threads` threads read a buffer of `bytes` together, the fastest of `passes` passes, by the wall
// clock. The buffer is filled before by the threads that read it. Say more bytes than the last cache holds to measure memory.
// Throws std::bad_alloc.
double read_bandwidth(std::size_t bytes, std::size_t threads, std::size_t passes);

}  // namespace fewbits::engine
