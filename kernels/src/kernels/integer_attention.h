// Attention whose two products are integers (docs/quantization.md, "Attention"), with shift-and-sum of attentive tokens.
#ifndef NEXTSCALE_KERNELS_INTEGER_ATTENTION_H_
#define NEXTSCALE_KERNELS_INTEGER_ATTENTION_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

constexpr int64_t kQueries = 2 * kBlock;  // of a pass: what one product takes
constexpr int32_t kPowers = 15;           // codes of powers of two: 2^(code - 1), 0 is nothing
constexpr float kLn2 = 0.69314718055994530942f;
constexpr float kGrid = 32768.0f;         // steps that V's scale is divided into for shift-and-sum
constexpr int32_t kFinest = 128;          // 2n of the largest order
alignas(64) constexpr int32_t kOnes[kLanes] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

inline int64_t filled(int64_t n, int64_t to) { return ceil_div(n, to) * to; }

inline float largest_of(const float* x, int64_t n) {
  F largest = splat(0.0f);
  for (int64_t i = 0; i < n; i += kLanes) largest = max(abs(load(x + i, n - i)), largest);
  return maximum(largest);
}

// Codes by a division: the largest number of a symmetric range lies on a tie, which a reciprocal would move.
struct SymmetricQuantizer {
  F scale, least, most;
  SymmetricQuantizer(float step, int32_t half)
      : scale(splat(step)), least(splat(-static_cast<float>(half))), most(splat(static_cast<float>(half - 1))) {}
  I operator()(F x) const { return nearest(min(max(x / scale, least), most)); }
};

// What all phases share: sizes, codes and numbers of each row and head, in memory of the call.
struct IntegerAttention {
  const IntegerAttentionArgs& a;
  int64_t d, total, heads_rows, images;
  int64_t depth;        // of keys and queries, in whole steps
  int64_t keys;         // filled up to whole panels and steps
  int64_t queries;      // filled up to whole passes
  int32_t middle = 0;   // of the queries' codes
  bool powers = false, normalized = false, two_passes = false;
  uint8_t* query_codes = nullptr;   // [rows * heads][queries / 16][depth / 64][16][64]
  int8_t* key_panels = nullptr;     // [rows * heads][keys / 32][depth / 64][2][16][64]
  int32_t* key_sums = nullptr;      // [rows * heads][keys]: middle times the sum of each key's codes
  float* largest_logit = nullptr;   // [rows * heads][queries]
  float* largest_weight = nullptr;  // the same: 1 / the sum of exponentials
  float* score = nullptr;           // [rows * heads][keys]: sums of weights over queries
  float* top_of_head = nullptr;                        // [rows * heads]: the largest weight
  float *q_scale = nullptr, *k_scale = nullptr, *v_scale = nullptr, *top = nullptr;  // [images]; top: the largest weight
  int64_t* overflow = nullptr;      // [rows * heads]

  int64_t image(int64_t of) const { return of / a.base.heads % images; }
  const float* queries_of(int64_t of, int64_t t) const {
    return a.base.query + (of / a.base.heads * a.base.tokens + t) * a.base.heads * d + of % a.base.heads * d;
  }
};

inline int8_t* panel_place(int8_t* panels, int64_t depth, int64_t column, int64_t k) {
  return panels + column / kPanel * depth * kPanel + k / kStep * kPanelStep + column % kPanel / 16 * kTile +
         k % kStep / 4 * 64 + column % 16 * 4 + k % 4;
}

// Signed bytes of four k, of 16 columns, as a panel has them.
inline I four_bytes(I k0, I k1, I k2, I k3) {
  const I byte = splat(int32_t{255});
  return (k0 & byte) | shift_left<8>(k1 & byte) | shift_left<16>(k2 & byte) | shift_left<24>(k3);
}
inline void store_four(int8_t* to, I four) { store(reinterpret_cast<int32_t*>(to), four); }

