// How far ahead memory is fetched.
#include "matmul.h"

namespace fewbits {

// Intel's cores read half as fast without; on Zen 4 it makes no difference that can be told from noise (docs/log.md, 2026-11-30).
std::size_t fetch_ahead() {
#ifdef FEWBITS_X86
    static const bool by_itself = [] {
        __builtin_cpu_init();
        return __builtin_cpu_is("amd");
    }();
    if (by_itself) return 0;
#endif
    return 4096;
}

}  // namespace fewbits
