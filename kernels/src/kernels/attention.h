// Attention in float, with guided rows.
#ifndef NEXTSCALE_KERNELS_ATTENTION_H_
#define NEXTSCALE_KERNELS_ATTENTION_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

// Logits of M queries [M, d] and V vectors of keys from `first` on, of keys [d, total]; in the order of d.
template <int M, int V, bool kWhole>
inline void score(const float* queries, const float* keys, int64_t d, int64_t total, int64_t first, float* logits,
                  int64_t pitch) {
  F acc[M][V];
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < V; ++v) acc[i][v] = splat(0.0f);
  for (int64_t k = 0; k < d; ++k) {
    F b[V];
    NEXTSCALE_UNROLL
    for (int v = 0; v < V; ++v) {
      const float* from = keys + k * total + first + v * kLanes;
      b[v] = kWhole ? load(from) : load(from, total - first - v * kLanes);
    }
    NEXTSCALE_UNROLL
    for (int i = 0; i < M; ++i) {
      const F q = splat(queries[i * d + k]);
      NEXTSCALE_UNROLL
      for (int v = 0; v < V; ++v) acc[i][v] = fma(q, b[v], acc[i][v]);
    }
  }
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < V; ++v) store(logits + i * pitch + first + v * kLanes, acc[i][v]);
}

// Sums over all keys of weights [M, total] times values [total, d], of V vectors of channels from `first` on, times a
// factor for each row; in the order of the keys.
template <int M, int V, bool kWhole>
inline void mix(const float* weights, int64_t pitch, const float* values, int64_t d, int64_t total, int64_t first,
                const float* factors, float* y, int64_t y_pitch) {
  F acc[M][V];
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < V; ++v) acc[i][v] = splat(0.0f);
  for (int64_t t = 0; t < total; ++t) {
    F b[V];
    NEXTSCALE_UNROLL
    for (int v = 0; v < V; ++v) {
      const float* from = values + t * d + first + v * kLanes;
      b[v] = kWhole ? load(from) : load(from, d - first - v * kLanes);
    }
    NEXTSCALE_UNROLL
    for (int i = 0; i < M; ++i) {
      const F w = splat(weights[i * pitch + t]);
      NEXTSCALE_UNROLL
      for (int v = 0; v < V; ++v) acc[i][v] = fma(w, b[v], acc[i][v]);
    }
  }
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < V; ++v) {
      const int64_t at = first + v * kLanes;
      store(y + i * y_pitch + at, acc[i][v] * splat(factors[i]), d - at);
    }
}

template <int M>
inline void score_rows(const float* queries, const float* keys, int64_t d, int64_t total, float* logits, int64_t pitch) {
  int64_t j = 0;
  for (; j + kFloatVectors * kLanes <= total; j += kFloatVectors * kLanes)
    score<M, kFloatVectors, true>(queries, keys, d, total, j, logits, pitch);
  for (; j < total; j += kLanes) score<M, 1, false>(queries, keys, d, total, j, logits, pitch);
}
template <int M>
inline void mix_rows(const float* weights, int64_t pitch, const float* values, int64_t d, int64_t total,
                     const float* factors, float* y, int64_t y_pitch) {
  int64_t i = 0;
  for (; i + kFloatVectors * kLanes <= d; i += kFloatVectors * kLanes)
    mix<M, kFloatVectors, true>(weights, pitch, values, d, total, i, factors, y, y_pitch);
  for (; i < d; i += kLanes) mix<M, 1, false>(weights, pitch, values, d, total, i, factors, y, y_pitch);
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

// y [n, d], rows `y_pitch` apart, of n queries of one row and head from token `first` on.
inline void attend(const AttentionArgs& a, int64_t r, int64_t h, int64_t first, int64_t n, float* y, int64_t y_pitch) {
  const int64_t d = a.size, total = a.past + a.tokens, width = a.heads * d, of_head = r * a.heads + h;
  const int64_t pitch = ceil_div(total, kLanes) * kLanes;
  const float *keys = a.present_key + of_head * d * total, *values = a.present_value + of_head * d * total;
  auto* logits = static_cast<float*>(thread_memory(2, static_cast<size_t>(n * (pitch + d + 1)) * sizeof(float)));
  float *queries = logits + n * pitch, *factors = queries + n * d;
  for (int64_t i = 0; i < n; ++i)
    normalize(a.query + (r * a.tokens + first + i) * width + h * d, d, a.query_scale[h], queries + i * d);
  int64_t i = 0;
  for (; i + kFloatRows <= n; i += kFloatRows)
    score_rows<kFloatRows>(queries + i * d, keys, d, total, logits + i * pitch, pitch);
  for (; i < n; ++i) score_rows<1>(queries + i * d, keys, d, total, logits + i * pitch, pitch);
  for (i = 0; i < n; ++i) factors[i] = soften(logits + i * pitch, total);
  for (i = 0; i + kFloatRows <= n; i += kFloatRows)
    mix_rows<kFloatRows>(logits + i * pitch, pitch, values, d, total, factors + i, y + i * y_pitch, y_pitch);
  for (; i < n; ++i) mix_rows<1>(logits + i * pitch, pitch, values, d, total, factors + i, y + i * y_pitch, y_pitch);
}

// Queries of a task: their logits fit into the second cache, and keys and values are read once for all of them.
inline int64_t queries_together(int64_t total) {
  constexpr int64_t kLogitBytes = 1 << 19;
  return most_of(8, least_of(32, kLogitBytes / 4 / most_of(1, total) / 8 * 8));
}

inline void attention(const AttentionArgs& a, const Parallel& parallel, const Workspace&) {
  const int64_t d = a.size, width = a.heads * d;
  parallel(a.rows * a.heads, [&](int64_t task) { grow_caches(a, task / a.heads, task % a.heads); });
  if (a.tokens == 0) return;
  auto* attend_to = attend;
  int64_t together = queries_together(a.past + a.tokens);
#ifdef NEXTSCALE_HAS_TILES
  if (a.tokens > kFewQueries) {
    attend_to = attend_on_tiles;
    together = queries_of_task(a);
  }
#endif
  const int64_t per = ceil_div(a.tokens, together);
  if (a.coding.ranges == Ranges::kNone) {
    parallel(a.rows * a.heads * per, [&](int64_t task) {
      const int64_t r = task / per / a.heads, h = task / per % a.heads, first = task % per * together;
      float* y = a.y + (r * a.tokens + first) * width + h * d;
      attend_to(a, r, h, first, least_of(together, a.tokens - first), y, width);
    });
    return;
  }
  const int64_t images = a.rows / 2;
  parallel(images * a.heads * per, [&](int64_t task) {
    const int64_t b = task / per / a.heads, h = task / per % a.heads, first = task % per * together;
    const int64_t n = least_of(together, a.tokens - first);
    auto* with = static_cast<float*>(thread_memory(3, static_cast<size_t>(2 * n * d) * sizeof(float)));
    float* without = with + n * d;
    attend_to(a, b, h, first, n, with, d);
    attend_to(a, images + b, h, first, n, without, d);
    const Quantizer u(a.coding.known[0], a.coding.qmax), v(a.coding.known[1], a.coding.qmax);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t to = (b * a.tokens + first + i) * width + h * d;
      quantize_pair_span(with + i * d, without + i * d, d, u, v, a.coding.codes[0] + to, a.coding.codes[1] + to);
    }
  });
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_ATTENTION_H_
