#include "grids.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "threads.h"

namespace roundel {
namespace {

// A task should be long beside the taking of it, and tasks many beside the threads.
constexpr int64_t kTaskWeights = 1 << 14;
// Of those for which many grids are tried.
constexpr int64_t kTaskTries = 1 << 12;

// work(first, last) of parts of [0, count), which have so many weights each, or one.
template <class Work>
void in_tasks(int64_t count, int64_t weights, int64_t of_task, int threads, const Work& work) {
  const int64_t step = std::max<int64_t>(1, of_task / std::max<int64_t>(1, weights));
  parallel((count + step - 1) / step, threads,
           [&](int64_t task) { work(task * step, std::min((task + 1) * step, count)); });
}

template <class Work>
void for_rows(const Groups& shape, int threads, const Work& work) {
  in_tasks(shape.rows, shape.columns, kTaskWeights, threads, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) work(row);
  });
}

template <class Work>
void for_tiles(const TwoLevelFit& f, int threads, const Work& work) {
  const int64_t tiles = (f.rows + f.tile_rows - 1) / f.tile_rows, weights = f.columns * f.tile_rows;
  in_tasks(tiles, weights, kTaskTries, threads, [&](int64_t first, int64_t last) {
    std::vector<float> columns(kTileMatrices * weights), rows(kTileRowsOfNumbers * f.tile_rows);
    std::vector<int64_t> places(2 * f.tile_rows);
    const TileRoom room{columns.data(), rows.data(), places.data()};
    for (int64_t tile = first; tile < last; ++tile) work(tile, room);
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
  for_tiles(f, threads, [&](int64_t tile, const TileRoom& room) { with.fit_tile(f, to, tile, room); });
}

void leave_one_out(const LeaveOneOut& l, int threads, const InstructionSet& with) {
  for_tiles(l.fit, threads, [&](int64_t tile, const TileRoom& room) { with.leave_one_out(l, tile, room); });
}

void round_columns(const ErrorFeedback& r, int64_t first, int64_t last, int threads, const InstructionSet& with) {
  if (last - first > kMostColumns) throw std::invalid_argument("too many columns at once");
  const int64_t tasks = (r.rows + kRowsAtOnce - 1) / kRowsAtOnce;
  parallel(tasks, threads, [&](int64_t task) { with.round_columns(r, first, last, task * kRowsAtOnce); });
}

}  // namespace roundel
