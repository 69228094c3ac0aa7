// Which matrix products this processor runs.
#include <cstdlib>
#include <string>

#include "kernels/matmul.h"

namespace fewbits {

namespace {

std::vector<MatmulIsa> found_isas() {
    const char* asked = std::getenv("FEWBITS_ISA");
    const std::string limit = asked ? asked : "";
    std::vector<MatmulIsa> found;
#ifdef FEWBITS_X86
    __builtin_cpu_init();
    const bool with_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool with_avx512 = with_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    if (with_avx512 && __builtin_cpu_supports("avx512vnni") && limit != "avx2" && limit != "portable")
        found.push_back({"avx512vnni", avx512vnni::matmul, avx512vnni::transformer});
    if (with_avx2 && limit != "portable") found.push_back({"avx2", avx2::matmul, avx2::transformer});
#endif
    found.push_back({"portable", portable::matmul, portable::transformer});
    return found;
}

}  // namespace

const std::vector<MatmulIsa>& matmul_isas() {
    static const std::vector<MatmulIsa> found = found_isas();
    return found;
}

}  // namespace fewbits
