// Models from arbitrary files: loading them, then steps, forgetting and copying with arbitrary arguments.
#include <new>
#include <stdexcept>

#include "../kernels/matmul.h"
#include "expect.h"
#include "small_model.h"

namespace {

using fewbits::CacheType;
using fewbits::MatmulIsa;
using fewbits::engine::Model;
using fewbits::fuzz::Choices;
using fewbits::fuzz::Exactly;
using fewbits::fuzz::SmallModel;

std::vector<std::size_t> lengths_of(const Model& model) {
    std::vector<std::size_t> found;
    for (std::size_t i = 0; i < model.sequences(); ++i) found.push_back(model.length(i));
    return found;
}

// A number that mostly is one of the first `count`.
std::int32_t nearly_below(Choices& choices, std::size_t count) {
    return choices.rarely() ? static_cast<std::int32_t>(choices.word()) : static_cast<std::int32_t>(choices.below(count));
}

void step(Choices& choices, Model& model) {
    const std::size_t count = choices.rarely() ? choices.below(700) : choices.below(20);
    Exactly<std::int32_t> sequences(count), tokens(count);
    const bool one = choices.byte() & 1;
    for (std::size_t i = 0; i < count; ++i) {
        sequences[i] = one ? 0 : nearly_below(choices, model.sequences());
        tokens[i] = nearly_below(choices, model.config().vocabulary);
    }
    std::vector<std::int32_t> some;
    for (std::size_t i = 0; i < count; ++i)
        if (choices.byte() & 1 || choices.rarely()) some.push_back(choices.rarely() ? nearly_below(choices, count) : static_cast<std::int32_t>(i));
    Exactly<std::int32_t> wanted(some.size());
    std::copy(some.begin(), some.end(), wanted.data());
    const Exactly<float> logits(some.size() * model.config().vocabulary);
    const std::vector<std::size_t> before = lengths_of(model);
    try {
        model.step(sequences.data(), tokens.data(), count, wanted.data(), some.size(), logits.data());
    } catch (const std::invalid_argument&) {
        FEWBITS_EXPECT(lengths_of(model) == before);
        return;
    }
    std::size_t total = 0;
    for (const std::size_t length : lengths_of(model)) total += length;
    for (const std::size_t length : before) total -= length;
    FEWBITS_EXPECT(total == count);
}

void use(Choices& choices, Model& model) {
    for (std::size_t i = choices.between(1, 6); i; --i) {
        const std::size_t sequence = choices.below(model.sequences()), other = choices.below(model.sequences() + 1);
        const std::size_t length = choices.rarely() ? choices.extreme() : choices.below(model.length(sequence) + 2);
        try {
            switch (choices.below(5)) {
                case 0: model.truncate(sequence, length); break;
                case 1: model.copy(sequence, other, length); break;
                default: step(choices, model);
            }
        } catch (const std::invalid_argument&) {
        }
        for (const std::size_t held : lengths_of(model)) FEWBITS_EXPECT(held <= model.context());
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Choices choices(data, size);
    const std::vector<MatmulIsa>& isas = fewbits::matmul_isas();
    const MatmulIsa& isa = isas[choices.below(isas.size())];
    const CacheType cache = choices.one_of({CacheType::kF16, CacheType::kQ8, CacheType::kQ4});
    const std::size_t threads = choices.byte() % 4 ? 1 : choices.between(2, 3), sequences = choices.between(1, 3);
    const std::size_t context = choices.rarely() ? choices.extreme() : choices.between(1, 300) * choices.between(1, 3);
    const bool damaged = choices.byte() % 3 == 0;
    SmallModel small(choices, damaged);
    try {
        Model model(small.config, small.tensors, {isa.kernels, isa.transformer}, threads, context, sequences, cache);
        use(choices, model);
    } catch (const std::invalid_argument&) {
        FEWBITS_EXPECT(damaged || context > 1000);
    } catch (const std::bad_alloc&) {
        FEWBITS_EXPECT(context > 1000);
    }
    return 0;
}
