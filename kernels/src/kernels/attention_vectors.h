// Float attention on vectors.
//
// A task's queries pass over the keys in blocks, whose logits and weights stay near: of each block the keys are laid out
// for the products, and what was mixed of the blocks before fades as a larger logit is found. So sums are taken in the
// order of the keys, block by block, whatever the vectors and the tasks are.
#ifndef NEXTSCALE_KERNELS_ATTENTION_VECTORS_H_
#define NEXTSCALE_KERNELS_ATTENTION_VECTORS_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

constexpr int64_t kColumns = kFloatVectors * kLanes;  // keys or channels whose sums a product holds
constexpr int64_t kLogitRows = 32 / kFloatRows * kFloatRows;  // queries whose logits of a block stay in the first cache

template <int N>
struct Count {
  static constexpr int value = N;
};
// each(Count<M>(), first) of groups of up to M of the rows from `first` to n.
template <int M, class Each>
inline void in_groups(int64_t first, int64_t n, Each each) {
  for (; first + M <= n; first += M) each(Count<M>(), first);
  if constexpr (M > 1) in_groups<(M > 2 ? M - 2 : 1)>(first, n, each);
}

// Keys [d, .], rows `of_row` apart, as panels [keys / kColumns][d][kColumns], `pitch` apart; what is missing is zero.
inline void lay_out_keys(const float* keys, int64_t d, int64_t of_row, int64_t count, float* panels, int64_t pitch) {
  for (int64_t k = 0; k < d; ++k)
    for (int64_t j = 0; j < count; j += kColumns)
      for (int64_t v = 0; v < kColumns; v += kLanes)
        store(panels + j / kColumns * pitch + k * kColumns + v, load(keys + k * of_row + j + v, count - j - v));
}

// Logits of M queries [M, d] and a panel of keys; in the order of d.
template <int M>
NEXTSCALE_ALONE void score(const float* queries, const float* panel, int64_t d, float* logits) {
  F acc[M][kFloatVectors];
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < kFloatVectors; ++v) acc[i][v] = splat(0.0f);
  for (int64_t k = 0; k < d; ++k) {
    F b[kFloatVectors];
    for (int v = 0; v < kFloatVectors; ++v) b[v] = load(panel + k * kColumns + v * kLanes);
    NEXTSCALE_UNROLL
    for (int i = 0; i < M; ++i) {
      const F q = splat(queries[i * d + k]);
      for (int v = 0; v < kFloatVectors; ++v) acc[i][v] = fma(q, b[v], acc[i][v]);
    }
  }
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < kFloatVectors; ++v) store(logits + i * kKeysOfBlock + v * kLanes, acc[i][v]);
}

// Some channels of M queries' mixes fade, and weights [M] of `keys` keys times their values [keys, d] are added; in the
// order of the keys.
template <int M, bool kWhole>
NEXTSCALE_ALONE void mix(const float* weights, const float* values, int64_t d, int64_t keys, int64_t channels,
                         const float* fading, float* mixed, int64_t pitch) {
  F acc[M][kFloatVectors];
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < kFloatVectors; ++v) acc[i][v] = load(mixed + i * pitch + v * kLanes) * splat(fading[i]);
  for (int64_t t = 0; t < keys; ++t) {
    F b[kFloatVectors];
    for (int v = 0; v < kFloatVectors; ++v) {
      const float* from = values + t * d + v * kLanes;
      b[v] = kWhole ? load(from) : load(from, channels - v * kLanes);
    }
    NEXTSCALE_UNROLL
    for (int i = 0; i < M; ++i) {
      const F w = splat(weights[i * kKeysOfBlock + t]);
      for (int v = 0; v < kFloatVectors; ++v) acc[i][v] = fma(w, b[v], acc[i][v]);
    }
  }
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < kFloatVectors; ++v) store(mixed + i * pitch + v * kLanes, acc[i][v]);
}

// What is known of a query after some blocks: weights are e^(logit - largest), and each lane has a sum of some.
struct Seen {
  float largest = kLowest;
  F sums = splat(0.0f);
};

template <int N>
inline void weigh(float* row, F largest, F& sums) {
  F x[N];
  each_of<N>([&](int i) { x[i] = load(row + i * kLanes) - largest; });
  exp(x);
  each_of<N>([&](int i) { store(row + i * kLanes, x[i]); });
  each_of<N>([&](int i) { sums = sums + x[i]; });
}

// The largest of a query's logits is found, those of a block of n keys among them, of which the last vector is filled up.
// Returns what earlier weights are to be multiplied with.
inline float find_largest(float* row, int64_t n, int64_t filled, Seen& seen) {
  for (int64_t j = n; j < filled; ++j) row[j] = kLowest;
  F top = splat(seen.largest);
  for (int64_t j = 0; j < filled; j += kLanes) top = max(load(row + j), top);
  const float before = seen.largest;
  seen.largest = maximum(top);
  return seen.largest > before ? maximum(exp(splat(before - seen.largest))) : 1.0f;
}

