// 16-bit numbers: their sums, and products of two pairs in each lane of 32 bits.
#ifndef NEXTSCALE_PRODUCT_AVX2_WIDE_H_
#define NEXTSCALE_PRODUCT_AVX2_WIDE_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

struct H {  // 16 lanes
  __m256i v;
};
inline H widen(const uint8_t* p) {
  return {_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline void store(int16_t* p, H x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.v); }
inline H operator+(H a, H b) { return {_mm256_add_epi16(a.v, b.v)}; }
inline H operator-(H a, H b) { return {_mm256_sub_epi16(a.v, b.v)}; }

constexpr int64_t kWideRows = 4;

// sums int32 [4][16] = rows s16 [4][2 pairs], `pitch` numbers apart, times weights s16 [pairs][16][2].
NEXTSCALE_ALONE void multiply_wide(const int16_t* rows, int64_t pitch, const int16_t* weights, int64_t pairs,
                                   int32_t* sums) {
  __m256i acc[kWideRows][2];
  NEXTSCALE_UNROLL
  for (int i = 0; i < kWideRows; ++i) acc[i][0] = acc[i][1] = _mm256_setzero_si256();
  for (int64_t p = 0; p < pairs; ++p, rows += 2, weights += 32) {
    const auto* w = reinterpret_cast<const __m256i*>(weights);
    const __m256i left = _mm256_loadu_si256(w), right = _mm256_loadu_si256(w + 1);
    NEXTSCALE_UNROLL
    for (int i = 0; i < kWideRows; ++i) {
      int32_t pair;
      std::memcpy(&pair, rows + i * pitch, 4);
      const __m256i x = _mm256_set1_epi32(pair);
      acc[i][0] = _mm256_add_epi32(acc[i][0], _mm256_madd_epi16(x, left));
      acc[i][1] = _mm256_add_epi32(acc[i][1], _mm256_madd_epi16(x, right));
      NEXTSCALE_IN_REGISTER(acc[i][0]);
      NEXTSCALE_IN_REGISTER(acc[i][1]);
    }
  }
  NEXTSCALE_UNROLL
  for (int i = 0; i < kWideRows; ++i)
    store(sums + i * kLanes, I{acc[i][0], acc[i][1]});
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_PRODUCT_AVX2_WIDE_H_
