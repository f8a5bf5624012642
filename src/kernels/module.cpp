// What Python sees. Tensors come as addresses: this file knows nothing of torch, so that no build is tied to one.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "grids.h"
#include "multiply.h"
#include "packing.h"

namespace nb = nanobind;
using namespace roundel;

namespace {

template <class T = void>
T* address(uintptr_t value) {
  return reinterpret_cast<T*>(value);
}

const InstructionSet& chosen(const std::string& name) {
  const InstructionSet* found = instruction_set(name.empty() ? nullptr : name.c_str());
  if (found == nullptr) throw std::invalid_argument(name + " is no instruction set of this build and this processor");
  return *found;
}

std::vector<std::string> present() {
  int count;
  const InstructionSet* const* all = instruction_sets(&count);
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i)
    if (all[i]->present()) names.push_back(all[i]->name);
  return names;
}

}  // namespace

NB_MODULE(_kernels, m) {
  m.doc() = "Kernels of packed weights; roundel.runtime.kernels calls them.";
  m.def("instruction_sets", &present, "Those of this build that this processor has, best first.");

  nb::class_<Statistic>(m, "Statistic")
      .def(
          "__init__",
          [](Statistic* self, int type, uintptr_t values, int level_type, uintptr_t step, uintptr_t shift,
             int64_t level_rows, int64_t level_groups) {
            new (self) Statistic{static_cast<Number>(type),       address(values), static_cast<Number>(level_type),
                                 address(step), address(shift), level_rows,      level_groups};
          },
          nb::kw_only(), nb::arg("type") = 0, nb::arg("values") = 0, nb::arg("level_type") = 0, nb::arg("step") = 0,
          nb::arg("shift") = 0, nb::arg("level_rows") = 0, nb::arg("level_groups") = 1);

  nb::class_<Matrix>(m, "Matrix")
      .def(
          "__init__",
          [](Matrix* self, int64_t rows, int64_t columns, int bits, int64_t group, int block_units, int64_t groups,
             int64_t chunks, bool minima, uintptr_t codes, const Statistic& scale, const Statistic& zero,
             int level_bits, uintptr_t outlier_starts, uintptr_t outlier_columns, uintptr_t outlier_values, bool outlier_wide,
             uintptr_t order) {
            new (self) Matrix{rows,   columns, bits,
                              group,  block_units, groups,
                              chunks, minima,  address<const uint8_t>(codes),
                              scale,  zero,    level_bits,
                              Outliers{address<const int32_t>(outlier_starts), address(outlier_columns),
                                       address<const uint16_t>(outlier_values), outlier_wide},
                              address<const int32_t>(order)};
          },
          nb::kw_only(), nb::arg("rows"), nb::arg("columns"), nb::arg("bits"), nb::arg("group"), nb::arg("block_units"),
          nb::arg("groups"), nb::arg("chunks"), nb::arg("minima"), nb::arg("codes"), nb::arg("scale"), nb::arg("zero"),
          nb::arg("level_bits") = 0,
          nb::arg("outlier_starts") = 0, nb::arg("outlier_columns") = 0, nb::arg("outlier_values") = 0,
          nb::arg("outlier_wide") = false, nb::arg("order") = 0)
      .def(
          "multiply",
          [](const Matrix& self, uintptr_t x, int64_t tokens, bool exact, uintptr_t y, int threads,
             const std::string& set) {
            const InstructionSet& with = chosen(set);
            nb::gil_scoped_release free;
            const Mode mode = exact ? Mode::Exact : Mode::Fast;
            return multiply(self, address<const float>(x), tokens, mode, address<float>(y), threads, with);
          },
          nb::arg("x"), nb::arg("tokens"), nb::arg("exact"), nb::arg("y"), nb::arg("threads"),
          nb::arg("instruction_set") = "")
      .def(
          "multiply_integers",
          [](const Matrix& self, uintptr_t x, int64_t tokens, uintptr_t scales, uintptr_t zeros, uintptr_t row_sums,
             uintptr_t y, int threads, const std::string& set) {
            const InstructionSet& with = chosen(set);
            nb::gil_scoped_release free;
            multiply_integers(self, address<const int8_t>(x), tokens, address<const float>(scales),
                              address<const float>(zeros), address<const float>(row_sums), address<float>(y), threads,
                              with);
          },
          nb::arg("x"), nb::arg("tokens"), nb::arg("scales"), nb::arg("zeros"), nb::arg("row_sums"), nb::arg("y"),
          nb::arg("threads"), nb::arg("instruction_set") = "")
      .def(
          "decode",
          [](const Matrix& self, int64_t first, int64_t last, uintptr_t to, int threads, const std::string& set) {
            const InstructionSet& with = chosen(set);
            nb::gil_scoped_release free;
            decode(self, first, last, address<float>(to), threads, with);
          },
          nb::arg("first"), nb::arg("last"), nb::arg("to"), nb::arg("threads"), nb::arg("instruction_set") = "")
      .def(
          "lookup",
          [](const Matrix& self, uintptr_t rows, int64_t count, uintptr_t to, int threads, const std::string& set) {
            const InstructionSet& with = chosen(set);
            nb::gil_scoped_release free;
            lookup(self, address<const int64_t>(rows), count, address<float>(to), threads, with);
          },
          nb::arg("rows"), nb::arg("count"), nb::arg("to"), nb::arg("threads"), nb::arg("instruction_set") = "");

  m.def(
      "pack",
      [](int64_t rows, int64_t columns, int bits, int64_t group, int block_units, int64_t groups, int64_t chunks,
         uintptr_t codes, int64_t first, int64_t last, uintptr_t to, int threads) {
        Matrix shape{};
        shape.rows = rows;
        shape.columns = columns;
        shape.bits = bits;
        shape.group = group;
        shape.block_units = block_units;
        shape.groups = groups;
        shape.chunks = chunks;
        nb::gil_scoped_release free;
        pack(shape, address<const uint8_t>(codes), first, last, address<uint8_t>(to), threads);
      },
      nb::kw_only(), nb::arg("rows"), nb::arg("columns"), nb::arg("bits"), nb::arg("group"), nb::arg("block_units"),
      nb::arg("groups"), nb::arg("chunks"), nb::arg("codes"), nb::arg("first"), nb::arg("last"), nb::arg("to"),
      nb::arg("threads"));

  nb::class_<Weights>(m, "Weights")
      .def(
          "__init__",
          [](Weights* self, int64_t rows, int64_t columns, int64_t groups, int64_t group, float levels, bool round_zero,
             bool minima, uintptr_t weight, uintptr_t importance) {
            new (self) Weights{Groups{rows, columns, groups, group}, GridKind{levels, round_zero, minima},
                               address<const float>(weight), address<const float>(importance)};
          },
          nb::kw_only(), nb::arg("rows"), nb::arg("columns"), nb::arg("groups"), nb::arg("group"), nb::arg("levels"),
          nb::arg("round_zero"), nb::arg("minima"), nb::arg("weight"), nb::arg("importance") = 0)
      .def(
          "round_learned",
          [](const Weights& self, uintptr_t scale, uintptr_t zero, uintptr_t offset, int type, uintptr_t to, int threads,
             const std::string& set) {
            const LearnedRounding rounding{self, address<const float>(scale), address<const float>(zero),
                                           address<float>(offset)};
            const InstructionSet& with = chosen(set);
            nb::gil_scoped_release free;
            round_learned(rounding, static_cast<Number>(type), address(to), threads, with);
          },
          nb::kw_only(), nb::arg("scale"), nb::arg("zero"), nb::arg("offset"), nb::arg("type"), nb::arg("to"),
          nb::arg("threads"), nb::arg("instruction_set") = "")
      .def(
          "descend",
          [](const Weights& self, uintptr_t scale, uintptr_t zero, uintptr_t offset, int type, uintptr_t gradient,
             float step, uintptr_t grad_scale, uintptr_t grad_zero, int threads, const std::string& set) {
            const LearnedRounding rounding{self, address<const float>(scale), address<const float>(zero),
                                           address<float>(offset)};
            const Descent descent{step, address<float>(grad_scale), address<float>(grad_zero)};
            const InstructionSet& with = chosen(set);
            nb::gil_scoped_release free;
            descend(rounding, static_cast<Number>(type), address<const void>(gradient), descent, threads, with);
          },
          nb::kw_only(), nb::arg("scale"), nb::arg("zero"), nb::arg("offset"), nb::arg("type"), nb::arg("gradient"),
          nb::arg("step"), nb::arg("grad_scale"), nb::arg("grad_zero"), nb::arg("threads"),
          nb::arg("instruction_set") = "")
      .def(
          "choose_grids",
          [](const Weights& self, int64_t count, uintptr_t scales, uintptr_t zeros, uintptr_t choice, uintptr_t error,
             int threads, const std::string& set) {
            const Candidates candidates{self, count, address<const float>(scales), address<const float>(zeros),
                                        address<int32_t>(choice), address<float>(error)};
            const InstructionSet& with = chosen(set);
            nb::gil_scoped_release free;
            choose_grids(candidates, threads, with);
          },
          nb::kw_only(), nb::arg("count"), nb::arg("scales"), nb::arg("zeros"), nb::arg("choice"), nb::arg("error"),
          nb::arg("threads"), nb::arg("instruction_set") = "")
      .def(
          "sum_codes",
          [](const Weights& self, uintptr_t scale, uintptr_t zero, uintptr_t codes, uintptr_t squares,
             uintptr_t products, int threads, const std::string& set) {
            const CodeSums sums{self, address<const float>(scale), address<const float>(zero), address<float>(codes),
                                address<float>(squares), address<float>(products)};
            const InstructionSet& with = chosen(set);
            nb::gil_scoped_release free;
            sum_codes(sums, threads, with);
          },
          nb::kw_only(), nb::arg("scale"), nb::arg("zero"), nb::arg("codes"), nb::arg("squares"), nb::arg("products"),
          nb::arg("threads"), nb::arg("instruction_set") = "")
      .def(
          "search_grids",
          [](const Weights& self, int type, const std::vector<float>& shares, const std::vector<float>& factors,
             bool zeros, int64_t rounds, uintptr_t scale, uintptr_t zero, int threads, const std::string& set) {
            const GridSearch search{self,
                                    static_cast<Number>(type),
                                    shares.data(),
                                    static_cast<int64_t>(shares.size()),
                                    factors.data(),
                                    static_cast<int64_t>(factors.size()),
                                    zeros,
                                    rounds,
                                    address<float>(scale),
                                    address<float>(zero)};
            const InstructionSet& with = chosen(set);
            nb::gil_scoped_release free;
            search_grids(search, threads, with);
          },
          nb::kw_only(), nb::arg("type"), nb::arg("shares"), nb::arg("factors"), nb::arg("zeros"), nb::arg("rounds"),
          nb::arg("scale"), nb::arg("zero"), nb::arg("threads"), nb::arg("instruction_set") = "");

  nb::class_<TwoLevelFit>(m, "TwoLevelFit")
      .def(
          "__init__",
          [](TwoLevelFit* self, int64_t columns, int64_t rows, int64_t tile_rows, uintptr_t weight, uintptr_t importance,
             float levels, float scale_top, float zero_top, bool zero_symmetric, int type, int scale_reach,
             int zero_reach, uintptr_t zero_ranges, int64_t zero_range_count, float least_share, float small,
             float point, float least_step) {
            new (self) TwoLevelFit{columns,
                                   rows,
                                   tile_rows,
                                   address<const float>(weight),
                                   address<const float>(importance),
                                   levels,
                                   scale_top,
                                   zero_top,
                                   zero_symmetric,
                                   static_cast<Number>(type),
                                   scale_reach,
                                   zero_reach,
                                   address<const float>(zero_ranges),
                                   zero_range_count,
                                   least_share,
                                   small,
                                   point,
                                   least_step};
          },
          nb::kw_only(), nb::arg("columns"), nb::arg("rows"), nb::arg("tile_rows"), nb::arg("weight"),
          nb::arg("importance"), nb::arg("levels"), nb::arg("scale_top"), nb::arg("zero_top"), nb::arg("zero_symmetric"), nb::arg("type"), nb::arg("scale_reach"),
          nb::arg("zero_reach"), nb::arg("zero_ranges"), nb::arg("zero_range_count"), nb::arg("least_share"),
          nb::arg("small"), nb::arg("point"), nb::arg("least_step"))
      .def(
          "fit",
          [](const TwoLevelFit& self, uintptr_t scale, uintptr_t zero, uintptr_t scale_codes, uintptr_t scale_step,
             uintptr_t scale_offset, uintptr_t zero_codes, uintptr_t zero_step, uintptr_t zero_offset, int threads,
             const std::string& set) {
            const FittedGrids to{
                address<float>(scale), address<float>(zero),
                StoredLevel{address<uint8_t>(scale_codes), address<float>(scale_step), address<float>(scale_offset)},
                StoredLevel{address<uint8_t>(zero_codes), address<float>(zero_step), address<float>(zero_offset)}};
            const InstructionSet& with = chosen(set);
            nb::gil_scoped_release free;
            fit_two_levels(self, to, threads, with);
          },
          nb::kw_only(), nb::arg("scale"), nb::arg("zero"), nb::arg("scale_codes"), nb::arg("scale_step"),
          nb::arg("scale_offset"), nb::arg("zero_codes"), nb::arg("zero_step"), nb::arg("zero_offset"),
          nb::arg("threads"), nb::arg("instruction_set") = "")
      .def(
          "leave_one_out",
          [](const TwoLevelFit& self, uintptr_t importance, uintptr_t scale, uintptr_t zero, uintptr_t saved, int threads,
             const std::string& set) {
            const LeaveOneOut left{self, address<const float>(importance), address<const float>(scale),
                                   address<const float>(zero), address<float>(saved)};
            const InstructionSet& with = chosen(set);
            nb::gil_scoped_release free;
            leave_one_out(left, threads, with);
          },
          nb::kw_only(), nb::arg("importance"), nb::arg("scale"), nb::arg("zero"), nb::arg("saved"), nb::arg("threads"),
          nb::arg("instruction_set") = "");

  m.attr("lanes") = kLanes;
  m.attr("most_columns") = kMostColumns;
  m.def(
      "round_columns",
      [](int64_t first, int64_t last, int64_t columns, int64_t rows, float levels, bool round_zero, bool minima,
         uintptr_t original, uintptr_t update, uintptr_t scale, uintptr_t zero, uintptr_t group, uintptr_t mask,
         uintptr_t present, uintptr_t error, uintptr_t codes, uintptr_t residual, int threads, const std::string& set) {
        const ErrorFeedback feedback{columns,
                                     rows,
                                     GridKind{levels, round_zero, minima},
                                     address<const float>(original),
                                     address<const float>(update),
                                     address<const float>(scale),
                                     address<const float>(zero),
                                     address<const int64_t>(group),
                                     address<const uint8_t>(mask),
                                     address<float>(present),
                                     address<float>(error),
                                     address<uint8_t>(codes),
                                     address<uint16_t>(residual)};
        const InstructionSet& with = chosen(set);
        nb::gil_scoped_release free;
        round_columns(feedback, first, last, threads, with);
      },
      nb::kw_only(), nb::arg("first"), nb::arg("last"), nb::arg("columns"), nb::arg("rows"), nb::arg("levels"),
      nb::arg("round_zero"), nb::arg("minima"), nb::arg("original"), nb::arg("update"), nb::arg("scale"),
      nb::arg("zero"), nb::arg("group"), nb::arg("mask"), nb::arg("present"), nb::arg("error"), nb::arg("codes"),
      nb::arg("residual"), nb::arg("threads"), nb::arg("instruction_set") = "");
}
