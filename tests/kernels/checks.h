// What the checks of the kernels have in common: random numbers, and the instruction sets that run here.
#pragma once

#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <random>
#include <vector>

#include "../../src/kernels/instruction_sets.h"

namespace roundel {

struct Random {
  std::mt19937_64 engine;
  int between(int least, int most) {
    return least + static_cast<int>(engine() % static_cast<uint64_t>(most - least + 1));
  }
  bool one_in(int count) { return between(1, count) == 1; }
  // Nearly normal, and the same with every library.
  float normal() {
    int sum = 0;
    for (int i = 0; i < 4; ++i) sum += between(-1000000, 1000000);
    return static_cast<float>(sum) * 1e-6f;
  }
  template <class T>
  T any(std::initializer_list<T> of) { return of.begin()[between(0, static_cast<int>(of.size()) - 1)]; }
};

// Those of this build that run here, the others are named.
inline std::vector<const InstructionSet*> present_sets() {
  int known;
  const InstructionSet* const* all = instruction_sets(&known);
  std::vector<const InstructionSet*> sets;
  for (int i = 0; i < known; ++i) {
    bool present = all[i]->present();
#ifdef ROUNDEL_SIMDE
    present = present || std::strncmp(all[i]->name, "avx512", 6) == 0;
#endif
    if (present) sets.push_back(all[i]);
    else std::printf("%s: this processor does not have it\n", all[i]->name);
  }
  return sets;
}

}  // namespace roundel
