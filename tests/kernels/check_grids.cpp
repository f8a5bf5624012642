// Learned rounding, searches for grids, and error feedback, by every instruction set of this build, on random groups: against plain loops
// here, which round after every operation as the kernels do, and so to the last bit. Sums have one order everywhere.
//
//     check_grids [weights] [seed]
//
// All memory is as large as it is said to be and no larger, so that sanitizers see what reads or writes beyond it.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "../../src/kernels/grids.h"
#include "../../src/kernels/numbers.h"
#include "checks.h"

using namespace roundel;

namespace {

// Some are zero.
std::vector<float> normals(Random& random, int64_t count, float scale = 1) {
  std::vector<float> to(count);
  for (float& x : to) x = random.one_in(20) ? 0 : random.normal() * scale;
  return to;
}

// A sum as `total` of lanes.h has it.
struct Sum {
  float of[16] = {};
  void add(int64_t place, float x) { of[place % 16] += x; }
  float total() const {
    float sums[16];
    std::copy(of, of + 16, sums);
    for (int apart = 8; apart > 0; apart /= 2)
      for (int i = 0; i < apart; ++i) sums[i] += sums[i + apart];
    return sums[0];
  }
};

struct Case {
  Groups shape;
  GridKind kind;
  std::vector<float> weight, offset, scale, zero, importance, gradient, scales, zeros;
  static constexpr int kCandidates = 5;

  explicit Case(Random& random) {
    shape.rows = random.between(1, 20);
    shape.group = random.between(0, 1) ? 16 * random.between(1, 8) : random.between(1, 100);
    shape.columns = random.between(1, 300);
    shape.groups = (shape.columns + shape.group - 1) / shape.group;
    const int type = random.between(0, 2);
    kind = {static_cast<float>((1 << random.between(2, 8)) - 1), type == 0, type == 2};
    const int64_t all = shape.rows * shape.groups;
    weight = normals(random, all * shape.group);
    offset = normals(random, all * shape.group, 0.3f);
    gradient = normals(random, shape.rows * shape.columns);
    importance = normals(random, shape.groups * shape.group);
    for (float& h : importance) h *= h;
    scales = normals(random, kCandidates * all);
    for (float& s : scales) s = (std::fabs(s) + 0.5f) * 4 / kind.levels * (random.one_in(8) ? -1.0f : 1.0f);
    zeros = normals(random, kCandidates * all);
    if (type == 0)
      for (float& z : zeros) z = static_cast<float>(random.between(0, static_cast<int>(kind.levels)));
    if (type == 1)
      for (float& z : zeros) z = (z + 0.5f) * kind.levels;
    scale.assign(scales.begin(), scales.begin() + all);
    zero.assign(zeros.begin(), zeros.begin() + all);
  }

  Weights weights() const { return {shape, kind, weight.data(), importance.data()}; }
  LearnedRounding rounding(std::vector<float>& offsets) const {
    return {weights(), scale.data(), zero.data(), offsets.data()};
  }
  float code_zero(float s, float z) const { return kind.minima ? -z / s : z; }
  // Before it is clamped.
  float code(float position, float s, float z) const {
    return kind.round_zero ? std::nearbyint(position) + z : std::nearbyint(position + code_zero(s, z));
  }
  float clamped(float code) const { return std::min(std::max(code, 0.0f), kind.levels); }
  float decoded(float code, float s, float z) const { return kind.minima ? code * s + z : (code - z) * s; }
  // Columns of group k.
  int64_t width(int64_t k) const { return std::min(shape.group, shape.columns - k * shape.group); }
};

[[noreturn]] void fail(const InstructionSet& set, const char* what, int seed) {
  std::printf("%s: %s of weight %d are not those of plain loops\n", set.name, what, seed);
  std::exit(1);
}

// Zeros of either sign are the same number.
template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](T x, T y) { return x == y; });
}

void check_rounding(const Case& c, const InstructionSet& set, int threads, int seed) {
  std::vector<float> wanted(c.shape.rows * c.shape.columns), found(wanted.size());
  std::vector<uint16_t> narrow(wanted.size());
  for (int64_t row = 0; row < c.shape.rows; ++row) {
    for (int64_t column = 0; column < c.shape.columns; ++column) {
      const int64_t k = column / c.shape.group, group = row * c.shape.groups + k;
      const int64_t at = group * c.shape.group + column % c.shape.group;
      const float s = c.scale[group], z = c.zero[group], position = c.weight[at] / s + c.offset[at];
      wanted[row * c.shape.columns + column] = c.decoded(c.clamped(c.code(position, s, z)), s, z);
    }
  }
  std::vector<float> offset = c.offset;
  round_learned(c.rounding(offset), Number::Float32, found.data(), threads, set);
  if (!same(found, wanted)) fail(set, "rounded weights", seed);
  round_learned(c.rounding(offset), Number::Bfloat16, narrow.data(), threads, set);
  for (size_t i = 0; i < wanted.size(); ++i)
    if (from_bfloat16(narrow[i]) != from_bfloat16(to_bfloat16(wanted[i]))) fail(set, "weights in bfloat16", seed);
}

