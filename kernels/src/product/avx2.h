// The product with AVX2 alone, exact: bytes become 16-bit numbers, of which vpmaddwd adds two products in 32 bits.
// vpmaddubsw, which takes bytes as they are, saturates at 16 bits.
#ifndef NEXTSCALE_PRODUCT_AVX2_H_
#define NEXTSCALE_PRODUCT_AVX2_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

// M rows times 4 C columns, of which `first` is the number of four. A register has 4 columns with two sums each, of the
// first and the last two k of a group.
template <int M, int C>
NEXTSCALE_ALONE void multiply_rows(const Rows& rows, const int16_t* wide, const int8_t* panel, int64_t steps, int first,
                                   int32_t* sums) {
  __m256i acc[M][C];
  NEXTSCALE_UNROLL
  for (int i = 0; i < M; ++i)
    NEXTSCALE_UNROLL
    for (int c = 0; c < C; ++c) acc[i][c] = _mm256_setzero_si256();
  panel += first / 4 * kTile + first % 4 * 16;
  for (int64_t s = 0; s < steps; ++s, panel += kPanelStep, wide += kStep * M) {
    const int32_t quads = rows.quads_of(s);
    for (int32_t p = 0; p < quads; ++p) {
      __m256i x[M];
      NEXTSCALE_UNROLL
      for (int i = 0; i < M; ++i) {
        int64_t four;
        std::memcpy(&four, wide + i * kStep + 4 * p, 8);
        x[i] = _mm256_set1_epi64x(four);
      }
      NEXTSCALE_UNROLL
      for (int c = 0; c < C; ++c) {
        const auto* four = reinterpret_cast<const __m128i*>(panel + c / 4 * kTile + 64 * p + c % 4 * 16);
        const __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128(four));
        NEXTSCALE_UNROLL
        for (int i = 0; i < M; ++i) {
          acc[i][c] = _mm256_add_epi32(acc[i][c], _mm256_madd_epi16(x[i], w));
          NEXTSCALE_IN_REGISTER(acc[i][c]);
        }
      }
    }
  }
  const __m256i order = _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7);
  NEXTSCALE_UNROLL
  for (int i = 0; i < M; ++i)
    NEXTSCALE_UNROLL
    for (int c = 0; c < C; c += 2) {
      const __m256i eight = _mm256_permutevar8x32_epi32(_mm256_hadd_epi32(acc[i][c], acc[i][c + 1]), order);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + i * kPanel + 4 * (first + c)), eight);
    }
}

// The 16-bit numbers of M rows, [steps][M][64].
template <int M>
inline void widen(const Rows& rows, int b, int64_t first, int64_t steps, int16_t* wide) {
  for (int64_t s = 0; s < steps; ++s)
    for (int i = 0; i < M; ++i, wide += kStep) {
      const uint8_t* a = rows.begin[b] + (first + i) * rows.stride + rows.offset(s);
      for (int k = 0; k < kStep; k += 16)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(wide + k),
                            _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a + k))));
    }
}

template <int M>
inline void multiply_block(const Rows& rows, int b, int64_t first, const int8_t* panel, int64_t steps, int16_t* wide,
                           int32_t* sums) {
  for (; first + M <= rows.count[b]; first += M) {
    widen<M>(rows, b, first, steps, wide);
    for (int c = 0; c < 8; c += 8 / M)
      multiply_rows<M, 8 / M>(rows, wide, panel, steps, c, sums + (b * kBlock + first) * kPanel);
  }
  if constexpr (M > 1) {
    if (first < rows.count[b]) multiply_block<M / 2>(rows, b, first, panel, steps, wide, sums);
  }
}

inline void multiply(const Rows& rows, const int8_t* panel, int64_t steps, int32_t* sums) {
  auto* wide = static_cast<int16_t*>(thread_memory(0, static_cast<size_t>(steps * kStep) * 4 * sizeof(int16_t)));
  for (int b = 0; b < 2; ++b) multiply_block<4>(rows, b, 0, panel, steps, wide, sums);
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_PRODUCT_AVX2_H_