// Codes of the queries and keys of one row and head.
inline void code_operands(const IntegerAttention& c, int64_t of) {
  const AttentionArgs& base = c.a.base;
  const SymmetricQuantizer query(c.q_scale[c.image(of)], c.middle), key(c.k_scale[c.image(of)], c.middle);
  auto* unit = static_cast<float*>(thread_memory(3, static_cast<size_t>(c.d) * sizeof(float)));
  uint8_t* codes = c.query_codes + of * c.queries * c.depth;
  std::memset(codes, 0, static_cast<size_t>(c.queries * c.depth));
  for (int64_t t = 0; t < base.tokens; ++t) {
    normalize(c.queries_of(of, t), c.d, base.query_scale[of % base.heads], unit);
    uint8_t* to = codes + t / kBlock * kBlock * c.depth + t % kBlock * kStep;
    for (int64_t i = 0; i < c.d; i += kLanes)
      store_bytes(to + i / kStep * kTile + i % kStep, query(load(unit + i, c.d - i)) + splat(c.middle), c.d - i);
  }
  int8_t* panels = c.key_panels + of * c.keys * c.depth;
  int32_t* sums = c.key_sums + of * c.keys;
  std::memset(panels, 0, static_cast<size_t>(c.keys * c.depth));
  const float* keys = base.present_key + of * c.d * c.total;
  for (int64_t j = 0; j < c.keys; j += kLanes) {
    I sum = splat(int32_t{0});
    for (int64_t i = 0; i < c.d; i += 4) {
      I four = splat(int32_t{0});
      if (j < c.total) {
        const auto coded = [&](int64_t k) {
          return key(load(keys + k * c.total + j, c.total - j));
        };
        const I k0 = coded(i), k1 = coded(i + 1), k2 = coded(i + 2), k3 = coded(i + 3);
        sum = sum + k0 + k1 + k2 + k3;
        four = four_bytes(k0, k1, k2, k3);
      }
      store_four(panel_place(panels, c.depth, j, i), four);
    }
    store(sums + j, sum * splat(c.middle));
  }
}

// Logits float [kQueries][keys] of a pass from token `first` on, and how many queries it has. What lies past the keys is
// the lowest.
inline int64_t pass_logits(const IntegerAttention& c, int64_t of, int64_t first, float* logits) {
  const int64_t n = least_of(kQueries, c.a.base.tokens - first), steps = c.depth / kStep;
  const uint8_t* codes = c.query_codes + of * c.queries * c.depth + first * c.depth;
  const Rows rows{{codes, codes + kBlock * c.depth}, {least_of(n, kBlock), most_of(0, n - kBlock)}, kStep, kTile, nullptr};
  alignas(64) int32_t sums[2 * kBlock * kPanel];
  const F scale = splat(c.q_scale[c.image(of)] * c.k_scale[c.image(of)]);
  for (int64_t j = 0; j < c.keys; j += kPanel) {
    multiply(rows, c.key_panels + of * c.keys * c.depth + j * c.depth, steps, sums);
    const I s0 = load(c.key_sums + of * c.keys + j), s1 = load(c.key_sums + of * c.keys + j + kLanes);
    for (int64_t i = 0; i < n; ++i) {
      const int32_t* row = sums + i * kPanel;
      store(logits + i * c.keys + j, to_float(load(row) - s0) * scale);
      store(logits + i * c.keys + j + kLanes, to_float(load(row + kLanes) - s1) * scale);
    }
  }
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = c.total; j < c.keys; ++j) logits[i * c.keys + j] = kLowest;
  return n;
}

inline float largest_in(const float* row, int64_t n) {
  F largest = splat(kLowest);
  for (int64_t j = 0; j < n; j += kLanes) largest = max(load(row + j), largest);
  return maximum(largest);
}

// Logits become e^(logit - largest); the row is filled up to whole vectors with nothing. Returns 1 / their sum.
inline float soften(float* row, int64_t total) {
  const int64_t filled = ceil_div(total, kLanes) * kLanes;
  for (int64_t j = total; j < filled; ++j) row[j] = kLowest;
  F largest = splat(kLowest);
  for (int64_t j = 0; j < filled; j += kLanes) largest = max(load(row + j), largest);
  largest = splat(maximum(largest));
  F one = splat(0.0f), two = splat(0.0f);
  int64_t j = 0;
  for (; j + 2 * kLanes <= filled; j += 2 * kLanes) {
    const F a = exp(load(row + j) - largest), b = exp(load(row + j + kLanes) - largest);
    store(row + j, a);
    store(row + j + kLanes, b);
    one = one + a;
    two = two + b;
  }
  if (j < filled) {
    const F a = exp(load(row + j) - largest);
    store(row + j, a);
    one = one + a;
  }
  return 1.0f / sum(one + two);
}

