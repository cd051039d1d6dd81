#include "packed_weights.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__) || defined(_M_X64)
#define NEXTSCALE_SSE2
#include <emmintrin.h>
#endif

namespace nextscale {
namespace {

constexpr int64_t kColumns = 16, kStep = 64;

// 64 rows of 16 columns, `n` bytes apart, become a tile; its columns are added to `sums`.
#ifdef NEXTSCALE_SSE2
void pack_tile(const int8_t* rows, int64_t n, int8_t* tile, int32_t* sums) {
  const auto sum_of_two = [](__m128i pairs) {
    return _mm_add_epi16(_mm_srai_epi16(_mm_slli_epi16(pairs, 8), 8), _mm_srai_epi16(pairs, 8));
  };
  __m128i of_tile[2] = {_mm_setzero_si128(), _mm_setzero_si128()};  // up to 64 * 128 each
  auto* to = reinterpret_cast<__m128i*>(tile);
  for (int64_t i = 0; i < kStep; i += 4) {
    __m128i x[4];
    for (auto& row : x) {
      row = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows));
      rows += n;
    }
    const __m128i ab[2] = {_mm_unpacklo_epi8(x[0], x[1]), _mm_unpackhi_epi8(x[0], x[1])};
    const __m128i cd[2] = {_mm_unpacklo_epi8(x[2], x[3]), _mm_unpackhi_epi8(x[2], x[3])};
    for (int half = 0; half < 2; ++half) {
      _mm_storeu_si128(to++, _mm_unpacklo_epi16(ab[half], cd[half]));
      _mm_storeu_si128(to++, _mm_unpackhi_epi16(ab[half], cd[half]));
      of_tile[half] = _mm_add_epi16(of_tile[half], _mm_add_epi16(sum_of_two(ab[half]), sum_of_two(cd[half])));
    }
  }
  int16_t columns[kColumns];
  std::memcpy(columns, of_tile, sizeof columns);
  for (int64_t j = 0; j < kColumns; ++j) sums[j] += columns[j];
}
#else
void pack_tile(const int8_t* rows, int64_t n, int8_t* tile, int32_t* sums) {
  for (int64_t i = 0; i < kStep; ++i, rows += n)
    for (int64_t j = 0; j < kColumns; ++j) {
      tile[i / 4 * 64 + 4 * j + i % 4] = rows[j];
      sums[j] += rows[j];
    }
}
#endif

}  // namespace

PackedWeights::PackedWeights(const int8_t* weights, int64_t k, int64_t n)
    : panels_{k, n, nullptr, nullptr},
      codes_(static_cast<size_t>(panels_.count() * panels_.panel_bytes())),
      sums_(static_cast<size_t>(panels_.count() * 32)) {
  panels_.codes = codes_.begin();
  panels_.sums = sums_.data();
  // Steps in the outer loop: what a step's rows have of one line of the cache goes into several panels.
  for (int64_t s = 0; s < panels_.steps(); ++s)
    for (int64_t j = 0; j < n; j += kColumns) {
      const int64_t rows = std::min(kStep, k - s * kStep), columns = std::min(kColumns, n - j);
      const int8_t* from = weights + s * kStep * n + j;
      int8_t* tile = codes_.begin() + j / 32 * panels_.panel_bytes() + s * 2048 + j % 32 / kColumns * 1024;
      if (rows == kStep && columns == kColumns) {
        pack_tile(from, n, tile, sums_.data() + j);
        continue;
      }
      int8_t filled[kStep * kColumns] = {};
      for (int64_t i = 0; i < rows; ++i)
        std::memcpy(filled + i * kColumns, from + i * n, static_cast<size_t>(columns));
      pack_tile(filled, kColumns, tile, sums_.data() + j);
    }
}

}  // namespace nextscale
