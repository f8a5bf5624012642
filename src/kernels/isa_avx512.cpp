#include "isa_avx512.h"

#include "isa_instance.h"

namespace roundel {
bool has_avx512();
extern const InstructionSet kAvx512;
const InstructionSet kAvx512 = instance<Avx512>("avx512", has_avx512);
}  // namespace roundel
