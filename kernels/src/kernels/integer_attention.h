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
// Of a code's distance from the largest, 0 to 15: what it stands for below 256, and in units of 256.
alignas(16) constexpr uint8_t kLow[16] = {0, 0, 0, 0, 0, 0, 0, 128, 64, 32, 16, 8, 4, 2, 1, 0};
alignas(16) constexpr uint8_t kHigh[16] = {64, 32, 16, 8, 4, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0};

inline int64_t filled(int64_t n, int64_t to) { return ceil_div(n, to) * to; }

inline float largest_of(const float* x, int64_t n) {
  F one = splat(0.0f), two = one;
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    one = max(abs(load(x + i)), one);
    two = max(abs(load(x + i + kLanes)), two);
  }
  for (; i < n; i += kLanes) one = max(abs(load(x + i, n - i)), one);
  return maximum(max(one, two));
}

// Codes of x / scale, which a product with the reciprocal and one correction give as a division would: the largest number
// of a symmetric range lies on a tie, which the product alone would move.
struct SymmetricQuantizer {
  F scale, inverse, end, most;
  SymmetricQuantizer(float step, int32_t half)
      : scale(splat(step)),
        inverse(splat(1.0f / step)),
        end(splat(static_cast<float>(half) * step)),
        most(splat(static_cast<float>(half - 1))) {}
  I operator()(F x) const {
    const F bounded = max(min(x, end), splat(0.0f) - end), product = bounded * inverse;
    return nearest(min(fma(fnma(product, scale, bounded), inverse, product), most));
  }
};

// What all phases share: sizes, codes and numbers of each row and head, in memory of the call.
struct IntegerAttention {
  const IntegerAttentionArgs& a;
  int64_t d, total, images;
  int64_t depth;          // of keys and queries, in whole steps
  int64_t keys;           // filled up to whole panels and steps
  int64_t queries;        // filled up to whole passes
  int64_t channels;       // of a head, filled up to whole panels
  int64_t chunk, chunks;  // queries of a task: by their number alone, so that a sum over chunks has one order
  int32_t middle = 0;     // of the queries' codes
  bool powers = false, normalized = false, attentive = false, two_passes = false;
  uint8_t* query_codes = nullptr;    // [rows * heads][queries / 16][depth / 64][16][64]
  int8_t* key_panels = nullptr;      // [rows * heads][keys / 32][depth / 64][2][16][64]
  int32_t* key_sums = nullptr;       // [rows * heads][keys]: middle times the sum of each key's codes
  int8_t* value_panels = nullptr;    // [rows * heads][channels / 32][keys / 64][2][16][64]
  int8_t* residuals = nullptr;       // the same, of the steps that have residuals
  int64_t* residual_steps = nullptr; // [rows * heads][1 + keys / 64]: how many, and where their rows' tiles begin
  int32_t* largest_sum = nullptr;    // [rows * heads][queries]: of the products of a query
  float* largest_weight = nullptr;   // the same: 1 / the sum of exponentials
  float* score = nullptr;            // [rows * heads][chunks][keys]: sums of weights over queries
  float* top_of_chunk = nullptr;     // [rows * heads][chunks]: the largest weight
  float *q_scale = nullptr, *k_scale = nullptr, *v_scale = nullptr, *top = nullptr;  // [images]; top: the largest weight
  int64_t* overflow = nullptr;       // [rows * heads]

