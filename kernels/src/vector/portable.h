// 16 lanes of float or int32 in plain C++.
//
// Every instruction set has these types and functions, and each does the same IEEE operation on the same lanes: a
// kernel written with them gives the same bits on all processors.
#ifndef NEXTSCALE_VECTOR_PORTABLE_H_
#define NEXTSCALE_VECTOR_PORTABLE_H_

#include <math.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

constexpr int kLanes = 16;
constexpr int kTogether = 1;  // vectors whose steps are taken together
// Rows, and vectors of columns, whose sums a float product holds in registers.
constexpr int kFloatRows = 2, kFloatVectors = 1;

struct F {
  float v[kLanes];
};
struct I {
  int32_t v[kLanes];
};

template <class T, class Op>
inline T each(Op op) {
  T r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = op(i);
  return r;
}

inline F splat(float x) {
  return each<F>([&](int) { return x; });
}
inline I splat(int32_t x) {
  return each<I>([&](int) { return x; });
}
inline F load(const float* p) {
  F r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
inline I load(const int32_t* p) {
  I r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
// The first n lanes, at most all; the others are zero.
inline F load(const float* p, int64_t n) {
  return each<F>([&](int i) { return i < n ? p[i] : 0.0f; });
}
inline I load(const int32_t* p, int64_t n) {
  return each<I>([&](int i) { return i < n ? p[i] : 0; });
}
inline I load_u8(const uint8_t* p) {
  return each<I>([&](int i) { return static_cast<int32_t>(p[i]); });
}
inline I load_u8(const uint8_t* p, int64_t n) {
  return each<I>([&](int i) { return i < n ? static_cast<int32_t>(p[i]) : 0; });
}
inline void store(float* p, F x) { std::memcpy(p, x.v, sizeof x.v); }
inline void store(int32_t* p, I x) { std::memcpy(p, x.v, sizeof x.v); }
inline void store(float* p, F x, int64_t n) {
  for (int i = 0; i < kLanes && i < n; ++i) p[i] = x.v[i];
}
// The low byte of each lane.
inline void store_bytes(void* p, I x) {
  for (int i = 0; i < kLanes; ++i) static_cast<uint8_t*>(p)[i] = static_cast<uint8_t>(x.v[i]);
}
inline void store_bytes(void* p, I x, int64_t n) {
  for (int i = 0; i < kLanes && i < n; ++i) static_cast<uint8_t*>(p)[i] = static_cast<uint8_t>(x.v[i]);
}
// The low bytes of four vectors, next to each other; lanes must be within 0 to 255.
inline void store_bytes(void* p, I a, I b, I c, I d) {
  store_bytes(p, a);
  store_bytes(static_cast<uint8_t*>(p) + 16, b);
  store_bytes(static_cast<uint8_t*>(p) + 32, c);
  store_bytes(static_cast<uint8_t*>(p) + 48, d);
}

// table[x] of four vectors of x from 0 to 15, from two tables, as bytes next to each other.
inline void store_looked_up(void* p, void* q, I a, I b, I c, I d, const uint8_t* p_table, const uint8_t* q_table) {
  const I* vectors[4] = {&a, &b, &c, &d};
  for (int v = 0; v < 4; ++v)
    for (int i = 0; i < kLanes; ++i) {
      static_cast<uint8_t*>(p)[v * kLanes + i] = p_table[vectors[v]->v[i]];
      static_cast<uint8_t*>(q)[v * kLanes + i] = q_table[vectors[v]->v[i]];
    }
}

inline F operator+(F a, F b) {
  return each<F>([&](int i) { return a.v[i] + b.v[i]; });
}
inline F operator-(F a, F b) {
  return each<F>([&](int i) { return a.v[i] - b.v[i]; });
}
inline F operator*(F a, F b) {
  return each<F>([&](int i) { return a.v[i] * b.v[i]; });
}
inline F operator/(F a, F b) {
  return each<F>([&](int i) { return a.v[i] / b.v[i]; });
}
// a b + c with one rounding.
inline F fma(F a, F b, F c) {
  return each<F>([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
// c - a b with one rounding.
inline F fnma(F a, F b, F c) {
  return each<F>([&](int i) { return std::fma(-a.v[i], b.v[i], c.v[i]); });
}
// The second where one is not a number, as x86 does.
inline F max(F a, F b) {
  return each<F>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F min(F a, F b) {
  return each<F>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
// All bits where a is at least b, else none.
inline I at_least(F a, F b) {
  return each<I>([&](int i) { return a.v[i] >= b.v[i] ? -1 : 0; });
}
inline F abs(F a) {
  return each<F>([&](int i) { return std::fabs(a.v[i]); });
}
// To the nearest, ties to even.
inline F round(F a) {
  return each<F>([&](int i) { return std::nearbyint(a.v[i]); });
}
inline F floor(F a) {
  return each<F>([&](int i) { return std::floor(a.v[i]); });
}
// To the nearest, ties to even; a must be within int32.
inline I nearest(F a) {
  return each<I>([&](int i) { return static_cast<int32_t>(std::nearbyint(a.v[i])); });
}
inline F to_float(I a) {
  return each<F>([&](int i) { return static_cast<float>(a.v[i]); });
}

inline I operator+(I a, I b) {
  return each<I>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) + static_cast<uint32_t>(b.v[i])); });
}
inline I operator-(I a, I b) {
  return each<I>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) - static_cast<uint32_t>(b.v[i])); });
}
inline I operator*(I a, I b) {
  return each<I>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) * static_cast<uint32_t>(b.v[i])); });
}
inline I operator&(I a, I b) {
  return each<I>([&](int i) { return a.v[i] & b.v[i]; });
}
inline I operator|(I a, I b) {
  return each<I>([&](int i) { return a.v[i] | b.v[i]; });
}
inline I max(I a, I b) {
  return each<I>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline I min(I a, I b) {
  return each<I>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
template <int N>
inline I shift_left(I a) {
  return each<I>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << N); });
}
template <int N>
inline I shift_right(I a) {  // of the bits, filled up with zeros
  return each<I>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) >> N); });
}
template <int N>
inline I shift_right_signed(I a) {
  return each<I>([&](int i) { return a.v[i] >> N; });
}
inline I bits(F a) {
  I r;
  std::memcpy(r.v, a.v, sizeof r.v);
  return r;
}
inline F from_bits(I a) {
  F r;
  std::memcpy(r.v, a.v, sizeof r.v);
  return r;
}

// Lane j of vector i becomes lane i of vector j.
inline void transpose(F (&x)[kLanes]) {
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < i; ++j) {
      const float moved = x[i].v[j];
      x[i].v[j] = x[j].v[i];
      x[j].v[i] = moved;
    }
}

// Halves are added until one is left: lanes i and i + 8, then i and i + 4, ...
inline float sum(F a) {
  for (int half = kLanes / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
  return a.v[0];
}
inline int32_t sum(I a) {
  for (int half = kLanes / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
  return a.v[0];
}
inline float maximum(F a) {
  float r = a.v[0];
  for (int i = 1; i < kLanes; ++i) r = r > a.v[i] ? r : a.v[i];
  return r;
}
inline float minimum(F a) {
  float r = a.v[0];
  for (int i = 1; i < kLanes; ++i) r = r < a.v[i] ? r : a.v[i];
  return r;
}
inline int32_t maximum(I a) {
  int32_t r = a.v[0];
  for (int i = 1; i < kLanes; ++i) r = r > a.v[i] ? r : a.v[i];
  return r;
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_VECTOR_PORTABLE_H_
