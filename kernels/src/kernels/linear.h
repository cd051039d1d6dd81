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

// Tasks of all rows, so that weights are read once from memory, as long as their codes fit into the second cache and
// there is a task for each thread; else of equal shares of them. A task's panels make whole strips. Each thread takes a
// stretch of the tasks: with many small ones, all stretches are about as long.
inline Division divide(int64_t blocks, const Panels& weight, int64_t threads) {
  constexpr int64_t kTasks = 128, kRowBytes = 1 << 20;
  const int64_t strips = most_of(1, ceil_div(weight.count(), 2)), bytes = 2 * kBlock * weight.steps() * kStep * blocks;
  const int64_t shares = least_of(blocks, most_of(ceil_div(bytes, kRowBytes), ceil_div(threads, strips)));
  const int64_t blocks_each = ceil_div(blocks, most_of(1, shares));
  const int64_t panel_tasks = most_of(1, kTasks / ceil_div(blocks, blocks_each));
  return {blocks, blocks_each, weight.count(), 2 * ceil_div(strips, panel_tasks)};
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
    return dequantize_onto(load(bias + i), sums, i);
  }
  F dequantize_onto(F y, const int32_t* sums, int64_t i) const {
    return fma(to_float(load(sums) - load(correction + i)), load(scale + i), y);
  }
};

// The codes of all rows in blocks, [blocks][2]: of a pair, u and d.
inline const uint8_t* laid_out(const LinearArgs& a, int64_t rows, int64_t blocks, const BlockLayout& layout,
                               const Parallel& parallel, const Workspace& workspace) {
  auto* all = workspace.take<uint8_t>(2 * blocks * layout.bytes);
  const int64_t together = most_of(1, (1 << 16) / layout.bytes), k = a.weight.k;
  parallel(ceil_div(2 * blocks, together), [&](int64_t task) {
    for (int64_t b = task * together; b < least_of(2 * blocks, (task + 1) * together); ++b) {
      const int64_t of_pair = b % 2, first = (a.pair ? b / 2 : b) * kBlock;
      const uint8_t* codes = a.pair ? a.codes[of_pair] : a.codes[0];
      lay_out_block(codes + first * k, rows - first, k, layout, all + b * layout.bytes);
    }
  });
  return all;
}

constexpr int64_t kPanelSums = 2 * kBlock * kPanel;

// The row of a token, for tokens that are asked for in their order.
class RowOf {
 public:
  RowOf() = default;
  RowOf(int64_t first, int64_t tokens) : tokens_(tokens), row_(first / tokens), end_((row_ + 1) * tokens) {}
  int64_t operator()(int64_t token) {
    while (token >= end_) {
      ++row_;
      end_ += tokens_;
    }
    return row_;
  }

 private:
  int64_t tokens_ = 1, row_ = 0, end_ = 0;
};

// The ends that tasks found, [tasks, images], for results that wait for the range of their image.
struct EndsTable {
  Ends* table = nullptr;
  int64_t images = 0;
};

inline EndsTable new_table(const LinearArgs& a, const Division& division, const Workspace& workspace) {
  EndsTable ends;
  ends.images = a.rows / a.coding.image_rows;
  ends.table = workspace.take<Ends>(division.tasks() * ends.images);
  for (int64_t i = 0; i < division.tasks() * ends.images; ++i) ends.table[i] = {0.0f, 0.0f};
  return ends;
}

// Those of one task, as it comes to one row after another.
class Found {
 public:
  Found(const EndsTable& ends, int64_t task)
      : table_(ends.table ? ends.table + task * ends.images : nullptr), images_(ends.images) {}
  explicit operator bool() const { return table_; }
  void add(int64_t row, const Extremes& extremes) {
    if (row != row_) {
      keep();
      row_ = row;
      extremes_ = Extremes();
    }
    extremes_.low = min(extremes.low, extremes_.low);
    extremes_.high = max(extremes.high, extremes_.high);
  }
  void keep() const {
    if (row_ >= 0) table_[row_ % images_].add(minimum(extremes_.low), maximum(extremes_.high));
  }

 private:
  Ends* table_;
  int64_t images_, row_ = -1;
  Extremes extremes_;
};

