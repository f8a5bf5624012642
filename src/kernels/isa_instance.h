// One instruction set as data; each is compiled in a file of its own, with its own flags.
#pragma once

#include "decode.h"
#include "outliers.h"
#include "product.h"
#include "rounding.h"
#include "statistics.h"

namespace roundel {
namespace {

template <class Isa>
constexpr InstructionSet instance(const char* name, bool (*present)()) {
  return {name,
          present,
          round_activations<Isa>,
          take_integers<Isa>,
          tile_statistics<Isa>,
          product_statistics<Isa>,
          product_of<Isa>,
          multiply_outliers<Isa>,
          decode_tile<Isa>,
          Isa::kMostTokens,
          round_learned<Isa>,
          descend<Isa>,
          choose_grids<Isa>,
          sum_codes<Isa>,
          search_grids<Isa>,
          round_columns<Isa>,
          fit_tile<Isa>,
          leave_one_out<Isa>};
}

}  // namespace
}  // namespace roundel
