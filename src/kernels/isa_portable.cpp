#include "isa_portable.h"

#include "isa_instance.h"

namespace roundel {
bool has_all();
extern const InstructionSet kPortable;
const InstructionSet kPortable = instance<Portable>("portable", has_all);
}  // namespace roundel
