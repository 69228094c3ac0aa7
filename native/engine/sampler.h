// Chooses the next token from logits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "thread_team.h"

namespace fewbits::engine {

struct Sampling {
    double temperature;         // 0: the most likely token
    std::size_t top_k;          // 0: all
    double top_p;               // 1: all
    double min_p;               // 0: all
    double repetition_penalty;  // 1: none
    std::size_t repetition_window;
    std::uint64_t seed;
};

struct Candidate {
    float logit;
    std::int32_t token;
};

// In this order, which is llama.cpp's:
//   1. Each token among the last `repetition_window` has its logit divided by the penalty if positive, else multiplied (CTRL,
//      arXiv 1909.05858; transformers' and llama.cpp's definition).
//   2. top-k: the k largest logits stay; of equal ones the lower token.
//   3. top-p: of these the fewest that together have p of their probability (arXiv 1904.09751).
//   4. min-p: those with p times the largest probability or more (arXiv 2407.01082).
//   5. One is drawn from softmax(logits / temperature) of what stays.
// Equal on every machine: the number is std::mt19937_64's upper 53 bits over 2^53, and the exponential is our own.
// Not to be used by two threads at a time.
class Sampler {
public:
    explicit Sampler(const Sampling& options) : options_(options), random_(options.seed) {}

    // `recent`: tokens so far, the last ones at the end, each below `count`. NaN counts as minus infinity.
    // Throws std::domain_error if the largest logit is not finite.
    std::int32_t choose(const float* logits, std::size_t count, const std::int32_t* recent, std::size_t recent_count);

private:
    const float* penalized(const float* logits, std::size_t count, const std::int32_t* recent, std::size_t recent_count);
    // Whether any logits were left out; the rest is in `kept_`, in the order of tokens.
    bool narrow(const float* logits, std::size_t count, float largest);
    void keep_top_k(const float* logits, std::size_t count);
    void gather(const float* logits, std::size_t count, float least);  // all logits of `least` or more
    template <typename Wanted>
    void gather_if(const float* logits, std::size_t count, float least, Wanted&& wanted);
    void keep_top_p_of_kept(float largest);
    void keep_top_p(const float* logits, std::size_t count, float largest);
    std::size_t step_of_top_p(const float* logits, std::size_t count, float largest, double& mass, double& wanted);
    std::size_t draw(const float* logits, std::size_t count, float largest);

    Sampling options_;
    std::mt19937_64 random_;
    std::vector<Candidate> kept_;
    std::vector<float> logits_, weights_, kept_logits_;
    std::vector<double> totals_;
    std::vector<std::int32_t> recent_;
};

// What one token is chosen by, and then the token.
struct Choice {
    Sampler* sampler;  // no other choice's
    const float* logits;
    const std::int32_t* recent;
    std::size_t recent_count;
    std::int32_t token;  // -1 if no logit is finite
};

// Chooses each token, from `count` logits, in whichever thread of the team is free. Throws std::bad_alloc.
void choose_all(ThreadTeam& team, std::vector<Choice>& choices, std::size_t count);

// The first of the largest logits; NaN counts as minus infinity.
std::int32_t largest_logit(const float* logits, std::size_t count);

}  // namespace fewbits::engine