inline float* pass_memory(const IntegerAttention& c) {
  return static_cast<float*>(thread_memory(2, static_cast<size_t>(kQueries * c.keys) * sizeof(float)));
}

// The largest logit and weight of each query; for shift-and-sum the sums of the keys' weights, in the queries' order.
inline void measure_weights(const IntegerAttention& c, int64_t of) {
  const Tiles in_use;
  (void)in_use;
  float *logits = pass_memory(c), *score = c.score + of * c.keys;
  if (c.a.places >= 0) std::memset(score, 0, static_cast<size_t>(c.keys) * sizeof(float));
  float top = 0.0f;
  for (int64_t first = 0; first < c.a.base.tokens; first += kQueries) {
    const int64_t n = pass_logits(c, of, first, logits);
    for (int64_t i = 0; i < n; ++i) {
      float* row = logits + i * c.keys;
      c.largest_logit[of * c.queries + first + i] = largest_in(row, c.keys);
      const float weight = soften(row, c.total);
      c.largest_weight[of * c.queries + first + i] = weight;
      top = weight > top ? weight : top;
      if (c.a.places < 0) continue;
      const F factor = splat(weight);
      for (int64_t j = 0; j < c.total; j += kLanes) store(score + j, fma(load(row + j), factor, load(score + j)));
    }
  }
  c.top_of_head[of] = top;
}

// The attentive tokens of one row and head: their 2n by token, 1 for the others. Returns how many have no place.
inline int64_t choose_attentive(const IntegerAttention& c, int64_t of, float* two_n) {
  const float* score = c.score + of * c.keys;
  const float tokens = static_cast<float>(c.a.base.tokens);
  auto* order = static_cast<int32_t*>(thread_memory(4, static_cast<size_t>(c.total) * sizeof(int32_t)));
  int64_t found = 0;
  for (int64_t j = 0; j < c.total; ++j) {
    two_n[j] = 1.0f;
    if (score[j] / tokens > c.a.theta) order[found++] = static_cast<int32_t>(j);
  }
  const int64_t placed = least_of(found, c.a.places);
  // The highest scores win, the first of equals: as many passes as there are places would be slow, a heap is not.
  const auto before = [&](int32_t x, int32_t y) { return score[x] > score[y] || (score[x] == score[y] && x < y); };
  if (placed < found) {
    const auto sink = [&](int64_t i, int64_t n) {
      for (;;) {  // a heap whose root comes last
        int64_t child = 2 * i + 1;
        if (child >= n) return;
        if (child + 1 < n && before(order[child], order[child + 1])) ++child;
        if (!before(order[i], order[child])) return;
        const int32_t swapped = order[i];
        order[i] = order[child];
        order[child] = swapped;
        i = child;
      }
    };
    for (int64_t i = placed / 2; i-- > 0;) sink(i, placed);
    for (int64_t i = placed; placed > 0 && i < found; ++i)
      if (before(order[i], order[0])) {
        order[0] = order[i];
        sink(0, placed);
      }
  }
  for (int64_t i = 0; i < placed; ++i) {
    const float mean = score[order[i]] / tokens;
    float n = 1.0f;
    for (float threshold = c.a.theta; n < kFinest && mean > threshold; threshold *= 2.0f) n *= 2.0f;
    two_n[order[i]] = n;
  }
  return found - placed;
}

// Codes of V and residuals of attentive tokens, as panels of its channels.
struct ValuePanels {
  int8_t *codes, *residuals;  // [d / 32][keys / 64][2][16][64]
  int64_t* steps;             // byte offsets, in the rows' tiles, of the steps that have residuals
  int64_t residual_steps = 0;
};

