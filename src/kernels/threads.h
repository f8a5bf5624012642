// Work for several threads: torch's (team.h), or a pool of our own where these cannot be had.
#pragma once

#include <cstdint>
#include <functional>

namespace roundel {

// Call `work(i)` for every i in [0, count) from at most `threads` threads, this one among them. Calls from several
// threads at once share the pool: who comes second works alone.
void parallel(int64_t count, int threads, const std::function<void(int64_t)>& work);

}  // namespace roundel
