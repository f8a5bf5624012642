// Every instruction set of this build on random matrices: against products and weights that are computed one by one
// here, in double, and against each other.
//
//     check_sets [matrices] [seed]
//
// Sets of vectors fuse products and sums, and must agree bit for bit, on every processor: the sum of their bits is
// printed. The portable set rounds products before it adds them, and agrees to rounding. All memory is as large as the
// layout says and no larger, so that sanitizers see what reads beyond it.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../../src/kernels/multiply.h"
#include "../../src/kernels/numbers.h"
#include "../../src/kernels/packing.h"
#include "checks.h"

using namespace roundel;

namespace {

// Of what is summed: see tests/runtime/test_kernels.py.
constexpr double kExact = 6e-7;
// Products with subnormal scales are subnormal: what floats are rounded to there is no share of them.
constexpr double kLeast = 1e-36;

// Random numbers of a type; a few of those of 16 bits are subnormal.
std::vector<uint8_t> numbers(Random& random, Number type, int64_t count) {
  std::vector<uint8_t> bytes;
  for (int64_t i = 0; i < count; ++i) {
    if (type == Number::Float32) {
      const float value = random.normal() * 0.1f;
      const auto* of = reinterpret_cast<const uint8_t*>(&value);
      bytes.insert(bytes.end(), of, of + 4);
    } else if (type == Number::Float16 || type == Number::Bfloat16) {
      const int fraction = type == Number::Float16 ? 10 : 7, least = type == Number::Float16 ? 8 : 120;
      const int exponent = random.one_in(50) ? 0 : random.between(least, least + 6);
      const int sign = random.between(0, 1), rest = random.between(0, (1 << fraction) - 1);
      const int bits = sign << 15 | exponent << fraction | rest;
      bytes.push_back(static_cast<uint8_t>(bits & 255));
      bytes.push_back(static_cast<uint8_t>(bits >> 8));
    } else {
      bytes.push_back(static_cast<uint8_t>(random.between(0, 255)));
    }
  }
  return bytes;
}

struct Memory {
  std::vector<uint8_t> values, step, shift;
};

Number any_float(Random& random) { return random.any({Number::Float32, Number::Float16, Number::Bfloat16}); }

// `blocks`: groups that share a step, for every row of its own; 0: on no second level of that kind.
Statistic any_statistic(Random& random, const Matrix& m, int super_block, bool nibbles, Memory& memory) {
  const int64_t cells = tiles(m) * m.groups * kTileRows;
  Statistic s{Number::Unsigned8, nullptr, Number::None, nullptr, nullptr, 0, 1};
  int64_t steps = 0;
  if (super_block > 1) {
    s.type = random.any({Number::Unsigned8, Number::Signed8});
    s.level_groups = super_block;
    steps = cells / super_block;
  } else if (nibbles || random.one_in(2)) {
    s.level_rows = random.any({0, 16, 32, 64});
    steps = s.level_rows ? (m.rows + s.level_rows - 1) / s.level_rows * m.groups : cells;
  } else {
    s.type = random.any({Number::Float32, Number::Float16, Number::Bfloat16});
  }
  memory.values = numbers(random, s.type, cells);
  s.values = memory.values.data();
  if (steps > 0) {
    s.level_type = any_float(random);
    memory.step = numbers(random, s.level_type, steps);
    s.step = memory.step.data();
    if (super_block <= 1) {
      memory.shift = numbers(random, s.level_type, steps);
      s.shift = memory.shift.data();
    }
  }
  return s;
}

// A matrix and what it points to.
struct Case {
  Matrix m{};
  Memory scale, zero;
  std::vector<uint8_t> codes, narrow, wide;
  std::vector<int32_t> starts, order;
  std::vector<uint16_t> values;

