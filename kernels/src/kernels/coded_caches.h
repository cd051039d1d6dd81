// Keys and values in codes of 8 bits around 128, with a scale for each token: they grow, and are read by blocks.
#ifndef NEXTSCALE_KERNELS_CODED_CACHES_H_
#define NEXTSCALE_KERNELS_CODED_CACHES_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

constexpr int64_t kKeysOfBlock = 128;  // keys that queries pass over at a time
constexpr int32_t kCacheZero = 128, kCacheMost = 255;

// The codes of a token's `size` numbers; returns their scale.
inline float code_token(const float* x, int64_t size, uint8_t* codes) {
  const InMemory numbers{x};
  const QParams q = token_range(ends_of(numbers, size), kCacheZero, kCacheMost);
  quantize_span(numbers, size, Quantizer(q, kCacheMost), codes);
  return q.scale;
}

// The caches of one row and head, grown by its new tokens.
inline void grow_coded_caches(const AttentionArgs& a, int64_t r, int64_t h) {
  const CodedCaches& c = a.coded;
  const int64_t d = a.size, total = a.past + a.tokens, width = a.heads * d, of_head = r * a.heads + h;
  uint8_t *keys = c.present_key + of_head * d * total, *values = c.present_value + of_head * d * total;
  float *key_scales = c.present_key_scale + of_head * total, *value_scales = c.present_value_scale + of_head * total;
  const auto past = static_cast<size_t>(a.past);
  for (int64_t i = 0; i < d; ++i)
    std::memcpy(keys + i * total, c.past_key + (of_head * d + i) * a.past, past);
  std::memcpy(values, c.past_value + of_head * d * a.past, static_cast<size_t>(d) * past);
  std::memcpy(key_scales, c.past_key_scale + of_head * a.past, past * sizeof(float));
  std::memcpy(value_scales, c.past_value_scale + of_head * a.past, past * sizeof(float));
  auto* unit = static_cast<float*>(thread_memory(2, static_cast<size_t>(d) * (sizeof(float) + kLanes)));
  auto* block = reinterpret_cast<uint8_t*>(unit + d);  // [16][d]
  for (int64_t t = 0; t < a.tokens; t += kLanes) {
    const int64_t here = least_of(kLanes, a.tokens - t), at = a.past + t;
    for (int64_t j = 0; j < here; ++j) {
      const int64_t from = (r * a.tokens + t + j) * width + h * d;
      normalize(a.key + from, d, 1.0f, unit);
      key_scales[at + j] = code_token(unit, d, block + j * d);
      value_scales[at + j] = code_token(a.value + from, d, values + (at + j) * d);
    }
    for (int64_t i = 0; i < d; ++i)
      for (int64_t j = 0; j < here; ++j) keys[i * total + at + j] = block[j * d + i];
  }
}

// Some keys and values of a row and head in float: keys [size, .], rows `pitch` apart, and values [., size].
struct KeysAndValues {
  const float *keys, *values;
  int64_t pitch;
};

inline F decoded(I codes) { return to_float(codes - splat(kCacheZero)); }

// Those of `count` tokens from `first` on, at most a block: in this thread's memory, where they are codes.
inline KeysAndValues keys_and_values(const AttentionArgs& a, int64_t of_head, int64_t first, int64_t count) {
  const int64_t d = a.size, total = a.past + a.tokens;
  if (!a.coded.present_key)
    return {a.present_key + of_head * d * total + first, a.present_value + (of_head * total + first) * d, total};
  auto* keys = static_cast<float*>(thread_memory(4, static_cast<size_t>(2 * d * kKeysOfBlock) * sizeof(float)));
  float* values = keys + d * kKeysOfBlock;
  const uint8_t* key_codes = a.coded.present_key + of_head * d * total + first;
  const uint8_t* value_codes = a.coded.present_value + (of_head * total + first) * d;
  const float* key_scales = a.coded.present_key_scale + of_head * total + first;
  const float* value_scales = a.coded.present_value_scale + of_head * total + first;
  for (int64_t j = 0; j < count; j += kLanes) {
    const int64_t here = least_of(kLanes, count - j);
    const F scales = load(key_scales + j, here);
    for (int64_t i = 0; i < d; ++i)
      store(keys + i * kKeysOfBlock + j, decoded(load_u8(key_codes + i * total + j, here)) * scales);
  }
  for (int64_t j = 0; j < count; ++j) {
    const F scale = splat(value_scales[j]);
    for (int64_t i = 0; i < d; i += kLanes)
      store(values + j * d + i, decoded(load_u8(value_codes + j * d + i, d - i)) * scale, d - i);
  }
  return {keys, values, kKeysOfBlock};
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_CODED_CACHES_H_
