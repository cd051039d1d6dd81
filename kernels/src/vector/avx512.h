// 16 lanes as one register of AVX-512; see portable.h for what each function does.
#ifndef NEXTSCALE_VECTOR_AVX512_H_
#define NEXTSCALE_VECTOR_AVX512_H_

#include <immintrin.h>

#include <math.h>

#include <cstdint>
#include <cstring>

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

constexpr int kLanes = 16;
constexpr int kTogether = 4;  // vectors whose steps are taken together
// Rows, and vectors of columns, whose sums a float product holds in registers.
constexpr int kFloatRows = 8, kFloatVectors = 2;

struct F {
  __m512 v;
};
struct I {
  __m512i v;
};

inline __mmask16 first(int64_t n) {
  return static_cast<__mmask16>(n >= kLanes ? 0xffffu : n <= 0 ? 0u : (1u << n) - 1);
}
inline F splat(float x) { return {_mm512_set1_ps(x)}; }
inline I splat(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline I load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline F load(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
inline I load(const int32_t* p, int64_t n) { return {_mm512_maskz_loadu_epi32(first(n), p)}; }
inline I load_u8(const uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline I load_u8(const uint8_t* p, int64_t n) { return {_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first(n), p))}; }
inline void store(float* p, F x) { _mm512_storeu_ps(p, x.v); }
inline void store(int32_t* p, I x) { _mm512_storeu_si512(p, x.v); }
inline void store(float* p, F x, int64_t n) { _mm512_mask_storeu_ps(p, first(n), x.v); }
inline void store_bytes(void* p, I x) { _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x.v)); }
inline void store_bytes(void* p, I x, int64_t n) {
  if (n >= kLanes) return store_bytes(p, x);
  _mm512_mask_cvtepi32_storeu_epi8(p, first(n), x.v);
}
inline __m512i bytes_of(I a, I b, I c, I d) {  // of lanes within 0 to 255
  const __m512i packed = _mm512_packus_epi16(_mm512_packs_epi32(a.v, b.v), _mm512_packs_epi32(c.v, d.v));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, packed);
}
inline void store_bytes(void* p, I a, I b, I c, I d) { _mm512_storeu_si512(p, bytes_of(a, b, c, d)); }
inline void store_looked_up(void* p, void* q, I a, I b, I c, I d, const uint8_t* p_table, const uint8_t* q_table) {
  const auto table = [](const uint8_t* of) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(of)));
  };
  const __m512i bytes = bytes_of(a, b, c, d);
  _mm512_storeu_si512(p, _mm512_shuffle_epi8(table(p_table), bytes));
  _mm512_storeu_si512(q, _mm512_shuffle_epi8(table(q_table), bytes));
}

inline F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F fnma(F a, F b, F c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline I at_least(F a, F b) { return {_mm512_movm_epi32(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ))}; }
inline F abs(F a) { return {_mm512_abs_ps(a.v)}; }
inline F round(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline F floor(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }
inline I nearest(F a) { return {_mm512_cvtps_epi32(a.v)}; }
inline F to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }

inline I operator+(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I operator-(I a, I b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline I operator*(I a, I b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
inline I operator&(I a, I b) { return {_mm512_and_si512(a.v, b.v)}; }
inline I operator|(I a, I b) { return {_mm512_or_si512(a.v, b.v)}; }
inline I max(I a, I b) { return {_mm512_max_epi32(a.v, b.v)}; }
inline I min(I a, I b) { return {_mm512_min_epi32(a.v, b.v)}; }
template <int N>
inline I shift_left(I a) {
  return {_mm512_slli_epi32(a.v, N)};
}
template <int N>
inline I shift_right(I a) {
  return {_mm512_srli_epi32(a.v, N)};
}
template <int N>
inline I shift_right_signed(I a) {
  return {_mm512_srai_epi32(a.v, N)};
}
inline I bits(F a) { return {_mm512_castps_si512(a.v)}; }
inline F from_bits(I a) { return {_mm512_castsi512_ps(a.v)}; }

inline void transpose(F (&x)[kLanes]) {
  __m512 of_two[kLanes], of_four[kLanes];
  NEXTSCALE_UNROLL
  for (int i = 0; i < kLanes; i += 2) {
    of_two[i] = _mm512_unpacklo_ps(x[i].v, x[i + 1].v);
    of_two[i + 1] = _mm512_unpackhi_ps(x[i].v, x[i + 1].v);
  }
  NEXTSCALE_UNROLL
  for (int i = 0; i < kLanes; ++i) {  // quarter q of number 4 r + c: column 4 q + c of rows 4 r and on
    const __m512 a = of_two[i / 4 * 4 + i % 4 / 2], b = of_two[i / 4 * 4 + i % 4 / 2 + 2];
    of_four[i] = i % 2 ? _mm512_shuffle_ps(a, b, 0xee) : _mm512_shuffle_ps(a, b, 0x44);
  }
  NEXTSCALE_UNROLL
  for (int c = 0; c < 4; ++c) {
    const __m512 even = _mm512_shuffle_f32x4(of_four[c], of_four[c + 4], 0x88);
    const __m512 odd = _mm512_shuffle_f32x4(of_four[c], of_four[c + 4], 0xdd);
    const __m512 more_even = _mm512_shuffle_f32x4(of_four[c + 8], of_four[c + 12], 0x88);
    const __m512 more_odd = _mm512_shuffle_f32x4(of_four[c + 8], of_four[c + 12], 0xdd);
    x[c] = {_mm512_shuffle_f32x4(even, more_even, 0x88)};
    x[c + 4] = {_mm512_shuffle_f32x4(odd, more_odd, 0x88)};
    x[c + 8] = {_mm512_shuffle_f32x4(even, more_even, 0xdd)};
    x[c + 12] = {_mm512_shuffle_f32x4(odd, more_odd, 0xdd)};
  }
}

inline float sum(F a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline int32_t sum(I a) { return _mm512_reduce_add_epi32(a.v); }
inline float maximum(F a) { return _mm512_reduce_max_ps(a.v); }
inline float minimum(F a) { return _mm512_reduce_min_ps(a.v); }
inline int32_t maximum(I a) { return _mm512_reduce_max_epi32(a.v); }

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_VECTOR_AVX512_H_