void check_descent(const Case& c, const InstructionSet& set, int threads, int seed) {
  const float step = 0.0125f;
  std::vector<float> wanted = c.offset, found = c.offset, of_scale(c.scale.size()), of_zero(c.scale.size());
  std::vector<float> found_scale(c.scale.size()), found_zero(c.scale.size());
  for (int64_t group = 0; group < static_cast<int64_t>(c.scale.size()); ++group) {
    const int64_t k = group % c.shape.groups, row = group / c.shape.groups;
    const float s = c.scale[group], z = c.zero[group];
    Sum scales, all, passed;
    for (int64_t i = 0; i < c.width(k); ++i) {
      const int64_t at = group * c.shape.group + i;
      const float u = c.weight[at] / s, g = c.gradient[row * c.shape.columns + k * c.shape.group + i];
      const float code = c.code(u + c.offset[at], s, z);
      const bool inside = 0 <= code && code <= c.kind.levels;
      const float from = c.kind.minima ? (inside ? c.code_zero(s, z) : 0) : z;
      scales.add(i, (c.clamped(code) - from - (inside ? u : 0)) * g);
      all.add(i, g);
      passed.add(i, inside ? g : 0);
      const float slope = (inside ? g : 0) * s;
      wanted[at] -= slope > 0 ? step : slope < 0 ? -step : 0;
    }
    const float moved = all.total() - passed.total();
    of_scale[group] = scales.total();
    of_zero[group] = c.kind.minima ? moved : -moved * s;
  }
  const Descent descent{step, found_scale.data(), found_zero.data()};
  descend(c.rounding(found), Number::Float32, c.gradient.data(), descent, threads, set);
  if (!same(found, wanted)) fail(set, "offsets", seed);
  if (!same(found_scale, of_scale) || !same(found_zero, of_zero)) fail(set, "gradients of ranges", seed);
  std::vector<uint16_t> narrow;
  for (float g : c.gradient) narrow.push_back(to_bfloat16(g));
  found = c.offset;
  descend(c.rounding(found), Number::Bfloat16, narrow.data(), {step, nullptr, nullptr}, threads, set);
  if (!same(found, wanted)) fail(set, "offsets by bfloat16", seed);
}

void check_tries(const Case& c, const InstructionSet& set, int threads, int seed) {
  const int64_t groups = static_cast<int64_t>(c.scale.size());
  std::vector<int32_t> wanted(groups, -1), found(groups, -1);
  std::vector<float> least(groups, std::numeric_limits<float>::infinity()), error = least;
  std::vector<float> codes(groups), squares(groups), products(groups), found_codes(groups), found_squares(groups),
      found_products(groups);
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t k = group % c.shape.groups;
    for (int number = 0; number < Case::kCandidates; ++number) {
      const float s = c.scales[number * groups + group], z = c.zeros[number * groups + group];
      Sum missed, a, aa, aw;
      for (int64_t i = 0; i < c.shape.group; ++i) {
        const float w = c.weight[group * c.shape.group + i], h = c.importance[k * c.shape.group + i];
        const float code = c.clamped(c.code(w * (1.0f / s), s, z)), miss = c.decoded(code, s, z) - w;
        missed.add(i, miss * miss * h);
        const float distance = c.kind.minima ? code : code - z, weighted = distance * h;
        a.add(i, weighted);
        aa.add(i, weighted * distance);
        aw.add(i, weighted * w);
      }
      if (missed.total() < least[group]) {
        least[group] = missed.total();
        wanted[group] = number;
      }
      if (number == 0) codes[group] = a.total(), squares[group] = aa.total(), products[group] = aw.total();
    }
  }
  choose_grids({c.weights(), Case::kCandidates, c.scales.data(), c.zeros.data(), found.data(), error.data()}, threads,
               set);
  if (!same(found, wanted) || !same(error, least)) fail(set, "the best grids", seed);
  sum_codes({c.weights(), c.scale.data(), c.zero.data(), found_codes.data(), found_squares.data(),
             found_products.data()},
            threads, set);
  if (!same(found_codes, codes) || !same(found_squares, squares) || !same(found_products, products))
    fail(set, "sums of codes", seed);
}