inline void make_weights(float* row, int64_t filled, float fading, Seen& seen) {
  const F largest = splat(seen.largest);
  F sums = seen.sums * splat(fading);
  int64_t j = 0;
  for (; j + kTogether * kLanes <= filled; j += kTogether * kLanes) weigh<kTogether>(row + j, largest, sums);
  for (; j < filled; j += kLanes) weigh<1>(row + j, largest, sums);
  seen.sums = sums;
}

// A query's mix of all keys becomes its result.
inline void finish_query(const float* mixed, const Seen& seen, int64_t d, float* y) {
  const F factor = splat(1.0f / sum(seen.sums));
  for (int64_t c = 0; c < d; c += kLanes) store(y + c, load(mixed + c) * factor, d - c);
}

// Parts of so many bytes of this thread's memory; each begins a line of the cache.
template <int N>
inline void take_parts(int slot, const int64_t (&bytes)[N], uint8_t* (&parts)[N]) {
  int64_t all = 0;
  for (const int64_t part : bytes) all += ceil_div(part, kCacheLine) * kCacheLine;
  auto* next = static_cast<uint8_t*>(thread_memory(slot, static_cast<size_t>(all)));
  for (int i = 0; i < N; ++i) {
    parts[i] = next;
    next += ceil_div(bytes[i], kCacheLine) * kCacheLine;
  }
}

// Memory of a task.
struct VectorTask {
  int64_t channels;     // filled up to whole columns
  int64_t panel_pitch;  // a line more than a panel of keys has, so that lines spread over the cache
  float *queries, *panels, *logits, *fading, *mixed;
  Seen* seen;
  VectorTask(int64_t n, int64_t d)
      : channels(ceil_div(d, kColumns) * kColumns), panel_pitch(d * kColumns + kLanes) {
    const int64_t bytes[] = {n * d * 4, kKeysOfBlock / kColumns * panel_pitch * 4, kLogitRows * kKeysOfBlock * 4,
                             kLogitRows * 4, n * channels * 4, n * static_cast<int64_t>(sizeof(Seen))};
    uint8_t* parts[6];
    take_parts(2, bytes, parts);
    float** floats[] = {&queries, &panels, &logits, &fading, &mixed};
    for (int i = 0; i < 5; ++i) *floats[i] = reinterpret_cast<float*>(parts[i]);
    seen = reinterpret_cast<Seen*>(parts[5]);
  }
};

// Mixes a block of keys, laid out, and of values [keys, d] to what queries have of the blocks before.
inline void attend_to_block(const VectorTask& task, int64_t first, int64_t n, int64_t d, const float* values,
                            int64_t keys) {
  for (int64_t j = 0; j < keys; j += kColumns)
    in_groups<kFloatRows>(0, n, [&](auto rows, int64_t i) {
      score<decltype(rows)::value>(task.queries + (first + i) * d, task.panels + j / kColumns * task.panel_pitch, d,
                                   task.logits + i * kKeysOfBlock + j);
    });
  const int64_t filled = ceil_div(keys, kLanes) * kLanes;
  for (int64_t i = 0; i < n; ++i)
    task.fading[i] = find_largest(task.logits + i * kKeysOfBlock, keys, filled, task.seen[first + i]);
  for (int64_t i = 0; i < n; ++i)
    make_weights(task.logits + i * kKeysOfBlock, filled, task.fading[i], task.seen[first + i]);
  for (int64_t c = 0; c < d; c += kColumns)
    in_groups<kFloatRows>(0, n, [&](auto rows, int64_t i) {
      constexpr int M = decltype(rows)::value;
      const auto mix_them = d - c >= kColumns ? mix<M, true> : mix<M, false>;
      mix_them(task.logits + i * kKeysOfBlock, values + c, d, keys, d - c, task.fading + i,
               task.mixed + (first + i) * task.channels + c, task.channels);
    });
}

inline void attend_on_vectors(const AttentionArgs& a, int64_t r, int64_t h, int64_t first, int64_t n, float* y,
                              int64_t y_pitch) {
  const int64_t d = a.size, total = a.past + a.tokens, width = a.heads * d, of_head = r * a.heads + h;
  const VectorTask task(n, d);
  for (int64_t i = 0; i < n; ++i) {
    normalize(a.query + (r * a.tokens + first + i) * width + h * d, d, a.query_scale[h], task.queries + i * d);
    task.seen[i] = Seen();
  }
  std::memset(task.mixed, 0, static_cast<size_t>(n * task.channels) * sizeof(float));
  for (int64_t j = 0; j < total; j += kKeysOfBlock) {
    const int64_t here = least_of(kKeysOfBlock, total - j);
    const KeysAndValues block = keys_and_values(a, of_head, j, here);
    lay_out_keys(block.keys, d, block.pitch, here, task.panels, task.panel_pitch);
    for (int64_t i = 0; i < n; i += kLogitRows)
      attend_to_block(task, i, least_of(kLogitRows, n - i), d, block.values, here);
  }
  for (int64_t i = 0; i < n; ++i) finish_query(task.mixed + i * task.channels, task.seen[i], d, y + i * y_pitch);
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_ATTENTION_VECTORS_H_
