// Weights whose grids are not fixed yet, by as many threads as there are: rows are independent of each other.
#pragma once

#include "instruction_sets.h"

namespace roundel {

// The weights on their grids, [rows, columns] of float or of bfloat16.
void round_learned(const LearnedRounding& r, Number type, void* to, int threads, const InstructionSet& with);

// One signed step of the rounding offsets from the gradient of the rounded weights, [rows, columns] of float or of
// bfloat16; with the gradients of scales and zero points.
void descend(const LearnedRounding& r, Number type, const void* gradient, const Descent& descent, int threads,
             const InstructionSet& with);

// The best of several grids for every group.
void choose_grids(const Candidates& c, int threads, const InstructionSet& with);

// Sums over the codes of every group.
void sum_codes(const CodeSums& c, int threads, const InstructionSet& with);

// The searched grid of every group.
void search_grids(const GridSearch& s, int threads, const InstructionSet& with);

// The grids of a group of columns on two levels.
void fit_two_levels(const TwoLevelFit& f, const FittedGrids& to, int threads, const InstructionSet& with);

// What leaving out each weight of such a group would save.
void leave_one_out(const LeaveOneOut& l, int threads, const InstructionSet& with);

// Columns [first, last) rounded one after the other, each making up for the errors of those before it among them.
// Throws std::invalid_argument: they are more than kMostColumns.
void round_columns(const ErrorFeedback& r, int64_t first, int64_t last, int threads, const InstructionSet& with);

}  // namespace roundel
