// kernels/src/vector/avx2.h written with Highway: what benchmarks/highway_speed.py builds in its place.
#ifndef NEXTSCALE_VECTOR_AVX2_H_
#define NEXTSCALE_VECTOR_AVX2_H_

#include <immintrin.h>

#include <math.h>

#include <cstdint>
#include <cstring>

#include "hwy/highway.h"

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int kLanes = 16;
constexpr int kTogether = 2;
constexpr int kFloatRows = 6, kFloatVectors = 1;

using Floats = hn::FixedTag<float, 8>;
using Ints = hn::FixedTag<int32_t, 8>;
using Pairs = hn::FixedTag<double, 4>;  // of floats, to be moved together
using FourFloats = hn::FixedTag<float, 4>;
using ManyBytes = hn::FixedTag<uint8_t, 32>;
using Bytes = hn::FixedTag<uint8_t, 8>;
constexpr Floats df{};
constexpr Ints di{};

struct F {
  hn::VFromD<Floats> lo, hi;
};
struct I {
  hn::VFromD<Ints> lo, hi;
};

inline size_t lanes(int64_t n) { return static_cast<size_t>(n < 0 ? 0 : n > 8 ? 8 : n); }

inline F splat(float x) { return {hn::Set(df, x), hn::Set(df, x)}; }
inline I splat(int32_t x) { return {hn::Set(di, x), hn::Set(di, x)}; }
inline F load(const float* p) { return {hn::LoadU(df, p), hn::LoadU(df, p + 8)}; }
inline I load(const int32_t* p) { return {hn::LoadU(di, p), hn::LoadU(di, p + 8)}; }
inline F load(const float* p, int64_t n) { return {hn::LoadN(df, p, lanes(n)), hn::LoadN(df, p + 8, lanes(n - 8))}; }
inline I load(const int32_t* p, int64_t n) {
  return {hn::LoadN(di, p, lanes(n)), hn::LoadN(di, p + 8, lanes(n - 8))};
}
inline I load_u8(const uint8_t* p) {
  return {hn::PromoteTo(di, hn::LoadU(Bytes(), p)), hn::PromoteTo(di, hn::LoadU(Bytes(), p + 8))};
}
inline I load_u8(const uint8_t* p, int64_t n) {
  uint8_t x[kLanes] = {};
  for (int i = 0; i < kLanes && i < n; ++i) x[i] = p[i];
  return load_u8(x);
}
inline void store(float* p, F x) {
  hn::StoreU(x.lo, df, p);
  hn::StoreU(x.hi, df, p + 8);
}
inline void store(int32_t* p, I x) {
  hn::StoreU(x.lo, di, p);
  hn::StoreU(x.hi, di, p + 8);
}
inline void store(float* p, F x, int64_t n) {
  hn::StoreN(x.lo, df, p, lanes(n));
  hn::StoreN(x.hi, df, p + 8, lanes(n - 8));
}
inline void store_bytes(void* p, I x) {
  const auto words = hn::OrderedDemote2To(hn::FixedTag<int16_t, 16>(), x.lo, x.hi);
  hn::StoreU(hn::DemoteTo(hn::FixedTag<uint8_t, 16>(), words), hn::FixedTag<uint8_t, 16>(), static_cast<uint8_t*>(p));
}
inline void store_bytes(void* p, I x, int64_t n) {
  if (n >= kLanes) return store_bytes(p, x);
  uint8_t y[kLanes];
  store_bytes(y, x);
  for (int i = 0; i < kLanes && i < n; ++i) static_cast<uint8_t*>(p)[i] = y[i];
}
inline hn::VFromD<ManyBytes> bytes_of(I a, I b) {  // of lanes within 0 to 255
  constexpr hn::FixedTag<int16_t, 16> dw;
  return hn::OrderedDemote2To(ManyBytes(), hn::OrderedDemote2To(dw, a.lo, a.hi), hn::OrderedDemote2To(dw, b.lo, b.hi));
}
inline void store_bytes(void* p, I a, I b, I c, I d) {
  hn::StoreU(bytes_of(a, b), ManyBytes(), static_cast<uint8_t*>(p));
  hn::StoreU(bytes_of(c, d), ManyBytes(), static_cast<uint8_t*>(p) + 32);
}
inline void store_looked_up(void* p, void* q, I a, I b, I c, I d, const uint8_t* p_table, const uint8_t* q_table) {
  const auto first = bytes_of(a, b), second = bytes_of(c, d);
  const auto store_both = [&](void* to, const uint8_t* of) {
    const auto table = hn::LoadDup128(ManyBytes(), of);
    hn::StoreU(hn::TableLookupBytes(table, first), ManyBytes(), static_cast<uint8_t*>(to));
    hn::StoreU(hn::TableLookupBytes(table, second), ManyBytes(), static_cast<uint8_t*>(to) + 32);
  };
  store_both(p, p_table);
  store_both(q, q_table);
}

