// Float attention on tiles: every number is the sum of two of bfloat16, its high and its low half.
//
// With x = high + low + rest, |low| <= 2^-8 |x| and |rest| <= 2^-16 |x|, so that the three products high high, low high
// and high low are within 3 * 2^-16 |x y| of x y. A logit then is off by at most e = 3 * 2^-16 |q| |k|, and a result by
// at most (2 e + 3 * 2^-16) times the largest |value|, beside the roundings of float32's own sums.
#ifndef NEXTSCALE_KERNELS_ATTENTION_TILES_H_
#define NEXTSCALE_KERNELS_ATTENTION_TILES_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

constexpr int64_t kPairs = 32;                          // numbers of a row of a tile, the depth of a step
constexpr int64_t kHalvesStep = 2 * kTile;              // bytes of a step of 16 rows: high, low
constexpr int64_t kHalvesPanelStep = 2 * kHalvesStep;   // of a panel of 32 columns: high, high, low, low
constexpr int64_t kKeysTogether = 768;                  // what is made of them stays in the second cache
constexpr int64_t kFewQueries = 8;                      // keys are not worth packing for so few

// In each lane the half of `a` is the low one, that of `b` the high one: numbers k and k + 16 of a step, in rows and
// panels alike.
struct Halves {
  I high, low;
};
inline Halves halves(F a, F b) {
  const I half = splat(int32_t{32768}), upper = splat(int32_t{-65536});
  const I x = (bits(a) + half) & upper, y = (bits(b) + half) & upper;
  const I x_low = bits(a - from_bits(x)) + half, y_low = bits(b - from_bits(y)) + half;
  return {shift_right<16>(x) | y, shift_right<16>(x_low) | (y_low & upper)};
}
inline void store_halves(uint8_t* to, int64_t low, const Halves& x) {
  store(reinterpret_cast<int32_t*>(to), x.high);
  store(reinterpret_cast<int32_t*>(to + low), x.low);
}

// Panels [n / 32][steps][high, low][2][16][64] of columns that lie next to each other: at(k, column) points to them, of
// which there are `columns`, and of depth k `depth`. What is beyond is zero.
template <class At>
inline void pack_halves(int64_t depth, int64_t columns, At at, uint8_t* panels) {
  const F zero = splat(0.0f);
  for (int64_t column = 0; column < columns; column += kPanel)
    for (int64_t k = 0; k < depth; k += kPairs, panels += kHalvesPanelStep)
      for (int64_t i = 0; i < kPairs / 2; ++i)
        for (int64_t c = 0; c < 2; ++c) {
          const int64_t first = column + c * kLanes, n = columns - first;
          const auto numbers = [&](int64_t of) {
            if (of >= depth || n <= 0) return zero;
            return n >= kLanes ? load(at(of, first)) : load(at(of, first), n);
          };
          store_halves(panels + c * kTile + i * 64, kHalvesStep, halves(numbers(k + i), numbers(k + i + kPairs / 2)));
        }
}

// sums float [2][16][32], rows `pitch` apart, of rows' halves [2][steps][high, low][16][64] and a panel, added to what
// is there if kAdd. `between()` runs beside the products of each step.
template <bool kTwo, bool kAdd, class Between>
inline void multiply_halves(const uint8_t* rows, const uint8_t* panel, int64_t steps, float* sums, int64_t pitch,
                            Between between) {
  const uint8_t* more = rows + steps * kHalvesStep;
  float* more_sums = sums + kBlock * pitch;
  const int64_t bytes = pitch * static_cast<int64_t>(sizeof(float));
  if (kAdd) {
    NEXTSCALE_TILE_LOAD(0, sums, bytes);
    NEXTSCALE_TILE_LOAD(1, sums + 16, bytes);
    if (kTwo) {
      NEXTSCALE_TILE_LOAD(2, more_sums, bytes);
      NEXTSCALE_TILE_LOAD(3, more_sums + 16, bytes);
    }
  } else {
    NEXTSCALE_TILE_ZERO(0);
    NEXTSCALE_TILE_ZERO(1);
    if (kTwo) {
      NEXTSCALE_TILE_ZERO(2);
      NEXTSCALE_TILE_ZERO(3);
    }
  }
  for (int64_t s = 0; s < steps; ++s) {
    const uint8_t *a = rows + s * kHalvesStep, *b = more + s * kHalvesStep, *w = panel + s * kHalvesPanelStep;
    NEXTSCALE_TILE_LOAD(6, w, 64);
    NEXTSCALE_TILE_LOAD(7, w + kTile, 64);
    NEXTSCALE_TILE_LOAD(4, a + kTile, 64);
    NEXTSCALE_TILE_PRODUCT_BF16(0, 4, 6);
    NEXTSCALE_TILE_PRODUCT_BF16(1, 4, 7);
    if (kTwo) {
      NEXTSCALE_TILE_LOAD(5, b + kTile, 64);
      NEXTSCALE_TILE_PRODUCT_BF16(2, 5, 6);
      NEXTSCALE_TILE_PRODUCT_BF16(3, 5, 7);
    }
    NEXTSCALE_TILE_LOAD(4, a, 64);
    NEXTSCALE_TILE_PRODUCT_BF16(0, 4, 6);
    NEXTSCALE_TILE_PRODUCT_BF16(1, 4, 7);
    if (kTwo) {
      NEXTSCALE_TILE_LOAD(5, b, 64);
      NEXTSCALE_TILE_PRODUCT_BF16(2, 5, 6);
      NEXTSCALE_TILE_PRODUCT_BF16(3, 5, 7);
    }
    NEXTSCALE_TILE_LOAD(6, w + kHalvesStep, 64);
    NEXTSCALE_TILE_LOAD(7, w + kHalvesStep + kTile, 64);
    NEXTSCALE_TILE_PRODUCT_BF16(0, 4, 6);
    NEXTSCALE_TILE_PRODUCT_BF16(1, 4, 7);
    if (kTwo) {
      NEXTSCALE_TILE_PRODUCT_BF16(2, 5, 6);
      NEXTSCALE_TILE_PRODUCT_BF16(3, 5, 7);
    }
    between();
  }
  NEXTSCALE_TILE_STORE(0, sums, bytes);
  NEXTSCALE_TILE_STORE(1, sums + 16, bytes);
  if (kTwo) {
    NEXTSCALE_TILE_STORE(2, more_sums, bytes);
    NEXTSCALE_TILE_STORE(3, more_sums + 16, bytes);
  }
}

