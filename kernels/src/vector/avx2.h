// 16 lanes as two registers of AVX2 with FMA; see portable.h for what each function does.
#ifndef NEXTSCALE_VECTOR_AVX2_H_
#define NEXTSCALE_VECTOR_AVX2_H_

#include <immintrin.h>

#include <math.h>

#include <cstdint>
#include <cstring>

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

constexpr int kLanes = 16;
constexpr int kTogether = 2;  // vectors whose steps are taken together
// Rows, and vectors of columns, whose sums a float product holds in registers.
constexpr int kFloatRows = 6, kFloatVectors = 1;

struct F {
  __m256 lo, hi;
};
struct I {
  __m256i lo, hi;
};

inline F splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline I splat(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline I load(const int32_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
}
inline __m256i first(int64_t n) {  // a mask of n lanes
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n < 0 ? 0 : n > 8 ? 8 : static_cast<int>(n)), lane);
}
inline F load(const float* p, int64_t n) {
  if (n >= kLanes) return load(p);
  return {_mm256_maskload_ps(p, first(n)), n > 8 ? _mm256_maskload_ps(p + 8, first(n - 8)) : _mm256_setzero_ps()};
}
inline I load(const int32_t* p, int64_t n) {
  if (n >= kLanes) return load(p);
  return {_mm256_maskload_epi32(p, first(n)), n > 8 ? _mm256_maskload_epi32(p + 8, first(n - 8)) : _mm256_setzero_si256()};
}
inline I load_u8(const uint8_t* p) {
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8))};
}
inline I load_u8(const uint8_t* p, int64_t n) {
  uint8_t x[kLanes] = {};
  for (int i = 0; i < kLanes && i < n; ++i) x[i] = p[i];
  return load_u8(x);
}
inline void store(float* p, F x) {
  _mm256_storeu_ps(p, x.lo);
  _mm256_storeu_ps(p + 8, x.hi);
}
inline void store(int32_t* p, I x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), x.hi);
}
inline void store(float* p, F x, int64_t n) {
  if (n >= kLanes) return store(p, x);  // processors before Zen 3 take a masked store apart
  _mm256_maskstore_ps(p, first(n), x.lo);
  if (n > 8) _mm256_maskstore_ps(p + 8, first(n - 8), x.hi);
}
inline void store_bytes(void* p, I x) {
  const __m256i take = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1,
                                        -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i a = _mm256_shuffle_epi8(x.lo, take), b = _mm256_shuffle_epi8(x.hi, take);
  const __m128i lo = _mm_unpacklo_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  const __m128i hi = _mm_unpacklo_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm_unpacklo_epi64(lo, hi));
}
inline void store_bytes(void* p, I x, int64_t n) {
  if (n >= kLanes) return store_bytes(p, x);
  uint8_t y[kLanes];
  store_bytes(y, x);
  for (int i = 0; i < kLanes && i < n; ++i) static_cast<uint8_t*>(p)[i] = y[i];
}
inline __m256i bytes_of(I a, I b) {  // of lanes within 0 to 255
  const __m256i packed = _mm256_packus_epi16(_mm256_packs_epi32(a.lo, a.hi), _mm256_packs_epi32(b.lo, b.hi));
  return _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
inline void store_bytes(void* p, I a, I b, I c, I d) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), bytes_of(a, b));
  _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, bytes_of(c, d));
}
inline void store_looked_up(void* p, void* q, I a, I b, I c, I d, const uint8_t* p_table, const uint8_t* q_table) {
  const auto table = [](const uint8_t* of) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(of)));
  };
  const __m256i first = bytes_of(a, b), second = bytes_of(c, d);
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_shuffle_epi8(table(p_table), first));
  _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, _mm256_shuffle_epi8(table(p_table), second));
  _mm256_storeu_si256(static_cast<__m256i*>(q), _mm256_shuffle_epi8(table(q_table), first));
  _mm256_storeu_si256(static_cast<__m256i*>(q) + 1, _mm256_shuffle_epi8(table(q_table), second));
}

