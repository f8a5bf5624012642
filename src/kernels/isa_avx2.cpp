#include "isa_avx2.h"

#include "isa_instance.h"

namespace roundel {
bool has_avx2();
extern const InstructionSet kAvx2;
const InstructionSet kAvx2 = instance<Avx2>("avx2", has_avx2);
}  // namespace roundel