// A task, and what all its results need.
struct LinearTask {
  const LinearArgs& a;
  float* y;  // or null: codes
  Quantizer codes[2];
  Found found[2];
  LinearTask(const LinearArgs& args, float* results, const EndsTable& ends, int64_t task)
      : a(args),
        y(results),
        codes{Quantizer(a.coding.known[0], a.coding.qmax), Quantizer(a.coding.known[1], a.coding.qmax)},
        found{Found(ends, task), Found(ends, task)} {}
};

// Some tokens' sums of up to 64 columns, int32 [2][2][16][32] of two panels, which become results token by token.
struct Strip {
  int64_t first = 0, count = 0, done = 0;  // tokens; without the class, those of a pair come half of all later
  int64_t column = -1, width = 0;
  int64_t of_scale = -1;
  RowOf row_of;
  Columns columns[2];
  void (*finish_tokens)(LinearTask&, Strip&, int64_t end) = nullptr;  // those up to number `end`
  alignas(64) int32_t sums[2 * kPanelSums];

  // Where the sums of a row of block 0 or 1, and of columns from i on, begin.
  const int32_t* sums_at(int64_t block, int64_t row, int64_t i) const {
    return sums + i / kPanel * kPanelSums + (block * kBlock + row) * kPanel + i % kPanel;
  }
  void finish(LinearTask& task, int64_t end) {
    if (done < end) finish_tokens(task, *this, end);
    done = end;
  }
};

enum class Epilogue { kPlain, kGelu, kResidual };

// What follows the product, for N vectors of one token or, if kTokens is 2, of N / 2 columns of two tokens.
template <Epilogue kEpilogue, int kTokens, bool kWhole, int N>
inline void finish(const LinearArgs& a, F (&y)[N], const int64_t (&tokens)[kTokens], const int64_t (&rows)[kTokens],
                   int64_t column, int64_t here) {
  if constexpr (kEpilogue == Epilogue::kGelu) gelu_tanh(y);
  if constexpr (kEpilogue == Epilogue::kResidual) {
    each_of<N>([&](int v) {
      constexpr int kEach = N / kTokens;
      const int64_t n = a.weight.n, i = v % kEach * kLanes;
      const float* x = a.residual + tokens[v / kEach] * n + column + i;
      const float* gain = a.gain + rows[v / kEach] * n + column + i;
      y[v] = kWhole ? fma(load(gain), y[v], load(x)) : fma(load(gain, here - i), y[v], load(x, here - i));
    });
  }
}

template <bool kWhole, int N>
inline void put(float* y, const F* x, int64_t here) {
  NEXTSCALE_UNROLL
  for (int v = 0; v < N; ++v) {
    if constexpr (kWhole)
      store(y + v * kLanes, x[v]);
    else
      store(y + v * kLanes, x[v], here - v * kLanes);
  }
}

// Codes of a strip, of which there are n; a whole strip goes at once.
template <bool kWhole>
inline void put_codes(uint8_t* to, const I* codes, int64_t n) {
  if constexpr (kWhole) return store_bytes(to, codes[0], codes[1], codes[2], codes[3]);
  for (int64_t i = 0; i < n; i += kLanes) store_bytes(to + i, codes[i / kLanes], n - i);
}

// Guided rows as a pair: y without the class is the product of u, and with it the product of d more.
template <Epilogue kEpilogue, bool kWhole>
NEXTSCALE_ALONE void finish_pairs(LinearTask& task, Strip& strip, int64_t end) {
  constexpr int kEach = kWhole && kTogether > 1 ? kTogether / 2 : 1;
  const LinearArgs& a = task.a;
  const int64_t n = a.weight.n, half = a.rows * a.tokens / 2, column = strip.column, width = strip.width;
  const Columns &u = strip.columns[0], &d = strip.columns[1];
  const Quantizer u_codes = task.codes[0], d_codes = task.codes[1];
  float* const y = task.y;
  const bool found = static_cast<bool>(task.found[0]);
  for (int64_t r = strip.done; r < end; ++r) {
    const int64_t t = strip.first + r, row = strip.row_of(t);
    const int64_t tokens[2] = {t, half + t}, rows[2] = {row, a.rows / 2 + row};
    const int64_t at[2] = {tokens[0] * n + column, tokens[1] * n + column};
    I codes[2][kStrip / kLanes];
    Extremes extremes[2];
    for (int64_t i = 0; i < (kWhole ? kStrip : width); i += kEach * kLanes) {
      F x[2 * kEach];  // with, without
      each_of<kEach>([&](int v) {
        const int64_t c = i + v * kLanes;
        x[kEach + v] = u.dequantize(strip.sums_at(0, r, c), c);
        x[v] = d.dequantize_onto(x[kEach + v], strip.sums_at(1, r, c), c);
      });
      finish<kEpilogue, 2, kWhole>(a, x, tokens, rows, column + i, width - i);
      if (!y) {
        each_of<kEach>([&](int v) {
          codes[0][i / kLanes + v] = u_codes(x[kEach + v]);
          codes[1][i / kLanes + v] = d_codes(x[v] - x[kEach + v]);
        });
        continue;
      }
      put<kWhole, kEach>(y + at[0] + i, x, width - i);
      put<kWhole, kEach>(y + at[1] + i, x + kEach, width - i);
      if (found) each_of<2 * kEach>([&](int v) { extremes[v / kEach].add(x[v]); });
    }
    if (!y) {
      put_codes<kWhole>(a.coding.codes[0] + at[0], codes[0], width);
      put_codes<kWhole>(a.coding.codes[1] + at[0], codes[1], width);
    } else if (found) {
      for (int i = 0; i < 2; ++i) task.found[i].add(rows[i], extremes[i]);
    }
  }
}