inline F operator+(F a, F b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F operator-(F a, F b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F operator*(F a, F b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F operator/(F a, F b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
inline F fnma(F a, F b, F c) { return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)}; }
inline F max(F a, F b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F min(F a, F b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline I at_least(F a, F b) {
  return {_mm256_castps_si256(_mm256_cmp_ps(a.lo, b.lo, _CMP_GE_OQ)),
          _mm256_castps_si256(_mm256_cmp_ps(a.hi, b.hi, _CMP_GE_OQ))};
}
inline F abs(F a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
inline F round(F a) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, kNearest), _mm256_round_ps(a.hi, kNearest)};
}
inline F floor(F a) {
  constexpr int kDown = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, kDown), _mm256_round_ps(a.hi, kDown)};
}
inline I nearest(F a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
inline F to_float(I a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }

inline I operator+(I a, I b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
inline I operator-(I a, I b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
inline I operator*(I a, I b) { return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)}; }
inline I operator&(I a, I b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
inline I operator|(I a, I b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
inline I max(I a, I b) { return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)}; }
inline I min(I a, I b) { return {_mm256_min_epi32(a.lo, b.lo), _mm256_min_epi32(a.hi, b.hi)}; }
template <int N>
inline I shift_left(I a) {
  return {_mm256_slli_epi32(a.lo, N), _mm256_slli_epi32(a.hi, N)};
}
template <int N>
inline I shift_right(I a) {
  return {_mm256_srli_epi32(a.lo, N), _mm256_srli_epi32(a.hi, N)};
}
template <int N>
inline I shift_right_signed(I a) {
  return {_mm256_srai_epi32(a.lo, N), _mm256_srai_epi32(a.hi, N)};
}
inline I bits(F a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
inline F from_bits(I a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }

inline void transpose(__m256 (&x)[8]) {
  __m256 of_two[8], of_four[8];
  NEXTSCALE_UNROLL
  for (int i = 0; i < 8; i += 2) {
    of_two[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
    of_two[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
  }
  NEXTSCALE_UNROLL
  for (int i = 0; i < 8; ++i) {
    const __m256 a = of_two[i / 4 * 4 + i % 4 / 2], b = of_two[i / 4 * 4 + i % 4 / 2 + 2];
    of_four[i] = i % 2 ? _mm256_shuffle_ps(a, b, 0xee) : _mm256_shuffle_ps(a, b, 0x44);
  }
  NEXTSCALE_UNROLL
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm256_permute2f128_ps(of_four[i], of_four[i + 4], 0x20);
    x[i + 4] = _mm256_permute2f128_ps(of_four[i], of_four[i + 4], 0x31);
  }
}
inline void transpose(F (&x)[kLanes]) {
  __m256 square[2][2][8];  // of rows and columns
  for (int i = 0; i < kLanes; ++i) {
    square[i / 8][0][i % 8] = x[i].lo;
    square[i / 8][1][i % 8] = x[i].hi;
  }
  for (auto& row : square)
    for (auto& one : row) transpose(one);
  for (int i = 0; i < kLanes; ++i) x[i] = {square[0][i / 8][i % 8], square[1][i / 8][i % 8]};
}

inline float sum(F a) {
  const __m256 eight = _mm256_add_ps(a.lo, a.hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline int32_t sum(I a) {
  const __m256i eight = _mm256_add_epi32(a.lo, a.hi);
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
inline float maximum(F a) {
  const __m256 eight = _mm256_max_ps(a.lo, a.hi);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline float minimum(F a) {
  const __m256 eight = _mm256_min_ps(a.lo, a.hi);
  const __m128 four = _mm_min_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_min_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_min_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline int32_t maximum(I a) {
  const __m256i eight = _mm256_max_epi32(a.lo, a.hi);
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_VECTOR_AVX2_H_