  int64_t image(int64_t of) const { return of / a.base.heads % images; }
  const float* queries_of(int64_t of, int64_t t) const {
    return a.base.query + (of / a.base.heads * a.base.tokens + t) * a.base.heads * d + of % a.base.heads * d;
  }
  int64_t end_of(int64_t part) const { return least_of(a.base.tokens, (part + 1) * chunk); }
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

// The caches of one row and head, and the largest numbers of query, key and value.
inline void find_ranges(const IntegerAttention& c, int64_t of, float* query, float* key, float* value) {
  const AttentionArgs& base = c.a.base;
  grow_caches(base, of / base.heads, of % base.heads);
  if (c.a.known_scales) return;
  auto* unit = static_cast<float*>(thread_memory(3, static_cast<size_t>(c.d) * sizeof(float)));
  *query = 0.0f;
  for (int64_t t = 0; t < base.tokens; ++t) {
    normalize(c.queries_of(of, t), c.d, base.query_scale[of % base.heads], unit);
    const float largest = largest_of(unit, c.d);
    *query = largest > *query ? largest : *query;
  }
  *key = largest_of(base.present_key + of * c.d * c.total, c.d * c.total);
  *value = largest_of(base.present_value + of * c.d * c.total, c.d * c.total);
}

inline void code_queries(const IntegerAttention& c, int64_t of) {
  const AttentionArgs& base = c.a.base;
  const SymmetricQuantizer quantizer(c.q_scale[c.image(of)], c.middle);
  auto* unit = static_cast<float*>(thread_memory(3, static_cast<size_t>(c.d) * sizeof(float)));
  uint8_t* codes = c.query_codes + of * c.queries * c.depth;
  for (int64_t t = 0; t < base.tokens; ++t) {
    normalize(c.queries_of(of, t), c.d, base.query_scale[of % base.heads], unit);
    uint8_t* to = codes + t / kBlock * kBlock * c.depth + t % kBlock * kStep;
    for (int64_t i = 0; i < c.depth; i += kLanes) {
      const I code = i < c.d ? quantizer(load(unit + i, c.d - i)) + splat(c.middle) : splat(int32_t{0});
      store_bytes(to + i / kStep * kTile + i % kStep, code);
    }
  }
}

inline void code_keys(const IntegerAttention& c, int64_t of) {
  const SymmetricQuantizer quantizer(c.k_scale[c.image(of)], c.middle);
  const I zero = splat(int32_t{0});
  int8_t* panels = c.key_panels + of * c.keys * c.depth;
  const float* keys = c.a.base.present_key + of * c.d * c.total;
  for (int64_t j = 0; j < c.keys; j += kLanes) {
    const int64_t n = c.total - j;
    I sum = zero;
    for (int64_t i = 0; i < c.depth; i += 4) {
      I four = zero;
      if (n > 0 && i < c.d) {
        I k[4];
        each_of<4>([&](int m) {
          const float* from = keys + (i + m) * c.total + j;
          k[m] = quantizer(n >= kLanes ? load(from) : load(from, n));
        });
        sum = sum + k[0] + k[1] + (k[2] + k[3]);
        four = four_bytes(k[0], k[1], k[2], k[3]);
      }
      store_four(panel_place(panels, c.depth, j, i), four);
    }
    store(c.key_sums + of * c.keys + j, sum * splat(c.middle));
  }
}

// Products of a pass of queries from token `first` on, with all keys, in panels of 32 keys.
class Scores {
 public:
  Scores(const IntegerAttention& c, int64_t of, int64_t first, int64_t end)
      : n(least_of(kQueries, end - first)),
        scale_(splat(c.q_scale[c.image(of)] * c.k_scale[c.image(of)])),
        offsets_(c.key_sums + of * c.keys) {
    sums_ = static_cast<int32_t*>(thread_memory(2, static_cast<size_t>(kQueries * c.keys) * sizeof(int32_t)));
    const uint8_t* codes = c.query_codes + of * c.queries * c.depth + first * c.depth;
    const Rows rows{{codes, codes + kBlock * c.depth}, {least_of(n, kBlock), most_of(0, n - kBlock)}, kStep, kTile, nullptr};
    const int8_t* panels = c.key_panels + of * c.keys * c.depth;
    for (int64_t j = 0; j < c.keys; j += kPanel) multiply(rows, panels + j * c.depth, c.depth / kStep, sums_ + j * kQueries);
  }
  // Of query i and the 16 keys from j on.
  I product(int64_t i, int64_t j) const {
    return load(sums_ + j / kPanel * kPanel * kQueries + i * kPanel + j % kPanel) - load(offsets_ + j);
  }
  F logit(int64_t i, int64_t j) const { return to_float(product(i, j)) * scale_; }
  // The largest product of query i with one of `total` keys; the largest logit is its own.
  int32_t largest(int64_t i, int64_t total) const {
    const I least = splat(int32_t{INT32_MIN});
    I one = least, two = least;
    int64_t j = 0;
    for (; j + 2 * kLanes <= total; j += 2 * kLanes) {
      one = max(product(i, j), one);
      two = max(product(i, j + kLanes), two);
    }
    if (j + kLanes <= total) {
      one = max(product(i, j), one);
      j += kLanes;
    }
    if (j < total) {
      const I here = load(kOnes, total - j);
      two = max(product(i, j) * here + least * (splat(int32_t{1}) - here), two);
    }
    return maximum(max(one, two));
  }
  float logit_of(int32_t product) const {
    float logits[kLanes];
    store(logits, to_float(splat(product)) * scale_);
    return logits[0];
  }