// What the search finds of a group does not depend on the instruction set, nor on the rows around it, and it never has
// more error than its start. That it tries what it should, the tests against torch's operators say. Nobody asks it for
// grids with minima.
void check_search(const Case& c, const InstructionSet& set, int threads, int seed) {
  if (c.kind.minima) return;
  const std::vector<float> shares{2, 1, 0.6f, -0.3f}, factors{0.9f, 1, 1.1f};
  const Number types[]{Number::Float16, Number::Bfloat16, Number::Float32};
  const Number type = types[seed % 3];
  const bool zeros = c.kind.round_zero && seed % 2;
  const auto search = [&](const Weights& weights, std::vector<float>& scale, std::vector<float>& zero,
                          const InstructionSet& with) {
    search_grids({weights, type, shares.data(), 4, factors.data(), 3, zeros, 2, scale.data(), zero.data()}, threads, with);
  };
  std::vector<float> start = c.zero;
  for (float& z : start) z = std::nearbyint(z);
  std::vector<float> scale = c.scale, zero = start, of_portable = c.scale, zero_of_portable = start;
  search(c.weights(), scale, zero, set);
  search(c.weights(), of_portable, zero_of_portable, *instruction_set("portable"));
  if (!same(scale, of_portable) || !same(zero, zero_of_portable)) fail(set, "searched grids", seed);
  const int64_t groups = static_cast<int64_t>(scale.size());
  std::vector<int32_t> choice(groups, -1);
  std::vector<float> before(groups, std::numeric_limits<float>::infinity()), after = before;
  choose_grids({c.weights(), 1, c.scale.data(), start.data(), choice.data(), before.data()}, threads, set);
  choose_grids({c.weights(), 1, scale.data(), zero.data(), choice.data(), after.data()}, threads, set);
  for (int64_t group = 0; group < groups; ++group)
    if (!(after[group] <= before[group])) fail(set, "errors of searched grids", seed);
  // The last row alone.
  const int64_t row = (c.shape.rows - 1) * c.shape.groups;
  Weights last = c.weights();
  last.shape.rows = 1;
  last.weight += row * c.shape.group;
  std::vector<float> alone(c.scale.begin() + row, c.scale.end()), zero_alone(start.begin() + row, start.end());
  search(last, alone, zero_alone, set);
  if (!same(alone, std::vector<float>(scale.begin() + row, scale.end()))) fail(set, "searched grids of a row", seed);
}

// The columns of the case's rows, with random updates and outliers: [columns, rows].
void check_columns(const Case& c, const InstructionSet& set, int threads, int seed) {
  Random random{std::mt19937_64(seed)};
  const int64_t rows = c.shape.rows, columns = std::min(c.shape.columns, kMostColumns + 7);
  const int64_t first = std::min<int64_t>(columns, random.between(0, 6)), last = std::min(columns, first + kMostColumns);
  const int groups = random.between(1, 4);
  const auto by_group = [&](const std::vector<float>& from) {  // as many as are wanted, over again
    std::vector<float> to(groups * rows);
    for (size_t i = 0; i < to.size(); ++i) to[i] = from[i % from.size()];
    return to;
  };
  const std::vector<float> scale = by_group(c.scale), zero = by_group(c.zero);
  const std::vector<float> original = normals(random, columns * rows), update = normals(random, columns * columns, 0.1f);
  std::vector<int64_t> group(columns);
  for (int64_t& g : group) g = random.between(0, groups - 1);
  const bool outliers = random.between(0, 1);
  std::vector<uint8_t> mask(columns * rows);
  for (uint8_t& kept : mask) kept = random.one_in(30);

  std::vector<float> present = normals(random, columns * rows), error(columns * rows, 5), wanted = present, missed = error;
  std::vector<uint8_t> codes(columns * rows, 9), wanted_codes = codes;
  std::vector<uint16_t> residual(columns * rows), wanted_residual = residual;
  for (int64_t k = first; k < last; ++k) {
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t at = k * rows + row;
      for (int64_t i = first; i < k; ++i) {
        const float share = update[k * columns + i] * missed[i * rows + row];
        wanted[at] = wanted[at] + share;
      }
      const float s = scale[group[k] * rows + row], z = zero[group[k] * rows + row];
      const float code = c.clamped(c.code(wanted[at] / s, s, z));
      float rounded = c.decoded(code, s, z);
      if (outliers && mask[at]) {
        wanted_residual[at] = to_float16(wanted[at] - rounded);
        rounded += from_float16(wanted_residual[at]);
      }
      missed[at] = original[at] - rounded;
      wanted_codes[at] = static_cast<uint8_t>(code);
    }
  }
  round_columns({columns, rows, c.kind, original.data(), update.data(), scale.data(), zero.data(), group.data(),
                 outliers ? mask.data() : nullptr, present.data(), error.data(), codes.data(),
                 outliers ? residual.data() : nullptr},
                first, last, threads, set);
  if (!same(present, wanted)) fail(set, "columns before they are rounded", seed);
  if (!same(error, missed)) fail(set, "errors of columns", seed);
  if (!same(codes, wanted_codes) || !same(residual, wanted_residual)) fail(set, "codes of columns", seed);
}

