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

constexpr int64_t kPairs = 32;                         // numbers of a row of a tile, the depth of a step
constexpr int64_t kRowStep = 2 * 64;                   // bytes of a step of a row: high, low
constexpr int64_t kHalvesStep = 2 * kTile;             // of 16 columns of a panel: the two tiles side by side
constexpr int64_t kHalvesPanelStep = 2 * kHalvesStep;  // of a panel of 32 columns: high, high, low, low
constexpr int64_t kPass = 2 * kBlock;                  // queries whose products share the tiles of a panel
constexpr int64_t kLogitPitch = kKeysOfBlock + kLanes;  // a line more, so that rows of a tile spread over the cache
// Of each number of the caches, tiles take half a cycle to lay it out and a hundredth for each query of a whole pass,
// vectors an eighth and a fifteenth: about nine queries cost the same.
constexpr int64_t kFewQueries = 8;

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
// The low halves come so many bytes after the high ones.
inline void store_halves(void* to, int64_t low, const Halves& x) {
  auto* bytes = static_cast<uint8_t*>(to);
  store(reinterpret_cast<int32_t*>(bytes), x.high);
  store(reinterpret_cast<int32_t*>(bytes + low), x.low);
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

// sums float [2][16][32], rows `pitch` apart, of rows' halves [2][16][steps][high, low][64], `row_bytes` apart, and a
// panel; added to what is there if kAdd. `between()` runs beside the products of each step.
template <bool kTwo, bool kAdd, class Between>
inline void multiply_halves(const void* rows, int64_t row_bytes, const uint8_t* panel, int64_t steps, float* sums,
                            int64_t pitch, Between between) {
  const auto *a = static_cast<const uint8_t*>(rows), *b = a + kBlock * row_bytes;
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
  for (int64_t s = 0; s < steps; ++s, a += kRowStep, b += kRowStep, panel += kHalvesPanelStep) {
    NEXTSCALE_TILE_LOAD(6, panel, 64);
    NEXTSCALE_TILE_LOAD(7, panel + kTile, 64);
    NEXTSCALE_TILE_LOAD(4, a + 64, row_bytes);
    NEXTSCALE_TILE_PRODUCT_BF16(0, 4, 6);
    NEXTSCALE_TILE_PRODUCT_BF16(1, 4, 7);
    if (kTwo) {
      NEXTSCALE_TILE_LOAD(5, b + 64, row_bytes);
      NEXTSCALE_TILE_PRODUCT_BF16(2, 5, 6);
      NEXTSCALE_TILE_PRODUCT_BF16(3, 5, 7);
    }
    NEXTSCALE_TILE_LOAD(4, a, row_bytes);
    NEXTSCALE_TILE_PRODUCT_BF16(0, 4, 6);
    NEXTSCALE_TILE_PRODUCT_BF16(1, 4, 7);
    if (kTwo) {
      NEXTSCALE_TILE_LOAD(5, b, row_bytes);
      NEXTSCALE_TILE_PRODUCT_BF16(2, 5, 6);
      NEXTSCALE_TILE_PRODUCT_BF16(3, 5, 7);
    }
    NEXTSCALE_TILE_LOAD(6, panel + kHalvesStep, 64);
    NEXTSCALE_TILE_LOAD(7, panel + kHalvesStep + kTile, 64);
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

// Memory of a task.
struct TileTask {
  int64_t depth;              // of keys, and channels of values: filled up to whole steps and panels
  int64_t panels_bytes;       // of a block's keys, or of its values
  uint8_t* queries;           // halves [n filled up to passes][depth / 32][high, low][64]
  uint8_t *keys, *values;     // panels of a block, and of three
  float *logits, *fading;     // [3][32][kLogitPitch], [3][32]
  float* mixed;               // [n filled up][depth]
  float* unit;                // [depth]: a query
  Seen* seen;                 // [n]
  TileTask(int64_t n, int64_t d) : depth(ceil_div(d, kPairs) * kPairs), panels_bytes(kKeysOfBlock * depth * 4) {
    const int64_t rows = ceil_div(n, kPass) * kPass;
    const int64_t bytes[] = {rows * depth * 4, panels_bytes, 3 * panels_bytes, 3 * kPass * kLogitPitch * 4,
                             3 * kPass * 4, rows * depth * 4, depth * 4, n * static_cast<int64_t>(sizeof(Seen))};
    uint8_t* parts[8];
    take_parts(2, bytes, parts);
    queries = parts[0], keys = parts[1], values = parts[2];
    logits = reinterpret_cast<float*>(parts[3]), fading = reinterpret_cast<float*>(parts[4]);
    mixed = reinterpret_cast<float*>(parts[5]), unit = reinterpret_cast<float*>(parts[6]);
    seen = reinterpret_cast<Seen*>(parts[7]);
  }
};

inline void begin_query(const TileTask& task, const float* query, int64_t d, float scale, int64_t i) {
  normalize(query, d, scale, task.unit);
  uint8_t* to = task.queries + i * task.depth * 4;
  for (int64_t k = 0; k < task.depth; k += kPairs, to += kRowStep)
    store_halves(to, 64, halves(load(task.unit + k), load(task.unit + k + kLanes)));
  task.seen[i] = Seen();
}

// A pass's logits of a block, which become the halves of its weights where they are.
struct PassOfBlock {
  int64_t first, count;     // queries
  int64_t keys, steps;      // of the block
  const uint8_t* values;    // its panels
  float *logits, *fading;
  // The logits of one query become weights.
  void soften(const TileTask& task, int64_t i) const {
    float* row = logits + i * kLogitPitch;
    Seen& seen = task.seen[first + i];
    fading[i] = find_largest(row, keys, steps * kPairs, seen);
    const F largest = splat(seen.largest);
    F sums = seen.sums * splat(fading[i]);
    int64_t j = 0;
    for (; j + 2 * kPairs <= steps * kPairs; j += 2 * kPairs) weigh_halves<4>(row + j, largest, sums);
    for (; j < steps * kPairs; j += kPairs) weigh_halves<2>(row + j, largest, sums);
    seen.sums = sums;
  }
  // What the queries have of the blocks before.
  void fade(const TileTask& task) const {
    for (int64_t i = 0; i < count; ++i) {
      if (fading[i] == 1.0f) continue;
      float* row = task.mixed + (first + i) * task.depth;
      for (int64_t c = 0; c < task.depth; c += kLanes) store(row + c, load(row + c) * splat(fading[i]));
    }
  }

 private:
  template <int N>
  static void weigh_halves(float* row, F largest, F& sums) {
    F x[N];
    each_of<N>([&](int i) { x[i] = load(row + i * kLanes) - largest; });
    exp(x);
    each_of<N>([&](int i) { sums = sums + x[i]; });
    for (int i = 0; i < N; i += 2) store_halves(row + i * kLanes, 64, halves(x[i], x[i + 1]));
  }
};

template <bool kTwo, class Between>
inline void score_on_tiles(const TileTask& task, const PassOfBlock& p, Between between) {
  const int64_t steps = task.depth / kPairs;
  const uint8_t* queries = task.queries + p.first * task.depth * 4;
  for (int64_t j = 0; j < p.steps; ++j)
    multiply_halves<kTwo, false>(queries, task.depth * 4, task.keys + j * steps * kHalvesPanelStep, steps,
                                 p.logits + j * kPanel, kLogitPitch, between);
}
template <bool kTwo, class Between>
inline void mix_on_tiles(const TileTask& task, const PassOfBlock& p, Between between) {
  if (p.count == 0) return;
  p.fade(task);
  for (int64_t c = 0; c < task.depth; c += kPanel)
    multiply_halves<kTwo, true>(p.logits, kLogitPitch * 4, p.values + c / kPanel * p.steps * kHalvesPanelStep, p.steps,
                                task.mixed + p.first * task.depth + c, task.depth, between);
}

// Blocks of keys are laid out once for all queries, which pass over each 32 at a time. Tiles' products leave the vectors
// idle: beside those of one pass, and the mixing of the one before the last, the last one's weights are made.
inline void attend_on_tiles(const AttentionArgs& a, int64_t r, int64_t h, int64_t first, int64_t n, float* y,
                            int64_t y_pitch) {
  const Tiles in_use;
  (void)in_use;
  const int64_t d = a.size, total = a.past + a.tokens, width = a.heads * d, of_head = r * a.heads + h;
  const TileTask task(n, d);
  std::memset(task.mixed, 0, static_cast<size_t>(n * task.depth) * sizeof(float));
  std::memset(task.unit, 0, static_cast<size_t>(task.depth) * sizeof(float));
  for (int64_t i = 0; i < n; ++i)
    begin_query(task, a.query + (r * a.tokens + first + i) * width + h * d, d, a.query_scale[h], i);

  const int64_t passes = ceil_div(n, kPass), all = ceil_div(total, kKeysOfBlock) * passes;
  const auto pass_of_block = [&](int64_t number) {
    const int64_t block = number / passes, pass = number % passes, place = number % 3;
    const int64_t here = least_of(kKeysOfBlock, total - block * kKeysOfBlock);
    return PassOfBlock{pass * kPass, least_of(kPass, n - pass * kPass), here, ceil_div(here, kPairs),
                       task.values + block % 3 * task.panels_bytes, task.logits + place * kPass * kLogitPitch,
                       task.fading + place * kPass};
  };
  const auto lay_out = [&](int64_t block) {
    const int64_t key = block * kKeysOfBlock, here = least_of(kKeysOfBlock, total - key);
    const KeysAndValues of = keys_and_values(a, of_head, key, here);
    pack_halves(d, here, [&](int64_t k, int64_t column) { return of.keys + k * of.pitch + column; }, task.keys);
    pack_halves(here, d, [&](int64_t k, int64_t column) { return of.values + k * d + column; },
                task.values + block % 3 * task.panels_bytes);
  };
  PassOfBlock scored{}, softened{}, mixed{};  // of no queries where there is none
  for (int64_t number = 0; number < all + 2; ++number) {
    mixed = softened, softened = scored, scored = PassOfBlock{};
    if (number < all) {
      if (number % passes == 0) lay_out(number / passes);
      scored = pass_of_block(number);
    }
    int64_t row = 0, due = 0;
    const int64_t steps = task.depth / kPairs * (scored.steps + mixed.steps);
    const auto between = [&] {
      for (due += softened.count; due >= steps; due -= steps) softened.soften(task, row++);
    };
    scored.count > kBlock ? score_on_tiles<true>(task, scored, between) : score_on_tiles<false>(task, scored, between);
    mixed.count > kBlock ? mix_on_tiles<true>(task, mixed, between) : mix_on_tiles<false>(task, mixed, between);
    while (row < softened.count) softened.soften(task, row++);
  }
  for (int64_t i = 0; i < n; ++i) finish_query(task.mixed + i * task.depth, task.seen[i], d, y + i * y_pitch);
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_ATTENTION_TILES_H_
