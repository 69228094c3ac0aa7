// What libFuzzer's main does, without its guidance, for compilers that don't have it: seeded random inputs for some seconds, or
// the inputs in the files that are named. Takes -max_total_time, -seed, -artifact_prefix as libFuzzer does.
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include <sanitizer/common_interface_defs.h>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

constexpr std::size_t kMostBytes = 512;
std::vector<std::uint8_t> input;
std::string artifact_prefix;

void keep_input() {
    const std::string path = artifact_prefix + "crash";
    std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(input.data()), static_cast<std::streamsize>(input.size()));
    std::fprintf(stderr, "the input is in %s\n", path.c_str());
}

void run() { LLVMFuzzerTestOneInput(input.data(), input.size()); }

void run_random(std::uint32_t seed, double seconds) {
    std::mt19937 random(seed);
    const auto start = std::chrono::steady_clock::now();
    const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
    unsigned long runs = 0;
    for (; elapsed() < seconds; ++runs) {
        input.resize(random() % kMostBytes + 1);
        // Rare choices are rare: half of the inputs have none of them.
        const std::uint32_t most = runs % 2 ? 256 : 251;
        for (std::uint8_t& byte : input) byte = static_cast<std::uint8_t>(random() % most);
        run();
    }
    std::printf("Done %lu runs in %.0f second(s)\n", runs, elapsed());
}

}  // namespace

int main(int count, char** arguments) {
    std::uint32_t seed = 1;
    double seconds = 600;
    std::vector<std::string> files;
    for (int i = 1; i < count; ++i) {
        const std::string argument = arguments[i];
        const std::string value = argument.substr(argument.find('=') + 1);
        if (argument.rfind("-max_total_time=", 0) == 0) seconds = std::atof(value.c_str());
        else if (argument.rfind("-seed=", 0) == 0) seed = static_cast<std::uint32_t>(std::atol(value.c_str()));
        else if (argument.rfind("-artifact_prefix=", 0) == 0) artifact_prefix = value;
        else if (argument[0] != '-') files.push_back(argument);
    }
    __sanitizer_set_death_callback(keep_input);
    for (const std::string& path : files) {
        std::ifstream file(path, std::ios::binary);
        input.assign(std::istreambuf_iterator<char>(file), {});
        run();
    }
    if (files.empty()) run_random(seed, seconds);
    return 0;
}