// What is known of a query after some blocks of keys: weights are e^(logit - largest).
struct Query {
  float largest, sum;
};

// The halves of 32 queries' weights in a block of keys, made in small parts: tiles' products leave the vectors idle.
class Softening {
 public:
  // logits [count][kKeysTogether] of n keys; y [count][pitch] is the mix of the keys before these.
  void begin(float* logits, int64_t count, int64_t n, Query* queries, float* y, int64_t pitch, uint8_t* weights) {
    logits_ = logits, queries_ = queries, y_ = y, weights_ = weights;
    count_ = count, n_ = n, pitch_ = pitch, filled_ = ceil_div(n, kPairs) * kPairs, row_ = 0, at_ = 0;
  }
  int64_t parts() const { return count_ * ceil_div(filled_, kPart); }
  void finish() {
    while (row_ < count_) part();
  }
  void part() {
    if (row_ == count_) return;
    float* row = logits_ + row_ * kKeysTogether;
    if (at_ == 0) begin_row(row, queries_[row_]);
    uint8_t* to = weights_ + row_ / kBlock * filled_ / kPairs * kHalvesStep + row_ % kBlock * 64;
    const int64_t end = least_of(at_ + kPart, filled_);
    for (; at_ + 2 * kPairs <= end; at_ += 2 * kPairs) weigh<4>(row, to);
    for (; at_ < end; at_ += kPairs) weigh<2>(row, to);
    if (at_ < filled_) return;
    queries_[row_].sum += sum(sum_);
    ++row_;
    at_ = 0;
  }

 private:
  static constexpr int64_t kPart = 4 * kPairs;  // keys of a part: about as many instructions as a step's products leave

  void begin_row(float* row, Query& query) {
    for (int64_t j = n_; j < filled_; ++j) row[j] = kLowest;
    F one = splat(query.largest), two = one;
    for (int64_t j = 0; j < filled_; j += kPairs) {
      one = max(load(row + j), one);
      two = max(load(row + j + kLanes), two);
    }
    const float largest = maximum(max(one, two));
    largest_ = splat(largest);
    sum_ = splat(0.0f);
    if (largest > query.largest) {
      const F factor = exp(splat(query.largest - largest));
      float kept[kLanes];
      store(kept, factor);
      query.sum *= kept[0];
      query.largest = largest;
      for (int64_t i = 0; i < pitch_; i += kLanes) store(y_ + row_ * pitch_ + i, load(y_ + row_ * pitch_ + i) * factor);
    }
  }
  template <int N>
  void weigh(const float* row, uint8_t* to) {
    F x[N];
    each_of<N>([&](int i) { x[i] = load(row + at_ + i * kLanes) - largest_; });
    exp(x);
    each_of<N>([&](int i) { sum_ = sum_ + x[i]; });
    for (int i = 0; i < N; i += 2) store_halves(to + (at_ / kPairs + i / 2) * kHalvesStep, kTile, halves(x[i], x[i + 1]));
  }

  float *logits_ = nullptr, *y_ = nullptr;
  Query* queries_ = nullptr;
  uint8_t* weights_ = nullptr;
  int64_t count_ = 0, n_ = 0, pitch_ = 0, filled_ = 0, row_ = 0, at_ = 0;
  F largest_, sum_;
};

