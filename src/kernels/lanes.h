// Sixteen floats at a time, in as many vectors as the instruction set needs: sums have one order on every processor.
#pragma once

#include <cstdint>
#include <cstring>

#include "matrix.h"

namespace roundel {
namespace {

constexpr int kLanes = 16;

template <class Isa>
struct Lanes {
  static constexpr int kParts = kLanes / Isa::kRows;
  typename Isa::Real of[kParts];
};

template <class Isa>
inline Lanes<Isa> everywhere(float x) {
  Lanes<Isa> to;
  for (auto& part : to.of) part = Isa::broadcast(x);
  return to;
}

// Floats, or numbers of 16 bits, which are bfloat16.
template <class T>
constexpr Number kNumber = sizeof(T) == sizeof(float) ? Number::Float32 : Number::Bfloat16;

// The first `count` of them; zeros behind.
template <class Isa, class T>
inline Lanes<Isa> load(const T* from, int64_t count) {
  T kept[kLanes];
  if (count < kLanes) {
    std::memset(kept, 0, sizeof kept);
    std::memcpy(kept, from, count * sizeof(T));
    from = kept;
  }
  Lanes<Isa> to;
  for (int i = 0; i < Lanes<Isa>::kParts; ++i) to.of[i] = Isa::template numbers<kNumber<T>>(from, i * Isa::kRows);
  return to;
}

// Rounded to bfloat16 where that is wanted, halves to even.
template <class Isa, class T>
inline void store(T* to, const Lanes<Isa>& x, int64_t count) {
  T kept[kLanes];
  T* at = count < kLanes ? kept : to;
  for (int i = 0; i < Lanes<Isa>::kParts; ++i) Isa::store(at + i * Isa::kRows, x.of[i]);
  if (count < kLanes) std::memcpy(to, kept, count * sizeof(T));
}

// The function of every part.
template <class Isa, class Function>
inline Lanes<Isa> each(Function function) {
  Lanes<Isa> to;
  for (int i = 0; i < Lanes<Isa>::kParts; ++i) to.of[i] = function(i);
  return to;
}

template <class Isa>
inline Lanes<Isa> operator+(const Lanes<Isa>& a, const Lanes<Isa>& b) {
  return each<Isa>([&](int i) { return Isa::add(a.of[i], b.of[i]); });
}
template <class Isa>
inline Lanes<Isa> operator-(const Lanes<Isa>& a, const Lanes<Isa>& b) {
  return each<Isa>([&](int i) { return Isa::subtract(a.of[i], b.of[i]); });
}
template <class Isa>
inline Lanes<Isa> operator*(const Lanes<Isa>& a, const Lanes<Isa>& b) {
  return each<Isa>([&](int i) { return Isa::multiply(a.of[i], b.of[i]); });
}
template <class Isa>
inline Lanes<Isa> operator/(const Lanes<Isa>& a, const Lanes<Isa>& b) {
  return each<Isa>([&](int i) { return Isa::divide(a.of[i], b.of[i]); });
}
// To the nearest integer, halves to even.
template <class Isa>
inline Lanes<Isa> round(const Lanes<Isa>& a) {
  return each<Isa>([&](int i) { return Isa::round(a.of[i]); });
}
template <class Isa>
inline Lanes<Isa> clamp(const Lanes<Isa>& a, const Lanes<Isa>& most) {
  return each<Isa>([&](int i) { return Isa::smaller(Isa::larger(a.of[i], Isa::real_zero()), most.of[i]); });
}
// x where 0 <= a <= most, else 0.
template <class Isa>
inline Lanes<Isa> inside(const Lanes<Isa>& a, const Lanes<Isa>& most, const Lanes<Isa>& x) {
  return each<Isa>([&](int i) { return Isa::inside(a.of[i], most.of[i], x.of[i]); });
}
// `size` with the sign of a; 0 where a is.
template <class Isa>
inline Lanes<Isa> signed_size(const Lanes<Isa>& a, const Lanes<Isa>& size) {
  return each<Isa>([&](int i) { return Isa::signed_size(a.of[i], size.of[i]); });
}

// Lanes 8 apart first, then 4, 2 and 1.
template <class Isa>
inline float total(Lanes<Isa> x) {
  for (int parts = Lanes<Isa>::kParts / 2; parts > 0; parts /= 2)
    for (int i = 0; i < parts; ++i) x.of[i] = Isa::add(x.of[i], x.of[i + parts]);
  return Isa::across(x.of[0]);
}

}  // namespace
}  // namespace roundel
