#include "packed_weights.h"

namespace nextscale {

PackedWeights::PackedWeights(const int8_t* weights, int64_t k, int64_t n)
    : panels_{k, n, nullptr, nullptr},
      codes_(static_cast<size_t>(panels_.count() * panels_.panel_bytes())),
      sums_(static_cast<size_t>(panels_.count() * 32)) {
  panels_.codes = codes_.begin();
  panels_.sums = sums_.data();
  for (int64_t g = 0; g < panels_.count(); ++g) {
    int8_t* panel = codes_.begin() + g * panels_.panel_bytes();
    int32_t* sums = sums_.data() + g * 32;
    const int64_t columns = n - g * 32 < 32 ? n - g * 32 : 32;
    for (int64_t i = 0; i < k; ++i) {
      const int8_t* row = weights + i * n + g * 32;
      int8_t* to = panel + i / 64 * 2048 + i % 64 / 4 * 64 + i % 4;
      for (int64_t j = 0; j < columns; ++j) {
        to[j / 16 * 1024 + j % 16 * 4] = row[j];
        sums[j] += row[j];
      }
    }
  }
}

}  // namespace nextscale
