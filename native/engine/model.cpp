#include "model.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

#include "batch.h"
#include "forward.h"

namespace fewbits::engine {

namespace {

// Those of these rows that are neighbours in one sequence, as many as attention takes together.
std::vector<QueryRows> group_rows(const Config& config, const Batch& batch, const std::vector<std::size_t>& rows) {
    const std::size_t most = std::max<std::size_t>(1, kAttendRows / (config.heads / config.kv_heads));
    std::vector<QueryRows> groups;
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const std::size_t row = rows[i], sequence = batch.sequence[row];
        const QueryRows* last = groups.empty() ? nullptr : &groups.back();
        if (!last || last->sequence != sequence || last->row + last->count != row || last->count == most)
            groups.push_back({sequence, row, 0, i});
        ++groups.back().count;
    }
    return groups;
}

}  // namespace

Model::Model(Config config, const Tensors& tensors, Kernels kernels, std::size_t threads, std::size_t context,
             std::size_t sequences, CacheType cache, bool mapped)
    : config_((require_sound(config), std::move(config))), context_(context), team_(threads), weights_(config_, tensors, team_, mapped),
      cache_(cache, config_.blocks, config_.kv_heads, config_.padded_head(), context, sequences), lengths_(sequences),
      scratch_(std::make_unique<Scratch>(config_, weights_, team_.size())), kernels_(kernels) {}

Model::~Model() = default;

void Model::require(const std::int32_t* sequences, const std::int32_t* tokens, std::size_t count, const std::int32_t* wanted,
                    std::size_t wanted_count) const {
    std::vector<std::size_t> lengths = lengths_;
    for (std::size_t i = 0; i < count; ++i) {
        if (sequences[i] < 0 || static_cast<std::size_t>(sequences[i]) >= lengths.size())
            throw std::invalid_argument("there is no sequence " + std::to_string(sequences[i]) + ": the slots are 0 to " +
                                        std::to_string(lengths.size() - 1));
        if (tokens[i] < 0 || static_cast<std::size_t>(tokens[i]) >= config_.vocabulary)
            throw std::invalid_argument("there is no token " + std::to_string(tokens[i]) + ": the vocabulary has 0 to " +
                                        std::to_string(config_.vocabulary - 1));
        if (++lengths[static_cast<std::size_t>(sequences[i])] > context_)
            throw std::invalid_argument("sequence " + std::to_string(sequences[i]) + " would be longer than the context of " +
                                        std::to_string(context_) + " tokens");
    }
    for (std::size_t i = 0; i < wanted_count; ++i)
        if (wanted[i] < 0 || static_cast<std::size_t>(wanted[i]) >= count || (i && wanted[i] <= wanted[i - 1]))
            throw std::invalid_argument("wanted places must be ascending and below the number of tokens");
}

void Model::step(const std::int32_t* sequences, const std::int32_t* tokens, std::size_t count, const std::int32_t* wanted,
                 std::size_t wanted_count, float* logits) {
    require(sequences, tokens, count, wanted, wanted_count);
    const std::vector<std::size_t> before = lengths_;
    try {
        run(sequences, tokens, count, wanted, wanted_count, logits);
    } catch (...) {  // no memory
        lengths_ = before;
        throw;
    }
}

void Model::run(const std::int32_t* sequences, const std::int32_t* tokens, std::size_t count, const std::int32_t* wanted,
                std::size_t wanted_count, float* logits) {
    std::size_t given = 0;
    for (std::size_t first = 0; first < count; first += kBatch) {
        Batch batch;
        batch.count = std::min(kBatch, count - first);
        batch.tokens = tokens + first;
        for (std::size_t i = first; i < first + batch.count; ++i) {
            const auto sequence = static_cast<std::size_t>(sequences[i]);
            batch.sequence.push_back(sequence);
            batch.position.push_back(lengths_[sequence]++);
        }
        batch.logits = logits + given * config_.vocabulary;
        for (; given < wanted_count && static_cast<std::size_t>(wanted[given]) < first + batch.count; ++given)
            batch.wanted.push_back(static_cast<std::size_t>(wanted[given]) - first);
        std::vector<std::size_t> all(batch.count);
        std::iota(all.begin(), all.end(), std::size_t{0});
        batch.groups = group_rows(config_, batch, all);
        batch.wanted_groups = group_rows(config_, batch, batch.wanted);
        // Here, since threads must not throw.
        scratch_->parts.resize(std::max(scratch_->parts.size(), Forward::parts_of(config_, batch, team_.size())));
        team_.run([&](Member& member) {
            Forward(config_, weights_, cache_, kernels_, *scratch_, batch, member).run();
        });
    }
}

void Model::truncate(std::size_t sequence, std::size_t length) {
    std::size_t& own = lengths_.at(sequence);
    if (length > own)
        throw std::invalid_argument("sequence " + std::to_string(sequence) + " has " + std::to_string(own) + " positions, not " +
                                    std::to_string(length));
    own = length;
}

void Model::copy(std::size_t source, std::size_t target, std::size_t length) {
    if (length > lengths_.at(source) || target >= lengths_.size())
        throw std::invalid_argument("there is nothing of that length to copy, or no such sequence");
    if (source != target) cache_.copy(source, target, length);
    lengths_[target] = length;
}

std::size_t Model::bytes() const {
    std::size_t found = weights_.bytes();
    for (const std::size_t length : lengths_) found += cache_.bytes(length);
    return found + scratch_->bytes();
}

}  // namespace fewbits::engine
