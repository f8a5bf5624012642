#include "isa_neon.h"

#include "isa_instance.h"

namespace roundel {
bool has_neon_dot();
extern const InstructionSet kNeonDot;
const InstructionSet kNeonDot = instance<NeonDot>("neon-dot", has_neon_dot);
}  // namespace roundel
