// The instruction sets that this build has, and which of them this processor has.
#pragma once

#include "activations.h"
#include "best_grid.h"
#include "code_sums.h"
#include "error_feedback.h"
#include "grid_search.h"
#include "learned_rounding.h"
#include "matrix.h"
#include "two_level_fit.h"

namespace roundel {

// Rows 16 * number and the 15 behind them, with their statistics as floats.
struct Tile {
  int64_t number;
  float* scales;  // [groups, 16]
  float* zeros;   // [groups, 16], as they are stored, or the values of the middle codes
  float* levels;  // [4, groups]: steps and shifts of scales and of zero points that a tile shares
  // Outliers of the tile behind it, and how many cache lines of them: asked for while this one's codes are multiplied.
  const uint8_t* next_columns;
  const uint8_t* next_values;
  int64_t next_lines;
};

// Rounds the activations of a token; false: they are not finite, or 2^96 and more.
using Round = bool (*)(const Matrix&, const float* x, const Activations&);

// The same for integers in [-128, 127].
using Take = void (*)(const Matrix&, const int8_t* x, const Activations&);

// Fills in the statistics of a tile: as they are stored for `decode`, as products want them for these.
using Statistics = void (*)(const Matrix&, const Tile&);

// Products of a tile with `count` tokens: [count, 16].
using Product = void (*)(const Matrix&, const Tile&, const Activations*, float (*)[kTileRows]);

// Weights of rows FIRST to LAST, which lie in the tile: [rows, stride].
using Decode = void (*)(const Matrix&, const Tile&, int64_t first, int64_t last, float* to, int64_t stride);

// Adds a token's products with the outliers of the tile's rows to [16].
using AddOutliers = void (*)(const Matrix&, int64_t tile, const float* x, float* y);

// Of weights whose grids are not fixed yet, one row each.
using RoundLearned = void (*)(const LearnedRounding&, int64_t row, Number type, void* to);
using Descend = void (*)(const LearnedRounding&, int64_t row, Number type, const void* gradient, const Descent&);
using ChooseGrids = void (*)(const Candidates&, int64_t row);
using SumCodes = void (*)(const CodeSums&, int64_t row);
using SearchGrids = void (*)(const GridSearch&, int64_t row);

// Of kRowsAtOnce rows, or what is left.
using RoundColumns = void (*)(const ErrorFeedback&, int64_t first, int64_t last, int64_t row);

// Of one tile.
using FitTile = void (*)(const TwoLevelFit&, const FittedGrids&, int64_t tile, const TileRoom&);
using LeaveOneOutOfTile = void (*)(const LeaveOneOut&, int64_t tile, const TileRoom&);

struct InstructionSet {
  const char* name;
  bool (*present)();
  Round round;
  Take take;
  Statistics stored_statistics, product_statistics;
  Product (*product)(const Matrix&, Digits digits, int count);
  AddOutliers add_outliers;
  Decode decode;
  int most_tokens;  // at once
  RoundLearned round_learned;
  Descend descend;
  ChooseGrids choose_grids;
  SumCodes sum_codes;
  SearchGrids search_grids;
  RoundColumns round_columns;
  FitTile fit_tile;
  LeaveOneOutOfTile leave_one_out;
};

// Best first; the last one, "portable", is everywhere.
const InstructionSet* const* instruction_sets(int* count);

// The named one; null: it is not here. Without a name: the best that is present.
const InstructionSet* instruction_set(const char* name);

}  // namespace roundel
