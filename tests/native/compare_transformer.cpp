// Whether instruction sets norm, gate, rotate, cache and attend as the portable kernels do. Prints a line for each; exits with 1
// if some differ by more than the rounding of sums.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/transformer.h"

namespace {

using namespace fewbits;
using Floats = std::vector<float>;

std::mt19937 generator(1);

Floats numbers(std::size_t count, float most = 1) {
    Floats found(count);
    for (float& number : found) number = most * (static_cast<float>(generator() % 20001) / 10000 - 1);
    return found;
}

// Largest difference, in units of the root mean square of all numbers.
double distance(const Floats& a, const Floats& b) {
    double most = 0, squares = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        if (std::isnan(a[i]) || std::isnan(b[i])) return INFINITY;
        if (a[i] != b[i]) most = std::fmax(most, std::fabs(a[i] - b[i]));
        squares += static_cast<double>(a[i]) * a[i];
    }
    return most == 0 ? 0 : most / std::sqrt(squares / static_cast<double>(a.size()));
}

// What a kernel makes of the same arguments.
using Run = std::function<Floats(const TransformerKernels&)>;

struct Check {
    std::string name;
    Run run;
    double allowed = 1e-5;
};

void add_rows(std::vector<Check>& checks) {
    for (const std::size_t size : {1, 5, 15, 16, 17, 40, 64, 577}) {
        const std::string name = std::to_string(size) + " numbers: ";
        const Floats x = numbers(size, 3), y = numbers(size), wide = numbers(size, 150);
        checks.push_back({name + "norm", [=](const TransformerKernels& k) {
                              Floats out(size);
                              k.rms_norm(x.data(), y.data(), size, 1e-5f, out.data());
                              return out;
                          }});
        checks.push_back({name + "sum", [=](const TransformerKernels& k) {
                              Floats out = x;
                              k.add_scaled(out.data(), y.data(), 0.7f, size);
                              k.scale(out.data(), 1.3f, size);
                              return out;
                          }});
        for (const Floats& gate : {x, wide})
            for (const bool gelu : {false, true})
                checks.push_back({name + (gelu ? "gelu" : "silu"), [=](const TransformerKernels& k) {
                                      Floats out(size);
                                      k.gate(gate.data(), y.data(), size, gelu, out.data());
                                      return out;
                                  }});
        checks.push_back({name + "cap", [=](const TransformerKernels& k) {
                              Floats out = wide;
                              k.soft_cap(out.data(), 30.0f, size);
                              return out;
                          }});
        for (const bool interleaved : {false, true})
            checks.push_back({name + "rotation", [=](const TransformerKernels& k) {
                                  const std::size_t half = size / 2;
                                  const Floats cosines(y.begin(), y.begin() + static_cast<std::ptrdiff_t>(half));
                                  Floats out = x, sines = cosines;
                                  for (float& sine : sines) sine = std::sqrt(1 - sine * sine);
                                  k.rotate(out.data(), cosines.data(), sines.data(), half, interleaved);
                                  return out;
                              }});
    }
}

// A head's keys and values, as `kernels` store them.
struct Cache {
    Cache(const TransformerKernels& kernels, CacheType type, std::size_t size, std::size_t positions, const Floats& from) {
        const std::size_t rounded = (positions + kTile - 1) / kTile * kTile, scales = scale_count(type, size, rounded);
        codes[0].resize(code_bytes(type, size, rounded)), codes[1] = codes[0];
        factors[0].resize(scales), factors[1].resize(scales);
        for (std::size_t i = 0; i < positions; ++i)
            kernels.store(type, head(), size, i, from.data() + 2 * i * size, from.data() + (2 * i + 1) * size);
    }
    HeadCache head() { return {codes[0].data(), codes[1].data(), factors[0].data(), factors[1].data()}; }

    std::vector<std::uint8_t> codes[2];
    Floats factors[2];
};

constexpr std::size_t kPositions = 413;

Floats stored(const TransformerKernels& kernels, CacheType type, std::size_t size, const Floats& from) {
    const Cache cache(kernels, type, size, kPositions, from);
    Floats found;
    for (const auto& part : cache.codes) found.insert(found.end(), part.begin(), part.end());
    for (const Floats& part : cache.factors) found.insert(found.end(), part.begin(), part.end());
    return found;
}

// All chunks of a cache, merged. Rows see windows of several lengths, the last all positions.
Floats attended(const TransformerKernels& kernels, CacheType type, std::size_t size, std::size_t rows, float cap, const Floats& from,
                const Floats& queries) {
    Cache cache(portable::transformer, type, size, kPositions, from);
    std::vector<std::size_t> first(rows), last(rows);
    for (std::size_t r = 0; r < rows; ++r) last[r] = kPositions - (rows - 1 - r), first[r] = r % 3 ? last[r] - 1 - r * 8 : 0;
    Floats peak(rows), sum(rows), out(rows * size), part_peak(rows), part_sum(rows), part_out(rows * size);
    for (std::size_t begin = 0; begin < kPositions; begin += kChunk) {
        kernels.attend({type, cache.head(), size, begin, std::min(begin + kChunk, kPositions), rows, queries.data(), first.data(),
                        last.data(), cap, part_peak.data(), part_sum.data(), part_out.data()});
        kernels.merge(rows, size, peak.data(), sum.data(), out.data(), part_peak.data(), part_sum.data(), part_out.data());
    }
    for (std::size_t i = 0; i < out.size(); ++i) out[i] /= sum[i / size];
    return out;
}

void add_attention(std::vector<Check>& checks) {
    const char* const names[] = {"f16", "q8", "q4"};
    for (const CacheType type : {CacheType::kF16, CacheType::kQ8, CacheType::kQ4})
        for (const std::size_t size : {16, 48, 64, 80, 512}) {
            const std::string name = std::string(names[static_cast<int>(type)]) + ", heads of " + std::to_string(size) + ": ";
            const Floats from = numbers(2 * kPositions * size, 2);
            checks.push_back({name + "cache", [=](const TransformerKernels& k) { return stored(k, type, size, from); }, 0});
            for (const std::size_t rows : {1, 3, 6, 11, 48})
                for (const float cap : {0.0f, 5.0f}) {
                    const Floats queries = numbers(rows * size, 4.0f / std::sqrt(static_cast<float>(size)));
                    checks.push_back({name + std::to_string(rows) + " rows", [=](const TransformerKernels& k) {
                                          return attended(k, type, size, rows, cap, from, queries);
                                      }});
                }
        }
}

}  // namespace

int main() {
    std::vector<std::pair<const char*, const TransformerKernels*>> isas;
#if defined(__aarch64__)
    isas.push_back({"neon", &neon::transformer});
#else
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) isas.push_back({"avx2", &avx2::transformer});
    if (__builtin_cpu_supports("avx512vnni")) isas.push_back({"avx512vnni", &avx512vnni::transformer});
#endif
    std::vector<Check> checks;
    add_rows(checks);
    add_attention(checks);
    bool same = true;
    double most = 0;
    for (const Check& check : checks) {
        const Floats expected = check.run(portable::transformer);
        for (const auto& [isa, kernels] : isas) {
            const double found = distance(expected, check.run(*kernels));
            most = std::max(most, found);
            if (found <= check.allowed) continue;
            std::printf("%s, %s: %g\n", isa, check.name.c_str(), found);
            same = false;
        }
    }
    std::printf("%zu checks of %zu instruction sets, %g at most\n", checks.size(), isas.size(), most);
    return same ? 0 : 1;
}