template <Epilogue kEpilogue, bool kWhole>
NEXTSCALE_ALONE void finish_singles(LinearTask& task, Strip& strip, int64_t end) {
  constexpr int kEach = kWhole ? kTogether : 1;
  const LinearArgs& a = task.a;
  const int64_t n = a.weight.n, column = strip.column, width = strip.width;
  Columns& columns = strip.columns[0];
  const Quantizer quantizer = task.codes[0];
  float* const y = task.y;
  const bool found = static_cast<bool>(task.found[0]);
  for (int64_t r = strip.done; r < end; ++r) {
    const int64_t t = strip.first + r, row = strip.row_of(t), tokens[1] = {t}, rows[1] = {row}, at = t * n + column;
    const int64_t mine = a.scales == 1 ? 0 : a.scales == a.rows ? row : t;
    if (mine != strip.of_scale) {
      strip.of_scale = mine;
      columns.set(a, column, {a.scale[mine], a.zero_point[mine]}, true);
    }
    I codes[kStrip / kLanes];
    Extremes extremes;
    for (int64_t i = 0; i < (kWhole ? kStrip : width); i += kEach * kLanes) {
      F x[kEach];
      each_of<kEach>([&](int v) {
        const int64_t c = i + v * kLanes;
        x[v] = columns.dequantize(strip.sums_at(r / kBlock, r % kBlock, c), c);
      });
      finish<kEpilogue, 1, kWhole>(a, x, tokens, rows, column + i, width - i);
      if (!y) {
        each_of<kEach>([&](int v) { codes[i / kLanes + v] = quantizer(x[v]); });
        continue;
      }
      put<kWhole, kEach>(y + at + i, x, width - i);
      if (found) each_of<kEach>([&](int v) { extremes.add(x[v]); });
    }
    if (!y)
      put_codes<kWhole>(a.coding.codes[0] + at, codes, width);
    else if (found)
      task.found[0].add(row, extremes);
  }
}

// Prepares a strip for the sums of some tokens and columns.
template <Epilogue kEpilogue>
inline void begin_strip(const LinearArgs& a, Strip& strip, int64_t first, int64_t count, int64_t column, int64_t width) {
  if (column != strip.column) {
    strip.column = column;
    strip.width = least_of(width, a.weight.n - column);
    strip.of_scale = -1;
    if (a.pair)
      for (int i = 0; i < 2; ++i) strip.columns[i].set(a, column, a.known[i], i == 0);
    const bool whole = strip.width == kStrip;
    if (a.pair)
      strip.finish_tokens = whole ? finish_pairs<kEpilogue, true> : finish_pairs<kEpilogue, false>;
    else
      strip.finish_tokens = whole ? finish_singles<kEpilogue, true> : finish_singles<kEpilogue, false>;
  }
  strip.first = first;
  strip.count = count;
  strip.done = 0;
  strip.row_of = RowOf(first, a.tokens);
}

