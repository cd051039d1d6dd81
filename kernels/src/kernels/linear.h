// Linear layers: an integer product, and everything up to the next one while its sums are in the cache.
#ifndef NEXTSCALE_KERNELS_LINEAR_H_
#define NEXTSCALE_KERNELS_LINEAR_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

// How a layer's work is divided: a task has some blocks of rows and some panels. A double block is what `multiply`
// takes: 16 rows of u and the same of d, or 32 rows.
struct Division {
  int64_t blocks, blocks_each, panels, panels_each;
  int64_t row_tasks() const { return ceil_div(blocks, blocks_each); }
  int64_t panel_tasks() const { return ceil_div(panels, panels_each); }
  int64_t tasks() const { return row_tasks() * panel_tasks(); }
};

// Tasks of all rows where there are few, since weights are then read once from memory; else of rows whose codes fit
// into the second cache beside a panel.
inline Division divide(int64_t blocks, const Panels& weight) {
  constexpr int64_t kTasks = 32, kRowBytes = 1 << 18;
  const int64_t block_bytes = 2 * kBlock * weight.steps() * kStep;
  const int64_t blocks_each = least_of(blocks, most_of(4, kRowBytes / most_of(1, block_bytes)));
  const int64_t row_tasks = ceil_div(blocks, most_of(1, blocks_each));
  const int64_t panel_tasks = least_of(weight.count(), most_of(1, kTasks / most_of(1, row_tasks)));
  return {blocks, most_of(1, blocks_each), weight.count(), ceil_div(weight.count(), most_of(1, panel_tasks))};
}

// Columns that are finished together: a whole line of the cache of codes.
constexpr int64_t kStrip = 64;

// What is subtracted, multiplied and added to the sums of a strip.
struct Columns {
  alignas(64) int32_t correction[kStrip];  // zero point times the sum of the column's weights
  alignas(64) float scale[kStrip], bias[kStrip];
  // Of the columns from `first` on; of those beyond the last panel nothing is asked.
  void set(const LinearArgs& a, int64_t first, QParams q, bool with_bias) {
    const int64_t end = least_of(kStrip, a.weight.count() * kPanel - first);
    for (int64_t i = 0; i < end; i += kLanes) {
      store(correction + i, splat(q.zero_point) * load(a.weight.sums + first + i));
      store(scale + i, splat(q.scale) * load(a.weight_scale + first + i));
      store(bias + i, with_bias && a.bias ? load(a.bias + first + i) : splat(0.0f));
    }
  }
  F dequantize(const int32_t* sums, int64_t i) const {
    return fma(to_float(load(sums) - load(correction + i)), load(scale + i), load(bias + i));
  }
};

// The codes of all rows in blocks of tiles, [2][blocks][K / 64][16][64] for a pair, [blocks][2][...] for others.
inline const uint8_t* tiled(const LinearArgs& a, int64_t rows, int64_t blocks, const Parallel& parallel,
                            const Workspace& workspace) {
  const int64_t k = a.weight.k, bytes = kBlock * a.weight.steps() * kStep;
  auto* tiles = workspace.take<uint8_t>(2 * blocks * bytes);
  const int64_t together = most_of(1, (1 << 15) / most_of(1, bytes));
  parallel(ceil_div(2 * blocks, together), [&](int64_t task) {
    for (int64_t b = task * together; b < least_of(2 * blocks, (task + 1) * together); ++b) {
      const int64_t of_pair = b % 2, first = (a.pair ? b / 2 : b) * kBlock;
      const uint8_t* codes = a.pair ? a.codes[of_pair] : a.codes[0];
      tile_block(codes + first * k, rows - first, k, k, tiles + b * bytes);
    }
  });
  return tiles;
}

constexpr int64_t kPanelSums = 2 * kBlock * kPanel;