// Blocks of keys are packed once for all queries, and of each block come passes of 32 queries: beside the products of one
// pass the weights of the one before are made, whose mix comes after that.
inline void attend_on_tiles(const AttentionArgs& a, int64_t r, int64_t h, int64_t first, int64_t n, float* y,
                            int64_t y_pitch) {
  constexpr int64_t kPass = 2 * kBlock;
  const Tiles in_use;
  (void)in_use;
  const int64_t d = a.size, total = a.past + a.tokens, width = a.heads * d, of_head = r * a.heads + h;
  const int64_t steps = ceil_div(d, kPairs), channels = steps * kPairs, passes = ceil_div(n, kPass);
  const int64_t keys_together = least_of(kKeysTogether, ceil_div(total, kPairs) * kPairs);
  const int64_t panels_bytes = keys_together / kPairs * steps * kHalvesPanelStep;
  const int64_t pass_bytes = 2 * steps * kHalvesStep, weights_bytes = 2 * keys_together / kPairs * kHalvesStep;
  const int64_t logits_bytes = kPass * kKeysTogether * 4, mixed_bytes = passes * kPass * channels * 4;
  auto* memory = static_cast<uint8_t*>(thread_memory(
      2, static_cast<size_t>(2 * panels_bytes + passes * pass_bytes + 2 * weights_bytes + 2 * logits_bytes + mixed_bytes +
                             channels * 4 + passes * kPass * 8)));
  uint8_t *key_panels = memory, *value_panels = key_panels + panels_bytes, *rows = value_panels + panels_bytes;
  uint8_t *weights = rows + passes * pass_bytes, *logits_begin = weights + 2 * weights_bytes;
  auto* logits = reinterpret_cast<float*>(logits_begin);
  auto* mixed = reinterpret_cast<float*>(logits_begin + 2 * logits_bytes);
  float* unit = mixed + passes * kPass * channels;
  auto* queries = reinterpret_cast<Query*>(unit + channels);

  std::memset(mixed, 0, static_cast<size_t>(mixed_bytes));
  for (int64_t i = d; i < channels; ++i) unit[i] = 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    normalize(a.query + (r * a.tokens + first + i) * width + h * d, d, a.query_scale[h], unit);
    uint8_t* to = rows + i / kBlock * steps * kHalvesStep + i % kBlock * 64;
    for (int64_t k = 0; k < channels; k += kPairs)
      store_halves(to + k / kPairs * kHalvesStep, kTile, halves(load(unit + k), load(unit + k + kLanes)));
    queries[i] = {kLowest, 0.0f};
  }

  const float *keys = a.present_key + of_head * d * total, *values = a.present_value + of_head * d * total;
  for (int64_t key = 0; key < total; key += keys_together) {
    const int64_t count = least_of(keys_together, total - key), key_steps = ceil_div(count, kPairs);
    pack_halves(d, count, [&](int64_t k, int64_t column) { return keys + k * total + key + column; }, key_panels);
    pack_halves(count, d, [&](int64_t k, int64_t column) { return values + (key + k) * d + column; }, value_panels);
    for (int64_t pass = 0; pass < passes + 2; ++pass) {
      const auto queries_of = [&](int64_t of) { return least_of(kPass, n - of * kPass); };
      Softening softening;
      const int64_t softened = pass - 1, mix = pass - 2;
      if (softened >= 0 && softened < passes)
        softening.begin(logits + softened % 2 * kPass * kKeysTogether, queries_of(softened), count,
                        queries + softened * kPass, mixed + softened * kPass * channels, channels,
                        weights + softened % 2 * weights_bytes);
      // The parts that are due after a step, and the rest of them in parts of all steps.
      const int64_t all = key_steps * steps * ((pass < passes ? 1 : 0) + (mix >= 0 ? 1 : 0)), parts = softening.parts();
      int64_t due = 0;
      const auto between = [&] {
        for (due += parts; due >= all; due -= all) softening.part();
      };
      if (pass < passes)
        for (int64_t p = 0; p < key_steps; ++p) {
          float* to = logits + pass % 2 * kPass * kKeysTogether + p * kPanel;
          const uint8_t *from = rows + pass * pass_bytes, *panel = key_panels + p * steps * kHalvesPanelStep;
          if (queries_of(pass) > kBlock)
            multiply_halves<true, false>(from, panel, steps, to, kKeysTogether, between);
          else
            multiply_halves<false, false>(from, panel, steps, to, kKeysTogether, between);
        }
      if (mix >= 0)
        for (int64_t p = 0; p < steps; ++p) {
          float* to = mixed + mix * kPass * channels + p * kPanel;
          const uint8_t *from = weights + mix % 2 * weights_bytes, *panel = value_panels + p * key_steps * kHalvesPanelStep;
          if (queries_of(mix) > kBlock)
            multiply_halves<true, true>(from, panel, key_steps, to, channels, between);
          else
            multiply_halves<false, true>(from, panel, key_steps, to, channels, between);
        }
      softening.finish();
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    const F factor = splat(1.0f / queries[i].sum);
    for (int64_t k = 0; k < d; k += kLanes)
      store(y + i * y_pitch + k, load(mixed + i * channels + k) * factor, d - k);
  }
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_ATTENTION_TILES_H_
