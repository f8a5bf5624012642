// Plain C++, for every other processor; compilers make vectors of its loops where they can.
#pragma once

#include <cmath>
#include <cstring>

#include "activations.h"
#include "numbers.h"

namespace roundel {
namespace {

struct Portable {
  static constexpr int kVectors = 1, kVectorBytes = kUnitBytes, kRows = kTileRows, kMostTokens = 1;
  static constexpr int kTableBits = 4;
  static constexpr Start kStart = Start::Total;
  struct Bytes { uint8_t of[kUnitBytes]; };
  struct Sum { int32_t of[kTileRows]; };
  struct Real { float of[kTileRows]; };

  static Bytes load(const uint8_t* p) {
    Bytes to;
    std::memcpy(to.of, p, kUnitBytes);
    return to;
  }
  template <int FROM, int WIDTH, int TO>
  static Bytes field(Bytes v) {
    for (auto& x : v.of) x = static_cast<uint8_t>(((x >> FROM) & ((1 << WIDTH) - 1)) << TO);
    return v;
  }
  static Bytes either(Bytes a, const Bytes& b) {
    for (int i = 0; i < kUnitBytes; ++i) a.of[i] |= b.of[i];
    return a;
  }

  static Sum nothing() { return Sum{}; }
  static Sum start(const int8_t* word) {
    int32_t value;
    std::memcpy(&value, word, 4);
    Sum to;
    for (auto& x : to.of) x = value;
    return to;
  }
  static Sum dot(Sum sum, const Bytes& codes, const int8_t* x) {
    for (int r = 0; r < kTileRows; ++r)
      for (int i = 0; i < kUnitColumns; ++i) sum.of[r] += codes.of[4 * r + i] * x[i];
    return sum;
  }
  static Real total(const Sum& low) {
    Real to;
    for (int r = 0; r < kTileRows; ++r) to.of[r] = static_cast<float>(low.of[r]);
    return to;
  }
  static Real total(const Sum& low, const Sum& high) {
    Real to;
    for (int r = 0; r < kTileRows; ++r) to.of[r] = static_cast<float>(low.of[r] + 16 * high.of[r]);
    return to;
  }

  static Real real_zero() { return Real{}; }
  static Real broadcast(float x) {
    Real to;
    for (auto& r : to.of) r = x;
    return to;
  }
  static Real fma(const Real& a, const Real& b, const Real& c) {
    Real to;
    for (int r = 0; r < kTileRows; ++r) to.of[r] = a.of[r] * b.of[r] + c.of[r];
    return to;
  }
  static Real multiply(Real a, const Real& b) {
    for (int r = 0; r < kTileRows; ++r) a.of[r] *= b.of[r];
    return a;
  }
  static Real add(Real a, const Real& b) {
    for (int r = 0; r < kTileRows; ++r) a.of[r] += b.of[r];
    return a;
  }
  static Real subtract(Real a, const Real& b) {
    for (int r = 0; r < kTileRows; ++r) a.of[r] -= b.of[r];
    return a;
  }
  static Real real_load(const float* p) {
    Real to;
    std::memcpy(to.of, p, sizeof to.of);
    return to;
  }
  static void store(float* p, const Real& x) { std::memcpy(p, x.of, sizeof x.of); }

  static Real divide(Real a, const Real& b) {
    for (int r = 0; r < kTileRows; ++r) a.of[r] /= b.of[r];
    return a;
  }
  static Real round(Real a) {
    for (auto& x : a.of) x = std::nearbyint(x);
    return a;
  }
  static Real larger(Real a, const Real& b) {
    for (int r = 0; r < kTileRows; ++r) a.of[r] = a.of[r] > b.of[r] ? a.of[r] : b.of[r];
    return a;
  }
  static Real smaller(Real a, const Real& b) {
    for (int r = 0; r < kTileRows; ++r) a.of[r] = a.of[r] < b.of[r] ? a.of[r] : b.of[r];
    return a;
  }
  // x where 0 <= a <= most, else 0.
  static Real inside(const Real& a, const Real& most, Real x) {
    for (int r = 0; r < kTileRows; ++r) x.of[r] = 0 <= a.of[r] && a.of[r] <= most.of[r] ? x.of[r] : 0;
    return x;
  }
  // `size` with the sign of a; 0 where a is.
  static Real signed_size(const Real& a, Real size) {
    for (int r = 0; r < kTileRows; ++r) size.of[r] = a.of[r] > 0 ? size.of[r] : a.of[r] < 0 ? -size.of[r] : 0;
    return size;
  }
  // The sum of all: those 8 apart first, then 4, 2 and 1.
  static float across(Real a) {
    for (int apart = kTileRows / 2; apart > 0; apart /= 2)
      for (int r = 0; r < apart; ++r) a.of[r] += a.of[r + apart];
    return a.of[0];
  }
  // Rounded to bfloat16, halves to even.
  static void store(uint16_t* p, const Real& a) {
    for (int r = 0; r < kTileRows; ++r) p[r] = to_bfloat16(a.of[r]);
  }

  struct Table { float step, shift, base; };
  struct Index { uint8_t of[kTileRows]; };

  static Index indexes(const uint8_t* p) {
    Index to;
    std::memcpy(to.of, p, kTileRows);
    return to;
  }
  static Index upper(Index nibbles) {
    for (auto& x : nibbles.of) x >>= 4;
    return nibbles;
  }
  // base + step * (i - shift): no table, it is computed.
  static Table table(float step, float shift, float base) { return {step, shift, base}; }
  static Real pick(Table table, const Index& index) {
    Real to;
    for (int r = 0; r < kTileRows; ++r) to.of[r] = table.base + table.step * ((index.of[r] & 15) - table.shift);
    return to;
  }

  template <Number TYPE>
  static Real numbers(const void* values, int64_t at) {
    Real to;
    for (int r = 0; r < kTileRows; ++r) to.of[r] = number<TYPE>(values, at + r);
    return to;
  }

  // Of 16 columns, int32 or uint16.
  template <class Column>
  static Real gather(const float* x, const Column* at) {
    Real to;
    for (int r = 0; r < kTileRows; ++r) to.of[r] = x[at[r]];
    return to;
  }
  // Zeros in the place of all but the first `count`.
  static Real first(Real a, int64_t count) {
    for (int64_t r = count > 0 ? count : 0; r < kTileRows; ++r) a.of[r] = 0;
    return a;
  }
};

}  // namespace
}  // namespace roundel
