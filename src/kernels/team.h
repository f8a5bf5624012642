// torch's own threads, where they can be had.
#pragma once

namespace roundel {

// Call `work(data)` from so many threads, this one among them, and wait for all.
using RunTeam = void (*)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

// Null: torch is not here, or computes with other threads than those of GNU's OpenMP; or this is a forked child, where
// they are not.
RunTeam torch_team();

}  // namespace roundel
