// The sampler with arbitrary logits and options: it throws, or chooses a token that may be chosen.
#include <cmath>
#include <limits>
#include <stdexcept>

#include "../engine/sampler.h"
#include "choices.h"
#include "expect.h"

namespace {

using fewbits::engine::Sampler;
using fewbits::engine::Sampling;
using fewbits::fuzz::Choices;
using fewbits::fuzz::Exactly;

// As the binding allows them.
Sampling options_of(Choices& choices) {
    constexpr double kTiny = std::numeric_limits<double>::denorm_min(), kHuge = std::numeric_limits<double>::max();
    return {.temperature = choices.one_of({0.0, 1.0, 0.7, 100.0, kTiny, kHuge, std::numeric_limits<double>::infinity()}),
            .top_k = choices.rarely() ? choices.extreme() : choices.below(50),
            .top_p = choices.one_of({1.0, 0.9, 0.5, kTiny, 0.999999}),
            .min_p = choices.one_of({0.0, 0.05, 1.0, kTiny}),
            .repetition_penalty = choices.one_of({1.0, 1.1, 0.5, kTiny, kHuge}),
            .repetition_window = choices.rarely() ? choices.extreme() : choices.below(40),
            .seed = choices.word()};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Choices choices(data, size);
    Sampler sampler(options_of(choices));
    const std::size_t count = choices.rarely() ? choices.below(5000) : choices.below(100);
    const Exactly<float> logits(count);
    if (choices.byte() & 1) choices.fill(reinterpret_cast<std::uint8_t*>(logits.data()), count * sizeof(float));
    else
        for (std::size_t i = 0; i < count; ++i) logits[i] = choices.number() * 20;
    const Exactly<std::int32_t> recent(count ? choices.below(60) : 0);
    for (std::size_t i = 0; i < recent.size(); ++i) recent[i] = static_cast<std::int32_t>(choices.below(count));
    for (int i = 0; i < 4; ++i) {
        try {
            const std::int32_t token = sampler.choose(logits.data(), count, recent.data(), recent.size());
            FEWBITS_EXPECT(token >= 0 && static_cast<std::size_t>(token) < count && !std::isnan(logits[static_cast<std::size_t>(token)]));
        } catch (const std::domain_error&) {
        }
    }
    return 0;
}
