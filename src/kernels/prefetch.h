// What is read soon is asked for ahead of time.
//
// A tile's codes, statistics and outliers are streams of their own, each read once from its begin to its end. Processors
// follow a stream by themselves, but only to the end of a page, and learn anew in the next one: with pages of 4 KiB, a third
// of the time of a product was waiting. Asking for addresses that are not there does nothing.
#pragma once

#include <cstdint>

namespace roundel {
namespace {

constexpr int64_t kCacheLine = 64;

// Beyond the page that is being read, by as much as finding the next one takes.
constexpr int64_t kAhead = 6144;

// `count` numbers.
template <class T>
inline void prefetch(const T* from, int64_t count) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(from);
  for (int64_t i = 0; i < count * static_cast<int64_t>(sizeof(T)); i += kCacheLine) __builtin_prefetch(bytes + i);
}

}  // namespace
}  // namespace roundel