// finish(task, block, column, sums) for each double block and strip, with the sums int32 [2][2][16][32] of two panels.
template <class F_>
inline void each_product(const LinearArgs& a, int64_t rows, const Division& division, const Parallel& parallel,
                         const Workspace& workspace, F_ finish) {
  const int64_t bytes = kBlock * a.weight.steps() * kStep;
  const uint8_t* tiles = tiled(a, rows, division.blocks, parallel, workspace);
  parallel(division.tasks(), [&](int64_t task) {
    const Tiles in_use;
    (void)in_use;
    alignas(64) int32_t sums[2 * kPanelSums];
    const int64_t p0 = task % division.panel_tasks() * division.panels_each;
    const int64_t p1 = least_of(division.panels, p0 + division.panels_each);
    const int64_t b0 = task / division.panel_tasks() * division.blocks_each;
    for (int64_t p = p0; p < p1; p += 2)
      for (int64_t b = b0; b < least_of(division.blocks, b0 + division.blocks_each); ++b) {
        const uint8_t* block = tiles + 2 * b * bytes;
        const int64_t left = rows - (a.pair ? b : 2 * b) * kBlock;
        const int64_t first = least_of(left, kBlock), second = a.pair ? first : most_of(0, least_of(left - kBlock, kBlock));
        const Rows both{{block, block + bytes}, {first, second}, kStep, kTile, nullptr};
        for (int64_t i = p; i < least_of(p1, p + 2); ++i)
          multiply(both, a.weight.codes + i * a.weight.panel_bytes(), a.weight.steps(), sums + (i - p) * kPanelSums);
        finish(task, b, p * kPanel, least_of(p1 - p, 2) * kPanel, sums);
      }
  });
}
// Where the sums of a row of block 0 or 1, and of columns from i on, begin.
inline const int32_t* sums_at(const int32_t* sums, int64_t block, int64_t row, int64_t i) {
  return sums + i / kPanel * kPanelSums + (block * kBlock + row) * kPanel + i % kPanel;
}

enum class Epilogue { kPlain, kGelu, kResidual };

// y of token t and of columns i to i + 15, of which there are `here`, with what follows the product.
template <Epilogue kEpilogue>
inline F finished(const LinearArgs& a, F y, int64_t t, int64_t i, int64_t here) {
  if constexpr (kEpilogue == Epilogue::kGelu) return gelu_tanh(y);
  if constexpr (kEpilogue == Epilogue::kResidual) {
    const int64_t n = a.weight.n;
    const float *x = a.residual + t * n + i, *gain = a.gain + t / a.tokens * n + i;
    return here >= kLanes ? fma(load(gain), y, load(x)) : fma(load(gain, here), y, load(x, here));
  }
  return y;
}

// Puts numbers or codes of a strip, of which there are n, from i on; whole strips of codes go at once.
inline void put(float* to, F y, int64_t i, int64_t n) {
  if (n - i >= kLanes) return store(to + i, y);
  store(to + i, y, n - i);
}
inline void put_codes(uint8_t* to, const I* codes, int64_t n) {
  if (n == kStrip) return store_bytes(to, codes[0], codes[1], codes[2], codes[3]);
  for (int64_t i = 0; i < n; i += kLanes) store_bytes(to + i, codes[i / kLanes], n - i);
}

// The ends of float results that wait for their range: of a task and an image, or of a task's panels and a token.
struct EndsTable {
  Ends* table = nullptr;
  int64_t parts = 0, slots = 0;
  bool by_token = false;
  Ends& at(int64_t task, int64_t t, int64_t tokens) const {
    return by_token ? table[task % parts * slots + t] : table[task * slots + t / tokens % slots];
  }
};

inline EndsTable new_table(const LinearArgs& a, const Division& division, const Workspace& workspace) {
  EndsTable ends;
  ends.by_token = a.coding.ranges == Ranges::kToken;
  ends.slots = ends.by_token ? a.rows * a.tokens : a.rows / a.coding.image_rows;
  ends.parts = ends.by_token ? division.panel_tasks() : division.tasks();
  ends.table = workspace.take<Ends>(ends.parts * ends.slots);
  for (int64_t i = 0; i < ends.parts * ends.slots; ++i) ends.table[i] = {0.0f, 0.0f};
  return ends;
}

// Guided rows as a pair: y without the class is the product of u, and with it the product of d more.
template <Epilogue kEpilogue>
inline void pair_products(const LinearArgs& a, float* y, const EndsTable& ends, const Division& division,
                          const Parallel& parallel, const Workspace& workspace) {
  const int64_t n = a.weight.n, half = a.rows * a.tokens / 2;
  const Coding& coding = a.coding;
  each_product(a, half, division, parallel, workspace,
               [&](int64_t task, int64_t b, int64_t column, int64_t width, const int32_t* sums) {
    const Quantizer u_codes(coding.known[0], coding.qmax), d_codes(coding.known[1], coding.qmax);
    Columns u, d;
    u.set(a, column, a.known[0], true);
    d.set(a, column, a.known[1], false);
    width = least_of(width, n - column);
    for (int64_t r = 0; r < least_of(kBlock, half - b * kBlock); ++r) {
      const int64_t t = b * kBlock + r, o = t * n + column;
      I strips[2][kStrip / kLanes];
      Extremes of_with, of_without;
      for (int64_t i = 0; i < width; i += kLanes) {
        F without = u.dequantize(sums_at(sums, 0, r, i), i), with = without + d.dequantize(sums_at(sums, 1, r, i), i);
        with = finished<kEpilogue>(a, with, t, column + i, width - i);
        without = finished<kEpilogue>(a, without, half + t, column + i, width - i);
        if (!y) {
          strips[0][i / kLanes] = u_codes(without);
          strips[1][i / kLanes] = d_codes(with - without);
          continue;
        }
        put(y + o, with, i, width);
        put(y + half * n + o, without, i, width);
        if (!ends.table) continue;
        of_with.add(with);
        of_without.add(without);
      }
      if (!y) {
        put_codes(coding.codes[0] + o, strips[0], width);
        put_codes(coding.codes[1] + o, strips[1], width);
      } else if (ends.table) {
        ends.at(task, t, a.tokens).add(minimum(of_with.low), maximum(of_with.high));
        ends.at(task, half + t, a.tokens).add(minimum(of_without.low), maximum(of_without.high));
      }
    }
  });
}

