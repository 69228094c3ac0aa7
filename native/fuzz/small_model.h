// Small models of arbitrary shapes, types and contents.
#pragma once

#include <string>
#include <vector>

#include "../engine/model.h"
#include "choices.h"

namespace fewbits::fuzz {

struct SmallModel {
    engine::Config config;
    engine::Tensors tensors;

    // Sound, unless `damage` says otherwise.
    SmallModel(Choices& choices, bool damage);

  private:
    void add(Choices& choices, const std::string& name, std::size_t rows, std::size_t columns, bool vector = false);
    void add_block(Choices& choices, const std::string& prefix);
    void add_feed_forward(Choices& choices, const std::string& prefix);
    void damage_tensor(Choices& choices);
    void damage_config(Choices& choices);

    std::vector<Exactly<std::uint8_t>> held_;
};

}  // namespace fewbits::fuzz