  explicit Case(Random& random) {
    m.rows = random.between(1, 60);
    m.columns = random.any({random.between(1, 40), random.between(1, 400)});
    m.bits = random.between(2, 8);
    m.group = random.any({8, 12, 16, 32, 100, 128, random.between(1, 20), static_cast<int>(m.columns)});
    int super_block = 1;
    if (random.one_in(5)) {
      m.group = random.any({16, 32});
      super_block = static_cast<int>(256 / m.group);
      m.columns = 256 * random.between(1, 2);
    }
    m.group = std::min(m.group, m.columns);
    m.block_units = m.group > 16 ? 8 : m.group > 8 ? 4 : 2;
    const int64_t width = m.block_units * kUnitColumns, padded = (m.group + width - 1) / width * width;
    const int64_t before = (m.columns - 1) / m.group, places = before * padded + m.columns - before * m.group;
    m.chunks = (places + kChunkColumns - 1) / kChunkColumns;
    m.groups = (m.chunks * kChunkColumns + padded - 1) / padded;
    codes = numbers(random, Number::Unsigned8, tiles(m) * m.chunks * kUnitBytes * m.bits);
    m.codes = codes.data();
    const int zeros = random.between(0, 3);  // none, of code 0, codes of value 0 as bytes or on two levels
    m.minima = zeros == 1;
    const bool nibbles = zeros > 1 && super_block == 1 && random.one_in(3);
    m.scale = any_statistic(random, m, super_block, nibbles, scale);
    if (zeros > 0) m.zero = any_statistic(random, m, super_block, nibbles, zero);
    if (nibbles) {
      m.scale.type = Number::LowNibble;
      m.zero.type = Number::HighNibble;
      m.zero.values = m.scale.values;
      m.level_bits = random.between(2, 4);
      const int mask = (1 << m.level_bits) - 1;
      for (uint8_t& both : scale.values) both &= static_cast<uint8_t>(mask | mask << 4);
    }
    if (random.one_in(2)) add_outliers(random);
    if (random.one_in(3)) {
      for (int i = 0; i < m.columns; ++i) order.push_back(i);
      for (int i = 1; i < m.columns; ++i) std::swap(order[i], order[random.between(0, i)]);
      m.order = order.data();
    }
  }

  void add_outliers(Random& random) {
    std::vector<int32_t> columns;
    starts.push_back(0);
    for (int row = 0; row < m.rows; ++row) {
      const int most = random.any({0, 2, static_cast<int>(m.columns)});
      const int one_of = most == m.columns ? 1 : 8;
      for (int column = 0; column < m.columns && most > 0; ++column)
        if (random.one_in(one_of)) columns.push_back(column);
      starts.push_back(static_cast<int32_t>(columns.size()));
    }
    for (int32_t column : columns) {
      const auto small = static_cast<uint16_t>(column);
      const auto *of = reinterpret_cast<const uint8_t*>(&column), *of_small = reinterpret_cast<const uint8_t*>(&small);
      wide.insert(wide.end(), of, of + 4);
      narrow.insert(narrow.end(), of_small, of_small + 2);
      const int sign = random.between(0, 1), rest = random.between(0x2000, 0x3fff);
      values.push_back(static_cast<uint16_t>(sign << 15 | rest));
    }
    const bool is_wide = random.one_in(2);
    m.outliers = {starts.data(), is_wide ? wide.data() : narrow.data(), values.data(), is_wide};
  }
};

float number_at(Number type, const void* values, int64_t at) {
  switch (type) {
    case Number::Float32: return number<Number::Float32>(values, at);
    case Number::Float16: return number<Number::Float16>(values, at);
    case Number::Bfloat16: return number<Number::Bfloat16>(values, at);
    case Number::Signed8: return number<Number::Signed8>(values, at);
    case Number::LowNibble: return number<Number::LowNibble>(values, at);
    case Number::HighNibble: return number<Number::HighNibble>(values, at);
    default: return number<Number::Unsigned8>(values, at);
  }
}

int code_at(const Matrix& m, int64_t row, int64_t place) {
  constexpr int kPlanes[9][2] = {{}, {}, {2}, {3}, {4}, {4, 1}, {4, 2}, {4, 3}, {4, 4}};
  const uint8_t* of = m.codes + (row / kTileRows * m.chunks + place / kChunkColumns) * kUnitBytes * m.bits;
  const int unit = static_cast<int>(place % kChunkColumns / kUnitColumns);
  int code = 0, above = 0;
  for (int plane : kPlanes[m.bits]) {
    if (plane == 0) break;
    const int fields = 8 / plane;
    const uint8_t* first = of + row % kTileRows * kUnitColumns + place % kUnitColumns;
    int byte = first[unit / fields % plane * kUnitBytes];
    if (plane == 3 && unit >= 6) byte = first[0] >> 6 | first[kUnitBytes] >> 6 << 2 | first[2 * kUnitBytes] >> 6 << 4;
    code |= (byte >> plane * (unit % fields) & ((1 << plane) - 1)) << above;
    above += plane;
    of += kUnitBytes * plane;
  }
  return code;
}

// Where a column is among those of the chunks.
int64_t place_of(const Matrix& m, int64_t column) {
  const int64_t width = m.block_units * kUnitColumns, padded = (m.group + width - 1) / width * width;
  return column / m.group * padded + column % m.group;
}

float statistic_at(const Matrix& m, const Statistic& s, int64_t row, int64_t group) {
  const int64_t tile = row / kTileRows, within = row % kTileRows;
  const float found = number_at(s.type, s.values, (tile * m.groups + group) * kTileRows + within);
  if (s.level_type == Number::None) return found;
  int64_t cell = (tile * (m.groups / s.level_groups) + group / s.level_groups) * kTileRows + within;
  if (s.level_rows > 0) cell = row / s.level_rows * m.groups + group;
  const float shift = s.shift == nullptr ? 0.0f : number_at(s.level_type, s.shift, cell);
  return (found - shift) * number_at(s.level_type, s.step, cell);
}

// Weights [rows, columns] one by one, and the size of what is summed for each.
struct Plain {
  std::vector<float> weights;
  std::vector<double> sizes;

