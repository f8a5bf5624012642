#include "grids.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "threads.h"

namespace roundel {
namespace {

// A task should be long beside the taking of it, and tasks many beside the threads.
constexpr int64_t kTaskWeights = 1 << 14;

template <class Work>
void for_rows(const Groups& shape, int threads, const Work& work) {
  const int64_t step = std::max<int64_t>(1, kTaskWeights / std::max<int64_t>(1, shape.columns));
  parallel((shape.rows + step - 1) / step, threads, [&](int64_t task) {
    const int64_t end = std::min((task + 1) * step, shape.rows);
    for (int64_t row = task * step; row < end; ++row) work(row);
  });
}

template <class Work>
void for_tiles(const TwoLevelFit& f, int threads, const Work& work) {
  const int64_t tiles = (f.rows + kLanes - 1) / kLanes;
  const int64_t step = std::max<int64_t>(1, kTaskWeights / 4 / std::max<int64_t>(1, f.columns * kLanes));
  parallel((tiles + step - 1) / step, threads, [&](int64_t task) {
    std::vector<float> scratch(f.columns * kTileFitScratch);
    const int64_t end = std::min((task + 1) * step, tiles);
    for (int64_t tile = task * step; tile < end; ++tile) work(tile, scratch.data());
  });
}

}  // namespace

void round_learned(const LearnedRounding& r, Number type, void* to, int threads, const InstructionSet& with) {
  for_rows(r.shape, threads, [&](int64_t row) { with.round_learned(r, row, type, to); });
}

void descend(const LearnedRounding& r, Number type, const void* gradient, const Descent& descent, int threads,
             const InstructionSet& with) {
  for_rows(r.shape, threads, [&](int64_t row) { with.descend(r, row, type, gradient, descent); });
}

void choose_grids(const Candidates& c, int threads, const InstructionSet& with) {
  for_rows(c.shape, threads, [&](int64_t row) { with.choose_grids(c, row); });
}

void sum_codes(const CodeSums& c, int threads, const InstructionSet& with) {
  for_rows(c.shape, threads, [&](int64_t row) { with.sum_codes(c, row); });
}

void search_grids(const GridSearch& s, int threads, const InstructionSet& with) {
  for_rows(s.shape, threads, [&](int64_t row) { with.search_grids(s, row); });
}

void fit_two_levels(const TwoLevelFit& f, const FittedGrids& to, int threads, const InstructionSet& with) {
  for_tiles(f, threads, [&](int64_t tile, float* scratch) { with.fit_tile(f, to, tile, scratch); });
}

void leave_one_out(const LeaveOneOut& l, int threads, const InstructionSet& with) {
  for_tiles(l.fit, threads, [&](int64_t tile, float* scratch) { with.leave_one_out(l, tile, scratch); });
}

void round_columns(const ErrorFeedback& r, int64_t first, int64_t last, int threads, const InstructionSet& with) {
  if (last - first > kMostColumns) throw std::invalid_argument("too many columns at once");
  const int64_t tasks = (r.rows + kRowsAtOnce - 1) / kRowsAtOnce;
  parallel(tasks, threads, [&](int64_t task) { with.round_columns(r, first, last, task * kRowsAtOnce); });
}

}  // namespace roundel
