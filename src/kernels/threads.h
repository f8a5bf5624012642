// A pool of threads of our own: torch's are in a library inside its wheel, under a name that nobody can link against.
#pragma once

#include <cstdint>
#include <functional>

namespace roundel {

// Call `work(i)` for every i in [0, count) from at most `threads` threads, this one among them. Calls from several
// threads at once share one pool: who comes second works alone.
void parallel(int64_t count, int threads, const std::function<void(int64_t)>& work);

}  // namespace roundel
