// The product with AVX2 alone, exact: bytes become 16-bit numbers, of which vpmaddwd adds two products in 32 bits.
// vpmaddubsw, which takes bytes as they are, saturates at 16 bits.
#ifndef NEXTSCALE_PRODUCT_AVX2_H_
#define NEXTSCALE_PRODUCT_AVX2_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

// M rows times 16 columns, of which `column` is the first vector. A register has 4 columns with two sums each, of the
// first and the last two k of a group.
template <int M>
inline void multiply_rows(const int16_t* wide, const int8_t* panel, int64_t steps, int column, int32_t* sums) {
  __m256i acc[M][4];
  for (int i = 0; i < M; ++i)
    for (int c = 0; c < 4; ++c) acc[i][c] = _mm256_setzero_si256();
  for (int64_t s = 0; s < steps; ++s) {
    const int8_t* w = panel + s * kPanelStep + column * kTile;
    const int16_t* a = wide + s * kStep * M;
    for (int p = 0; p < 16; ++p) {
      __m256i x[M];
      NEXTSCALE_UNROLL
      for (int i = 0; i < M; ++i) {
        int64_t four;
        std::memcpy(&four, a + (p * M + i) * 4, 8);
        x[i] = _mm256_set1_epi64x(four);
      }
      NEXTSCALE_UNROLL
      for (int c = 0; c < 4; ++c) {
        const __m256i b = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w + 64 * p + 16 * c)));
        NEXTSCALE_UNROLL
        for (int i = 0; i < M; ++i) acc[i][c] = _mm256_add_epi32(acc[i][c], _mm256_madd_epi16(x[i], b));
      }
    }
  }
  const __m256i order = _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7);
  for (int i = 0; i < M; ++i)
    for (int c = 0; c < 4; c += 2) {
      const __m256i eight = _mm256_permutevar8x32_epi32(_mm256_hadd_epi32(acc[i][c], acc[i][c + 1]), order);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + i * kPanel + 16 * column + 4 * c), eight);
    }
}

// The 16-bit numbers of M rows, [steps][16][M][4].
template <int M>
inline void widen(const Rows& rows, int b, int64_t first, int64_t steps, int16_t* wide) {
  for (int64_t s = 0; s < steps; ++s)
    for (int i = 0; i < M; ++i) {
      const uint8_t* a = rows.begin[b] + (first + i) * rows.stride + rows.offset(s);
      for (int p = 0; p < 16; ++p)
        for (int e = 0; e < 4; ++e) wide[((s * 16 + p) * M + i) * 4 + e] = a[4 * p + e];
    }
}

template <int M>
inline void multiply_block(const Rows& rows, int b, int64_t first, const int8_t* panel, int64_t steps, int16_t* wide,
                           int32_t* sums) {
  for (; first + M <= rows.count[b]; first += M) {
    widen<M>(rows, b, first, steps, wide);
    for (int c = 0; c < 2; ++c) multiply_rows<M>(wide, panel, steps, c, sums + (b * kBlock + first) * kPanel);
  }
  if constexpr (M > 1) {
    if (first < rows.count[b]) multiply_block<1>(rows, b, first, panel, steps, wide, sums);
  }
}

inline void multiply(const Rows& rows, const int8_t* panel, int64_t steps, int32_t* sums) {
  auto* wide = static_cast<int16_t*>(thread_memory(0, static_cast<size_t>(steps * kStep * 2 * 2)));
  for (int b = 0; b < 2; ++b) multiply_block<2>(rows, b, 0, panel, steps, wide, sums);
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_PRODUCT_AVX2_H_
