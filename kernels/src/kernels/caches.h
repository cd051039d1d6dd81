// Keys and values of an attention's tokens: normalized, and added to those of the tokens before.
#ifndef NEXTSCALE_KERNELS_CACHES_H_
#define NEXTSCALE_KERNELS_CACHES_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

constexpr float kLowest = -3.0e38f;  // what no logit is; e to this is nothing

// x / |x| times scale; nothing stays nothing (LpNormalization). Both have `size` numbers.
inline void normalize(const float* x, int64_t size, float scale, float* y) {
  F squares = splat(0.0f);
  for (int64_t i = 0; i < size; i += kLanes) {
    const F v = load(x + i, size - i);
    squares = fma(v, v, squares);
  }
  const float length = sqrtf(sum(squares));
  const F divisor = splat(length > 0.0f ? length : 1.0f), factor = splat(scale);
  for (int64_t i = 0; i < size; i += kLanes) store(y + i, load(x + i, size - i) / divisor * factor, size - i);
}

// Columns of 16 rows become rows of 16 columns, of which `rows` and `columns` matter.
inline void store_transposed(const float* from, int64_t from_pitch, float* to, int64_t to_pitch, int64_t rows,
                             int64_t columns) {
  constexpr int64_t kFew = 4;  // are moved sooner one by one
  if (columns < kFew) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) to[i * to_pitch + j] = from[j * from_pitch + i];
    return;
  }
  F x[kLanes];
  for (int i = 0; i < kLanes; ++i) x[i] = load(from + i * from_pitch);
  transpose(x);
  for (int64_t i = 0; i < rows; ++i) store(to + i * to_pitch, x[i], columns);
}

// The caches of one row and head, grown by its new tokens.
inline void grow_caches(const AttentionArgs& a, int64_t r, int64_t h) {
  const int64_t d = a.size, total = a.past + a.tokens, width = a.heads * d, of_head = r * a.heads + h;
  float *keys = a.present_key + of_head * d * total, *values = a.present_value + of_head * d * total;
  const float *old_keys = a.past_key + of_head * d * a.past, *old_values = a.past_value + of_head * d * a.past;
  for (int64_t i = 0; i < d; ++i)
    std::memcpy(keys + i * total, old_keys + i * a.past, static_cast<size_t>(a.past) * sizeof(float));
  std::memcpy(values, old_values, static_cast<size_t>(d * a.past) * sizeof(float));
  const int64_t pitch = ceil_div(d, kLanes) * kLanes;
  auto* block = static_cast<float*>(thread_memory(2, static_cast<size_t>(kLanes * pitch) * sizeof(float)));
  for (int64_t t = 0; t < a.tokens; t += kLanes) {
    const int64_t here = least_of(kLanes, a.tokens - t);
    for (int64_t i = 0; i < here; ++i) {
      const int64_t from = (r * a.tokens + t + i) * width + h * d;
      normalize(a.key + from, d, 1.0f, block + i * pitch);
      std::memcpy(values + (a.past + t + i) * d, a.value + from, static_cast<size_t>(d) * sizeof(float));
    }
    for (int64_t i = 0; i < d; i += kLanes)
      store_transposed(block + i, pitch, keys + i * total + a.past + t, total, least_of(kLanes, d - i), here);
  }
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_CACHES_H_