template <Epilogue kEpilogue>
inline void single_products(const LinearArgs& a, float* y, const EndsTable& ends, const Division& division,
                            const Parallel& parallel, const Workspace& workspace) {
  const int64_t n = a.weight.n, all = a.rows * a.tokens;
  const Coding& coding = a.coding;
  each_product(a, all, division, parallel, workspace,
               [&](int64_t task, int64_t b, int64_t column, int64_t width, const int32_t* sums) {
    const Quantizer codes(coding.known[0], coding.qmax);
    Columns columns;
    int64_t of_scale = -1;
    width = least_of(width, n - column);
    for (int64_t r = 0; r < least_of(2 * kBlock, all - b * 2 * kBlock); ++r) {
      const int64_t t = b * 2 * kBlock + r, o = t * n + column;
      const int64_t mine = a.scales == 1 ? 0 : a.scales == a.rows ? t / a.tokens : t;
      if (mine != of_scale) {
        of_scale = mine;
        columns.set(a, column, {a.scale[mine], a.zero_point[mine]}, true);
      }
      I strip[kStrip / kLanes];
      Extremes extremes;
      for (int64_t i = 0; i < width; i += kLanes) {
        F x = columns.dequantize(sums_at(sums, r / kBlock, r % kBlock, i), i);
        x = finished<kEpilogue>(a, x, t, column + i, width - i);
        if (!y) {
          strip[i / kLanes] = codes(x);
          continue;
        }
        put(y + o, x, i, width);
        if (ends.table) extremes.add(x);
      }
      if (!y)
        put_codes(coding.codes[0] + o, strip, width);
      else if (ends.table)
        ends.at(task, t, a.tokens).add(minimum(extremes.low), maximum(extremes.high));
    }
  });
}

template <Epilogue kEpilogue>
inline void products(const LinearArgs& a, float* y, const EndsTable& ends, const Division& division,
                     const Parallel& parallel, const Workspace& workspace) {
  if (a.pair)
    pair_products<kEpilogue>(a, y, ends, division, parallel, workspace);
  else
    single_products<kEpilogue>(a, y, ends, division, parallel, workspace);
}

inline void linear(const LinearArgs& a, const Parallel& parallel, const Workspace& workspace) {
  const int64_t n = a.weight.n, all = a.rows * a.tokens;
  const Coding& coding = a.coding;
  if (all == 0 || n == 0) return quantize({nullptr, a.rows, a.tokens, n, coding}, parallel, workspace);  // the ranges
  const int64_t blocks = ceil_div(a.pair ? all / 2 : all, a.pair ? kBlock : 2 * kBlock);
  const Division division = divide(blocks, a.weight);
  // Codes of known ranges leave the products at once; others wait as floats.
  const bool at_once = coding.ranges == (a.pair ? Ranges::kPair : Ranges::kStatic);
  float* y = at_once ? nullptr : coding.ranges == Ranges::kNone ? a.y : workspace.take<float>(all * n);
  const bool found = coding.ranges == Ranges::kImage || coding.ranges == Ranges::kToken;
  const EndsTable ends = found ? new_table(a, division, workspace) : EndsTable{};
  if (a.gelu)
    products<Epilogue::kGelu>(a, y, ends, division, parallel, workspace);
  else if (a.residual)
    products<Epilogue::kResidual>(a, y, ends, division, parallel, workspace);
  else
    products<Epilogue::kPlain>(a, y, ends, division, parallel, workspace);

  if (at_once || coding.ranges == Ranges::kNone) return;
  if (coding.ranges == Ranges::kImage) {
    quantize_images(y, a.rows, a.tokens, n, coding, ends.table, ends.parts, parallel);
  } else if (coding.ranges == Ranges::kToken) {
    parallel(ceil_div(all, kBlock), [&](int64_t task) {
      for (int64_t t = task * kBlock; t < least_of(all, (task + 1) * kBlock); ++t)
        quantize_token(y + t * n, n, merged(ends.table, ends.parts, all, t), t, coding);
    });
  } else {
    quantize({y, a.rows, a.tokens, n, coding}, parallel, workspace);
  }
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_LINEAR_H_