inline void code_values(const IntegerAttention& c, int64_t of, const float* two_n, ValuePanels& v) {
  const int64_t d = c.d, channels = filled(d, kPanel);
  const float scale = c.v_scale[c.image(of)];
  const float* values = c.a.base.present_value + of * d * c.total;
  const int32_t half = c.middle;
  const SymmetricQuantizer plain(scale, half), of_steps(kGrid, half);
  const F to_grid = splat(kGrid / scale);
  const I zero = splat(int32_t{0});
  std::memset(v.codes, 0, static_cast<size_t>(channels * c.keys));
  for (int64_t t = 0; t < c.total; t += 4)
    for (int64_t i = 0; i < d; i += kLanes) {
      const auto coded = [&](int64_t token) {
        if (token >= c.total) return zero;
        F x = load(values + token * d + i, d - i);
        if (two_n) x = round(x * to_grid) + splat(0.25f);  // ties go up
        return two_n ? of_steps(x) : plain(x);
      };
      store_four(panel_place(v.codes, c.keys, i, t), four_bytes(coded(t), coded(t + 1), coded(t + 2), coded(t + 3)));
    }
  v.residual_steps = 0;
  if (!two_n) return;
  const F least = splat(-static_cast<float>(half) * kGrid), most = splat(static_cast<float>(half - 1) * kGrid);
  for (int64_t s = 0; s < c.keys / kStep; ++s) {
    const int64_t end = least_of(c.total, (s + 1) * kStep);
    bool any = false;
    for (int64_t t = s * kStep; t < end; ++t) any = any || two_n[t] > 1.0f;
    if (!any) continue;
    const int64_t to = v.residual_steps++;
    v.steps[to] = s * kTile;
    for (int64_t p = 0; p < channels / kPanel; ++p)
      std::memset(v.residuals + p * c.keys * kPanel + to * kPanelStep, 0, static_cast<size_t>(kPanelStep));
    for (int64_t t = 0; t < kStep; t += 4)
      for (int64_t i = 0; i < d; i += kLanes) {
        const auto residual = [&](int64_t token) {
          if (token >= end || two_n[token] <= 1.0f) return zero;
          const F x = min(max(round(load(values + token * d + i, d - i) * to_grid), least), most);
          const F code = floor(x * splat(1.0f / kGrid) + splat(0.5f));
          const F rest = x - code * splat(kGrid), n = splat(two_n[token]);
          return nearest(floor(rest * (n * splat(1.0f / kGrid)) + splat(0.5f)) * (splat(static_cast<float>(kFinest)) / n));
        };
        const int64_t k = s * kStep + t;
        store_four(panel_place(v.residuals, c.keys, i, to * kStep + t),
                   four_bytes(residual(k), residual(k + 1), residual(k + 2), residual(k + 3)));
      }
  }
}

// Codes of a query's weights, as a row of two tiles: 2^(code - 1) below 256 and the higher ones in units of 256, or the
// codes as they are. Returns what a unit of the product is worth, or 0 where the product is divided by the codes' sum.
struct WeightRow {
  uint8_t *low, *high;  // tiles [keys / 64][16][64], at the row
  double sum = 0;       // of what the codes stand for
};

inline float code_weights(const IntegerAttention& c, int64_t of, int64_t query, float* logits, WeightRow& row) {
  const int32_t qmax = 2 * c.middle - 1;
  float unit = 0.0f;
  int64_t total = 0;
  if (c.powers) {
    const float top = c.two_passes ? c.top[c.image(of)] : 0.0f;
    float shift = c.two_passes ? c.largest_logit[of * c.queries + query] : largest_in(logits, c.keys);
    int32_t floor_code = kPowers - qmax;
    if (!c.normalized) {
      const float below = logf(top / c.largest_weight[of * c.queries + query]) / kLn2;
      const float nearest_below = rintf(below), fewest = nearest_below < static_cast<float>(qmax) ? nearest_below : static_cast<float>(qmax);
      shift += (below - fewest) * kLn2;
      unit = top * 6.103515625e-05f * ldexpf(1.0f, -static_cast<int>(fewest));  // 2^(1 - 15)
      floor_code += static_cast<int32_t>(fewest);
    }
    const F moved = splat(shift), inverse = splat(1.0f / kLn2), below = splat(-static_cast<float>(kPowers)), above = splat(100.0f);
    const I fifteen = splat(kPowers), least = splat(qmax <= kPowers ? floor_code : 0), eight = splat(int32_t{8});
    const I nothing = splat(int32_t{0}), one = splat(int32_t{1}), bias = splat(int32_t{127});
    I counted = nothing;
    for (int64_t j = 0; j < c.keys; j += kLanes) {
      I code = nearest(min(max((load(logits + j) - moved) * inverse, below), above)) + fifteen;
      code = max(code, least);
      if (j + kLanes > c.total) code = code * load(kOnes, c.total - j);  // nothing past the keys
      // 2^(code - 1) by the exponent of a float, of codes up to 8 and of higher ones.
      const I low_code = min(code, eight + one), high_code = max(code - eight, nothing);
      const I low = nearest(from_bits(shift_left<23>(low_code - one + bias))) & splat(int32_t{255});
      const I high = nearest(from_bits(shift_left<23>(high_code - one + bias)));
      store_bytes(row.low + j / kStep * kTile + j % kStep, low);
      store_bytes(row.high + j / kStep * kTile + j % kStep, high);
      counted = counted + low + shift_left<8>(high);
    }
    total = sum(counted);
  } else {
    const float weight = soften(logits, c.total);  // the largest weight, whose exponential is 1
    const F factor = splat(weight);
    const float step = c.normalized ? 0.0f : 1.0f / static_cast<float>(qmax);
    const float of_row = weight * (1.0f / static_cast<float>(qmax));
    const Quantizer quantizer({c.normalized ? (of_row > kLeastScale ? of_row : kLeastScale) : step, 0}, qmax);
    I counted = splat(int32_t{0});
    for (int64_t j = 0; j < c.keys; j += kLanes) {
      I code = splat(int32_t{0});
      if (j < c.total) code = quantizer(load(logits + j, c.total - j) * factor);
      store_bytes(row.low + j / kStep * kTile + j % kStep, code);
      counted = counted + code;
    }
    total = sum(counted);
    unit = step;
  }
  row.sum = static_cast<double>(total);
  return unit;
}

