#include "isa_neon.h"

#include "isa_instance.h"

namespace roundel {
bool has_neon();
extern const InstructionSet kNeon;
const InstructionSet kNeon = instance<Neon>("neon", has_neon);
}  // namespace roundel
