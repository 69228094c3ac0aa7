#include <algorithm>
#include <cstring>

#include "forward.h"

namespace fewbits::engine {

// Queries of neighbouring rows and of the heads that share keys, against one head's cache.
struct Forward::Task {
    QueryRows rows;
    std::size_t kv_head, first_head, heads;  // query heads
    std::size_t begin, end;                  // positions that any of them sees

    std::size_t queries() const { return rows.count * heads; }
};

namespace {

std::size_t group_size(const Config& config) { return config.heads / config.kv_heads; }
// Groups of more heads than a call takes are split.
std::size_t splits(const Config& config) { return (group_size(config) + kAttendRows - 1) / kAttendRows; }

std::size_t tasks_of(const Config& config, const std::vector<QueryRows>& groups) {
    return groups.size() * config.kv_heads * splits(config);
}

// Stretches of the longest sequence.
std::size_t chunks_of(const Batch& batch, const std::vector<QueryRows>& groups) {
    std::size_t chunks = 0;
    for (const QueryRows& rows : groups)
        chunks = std::max(chunks, (batch.position[rows.row] + rows.count + kChunk - 1) / kChunk);
    return chunks;
}

// Few tasks over a long context are split along it; that changes who computes, not what.
bool are_split(std::size_t tasks, std::size_t chunks, std::size_t threads) { return tasks < 4 * threads && chunks >= 2; }

// Partial results of one stretch: peaks, sums and outs of all queries of a task.
std::size_t part_size(const Config& config) { return kAttendRows * (2 + config.padded_head()); }

}  // namespace

std::size_t Forward::parts_of(const Config& config, const Batch& batch, std::size_t threads) {
    std::size_t parts = 0;
    for (const std::vector<QueryRows>* groups : {&batch.groups, &batch.wanted_groups}) {
        const std::size_t tasks = tasks_of(config, *groups), chunks = chunks_of(batch, *groups);
        if (are_split(tasks, chunks, threads)) parts = std::max(parts, tasks * chunks);
    }
    return parts * part_size(config);
}

Forward::Task Forward::task_of(std::size_t b, std::size_t index) const {
    const std::size_t parts = splits(config_), per_group = config_.kv_heads * parts;
    Task task{groups(b)[index / per_group], index % per_group / parts, 0, 0, 0, 0};
    const std::size_t group = group_size(config_), part = index % parts, each = (group + parts - 1) / parts;
    task.first_head = task.kv_head * group + part * each;
    task.heads = std::min(each, group - part * each);
    const std::size_t first = batch_.position[task.rows.row], window = config_.window[b];
    task.end = first + task.rows.count;
    task.begin = window && first + 1 > window ? (first + 1 - window) / kTile * kTile : 0;
    return task;
}

// Biases, and norms over all heads, of a row's queries, keys and values.
void Forward::turn(std::size_t b, std::size_t row) {
    const Block& block = weights_.blocks[b];
    const std::size_t q = config_.query_size(), kv = config_.kv_size(), size = config_.head_size;
    float *query = scratch_.qkv + row * scratch_.qkv_size, *key = query + q;
    for (const Part& part : block.qkv)
        if (const float* bias = part.linear.bias)
            for (std::size_t i = 0; i < part.linear.rows; ++i) query[part.offset + i] += bias[i];
    if (block.query_norm_size > size) other_.rms_norm(query, block.query_norm, q, config_.epsilon, query);
    if (block.key_norm_size > size) other_.rms_norm(key, block.key_norm, kv, config_.epsilon, key);
    for (std::size_t h = 0; h < config_.kv_heads; ++h) turn_head(b, row, h);
}

// A head's own norms and rotation, of the queries and the key that belong together; key and value go to the cache.
void Forward::turn_head(std::size_t b, std::size_t row, std::size_t kv_head) {
    const Block& block = weights_.blocks[b];
    const std::size_t size = config_.head_size, group = group_size(config_), padded = config_.padded_head();
    float* query = scratch_.qkv + row * scratch_.qkv_size + kv_head * group * size;
    float* key = scratch_.qkv + row * scratch_.qkv_size + config_.query_size() + kv_head * size;
    float* value = key + config_.kv_size();
    const std::size_t r = config_.rope_of[b], half = config_.ropes[r].frequencies.size();
    const std::size_t at = row * scratch_.rope_offset.back() + scratch_.rope_offset[r];
    for (std::size_t h = 0; h <= group; ++h) {
        float* x = h < group ? query + h * size : key;
        const float* norm = h < group ? block.query_norm : block.key_norm;
        if (norm && (h < group ? block.query_norm_size : block.key_norm_size) == size)
            other_.rms_norm(x, norm, size, config_.epsilon, x);
        if (half) other_.rotate(x, rows_.cosines.data() + at, rows_.sines.data() + at, half, config_.interleaved);
    }
    const HeadCache cache = cache_.head(batch_.sequence[row], b, kv_head);
    if (padded == size) return other_.store(cache_.type, cache, size, batch_.position[row], key, value);
    float padded_key[kMaxHead] = {}, padded_value[kMaxHead] = {};
    std::memcpy(padded_key, key, size * sizeof(float));
    std::memcpy(padded_value, value, size * sizeof(float));
    other_.store(cache_.type, cache, padded, batch_.position[row], padded_key, padded_value);
}

void Forward::attend(std::size_t b) {
    const std::size_t tasks = tasks_of(config_, groups(b)), chunks = chunks_of(batch_, groups(b));
    const Block& block = weights_.blocks[b];
    const bool split = are_split(tasks, chunks, member_.size);
    // A single row's heads need nothing of each other, unless there are norms over all of them.
    const bool separate = alone_ && tasks && !split && splits(config_) == 1 && block.query_norm_size <= config_.head_size &&
                          std::none_of(block.qkv.begin(), block.qkv.end(), [](const Part& p) { return p.linear.bias; });
    if (!separate)
        share_rows(batch_.count, [&](std::size_t first, std::size_t last) {
            for (std::size_t row = first; row < last; ++row) turn(b, row);
        });
    if (split) return attend_split(b, chunks);
    member_.share(tasks, 1, [&](std::size_t index, std::size_t) {
        alignas(64) float part[kAttendRows * (2 + kMaxHead)];
        const Task task = task_of(b, index);
        if (separate) turn_head(b, 0, task.kv_head);
        finish(task, [&](std::size_t chunk) {
            attend_part(task, b, chunk, part);
            return part;
        });
    });
}

void Forward::attend_split(std::size_t b, std::size_t chunks) {
    const std::size_t size = part_size(config_), tasks = tasks_of(config_, groups(b));
    const auto part_of = [&](std::size_t index, std::size_t chunk) { return scratch_.parts.data() + (index * chunks + chunk) * size; };
    member_.share(tasks * chunks, 1, [&](std::size_t i, std::size_t) {
        const Task task = task_of(b, i / chunks);
        const std::size_t chunk = i % chunks;
        if (task.begin < (chunk + 1) * kChunk && chunk * kChunk < task.end) attend_part(task, b, chunk, part_of(i / chunks, chunk));
    });
    member_.share(tasks, 1, [&](std::size_t index, std::size_t) {
        finish(task_of(b, index), [&](std::size_t chunk) { return part_of(index, chunk); });
    });
}

// One chunk of positions: peaks, sums and outs of a task's queries into `part`.
void Forward::attend_part(const Task& task, std::size_t b, std::size_t chunk, float* part) const {
    const std::size_t padded = config_.padded_head(), size = config_.head_size, window = config_.window[b];
    alignas(64) float queries[kAttendRows * kMaxHead];
    std::size_t first[kAttendRows], last[kAttendRows], r = 0;
    for (std::size_t i = 0; i < task.rows.count; ++i)
        for (std::size_t h = 0; h < task.heads; ++h, ++r) {
            const std::size_t row = task.rows.row + i, position = batch_.position[row];
            const float* query = scratch_.qkv + row * scratch_.qkv_size + (task.first_head + h) * size;
            for (std::size_t d = 0; d < size; ++d) queries[r * padded + d] = query[d] * config_.attention_factor;
            for (std::size_t d = size; d < padded; ++d) queries[r * padded + d] = 0;
            last[r] = position + 1;
            first[r] = window && position + 1 > window ? position + 1 - window : 0;
        }
    Attention call{};
    call.type = cache_.type;
    call.cache = cache_.head(task.rows.sequence, b, task.kv_head);
    call.size = padded;
    call.begin = std::max(task.begin, chunk * kChunk);
    call.end = std::min(task.end, (chunk + 1) * kChunk);
    call.rows = r;
    call.queries = queries, call.first = first, call.last = last;
    call.cap = config_.attention_cap;
    call.peak = part, call.sum = part + kAttendRows, call.out = part + 2 * kAttendRows;
    other_.attend(call);
}

// All chunks of a task together, to the rows of `attended`. part_of(chunk) gives a chunk's results.
template <typename PartOf>
void Forward::finish(const Task& task, PartOf&& part_of) {
    const std::size_t padded = config_.padded_head(), size = config_.head_size;
    float peak[kAttendRows] = {}, sum[kAttendRows] = {};
    alignas(64) float out[kAttendRows * kMaxHead];
    std::memset(out, 0, task.queries() * padded * sizeof(float));
    for (std::size_t chunk = task.begin / kChunk; chunk * kChunk < task.end; ++chunk) {
        const float* part = part_of(chunk);
        other_.merge(task.queries(), padded, peak, sum, out, part, part + kAttendRows, part + 2 * kAttendRows);
    }
    for (std::size_t i = 0, r = 0; i < task.rows.count; ++i)
        for (std::size_t h = 0; h < task.heads; ++h, ++r) {
            float* to = scratch_.attended + (task.rows.to + i) * config_.query_size() + (task.first_head + h) * size;
            for (std::size_t d = 0; d < size; ++d) to[d] = out[r * padded + d] / sum[r];
        }
}

}  // namespace fewbits::engine