// The sums of two panels; `other` is finished beside tiles' products, which leave the vectors idle.
inline void multiply_strip(const LinearArgs& a, const Rows& rows, int64_t panel, int64_t panels, LinearTask& task,
                           Strip& strip, Strip& other) {
  const int64_t steps = a.weight.steps();
#ifdef NEXTSCALE_HAS_TILES
  const int64_t all = panels * steps;
  int64_t end = 0, due = 0;  // tokens of the other that are due after a step, and the rest in parts of all steps
  const auto between = [&] {
    for (due += other.count; due >= all; due -= all) ++end;
    if (other.done < end) other.finish(task, end);
  };
  for (int64_t i = 0; i < panels; ++i)
    multiply(rows, a.weight.codes + (panel + i) * a.weight.panel_bytes(), steps, strip.sums + i * kPanelSums, between);
  other.finish(task, other.count);
#else
  for (int64_t i = 0; i < panels; ++i)
    multiply(rows, a.weight.codes + (panel + i) * a.weight.panel_bytes(), steps, strip.sums + i * kPanelSums);
  (void)other;
  strip.finish(task, strip.count);
#endif
}

template <Epilogue kEpilogue>
inline void products(const LinearArgs& a, float* y, const EndsTable& ends, const Division& division,
                     const Parallel& parallel, const Workspace& workspace) {
  const int64_t all = a.pair ? a.rows * a.tokens / 2 : a.rows * a.tokens, of_block = a.pair ? kBlock : 2 * kBlock;
  const BlockLayout layout(a.weight.steps());
  const uint8_t* codes = laid_out(a, all, division.blocks, layout, parallel, workspace);
  parallel(division.tasks(), [&](int64_t index) {
    const Tiles in_use;
    (void)in_use;
    LinearTask task(a, y, ends, index);
    Strip strips[2];
    int turn = 0;
    const int64_t p0 = index % division.panel_tasks() * division.panels_each;
    const int64_t p1 = least_of(division.panels, p0 + division.panels_each);
    const int64_t b0 = index / division.panel_tasks() * division.blocks_each;
    const int64_t b1 = least_of(division.blocks, b0 + division.blocks_each), blocks = b1 - b0;
    for (int64_t p = p0; p < p1; p += 2)
      for (int64_t b = b0; b < b1; ++b, turn = 1 - turn) {
        const uint8_t* block = codes + 2 * b * layout.bytes;
        const int64_t count = least_of(of_block, all - b * of_block), panels = least_of(p1 - p, 2);
        const int64_t first = least_of(count, kBlock), second = a.pair ? first : count - first;
        Rows rows{{block, block + layout.bytes}, {first, second}, layout.stride, layout.step, nullptr};
        if (blocks == 1 || !kFetchesFar)
          rows.ahead = {0, 0, b == b0};
        else
          rows.ahead = {2 * a.weight.panel_bytes(), b - b0, blocks};
        begin_strip<kEpilogue>(a, strips[turn], b * of_block, count, p * kPanel, panels * kPanel);
        multiply_strip(a, rows, p, panels, task, strips[turn], strips[1 - turn]);
      }
    strips[1 - turn].finish(task, strips[1 - turn].count);
    for (const Found& found : task.found) found.keep();
  });
}

inline void linear(const LinearArgs& a, const Parallel& parallel, const Workspace& workspace) {
  const int64_t n = a.weight.n, all = a.rows * a.tokens;
  const Coding& coding = a.coding;
  if (all == 0 || n == 0) return quantize({nullptr, a.rows, a.tokens, n, coding}, parallel, workspace);  // the ranges
  const int64_t blocks = ceil_div(a.pair ? all / 2 : all, a.pair ? kBlock : 2 * kBlock);
  const Division division = divide(blocks, a.weight, parallel.threads());
  // Codes of known ranges leave the products at once; others wait as floats.
  const bool at_once = coding.ranges == (a.pair ? Ranges::kPair : Ranges::kStatic);
  float* y = at_once ? nullptr : coding.ranges == Ranges::kNone ? a.y : workspace.take<float>(all * n);
  const EndsTable ends = coding.ranges == Ranges::kImage ? new_table(a, division, workspace) : EndsTable{};
  if (a.gelu)
    products<Epilogue::kGelu>(a, y, ends, division, parallel, workspace);
  else if (a.residual)
    products<Epilogue::kResidual>(a, y, ends, division, parallel, workspace);
  else
    products<Epilogue::kPlain>(a, y, ends, division, parallel, workspace);

  if (at_once || coding.ranges == Ranges::kNone) return;
  if (coding.ranges == Ranges::kImage) {
    quantize_images(y, a.rows, a.tokens, n, coding, ends.table, division.tasks(), parallel);
  } else {
    quantize({y, a.rows, a.tokens, n, coding}, parallel, workspace);
  }
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_LINEAR_H_