// The weighted values of one row and head.
inline void mix_values(const IntegerAttention& c, int64_t of) {
  const Tiles in_use;
  (void)in_use;
  const AttentionArgs& base = c.a.base;
  const int64_t d = c.d, channels = filled(d, kPanel), width = base.heads * d, steps = c.keys / kStep;
  float* logits = pass_memory(c);
  const int64_t panel_bytes = channels * c.keys, tile_bytes = 2 * kBlock * c.keys;
  auto* memory = static_cast<uint8_t*>(thread_memory(
      3, static_cast<size_t>(2 * panel_bytes + 2 * tile_bytes + steps * 8 + c.total * 4 + kQueries * 16)));
  ValuePanels v{reinterpret_cast<int8_t*>(memory), reinterpret_cast<int8_t*>(memory) + panel_bytes, nullptr};
  uint8_t *low = memory + 2 * panel_bytes, *high = low + tile_bytes;
  v.steps = reinterpret_cast<int64_t*>(high + tile_bytes);
  auto* sums_of_codes = reinterpret_cast<double*>(v.steps + steps);
  auto* units = reinterpret_cast<float*>(sums_of_codes + kQueries);
  float* two_n = c.a.places < 0 ? nullptr : units + kQueries;
  if (two_n) c.overflow[of] = choose_attentive(c, of, two_n);
  code_values(c, of, two_n, v);
  const float v_scale = c.v_scale[c.image(of)];
  alignas(64) int32_t sums[4][2 * kBlock * kPanel];  // low and high; of residuals low and high
  for (int64_t first = 0; first < base.tokens; first += kQueries) {
    const int64_t n = pass_logits(c, of, first, logits);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = i / kBlock * kBlock * c.keys + i % kBlock * kStep;
      WeightRow row{low + at, high + at};
      units[i] = code_weights(c, of, first + i, logits + i * c.keys, row);
      sums_of_codes[i] = row.sum;
    }
    const int64_t counts[2] = {least_of(n, kBlock), most_of(0, n - kBlock)};
    for (int64_t p = 0; p < channels / kPanel; ++p) {
      for (int part = 0; part < (c.powers ? 2 : 1); ++part) {
        const uint8_t* tiles = part ? high : low;
        Rows rows{{tiles, tiles + kBlock * c.keys}, {counts[0], counts[1]}, kStep, kTile, nullptr};
        multiply(rows, v.codes + p * c.keys * kPanel, steps, sums[part]);
        if (!v.residual_steps) continue;
        rows.offsets = v.steps;
        multiply(rows, v.residuals + p * c.keys * kPanel, v.residual_steps, sums[2 + part]);
      }
      for (int64_t i = 0; i < n; ++i) {
        float* y = base.y + (of / base.heads * base.tokens + first + i) * width + of % base.heads * d + p * kPanel;
        const int64_t at = i * kPanel;
        // A double holds the whole integer, which is rounded to float once, as the stock operators do.
        for (int64_t j = 0; j < least_of(kPanel, d - p * kPanel); ++j) {
          double product = sums[0][at + j];
          if (c.powers) product += 256.0 * sums[1][at + j];
          if (v.residual_steps) {
            double rest = sums[2][at + j];
            if (c.powers) rest += 256.0 * sums[3][at + j];
            product += rest / kFinest;
          }
          const float number = static_cast<float>(product);
          y[j] = c.normalized ? number / static_cast<float>(sums_of_codes[i]) * v_scale : number * (v_scale * units[i]);
        }
      }
    }
  }
}

