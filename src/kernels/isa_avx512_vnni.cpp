#define ROUNDEL_VNNI
#include "isa_avx512.h"

#include "isa_instance.h"

namespace roundel {
bool has_avx512_vnni();
extern const InstructionSet kAvx512Vnni;
const InstructionSet kAvx512Vnni = instance<Avx512Vnni>("avx512-vnni", has_avx512_vnni);
}  // namespace roundel