inline F operator+(F a, F b) { return {hn::Add(a.lo, b.lo), hn::Add(a.hi, b.hi)}; }
inline F operator-(F a, F b) { return {hn::Sub(a.lo, b.lo), hn::Sub(a.hi, b.hi)}; }
inline F operator*(F a, F b) { return {hn::Mul(a.lo, b.lo), hn::Mul(a.hi, b.hi)}; }
inline F operator/(F a, F b) { return {hn::Div(a.lo, b.lo), hn::Div(a.hi, b.hi)}; }
inline F fma(F a, F b, F c) { return {hn::MulAdd(a.lo, b.lo, c.lo), hn::MulAdd(a.hi, b.hi, c.hi)}; }
inline F fnma(F a, F b, F c) { return {hn::NegMulAdd(a.lo, b.lo, c.lo), hn::NegMulAdd(a.hi, b.hi, c.hi)}; }
inline F max(F a, F b) { return {hn::Max(a.lo, b.lo), hn::Max(a.hi, b.hi)}; }
inline F min(F a, F b) { return {hn::Min(a.lo, b.lo), hn::Min(a.hi, b.hi)}; }
inline I at_least(F a, F b) {
  return {hn::BitCast(di, hn::VecFromMask(df, hn::Ge(a.lo, b.lo))), hn::BitCast(di, hn::VecFromMask(df, hn::Ge(a.hi, b.hi)))};
}
inline F abs(F a) { return {hn::Abs(a.lo), hn::Abs(a.hi)}; }
inline F round(F a) { return {hn::Round(a.lo), hn::Round(a.hi)}; }
inline F floor(F a) { return {hn::Floor(a.lo), hn::Floor(a.hi)}; }
inline I nearest(F a) { return {hn::NearestIntInRange(di, a.lo), hn::NearestIntInRange(di, a.hi)}; }
inline F to_float(I a) { return {hn::ConvertTo(df, a.lo), hn::ConvertTo(df, a.hi)}; }

inline I operator+(I a, I b) { return {hn::Add(a.lo, b.lo), hn::Add(a.hi, b.hi)}; }
inline I operator-(I a, I b) { return {hn::Sub(a.lo, b.lo), hn::Sub(a.hi, b.hi)}; }
inline I operator*(I a, I b) { return {hn::Mul(a.lo, b.lo), hn::Mul(a.hi, b.hi)}; }
inline I operator&(I a, I b) { return {hn::And(a.lo, b.lo), hn::And(a.hi, b.hi)}; }
inline I operator|(I a, I b) { return {hn::Or(a.lo, b.lo), hn::Or(a.hi, b.hi)}; }
inline I max(I a, I b) { return {hn::Max(a.lo, b.lo), hn::Max(a.hi, b.hi)}; }
inline I min(I a, I b) { return {hn::Min(a.lo, b.lo), hn::Min(a.hi, b.hi)}; }
template <int N>
inline I shift_left(I a) {
  return {hn::ShiftLeft<N>(a.lo), hn::ShiftLeft<N>(a.hi)};
}
template <int N>
inline I shift_right(I a) {
  const hn::RebindToUnsigned<Ints> du;
  return {hn::BitCast(di, hn::ShiftRight<N>(hn::BitCast(du, a.lo))),
          hn::BitCast(di, hn::ShiftRight<N>(hn::BitCast(du, a.hi)))};
}
template <int N>
inline I shift_right_signed(I a) {
  return {hn::ShiftRight<N>(a.lo), hn::ShiftRight<N>(a.hi)};
}
inline I bits(F a) { return {hn::BitCast(di, a.lo), hn::BitCast(di, a.hi)}; }
inline F from_bits(I a) { return {hn::BitCast(df, a.lo), hn::BitCast(df, a.hi)}; }

inline void transpose(hn::VFromD<Floats> (&x)[8]) {
  hn::VFromD<Floats> of_two[8], of_four[8];
  for (int i = 0; i < 8; i += 2) {
    of_two[i] = hn::InterleaveLower(df, x[i], x[i + 1]);
    of_two[i + 1] = hn::InterleaveUpper(df, x[i], x[i + 1]);
  }
  for (int i = 0; i < 8; ++i) {
    const auto a = hn::BitCast(Pairs(), of_two[i / 4 * 4 + i % 4 / 2]);
    const auto b = hn::BitCast(Pairs(), of_two[i / 4 * 4 + i % 4 / 2 + 2]);
    of_four[i] = hn::BitCast(df, i % 2 ? hn::InterleaveUpper(Pairs(), a, b) : hn::InterleaveLower(Pairs(), a, b));
  }
  for (int i = 0; i < 4; ++i) {
    x[i] = hn::ConcatLowerLower(df, of_four[i + 4], of_four[i]);
    x[i + 4] = hn::ConcatUpperUpper(df, of_four[i + 4], of_four[i]);
  }
}
inline void transpose(F (&x)[kLanes]) {
  hn::VFromD<Floats> square[2][2][8];  // of rows and columns
  for (int i = 0; i < kLanes; ++i) {
    square[i / 8][0][i % 8] = x[i].lo;
    square[i / 8][1][i % 8] = x[i].hi;
  }
  for (auto& row : square)
    for (auto& one : row) transpose(one);
  for (int i = 0; i < kLanes; ++i) x[i] = {square[0][i / 8][i % 8], square[1][i / 8][i % 8]};
}

// Halves are added to halves, in the order of every instruction set here; Highway's own reductions have another.
inline float sum(F a) {
  const auto eight = hn::Add(a.lo, a.hi);
  const auto four = hn::Add(hn::LowerHalf(eight), hn::UpperHalf(FourFloats(), eight));
  const auto two = hn::Add(four, hn::Shuffle1032(four));
  return hn::GetLane(hn::Add(two, hn::Shuffle2301(two)));
}
inline int32_t sum(I a) { return hn::ReduceSum(di, hn::Add(a.lo, a.hi)); }
inline float maximum(F a) { return hn::ReduceMax(df, hn::Max(a.lo, a.hi)); }
inline float minimum(F a) { return hn::ReduceMin(df, hn::Min(a.lo, a.hi)); }
inline int32_t maximum(I a) { return hn::ReduceMax(di, hn::Max(a.lo, a.hi)); }

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_VECTOR_AVX2_H_
