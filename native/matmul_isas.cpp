// Which matrix products this processor runs.
#include <cstdlib>
#include <string>

#if defined(FEWBITS_X86)
#include <cpuid.h>
#elif defined(FEWBITS_ARM64) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "kernels/matmul.h"

namespace fewbits {

namespace {

#ifdef FEWBITS_X86
// Not every compiler's __builtin_cpu_supports knows these two.
bool has_avxvnni() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
}
bool has_f16c() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & 1u << 29);
}
#endif

#ifdef FEWBITS_ARM64
bool has_dot_products() {
#ifdef __linux__
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
    return true;  // every Apple processor with a desktop system
#endif
}
#endif

std::vector<MatmulIsa> found_isas() {
    const char* asked = std::getenv("FEWBITS_ISA");
    const std::string limit = asked ? asked : "";
    std::vector<MatmulIsa> found;
#ifdef FEWBITS_X86
    __builtin_cpu_init();
    const bool with_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    const bool with_avx512 = with_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    if (with_avx512 && __builtin_cpu_supports("avx512vnni") && (limit.empty() || limit.starts_with("avx512")))
        found.push_back({"avx512vnni", avx512vnni::matmul, avx512vnni::transformer});
    if (with_avx2 && has_avxvnni() && limit != "avx2" && limit != "portable")
        found.push_back({"avxvnni", avxvnni::matmul, avx2::transformer});
    if (with_avx2 && limit != "portable") found.push_back({"avx2", avx2::matmul, avx2::transformer});
#elif defined(FEWBITS_ARM64)
    if (limit != "portable") {
        if (has_dot_products() && limit != "neon")
            found.push_back({"neon_dotprod", neon_dotprod::matmul, neon::transformer});
        found.push_back({"neon", neon::matmul, neon::transformer});
    }
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