  explicit Plain(const Matrix& m) : weights(m.rows * m.columns), sizes(m.rows * m.columns) {
    for (int64_t row = 0; row < m.rows; ++row) {
      for (int64_t column = 0; column < m.columns; ++column) {
        const int64_t group = column / m.group;
        const float code = static_cast<float>(code_at(m, row, place_of(m, column)));
        const float scale = statistic_at(m, m.scale, row, group), middle = static_cast<float>(1 << (m.bits - 1));
        const float zero = m.zero.type == Number::None ? middle : statistic_at(m, m.zero, row, group);
        const int64_t at = row * m.columns + column;
        weights[at] = m.minima ? code * scale + zero : (code - zero) * scale;
        const float size = std::fabs(scale), centre = size * middle + std::fabs(zero);
        sizes[at] = size * std::fabs(code - middle) + (m.minima ? centre : size * std::fabs(middle - zero));
      }
      if (m.outliers.starts == nullptr) continue;
      for (int32_t i = m.outliers.starts[row]; i < m.outliers.starts[row + 1]; ++i) {
        const auto* columns = static_cast<const uint8_t*>(m.outliers.columns);
        int32_t column = 0;
        std::memcpy(&column, columns + i * (m.outliers.wide ? 4 : 2), m.outliers.wide ? 4 : 2);
        weights[row * m.columns + column] += from_float16(m.outliers.values[i]);
        sizes[row * m.columns + column] += std::fabs(from_float16(m.outliers.values[i]));
      }
    }
  }
};

// The largest activation of those that share a scale, in the order of the codes.
std::vector<float> block_largest(const Matrix& m, const std::vector<float>& x) {
  std::vector<float> largest(x.size());
  for (int64_t block = 0; block < blocks(m); ++block) {
    const Span span = span_of(m, block);
    float most = 0;
    for (int64_t i = span.begin; i < span.end; ++i) most = std::max(most, std::fabs(x[i]));
    for (int64_t i = span.begin; i < span.end; ++i) largest[i] = most;
  }
  return largest;
}

struct Tally {
  const InstructionSet* set;
  int64_t numbers = 0;
  uint64_t bits = 0;  // a sum of all results' bits
  double worst = 0;
};

[[noreturn]] void fail(const Matrix& m, const char* set, const char* what, int seed) {
  std::printf("%s: %s differ for matrix %d (%d bits, %d x %d, groups of %d)\n", set, what, seed, m.bits,
              static_cast<int>(m.rows), static_cast<int>(m.columns), static_cast<int>(m.group));
  std::exit(1);
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

// `random` is a copy: how many sets are here changes nothing of what follows.
void check_decoding(const Case& c, const Plain& plain, Random random, const InstructionSet& set, int seed) {
  const Matrix& m = c.m;
  const int first = random.between(0, static_cast<int>(m.rows)), last = random.between(first, static_cast<int>(m.rows));
  std::vector<float> found((last - first) * m.columns);
  decode(m, first, last, found.data(), random.between(1, 3), set);
  const auto begin = plain.weights.begin();
  if (!same(found, {begin + first * m.columns, begin + last * m.columns})) fail(m, set.name, "decoded weights", seed);
  const std::vector<int64_t> rows{m.rows - 1, 0, random.between(0, static_cast<int>(m.rows) - 1)};
  std::vector<float> looked_up(rows.size() * m.columns), wanted;
  lookup(m, rows.data(), static_cast<int64_t>(rows.size()), looked_up.data(), random.between(1, 3), set);
  for (int64_t row : rows) wanted.insert(wanted.end(), begin + row * m.columns, begin + (row + 1) * m.columns);
  if (!same(looked_up, wanted)) fail(m, set.name, "rows looked up", seed);
}

// `results` of every set in turn, [tokens, rows], against products in double where these are given.
void compare(const Matrix& m, const std::vector<std::vector<float>>& results, const std::vector<double>& wanted,
             const std::vector<double>& sizes, std::vector<Tally>& tallies, int seed) {
  const std::vector<float>& portable = results.back();
  // Values of nibbles are looked up in tables, by which sets may differ in the last bit.
  const bool same_bits = m.level_bits == 0;
  for (size_t s = 0; s < results.size(); ++s) {
    const bool vectors = s + 1 < results.size();
    if (same_bits && vectors && !same(results[s], results[0])) fail(m, tallies[s].set->name, "bits of products", seed);
    for (size_t i = 0; i < portable.size(); ++i) {
      const double target = wanted.empty() ? portable[i] : wanted[i];
      const double off = std::fabs(results[s][i] - target) / std::max(sizes[i], kLeast);
      if (!(off <= kExact)) {
        std::printf("%.9g in place of %.9g, of %.9g: ", results[s][i], target, sizes[i]);
        fail(m, tallies[s].set->name, "products", seed);
      }
      tallies[s].worst = std::max(tallies[s].worst, off);
      if (same_bits) tallies[s].bits = tallies[s].bits * 31 + to_bits(results[s][i]);
      ++tallies[s].numbers;
    }
  }
}

void check_products(const Case& c, const Plain& plain, Random& random, std::vector<Tally>& tallies, int seed) {
  const Matrix& m = c.m;
  const int tokens = random.between(0, 9);
  const Mode mode = random.one_in(2) ? Mode::Exact : Mode::Fast;
  std::vector<float> x(tokens * m.columns);
  const float size = random.any({1.0f, 1e-6f, 1e6f});
  // Some stand out: a block that does may have another digit.
  for (float& value : x) value = random.one_in(4) ? 0.0f : random.normal() * (random.one_in(50) ? 30 * size : size);
  std::vector<double> wanted(tokens * m.rows), sizes(tokens * m.rows);
  for (int t = 0; t < tokens; ++t) {
    std::vector<float> ordered(m.columns);
    for (int64_t k = 0; k < m.columns; ++k) ordered[k] = x[t * m.columns + (m.order ? m.order[k] : k)];
    const std::vector<float> largest = block_largest(m, ordered);
    for (int64_t row = 0; row < m.rows; ++row) {
      for (int64_t k = 0; k < m.columns; ++k) {
        wanted[t * m.rows + row] += static_cast<double>(ordered[k]) * plain.weights[row * m.columns + k];
        sizes[t * m.rows + row] += largest[k] * plain.sizes[row * m.columns + k];
      }
    }
  }
  std::vector<std::vector<float>> results;
  for (const Tally& tally : tallies) {
    results.emplace_back(tokens * m.rows);
    if (!multiply(m, x.data(), tokens, mode, results.back().data(), 1 + seed % 3, *tally.set))
      fail(m, tally.set->name, "finite products", seed);
  }
  if (mode == Mode::Fast) wanted.clear();
  compare(m, results, wanted, sizes, tallies, seed);
  if (tokens == 0) return;
  x[random.between(0, static_cast<int>(x.size()) - 1)] = random.any({NAN, INFINITY, -INFINITY, 1e30f});
  for (const Tally& tally : tallies)
    if (multiply(m, x.data(), tokens, mode, results[0].data(), 1, *tally.set))
      fail(m, tally.set->name, "refusals", seed);
}

void check_integers(const Case& c, const Plain& plain, Random& random, std::vector<Tally>& tallies, int seed) {
  const Matrix& m = c.m;
  const int tokens = random.between(0, 5);
  std::vector<int8_t> x(tokens * m.columns);
  const int kind = random.between(0, 3);
  for (int8_t& value : x) value = static_cast<int8_t>(kind == 0 ? -128 : kind == 1 ? 127 : random.between(-128, 127));
  std::vector<float> scales(tokens), zeros(tokens), row_sums(m.rows);
  for (int t = 0; t < tokens; ++t) {
    scales[t] = std::fabs(random.normal()) + 0.1f;
    zeros[t] = static_cast<float>(random.between(-128, 127));
  }
  std::vector<double> wanted(tokens * m.rows), sizes(tokens * m.rows);
  for (int64_t row = 0; row < m.rows; ++row) {
    double sum = 0;
    for (int64_t k = 0; k < m.columns; ++k) sum += plain.weights[row * m.columns + k];
    row_sums[row] = static_cast<float>(sum);
    for (int t = 0; t < tokens; ++t) {
      for (int64_t k = 0; k < m.columns; ++k) {
        const int64_t at = row * m.columns + k;
        const int value = x[t * m.columns + (m.order ? m.order[k] : k)];
        wanted[t * m.rows + row] += static_cast<double>(scales[t]) * (value - zeros[t]) * plain.weights[at];
        sizes[t * m.rows + row] += scales[t] * (128 + std::fabs(zeros[t])) * plain.sizes[at];
      }
    }
  }
  std::vector<std::vector<float>> results;
  for (const Tally& tally : tallies) {
    results.emplace_back(tokens * m.rows);
    multiply_integers(m, x.data(), tokens, scales.data(), zeros.data(), row_sums.data(), results.back().data(),
                      1 + seed % 3, *tally.set);
  }
  compare(m, results, wanted, sizes, tallies, seed);
}

// Codes come back from where `pack` puts them.
void check_packing(const Matrix& m, Random& random, int seed) {
  std::vector<uint8_t> codes(m.rows * m.columns), packed(tiles(m) * m.chunks * kUnitBytes * m.bits, 255);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random.between(0, (1 << m.bits) - 1));
  const int64_t half = m.rows / 2 / kTileRows * kTileRows;
  pack(m, codes.data(), 0, half, packed.data(), 1 + seed % 3);
  pack(m, codes.data() + half * m.columns, half, m.rows, packed.data(), 1);
  Matrix found = m;
  found.codes = packed.data();
  for (int64_t row = 0; row < m.rows; ++row)
    for (int64_t column = 0; column < m.columns; ++column)
      if (code_at(found, row, place_of(m, column)) != codes[row * m.columns + column]) fail(m, "pack", "codes", seed);
}

}  // namespace

int main(int count, char** arguments) {
  const int matrices = count > 1 ? std::atoi(arguments[1]) : 1000, first = count > 2 ? std::atoi(arguments[2]) : 0;
  std::vector<Tally> tallies;
  for (const InstructionSet* set : present_sets()) tallies.push_back({set});
  for (int seed = first; seed < first + matrices; ++seed) {
    Random random{std::mt19937_64(seed)};
    const Case c(random);
    const Plain plain(c.m);
    for (const Tally& tally : tallies) check_decoding(c, plain, random, *tally.set, seed);
    check_products(c, plain, random, tallies, seed);
    check_integers(c, plain, random, tallies, seed);
    check_packing(c.m, random, seed);
  }
  for (const Tally& tally : tallies)
    std::printf("%s: %d matrices, %lld results, which miss at most %.1e of what is summed; bits %016llx\n",
                tally.set->name, matrices, static_cast<long long>(tally.numbers), tally.worst,
                static_cast<unsigned long long>(tally.bits));
  return 0;
}
