// The product with AVX2 alone, exact: bytes become 16-bit numbers, of which vpmaddwd adds two products in 32 bits.
// vpmaddubsw, which takes bytes as they are, saturates at 16 bits.
#ifndef NEXTSCALE_PRODUCT_AVX2_H_
#define NEXTSCALE_PRODUCT_AVX2_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

// Of the four k of a group the first and the third, and the second and the fourth, as 16-bit numbers.
struct Halves {
  __m256i even, odd;
};
inline Halves halves_of_weights(const int8_t* eight_groups) {
  const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(eight_groups));
  return {_mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8), _mm256_srai_epi16(w, 8)};
}
inline Halves halves_of_row(const uint8_t* group) {
  int32_t four;
  std::memcpy(&four, group, 4);
  const __m256i x = _mm256_set1_epi32(four);
  return {_mm256_and_si256(x, _mm256_set1_epi16(255)), _mm256_srli_epi16(x, 8)};
}
inline void add_products(__m256i& acc, const Halves& x, const Halves& w) {
  acc = _mm256_add_epi32(acc, _mm256_madd_epi16(x.even, w.even));
  acc = _mm256_add_epi32(acc, _mm256_madd_epi16(x.odd, w.odd));
}

constexpr bool kFetchesFar = false;

// M rows times 8 C columns, from `column` on. Beyond step 0 the sums grow.
template <int M, int C>
NEXTSCALE_ALONE void multiply_rows(const Rows& rows, const Pass& pass, const int8_t* panel, int column, int32_t* sums) {
  const uint8_t* begin[M];
  __m256i* to[M];
  __m256i acc[M][C];
  NEXTSCALE_UNROLL
  for (int i = 0; i < M; ++i) {
    begin[i] = rows.row(pass.row + i);
    to[i] = reinterpret_cast<__m256i*>(sums + rows.place(pass.row + i) * kPanel + column);
    NEXTSCALE_UNROLL
    for (int c = 0; c < C; ++c) acc[i][c] = pass.first == 0 ? _mm256_setzero_si256() : _mm256_loadu_si256(to[i] + c);
  }
  for (int64_t s = pass.first; s < pass.end; ++s) {
    const int64_t offset = rows.offset(s);
    const int8_t* w = panel + s * kPanelStep + column / 16 * kTile + column % 16 * 4;
    const int32_t quads = rows.quads_of(s);
    pass.fetch(rows, w, C / 2 * kTile);
    for (int32_t p = 0; p < quads; ++p, w += 64) {
      const auto weights = [&](int c) { return halves_of_weights(w + c / 2 * kTile + c % 2 * 32); };
      const auto numbers = [&](int i) { return halves_of_row(begin[i] + offset + 4 * p); };
      // What is made of fewer numbers is kept in registers.
      if constexpr (M < C) {
        Halves x[M];
        NEXTSCALE_UNROLL
        for (int i = 0; i < M; ++i) x[i] = numbers(i);
        NEXTSCALE_UNROLL
        for (int c = 0; c < C; ++c) {
          const Halves eight = weights(c);
          NEXTSCALE_UNROLL
          for (int i = 0; i < M; ++i) add_products(acc[i][c], x[i], eight);
        }
      } else {
        Halves eight[C];
        NEXTSCALE_UNROLL
        for (int c = 0; c < C; ++c) eight[c] = weights(c);
        NEXTSCALE_UNROLL
        for (int i = 0; i < M; ++i) {
          const Halves x = numbers(i);
          NEXTSCALE_UNROLL
          for (int c = 0; c < C; ++c) add_products(acc[i][c], x, eight[c]);
        }
      }
      NEXTSCALE_UNROLL
      for (int i = 0; i < M; ++i)
        NEXTSCALE_UNROLL
        for (int c = 0; c < C; ++c) NEXTSCALE_IN_REGISTER(acc[i][c]);
    }
  }
  NEXTSCALE_UNROLL
  for (int i = 0; i < M; ++i)
    NEXTSCALE_UNROLL
    for (int c = 0; c < C; ++c) _mm256_storeu_si256(to[i] + c, acc[i][c]);
}

template <int M, int C>
inline void multiply_pass(const Rows& rows, const Pass& pass, const int8_t* panel, int32_t* sums) {
  for (int column = 0; column < kPanel; column += 8 * C) multiply_rows<M, C>(rows, pass, panel, column, sums);
}

inline void multiply(const Rows& rows, const int8_t* panel, int64_t steps, int32_t* sums) {
  // The products take longer than weights from the second cache: few passes are better than short ones.
  in_passes<4, 16>(rows, steps, [&](const Pass& pass) {
    switch (pass.rows) {
      case 1: return multiply_pass<1, 4>(rows, pass, panel, sums);
      case 2: return multiply_pass<2, 4>(rows, pass, panel, sums);
      case 3: return multiply_pass<3, 2>(rows, pass, panel, sums);
      default: return multiply_pass<4, 2>(rows, pass, panel, sums);
    }
  });
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_PRODUCT_AVX2_H_