inline void integer_attention(const IntegerAttentionArgs& a, const Parallel& parallel, const Workspace& workspace) {
  const AttentionArgs& base = a.base;
  const int64_t d = base.size, total = base.past + base.tokens, all = base.rows * base.heads;
  parallel(all, [&](int64_t of) { grow_caches(base, of / base.heads, of % base.heads); });
  if (a.overflow) *a.overflow = 0;
  if (base.tokens == 0 || all == 0) return;
  const int64_t images = base.rows / a.image_rows;
  IntegerAttention c{a, d, total, all, images, filled(d, kStep), filled(total, kStep), filled(base.tokens, kQueries)};
  c.middle = (a.qmax + 1) / 2;
  c.powers = a.weights == Weights::kLog2 || a.weights == Weights::kLog2Row;
  c.normalized = a.weights == Weights::kLog2Row || a.weights == Weights::kRow;
  c.two_passes = a.weights == Weights::kLog2 || a.places >= 0;
  c.query_codes = workspace.take<uint8_t>(all * c.queries * c.depth);
  c.key_panels = workspace.take<int8_t>(all * c.keys * c.depth);
  c.key_sums = workspace.take<int32_t>(all * c.keys);
  c.largest_logit = workspace.take<float>(all * c.queries);
  c.largest_weight = workspace.take<float>(all * c.queries);
  c.score = workspace.take<float>(all * c.keys);
  c.top_of_head = workspace.take<float>(all);
  c.q_scale = workspace.take<float>(4 * images);
  c.k_scale = c.q_scale + images, c.v_scale = c.k_scale + images, c.top = c.v_scale + images;
  c.overflow = workspace.take<int64_t>(all);
  float* found = workspace.take<float>(3 * all);

  if (!a.known_scales)
    parallel(all, [&](int64_t of) {
      auto* unit = static_cast<float*>(thread_memory(3, static_cast<size_t>(d) * sizeof(float)));
      float query = 0.0f;
      for (int64_t t = 0; t < base.tokens; ++t) {
        normalize(c.queries_of(of, t), d, base.query_scale[of % base.heads], unit);
        const float largest = largest_of(unit, d);
        query = largest > query ? largest : query;
      }
      found[of] = query;
      found[all + of] = largest_of(base.present_key + of * d * total, d * total);
      found[2 * all + of] = largest_of(base.present_value + of * d * total, d * total);
    });
  const float step = 2.0f / static_cast<float>(a.qmax);
  for (int64_t b = 0; b < images; ++b) {
    float largest[3] = {0.0f, 0.0f, 0.0f};
    for (int64_t of = 0; !a.known_scales && of < all; ++of)
      for (int64_t i = 0; i < 3 && c.image(of) == b; ++i)
        largest[i] = found[i * all + of] > largest[i] ? found[i * all + of] : largest[i];
    float* scales[3] = {c.q_scale, c.k_scale, c.v_scale};
    for (int64_t i = 0; i < 3; ++i) {
      const float scale = a.known_scales ? a.known_scales[i] : largest[i] * step;
      scales[i][b] = scale > kLeastScale ? scale : kLeastScale;
    }
  }
  parallel(all, [&](int64_t of) {
    code_operands(c, of);
    c.overflow[of] = 0;
    if (c.two_passes) measure_weights(c, of);
  });
  for (int64_t b = 0; b < images; ++b) {
    c.top[b] = 0.0f;
    for (int64_t of = 0; c.two_passes && of < all; ++of) {
      if (c.image(of) == b && c.top_of_head[of] > c.top[b]) c.top[b] = c.top_of_head[of];
    }
  }
  parallel(all, [&](int64_t of) { mix_values(c, of); });
  if (a.overflow)
    for (int64_t of = 0; of < all; ++of) *a.overflow += c.overflow[of];
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_INTEGER_ATTENTION_H_