  const int64_t n;

 private:
  F scale_;
  const int32_t* offsets_;
  int32_t* sums_;
};

// e^(logit - largest) of query i and 16 keys from j on; nothing past `total`.
inline F exponential(const Scores& scores, int64_t i, int64_t j, F largest, int64_t total) {
  const F e = exp(scores.logit(i, j) - largest);
  return j + kLanes <= total ? e : e * to_float(load(kOnes, total - j));
}

// e^(logit - largest) of query i and all keys, one vector after another: keep(j, e). Returns 1 / their sum.
template <class Keep>
inline float soften(const IntegerAttention& c, const Scores& scores, int64_t i, float largest, Keep keep) {
  const F least = splat(-87.0f), most = splat(largest);
  F one = splat(0.0f), two = one;
  int64_t j = 0;
  for (; j + 2 * kLanes <= c.total; j += 2 * kLanes) {
    F x[2], number[2], two_to[2];
    each_of<2>([&](int v) { x[v] = max(scores.logit(i, j + v * kLanes) - most, least); });
    exp_of_bounded(x, number, two_to);
    each_of<2>([&](int v) { x[v] = number[v] * two_to[v]; });
    one = one + x[0];
    two = two + x[1];
    each_of<2>([&](int v) { keep(j + v * kLanes, x[v]); });
  }
  for (; j < c.total; j += kLanes) {
    const F e = exponential(scores, i, j, most, c.total);
    one = one + e;
    keep(j, e);
  }
  return 1.0f / sum(one + two);
}

inline float* exponentials_of(const IntegerAttention& c) {
  return static_cast<float*>(thread_memory(4, static_cast<size_t>(c.keys) * sizeof(float)));
}

// The largest product and weight of each query of a chunk; for shift-and-sum the sums of the keys' weights, in the
// queries' order.
inline void measure_weights(const IntegerAttention& c, int64_t of, int64_t part) {
  const Tiles in_use;
  (void)in_use;
  float* score = c.attentive ? c.score + (of * c.chunks + part) * c.keys : nullptr;
  float *row = exponentials_of(c), top = 0.0f;
  if (c.attentive) std::memset(score, 0, static_cast<size_t>(c.keys) * sizeof(float));
  for (int64_t first = part * c.chunk; first < c.end_of(part); first += kQueries) {
    const Scores scores(c, of, first, c.end_of(part));
    for (int64_t i = 0; i < scores.n; ++i) {
      const int32_t largest = scores.largest(i, c.total);
      const float weight =
          c.attentive ? soften(c, scores, i, scores.logit_of(largest), [&](int64_t j, F e) { store(row + j, e); })
                      : soften(c, scores, i, scores.logit_of(largest), [](int64_t, F) {});
      c.largest_sum[of * c.queries + first + i] = largest;
      c.largest_weight[of * c.queries + first + i] = weight;
      top = weight > top ? weight : top;
      if (!c.attentive) continue;
      const F factor = splat(weight);
      for (int64_t j = 0; j < c.total; j += kLanes) store(score + j, fma(load(row + j), factor, load(score + j)));
    }
  }
  c.top_of_chunk[of * c.chunks + part] = top;
}

// The attentive tokens of one row and head: their 2n by token, 1 for the others. Returns how many have no place.
inline int64_t choose_attentive(const IntegerAttention& c, int64_t of, float* two_n) {
  float* score = c.score + of * c.chunks * c.keys;
  for (int64_t part = 1; part < c.chunks; ++part)
    for (int64_t j = 0; j < c.total; j += kLanes)
      store(score + j, load(score + j) + load(score + part * c.keys + j));
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

// Codes of V as panels of its channels; with shift-and-sum also the residuals of attentive tokens.
inline void code_values(const IntegerAttention& c, int64_t of) {
  const int64_t d = c.d, bytes = c.channels * c.keys;
  float* two_n = nullptr;
  if (c.attentive) {
    two_n = static_cast<float*>(thread_memory(3, static_cast<size_t>(c.total) * sizeof(float)));
    c.overflow[of] = choose_attentive(c, of, two_n);
  }
  const float scale = c.v_scale[c.image(of)];
  const float* values = c.a.base.present_value + of * d * c.total;
  const int32_t half = c.middle;
  const SymmetricQuantizer plain(scale, half), of_steps(kGrid, half);
  const F to_grid = splat(kGrid / scale);
  const I zero = splat(int32_t{0});
  int8_t* panels = c.value_panels + of * bytes;
  for (int64_t i = 0; i < c.channels; i += kLanes) {
    const int64_t n = d - i;
    for (int64_t t = 0; t < c.keys; t += 4) {
      I k[4];
      each_of<4>([&](int m) {
        k[m] = zero;
        if (t + m >= c.total || n <= 0) return;
        const float* from = values + (t + m) * d + i;
        const F x = n >= kLanes ? load(from) : load(from, n);
        k[m] = two_n ? of_steps(round(x * to_grid) + splat(0.25f)) : plain(x);  // ties on the grid go up
      });
      store_four(panel_place(panels, c.keys, i, t), four_bytes(k[0], k[1], k[2], k[3]));
    }
  }
  if (!two_n) return;
  int64_t* steps = c.residual_steps + of * (1 + c.keys / kStep);
  int8_t* residuals = c.residuals + of * bytes;
  steps[0] = 0;
  const F least = splat(-static_cast<float>(half) * kGrid), most = splat(static_cast<float>(half - 1) * kGrid);
  for (int64_t s = 0; s < c.keys / kStep; ++s) {
    const int64_t end = least_of(c.total, (s + 1) * kStep);
    bool any = false;
    for (int64_t t = s * kStep; t < end; ++t) any = any || two_n[t] > 1.0f;
    if (!any) continue;
    const int64_t to = steps[0]++;
    steps[steps[0]] = s * kTile;
    for (int64_t i = 0; i < c.channels; i += kLanes)
      for (int64_t t = 0; t < kStep; t += 4) {
        const auto residual = [&](int64_t token) {
          if (token >= end || two_n[token] <= 1.0f || i >= d) return zero;
          const F x = min(max(round(load(values + token * d + i, d - i) * to_grid), least), most);
          const F code = floor(x * splat(1.0f / kGrid) + splat(0.5f));
          const F rest = x - code * splat(kGrid), n = splat(two_n[token]);
          return nearest(floor(rest * (n * splat(1.0f / kGrid)) + splat(0.5f)) * (splat(static_cast<float>(kFinest)) / n));
        };
        const int64_t k = s * kStep + t;
        store_four(panel_place(residuals, c.keys, i, to * kStep + t),
                   four_bytes(residual(k), residual(k + 1), residual(k + 2), residual(k + 3)));
      }
  }
}

// What the product of a query's codes with V's is made of.
struct QueryScale {
  float unit;   // what a unit of the product is worth, or
  float codes;  // the sum of the codes, by which it is divided
};

// Weights as powers of two: codes 15 - (x - x_row), of which each stands for 2^(code - 1), below 256 in a row of `low`
// tiles and in units of 256 in one of `high` ones. See graph_passes/quantize_attention.py for the arithmetic.
inline QueryScale code_powers(const IntegerAttention& c, int64_t of, int64_t query, const Scores& scores, int64_t i,
                              uint8_t* low, uint8_t* high) {
  const int32_t qmax = 2 * c.middle - 1;
  const int64_t at = of * c.queries + query;
  float shift = scores.logit_of(c.two_passes ? c.largest_sum[at] : scores.largest(i, c.total));
  int32_t least_code = kPowers - qmax;
  QueryScale found{0.0f, 0.0f};
  if (!c.normalized) {
    const float top = c.top[c.image(of)], below = logf(top / c.largest_weight[at]) / kLn2, nearest_below = rintf(below);
    const float fewest = nearest_below < static_cast<float>(qmax) ? nearest_below : static_cast<float>(qmax);
    shift += (below - fewest) * kLn2;
    found.unit = top * 6.103515625e-05f * ldexpf(1.0f, -static_cast<int>(fewest));  // 2^(1 - 15)
    least_code += static_cast<int32_t>(fewest);
  }
  const int32_t farthest = qmax <= kPowers ? kPowers - least_code : kPowers;
  const F moved = splat(shift), inverse = splat(1.0f / kLn2), none = splat(0.0f);
  const F most = splat(static_cast<float>(farthest < kPowers ? farthest : kPowers));
  I counted = splat(int32_t{0});
  for (int64_t j = 0; j < c.keys; j += kStep) {
    I distance[4];
    each_of<4>([&](int v) {
      const F x = (moved - scores.logit(i, j + v * kLanes)) * inverse;
      distance[v] = nearest(min(max(x, none), most));
    });
    store_looked_up(low + j / kStep * kTile, high + j / kStep * kTile, distance[0], distance[1], distance[2], distance[3],
                    kLow, kHigh);
    if (!c.normalized) continue;
    const I bias = splat(int32_t{127 + kPowers - 1});
    each_of<4>([&](int v) {  // 2^(14 - distance), of which the last is nothing
      const I value = nearest(from_bits(shift_left<23>(bias - distance[v])));
      const int64_t left = c.total - j - v * kLanes;
      counted = counted + (left >= kLanes ? value : value * load(kOnes, left));
    });
  }
  found.codes = static_cast<float>(sum(counted));
  return found;
}

// Weights as codes of their own size in a row of tiles.
inline QueryScale code_linear(const IntegerAttention& c, const Scores& scores, int64_t i, uint8_t* codes) {
  const float qmax = static_cast<float>(2 * c.middle - 1);
  const float largest = scores.logit_of(scores.largest(i, c.total));
  float* row = exponentials_of(c);
  const float weight = soften(c, scores, i, largest, [&](int64_t j, F e) { store(row + j, e); });
  // A row's largest weight has the exponential 1.
  const F factor = splat(c.normalized ? qmax : weight * qmax);
  for (int64_t j = filled(c.total, kLanes); j < c.keys; ++j) row[j] = 0.0f;
  I counted = splat(int32_t{0});
  for (int64_t j = 0; j < c.keys; j += kStep) {
    I code[4];
    each_of<4>([&](int v) { code[v] = nearest(load(row + j + v * kLanes) * factor); });
    store_bytes(codes + j / kStep * kTile, code[0], code[1], code[2], code[3]);
    counted = counted + code[0] + code[1] + (code[2] + code[3]);
  }
  return {1.0f / qmax, static_cast<float>(sum(counted))};
}

// An integer of a pass's sums as float, rounded once. The sums are of the weights' low and high limbs with the codes, and
// with the residuals in steps of 1 / 128; what stays is a number below 2^23 and one of up to 24 bits above it.
struct LimbSums {
  const int32_t *low, *high, *residual_low, *residual_high;  // the last three may be null
  F at(int64_t i) const {
    const I s0 = load(low + i);
    if (!high && !residual_low) return to_float(s0);
    const I s1 = high ? load(high + i) : splat(int32_t{0});
    const I r0 = residual_low ? load(residual_low + i) : splat(int32_t{0});
    const I r1 = residual_high ? load(residual_high + i) : splat(int32_t{0});
    // 128 s0 + 2^15 s1 + r0 + 256 r1, from the lowest bits on.
    const I first = r0 + shift_left<7>(s0 & splat(int32_t{1}));
    const I second = r1 + shift_right_signed<1>(s0) + shift_right_signed<8>(first);
    const I third = s1 + shift_right_signed<7>(second);
    const I below = (first & splat(int32_t{255})) | shift_left<8>(second & splat(int32_t{127})) |
                    shift_left<15>(third & splat(int32_t{255}));
    const F number = fma(to_float(shift_right_signed<8>(third)), splat(8388608.0f), to_float(below));
    return number * splat(1.0f / kFinest);
  }
};

// The weighted values of a chunk of queries.
inline void mix_values(const IntegerAttention& c, int64_t of, int64_t part) {
  const Tiles in_use;
  (void)in_use;
  const AttentionArgs& base = c.a.base;
  const int64_t width = base.heads * c.d, steps = c.keys / kStep, tile_bytes = kQueries * c.keys;
  auto* low = static_cast<uint8_t*>(thread_memory(3, static_cast<size_t>(2 * tile_bytes)));
  uint8_t* high = low + tile_bytes;
  const int64_t at_head = of * c.channels * c.keys;
  const int8_t *panels = c.value_panels + at_head, *residuals = c.attentive ? c.residuals + at_head : nullptr;
  const int64_t* residual_steps = c.attentive ? c.residual_steps + of * (1 + steps) : nullptr;
  const float v_scale = c.v_scale[c.image(of)];
  const bool rest = c.attentive && residual_steps[0] > 0;
  QueryScale scales[kQueries];
  alignas(64) int32_t sums[4][kQueries * kPanel];  // low and high; of residuals low and high
  const LimbSums limbs{sums[0], c.powers ? sums[1] : nullptr, rest ? sums[2] : nullptr,
                       rest && c.powers ? sums[3] : nullptr};
  for (int64_t first = part * c.chunk; first < c.end_of(part); first += kQueries) {
    const Scores scores(c, of, first, c.end_of(part));
    for (int64_t i = 0; i < scores.n; ++i) {
      const int64_t at = i / kBlock * kBlock * c.keys + i % kBlock * kStep;
      scales[i] = c.powers ? code_powers(c, of, first + i, scores, i, low + at, high + at)
                           : code_linear(c, scores, i, low + at);
    }
    for (int64_t p = 0; p < c.channels / kPanel; ++p) {
      for (int limb = 0; limb < (c.powers ? 2 : 1); ++limb) {
        const uint8_t* tiles = limb ? high : low;
        Rows rows{{tiles, tiles + kBlock * c.keys},
                  {least_of(scores.n, kBlock), most_of(0, scores.n - kBlock)},
                  kStep,
                  kTile,
                  nullptr};
        multiply(rows, panels + p * c.keys * kPanel, steps, sums[limb]);
        if (!rest) continue;
        rows.offsets = residual_steps + 1;
        multiply(rows, residuals + p * c.keys * kPanel, residual_steps[0], sums[2 + limb]);
      }
      const int64_t column = p * kPanel;
      for (int64_t i = 0; i < scores.n; ++i) {
        float* y = base.y + (of / base.heads * base.tokens + first + i) * width + of % base.heads * c.d + column;
        const F scale = splat(c.normalized ? v_scale : v_scale * scales[i].unit), codes = splat(scales[i].codes);
        for (int64_t j = 0; j < least_of(kPanel, c.d - column); j += kLanes) {
          const F number = limbs.at(i * kPanel + j);
          store(y + j, (c.normalized ? number / codes : number) * scale, c.d - column - j);
        }
      }
    }
  }
}

// Scales of each image by what all its rows and heads found: largest numbers [3][rows * heads].
inline void set_scales(const IntegerAttention& c, const float* largest) {
  const int64_t all = c.a.base.rows * c.a.base.heads;
  const float step = 2.0f / static_cast<float>(c.a.qmax);
  float* scales[3] = {c.q_scale, c.k_scale, c.v_scale};
  for (int64_t i = 0; i < 3; ++i) {
    for (int64_t b = 0; b < c.images; ++b) scales[i][b] = c.a.known_scales ? c.a.known_scales[i] : 0.0f;
    for (int64_t of = 0; !c.a.known_scales && of < all; ++of) {
      const float scale = largest[i * all + of] * step;
      float& of_image = scales[i][c.image(of)];
      of_image = scale > of_image ? scale : of_image;
    }
    for (int64_t b = 0; b < c.images; ++b) scales[i][b] = scales[i][b] > kLeastScale ? scales[i][b] : kLeastScale;
  }
}

// Queries of a task: up to 64, or a quarter of all.
inline int64_t queries_of_chunk(int64_t tokens) {
  constexpr int64_t kFew = 64, kChunks = 4;
  return filled(tokens <= kFew ? tokens : ceil_div(tokens, kChunks), kQueries);
}

inline void integer_attention(const IntegerAttentionArgs& a, const Parallel& parallel, const Workspace& workspace) {
  const AttentionArgs& base = a.base;
  const int64_t d = base.size, total = base.past + base.tokens, all = base.rows * base.heads;
  const int64_t images = base.rows / a.image_rows, chunk = most_of(kQueries, queries_of_chunk(base.tokens));
  IntegerAttention c{a, d, total, images, filled(d, kStep), filled(total, kStep), filled(base.tokens, kQueries),
                     filled(d, kPanel), chunk, ceil_div(base.tokens, chunk)};
  if (a.overflow) *a.overflow = 0;
  if (base.tokens == 0 || all == 0) {
    parallel(all, [&](int64_t of) { grow_caches(base, of / base.heads, of % base.heads); });
    return;
  }
  c.middle = (a.qmax + 1) / 2;
  c.powers = a.weights == Weights::kLog2 || a.weights == Weights::kLog2Row;
  c.normalized = a.weights == Weights::kLog2Row || a.weights == Weights::kRow;
  c.attentive = a.places >= 0;
  c.two_passes = a.weights == Weights::kLog2 || c.attentive;
  c.query_codes = workspace.take<uint8_t>(all * c.queries * c.depth);
  c.key_panels = workspace.take<int8_t>(all * c.keys * c.depth);
  c.key_sums = workspace.take<int32_t>(all * c.keys);
  c.value_panels = workspace.take<int8_t>(all * c.channels * c.keys);
  if (c.two_passes) {
    c.largest_sum = workspace.take<int32_t>(all * c.queries);
    c.largest_weight = workspace.take<float>(all * c.queries);
    c.top_of_chunk = workspace.take<float>(all * c.chunks);
  }
  if (c.attentive) {
    c.residuals = workspace.take<int8_t>(all * c.channels * c.keys);
    c.residual_steps = workspace.take<int64_t>(all * (1 + c.keys / kStep));
    c.score = workspace.take<float>(all * c.chunks * c.keys);
    c.overflow = workspace.take<int64_t>(all);
  }
  c.q_scale = workspace.take<float>(4 * images);
  c.k_scale = c.q_scale + images, c.v_scale = c.k_scale + images, c.top = c.v_scale + images;
  float* largest = workspace.take<float>(3 * all);

  parallel(all, [&](int64_t of) { find_ranges(c, of, largest + of, largest + all + of, largest + 2 * all + of); });
  set_scales(c, largest);
  // Few queries are one task with their keys, which then are still in the cache.
  const bool together = c.chunks == 1;
  parallel(together ? all : 3 * all, [&](int64_t task) {
    const int64_t of = task % all, operand = task / all;
    if (together || operand == 0) code_keys(c, of);
    if (together || operand == 1) code_queries(c, of);
    if (!c.attentive && (together || operand == 2)) code_values(c, of);
    if (together && c.two_passes) measure_weights(c, of, 0);
  });
  if (!together && c.two_passes)
    parallel(all * c.chunks, [&](int64_t task) { measure_weights(c, task / c.chunks, task % c.chunks); });
  for (int64_t b = 0; b < images; ++b) c.top[b] = 0.0f;
  for (int64_t i = 0; c.two_passes && i < all * c.chunks; ++i) {
    float& top = c.top[c.image(i / c.chunks)];
    top = c.top_of_chunk[i] > top ? c.top_of_chunk[i] : top;
  }
  if (!together && c.attentive) parallel(all, [&](int64_t of) { code_values(c, of); });
  parallel(all * c.chunks, [&](int64_t task) {
    if (together && c.attentive) code_values(c, task);
    mix_values(c, task / c.chunks, task % c.chunks);
  });
  if (a.overflow && c.attentive)
    for (int64_t of = 0; of < all; ++of) *a.overflow += c.overflow[of];
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_INTEGER_ATTENTION_H_