// Grids on two levels, and what leaving out weights saves, are those of "portable"; the tests against torch's operators say
// that these are right. Groups are of any width, and rows need not fill their tile.
struct TwoLevels {
  std::vector<float> weight, importance, ranges, scale, zero, scale_step, scale_offset, zero_step, zero_offset, saved;
  std::vector<uint8_t> scale_codes, zero_codes;

  TwoLevels(const InstructionSet& set, int threads, int seed) : ranges{1, 0.8f, 0.6f} {
    Random random{std::mt19937_64(seed)};
    const int64_t columns = random.between(3, 40), rows = random.between(1, 70);
    const int64_t tile_rows = kLanes * random.between(1, 3), tiles = (rows + tile_rows - 1) / tile_rows;
    weight = normals(random, columns * rows, random.one_in(5) ? 1e-6f : 1.0f);
    if (random.one_in(4))
      for (float& w : weight) w = std::nearbyint(w);  // of equal size, and groups of one value
    importance = normals(random, columns);
    for (float& h : importance) h = h * h + 0.01f;
    for (auto* to : {&scale, &zero}) to->resize(rows);
    for (auto* to : {&scale_codes, &zero_codes}) to->resize(rows);
    for (auto* to : {&scale_step, &scale_offset, &zero_step, &zero_offset}) to->resize(tiles);
    saved.resize(columns * rows);
    const Number types[]{Number::Float16, Number::Bfloat16, Number::Float32};
    const int reach = random.between(0, 2);
    const TwoLevelFit fit{columns,
                          rows,
                          tile_rows,
                          weight.data(),
                          importance.data(),
                          static_cast<float>((1 << random.between(2, 4)) - 1),
                          static_cast<float>((1 << random.between(2, 8)) - 1),
                          static_cast<float>((1 << random.between(2, 8)) - 1),
                          random.one_in(3),
                          types[random.between(0, 2)],
                          reach,
                          reach / 2,
                          ranges.data(),
                          random.between(1, 3),
                          1.0f / 32,
                          0x1p-14f,
                          0x1p-10f,
                          2 / 65504.0f};
    fit_two_levels(fit,
                   {scale.data(),
                    zero.data(),
                    {scale_codes.data(), scale_step.data(), scale_offset.data()},
                    {zero_codes.data(), zero_step.data(), zero_offset.data()}},
                   threads, set);
    leave_one_out({fit, importance.data(), scale.data(), zero.data(), saved.data()}, threads, set);
    for (float x : scale)
      if (!(x > 0 && x < 1e6f)) fail(set, "sizes of scales on two levels", seed);
  }
};

void check_two_levels(const InstructionSet& set, int threads, int seed) {
  const TwoLevels found(set, threads, seed), wanted(*instruction_set("portable"), 1, seed);
  if (!same(found.scale, wanted.scale) || !same(found.zero, wanted.zero) ||
      !same(found.scale_codes, wanted.scale_codes) || !same(found.zero_codes, wanted.zero_codes) ||
      !same(found.scale_step, wanted.scale_step) || !same(found.scale_offset, wanted.scale_offset) ||
      !same(found.zero_step, wanted.zero_step) || !same(found.zero_offset, wanted.zero_offset))
    fail(set, "grids on two levels", seed);
  if (!same(found.saved, wanted.saved)) fail(set, "what leaving out weights saves", seed);
}

}  // namespace

int main(int count, char** arguments) {
  const int weights = count > 1 ? std::atoi(arguments[1]) : 1000, first = count > 2 ? std::atoi(arguments[2]) : 0;
  for (const InstructionSet* set : present_sets()) {
    for (int seed = first; seed < first + weights; ++seed) {
      Random random{std::mt19937_64(seed)};
      const Case c(random);
      check_rounding(c, *set, 1 + seed % 3, seed);
      check_descent(c, *set, 1 + seed % 3, seed);
      check_tries(c, *set, 1 + seed % 3, seed);
      check_search(c, *set, 1 + seed % 3, seed);
      check_columns(c, *set, 1 + seed % 3, seed);
      check_two_levels(*set, 1 + seed % 3, seed);
    }
    std::printf("%s: grids of %d weights are those of plain loops\n", set->name, weights);
  }
  return 0;
}
