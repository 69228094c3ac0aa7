#include "sampler.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <new>
#include <stdexcept>

namespace fewbits::engine {

namespace {

constexpr std::size_t kLanes = 16, kBlock = 1024, kGathered = 256;
constexpr std::size_t kStepsPerNat = 32, kSteps = 88 * kStepsPerNat;  // below the largest logit; beyond weights are 0
constexpr float kLowest = -std::numeric_limits<float>::infinity();

// Lanes, since no compiler may reorder a plain loop of comparisons. NaN never is larger.
float largest_of(const float* values, std::size_t count) {
    float lanes[kLanes];
    std::fill(lanes, lanes + kLanes, kLowest);
    std::size_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
        for (std::size_t lane = 0; lane < kLanes; ++lane)
            lanes[lane] = values[i + lane] > lanes[lane] ? values[i + lane] : lanes[lane];
    for (; i < count; ++i) lanes[0] = values[i] > lanes[0] ? values[i] : lanes[0];
    return *std::max_element(lanes, lanes + kLanes);
}

// exp of a number that is not positive, within 2e-7 of it; 0 below -87 and for NaN. Only operations that IEEE 754 defines to
// the last bit, so that all machines agree (compiled without contraction).
float exponential(float x) {
    const float inside = x > -87.0f ? x : -87.0f;
    const auto power = static_cast<std::int32_t>(inside * 1.44269504f - 0.5f);
    const auto n = static_cast<float>(power);
    const float r = (inside - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts; |r| <= ln 2 / 2
    float series = 1.0f / 5040;
    series = series * r + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    const float scale = std::bit_cast<float>((power + 127) << 23);
    return x > -87.0f ? series * scale : 0.0f;
}

// How many steps a logit is below the largest; the last one for all that are farther below, and for NaN.
std::int32_t step_below(float largest, float logit) {
    constexpr float kLast = static_cast<float>(kSteps - 1);
    const float steps = (largest - logit) * kStepsPerNat;
    return static_cast<std::int32_t>(steps < kLast ? steps : kLast);
}

double sum_of(const float* values, std::size_t count) {
    double lanes[kLanes] = {};
    std::size_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
        for (std::size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += values[i + lane];
    for (; i < count; ++i) lanes[0] += values[i];
    double sum = 0;
    for (const double lane : lanes) sum += lane;
    return sum;
}

bool better(const Candidate& a, const Candidate& b) {
    return (a.logit > b.logit) | ((a.logit == b.logit) & (a.token < b.token));  // no branch: it can't be foreseen
}

bool earlier(const Candidate& a, const Candidate& b) { return a.token < b.token; }

}  // namespace

std::int32_t largest_logit(const float* logits, std::size_t count) {
    float largest = kLowest;
    std::size_t found = 0;
    for (std::size_t first = 0; first < count; first += kBlock) {
        const float here = largest_of(logits + first, std::min(kBlock, count - first));
        if (here > largest) largest = here, found = first;
    }
    while (found + 1 < count && !(logits[found] == largest)) ++found;
    return static_cast<std::int32_t>(found);
}

std::int32_t Sampler::choose(const float* logits, std::size_t count, const std::int32_t* recent, std::size_t recent_count) {
    logits = penalized(logits, count, recent, recent_count);
    const std::int32_t best = count ? largest_logit(logits, count) : 0;
    if (!count || !std::isfinite(logits[best])) throw std::domain_error("no token has a finite logit");
    if (options_.temperature == 0 || options_.top_k == 1) return best;
    const float largest = logits[best];
    if (!narrow(logits, count, largest)) return static_cast<std::int32_t>(draw(logits, count, largest));
    kept_logits_.resize(kept_.size());
    std::transform(kept_.begin(), kept_.end(), kept_logits_.begin(), [](const Candidate& c) { return c.logit; });
    return kept_[draw(kept_logits_.data(), kept_.size(), largest)].token;
}

void choose_all(ThreadTeam& team, std::vector<Choice>& choices, std::size_t count) {
    std::atomic<bool> no_memory{false};
    const auto choose = [&](Choice& choice) {  // a team's work must not throw
        try {
            choice.token = choice.sampler->choose(choice.logits, count, choice.recent, choice.recent_count);
        } catch (const std::domain_error&) {
            choice.token = -1;
        } catch (...) {
            no_memory = true;
        }
    };
    if (choices.size() == 1) {
        choose(choices.front());
    } else {
        team.run([&](Member& member) {
            member.share(choices.size(), 1, [&](std::size_t first, std::size_t) { choose(choices[first]); });
        });
    }
    if (no_memory) throw std::bad_alloc();
}

const float* Sampler::penalized(const float* logits, std::size_t count, const std::int32_t* recent,
                                std::size_t recent_count) {
    const std::size_t used = std::min(recent_count, options_.repetition_window);
    if (options_.repetition_penalty == 1 || !used) return logits;
    recent_.assign(recent + (recent_count - used), recent + recent_count);
    std::sort(recent_.begin(), recent_.end());
    recent_.erase(std::unique(recent_.begin(), recent_.end()), recent_.end());
    logits_.assign(logits, logits + count);
    const auto penalty = static_cast<float>(options_.repetition_penalty);
    for (const std::int32_t token : recent_) {
        float& logit = logits_[static_cast<std::size_t>(token)];
        logit = logit > 0 ? logit / penalty : logit * penalty;
    }
    return logits_.data();
}

bool Sampler::narrow(const float* logits, std::size_t count, float largest) {
    kept_.clear();
    const bool by_rank = options_.top_k != 0 && options_.top_k < count;
    if (by_rank) keep_top_k(logits, count);
    if (by_rank && options_.top_p < 1) keep_top_p_of_kept(largest);
    if (!by_rank && options_.top_p < 1) keep_top_p(logits, count, largest);
    if (kept_.empty()) {
        if (options_.min_p == 0) return false;
        // A little below the limit, which the exponential draws exactly.
        gather(logits, count, largest + static_cast<float>(std::log(options_.min_p)) - 0.01f);
    }
    const auto min_p = static_cast<float>(options_.min_p);
    if (min_p > 0) std::erase_if(kept_, [&](const Candidate& c) { return exponential(c.logit - largest) < min_p; });
    if (by_rank) std::sort(kept_.begin(), kept_.end(), earlier);
    return true;
}

// A heap of the k best with the worst in front. Blocks without a better one, nearly all, are passed over at once.
void Sampler::keep_top_k(const float* logits, std::size_t count) {
    for (std::size_t first = 0; first < count; first += kGathered) {
        const std::size_t last = std::min(first + kGathered, count);
        const bool full = kept_.size() == options_.top_k;
        if (full && !(largest_of(logits + first, last - first) > kept_.front().logit)) continue;
        for (std::size_t i = first; i < last; ++i) {
            const Candidate candidate{logits[i], static_cast<std::int32_t>(i)};
            if (kept_.size() == options_.top_k) {
                if (!(candidate.logit > kept_.front().logit)) continue;  // equal: the lower token stays
                std::pop_heap(kept_.begin(), kept_.end(), better);
                kept_.back() = candidate;
            } else if (candidate.logit > kLowest) {
                kept_.push_back(candidate);
            } else {
                continue;
            }
            std::push_heap(kept_.begin(), kept_.end(), better);
        }
    }
}

void Sampler::gather(const float* logits, std::size_t count, float least) {
    gather_if(logits, count, least, [&](const Candidate&) { return true; });
}

// Blocks without a logit of `least` or more, most of them, are passed over at once. In the others nothing is branched on: which
// tokens are kept can't be foreseen.
template <typename Wanted>
void Sampler::gather_if(const float* logits, std::size_t count, float least, Wanted&& wanted) {
    kept_.clear();
    for (std::size_t first = 0; first < count; first += kGathered) {
        const std::size_t last = std::min(first + kGathered, count);
        if (largest_of(logits + first, last - first) < least) continue;
        Candidate found[kGathered];
        std::size_t size = 0;
        for (std::size_t i = first; i < last; ++i) {
            found[size] = {logits[i], static_cast<std::int32_t>(i)};
            size += static_cast<std::size_t>(logits[i] >= least) & static_cast<std::size_t>(wanted(found[size]));
        }
        kept_.insert(kept_.end(), found, found + size);
    }
}

void Sampler::keep_top_p_of_kept(float largest) {
    std::sort(kept_.begin(), kept_.end(), better);
    double wanted = 0, mass = 0;
    for (const Candidate& candidate : kept_) wanted += exponential(candidate.logit - largest);
    wanted *= options_.top_p;
    std::size_t size = 0;
    while (size < kept_.size() && (size == 0 || mass < wanted)) mass += exponential(kept_[size++].logit - largest);
    kept_.resize(size);
}

// Sorting all is slow. So probability is summed up by how far logits are below the largest, and only those are sorted among
// which the limit lies; the rest is told by comparing with the last of them that stays. Leaves tokens in their order.
void Sampler::keep_top_p(const float* logits, std::size_t count, float largest) {
    const auto step = [&](float logit) { return step_below(largest, logit); };
    double mass = 0, wanted = 0;
    const std::size_t edge = step_of_top_p(logits, count, largest, mass, wanted);
    const float least = largest - static_cast<float>(edge + 1) / kStepsPerNat - 0.01f;  // a few too many don't matter
    gather_if(logits, count, least, [&](const Candidate& c) { return step(c.logit) >= static_cast<std::int32_t>(edge); });
    std::sort(kept_.begin(), kept_.end(), better);
    std::size_t size = 0;
    const std::size_t fewest = edge == 0 ? 1 : 0;  // the best stays whatever p is
    while (size < kept_.size() && (size < fewest || mass < wanted)) mass += exponential(kept_[size++].logit - largest);
    if (size == 0) {  // rounding: those above the edge have it all
        gather_if(logits, count, least, [&](const Candidate& c) { return step(c.logit) < static_cast<std::int32_t>(edge); });
    } else {
        const Candidate worst = kept_[size - 1];
        gather_if(logits, count, worst.logit, [&](const Candidate& c) { return !better(worst, c); });
    }
}

// The step below the largest logit in which top-p's limit lies. `mass`: the probability (not normalised) of those above
// it, `wanted`: what top-p asks for.
std::size_t Sampler::step_of_top_p(const float* logits, std::size_t count, float largest, double& mass, double& wanted) {
    double by_step[kSteps] = {};
    for (std::size_t first = 0; first < count; first += kGathered) {
        const std::size_t size = std::min(kGathered, count - first);
        float weight[kGathered];
        std::int32_t step[kGathered];
        for (std::size_t i = 0; i < size; ++i) weight[i] = exponential(logits[first + i] - largest);
        for (std::size_t i = 0; i < size; ++i) step[i] = step_below(largest, logits[first + i]);
        for (std::size_t i = 0; i < size; ++i) by_step[step[i]] += weight[i];
    }
    for (const double part : by_step) wanted += part;
    wanted *= options_.top_p;
    std::size_t edge = 0;
    while (edge + 1 < kSteps && mass + by_step[edge] < wanted) mass += by_step[edge++];
    return edge;
}

std::size_t Sampler::draw(const float* logits, std::size_t count, float largest) {
    const auto inverse = static_cast<float>(std::min(1 / options_.temperature, 1e30));  // 0 times infinity is no number
    weights_.resize(count);
    for (std::size_t i = 0; i < count; ++i) weights_[i] = exponential((logits[i] - largest) * inverse);
    totals_.clear();
    double total = 0;
    for (std::size_t first = 0; first < count; first += kBlock) {
        const std::size_t last = std::min(first + kBlock, count);
        totals_.push_back(sum_of(weights_.data() + first, last - first));
        total += totals_.back();
    }
    double left = static_cast<double>(random_() >> 11) * 0x1p-53 * total;
    std::size_t block = 0;
    while (block + 1 < totals_.size() && left >= totals_[block]) left -= totals_[block++];
    std::size_t chosen = count;
    for (std::size_t i = block * kBlock; i < count; ++i) {
        if (weights_[i] == 0) continue;
        chosen = i;
        if (left < weights_[i]) return i;
        left -= weights_[i];
    }
    while (chosen == count || weights_[chosen] == 0) --chosen;  // rounding left a little over at the very end
    return chosen;
}

}  // namespace fewbits::engine
