#include "instruction_sets.h"

#include <cstring>

#if defined(ROUNDEL_NEON) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace roundel {

extern const InstructionSet kPortable;
#ifdef ROUNDEL_X86
extern const InstructionSet kAvx2, kAvx512, kAvx512Vnni;
#endif
#ifdef ROUNDEL_NEON
extern const InstructionSet kNeon, kNeonDot;
#endif

const InstructionSet* const* instruction_sets(int* count) {
  static const InstructionSet* const all[] = {
#ifdef ROUNDEL_X86
      &kAvx512Vnni, &kAvx512, &kAvx2,
#endif
#ifdef ROUNDEL_NEON
      &kNeonDot, &kNeon,
#endif
      &kPortable};
  *count = sizeof all / sizeof all[0];
  return all;
}

const InstructionSet* instruction_set(const char* name) {
  int count;
  const InstructionSet* const* all = instruction_sets(&count);
  for (int i = 0; i < count; ++i)
    if ((name == nullptr || std::strcmp(name, all[i]->name) == 0) && all[i]->present()) return all[i];
  return nullptr;
}

// Asked here: the files of an instruction set are compiled for it, all of them.
#ifdef ROUNDEL_X86
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool has_avx512_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
#endif
#ifdef ROUNDEL_NEON
bool has_neon() { return true; }
bool has_neon_dot() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
  return true;  // every Apple silicon
#endif
}
#endif
bool has_all() { return true; }

}  // namespace roundel
