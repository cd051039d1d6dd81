// GroupNorm as an affine of each channel, then SiLU, then codes: one pass for the moments and one for the rest.
//
// Of codes in large pictures, the second pass looks up what becomes of each of 256 codes of a channel.
#ifndef NEXTSCALE_KERNELS_GROUP_NORM_H_
#define NEXTSCALE_KERNELS_GROUP_NORM_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

// Pixels of a task. The squares of 256 codes' differences add up to less than 2^24, so that sums of codes are exact.
inline int64_t span_of(int64_t channels) { return 1 + least_of(255, 32768 / channels); }

inline F numbers(const float* x) { return load(x); }
inline F numbers(const float* x, int64_t n) { return load(x, n); }
inline F numbers(const uint8_t* x) { return to_float(load_u8(x)); }
inline F numbers(const uint8_t* x, int64_t n) { return to_float(load_u8(x, n)); }

// Sums of x - pivot and of their squares, where the pivot is a pixel: squares of numbers far from zero would hide their
// variance. V vectors of channels, of the last one only `last` lanes.
template <int V, class T>
inline void add_up(const T* x, int64_t pixels, int64_t channels, int64_t last, const T* pivot, float* sum,
                   float* square) {
  F s[V], q[V], p[V];
  const auto vector_of = [&](const T* at, int v) {
    return v == V - 1 && last < kLanes ? numbers(at + v * kLanes, last) : numbers(at + v * kLanes);
  };
  for (int v = 0; v < V; ++v) s[v] = q[v] = splat(0.0f), p[v] = vector_of(pivot, v);
  for (int64_t i = 0; i < pixels; ++i)
    NEXTSCALE_UNROLL
    for (int v = 0; v < V; ++v) {
      const F d = vector_of(x + i * channels, v) - p[v];
      s[v] = s[v] + d;
      q[v] = fma(d, d, q[v]);
    }
  for (int v = 0; v < V; ++v) {
    store(sum + v * kLanes, s[v], v == V - 1 ? last : kLanes);
    store(square + v * kLanes, q[v], v == V - 1 ? last : kLanes);
  }
}


// sums float32 [spans, 2, channels] of a picture whose first pixel is `pivot`; a task has one group.
template <class T>
inline void group_affine(const GroupNormArgs& a, const float* sums, int64_t spans, const T* pivot, int64_t group,
                         double* mean, float* factor, float* shift) {
  const int64_t size = a.channels / a.groups, begin = group * size, end = begin + size;
  const auto input = [](const float* of_channels, int64_t c, double otherwise) {
    return of_channels ? static_cast<double>(of_channels[c]) : otherwise;
  };
  double group_mean = 0, variance = 0;
  for (int64_t c = begin; c < end; ++c) {
    double s = 0, q = 0;
    for (int64_t i = 0; i < spans; ++i) {
      s += static_cast<double>(sums[(2 * i) * a.channels + c]);
      q += static_cast<double>(sums[(2 * i + 1) * a.channels + c]);
    }
    const double k = input(a.input_scale, c, 1), d = s / static_cast<double>(a.pixels);
    const double of_channel = q / static_cast<double>(a.pixels) - d * d;
    mean[c] = (static_cast<double>(pivot[c]) + d) * k + input(a.input_offset, c, 0);
    variance += (of_channel > 0 ? of_channel : 0) * k * k;
    group_mean += mean[c];
  }
  group_mean /= static_cast<double>(size);
  for (int64_t c = begin; c < end; ++c) variance += (mean[c] - group_mean) * (mean[c] - group_mean);
  const double deviation = __builtin_sqrt(variance / static_cast<double>(size) + static_cast<double>(a.epsilon));
  for (int64_t c = begin; c < end; ++c) {
    const double f = static_cast<double>(a.weight[c]) / deviation;
    factor[c] = static_cast<float>(f * input(a.input_scale, c, 1));
    shift[c] = static_cast<float>(static_cast<double>(a.bias[c]) + (input(a.input_offset, c, 0) - group_mean) * f);
  }
}

constexpr int64_t kCodes = 256;
constexpr int64_t kTablePixels = 1024;  // of a picture that is worth a table, which costs 256 pixels' time
constexpr int64_t kStretch = 128;       // numbers between two stages, which the nearest cache keeps

// SiLU, perhaps, of y's vectors, each given to `put`. In stages, so that the processor works at many numbers at a time:
// of one number, the operations of exp and of a reciprocal are a long chain.
struct Finish {
  bool silu;
  FineQuantizer quantizer;
  explicit Finish(const GroupNormArgs& a) : silu(a.silu), quantizer(a.range) {}

  // The codes of up to 16 results, and where there is memory for it, what they leave over.
  void put_codes(F result, uint8_t* codes, uint8_t* fine, int64_t n) const {
    const I code = quantizer.codes(result);
    store_bytes(codes, code, n);
    if (fine) store_bytes(fine, quantizer.left_over(result, code), n);
  }

  template <class Store>
  void operator()(float* y, int64_t vectors, Store put) const {
    if (!silu) {
      for (int64_t v = 0; v < vectors; ++v) put(v, load(y + v * kLanes));
      return;
    }
    alignas(64) float exponentials[kStretch];
    for (int64_t v = 0; v < vectors; ++v) store(exponentials + v * kLanes, exp_of_minus(load(y + v * kLanes)));
    for (int64_t v = 0; v < vectors; ++v)
      put(v, silu_of(load(y + v * kLanes), load(exponentials + v * kLanes)));
  }
};

// Pixels `begin` to `end` of all; results are multiplied by `inverse` [channels], if it is there, to become codes.
template <class T>
inline void normalize(const GroupNormArgs& a, const T* x, int64_t begin, int64_t end, const float* factor,
                      const float* shift, const float* inverse) {
  const Finish finish(a);
  alignas(64) float y[kStretch];
  for (int64_t i = begin * a.channels; i < end * a.channels; i += a.channels)
    for (int64_t first = 0; first < a.channels; first += kStretch) {
      const int64_t n = least_of(a.channels - first, kStretch), whole = n / kLanes, tail = n % kLanes;
      for (int64_t c = 0; c < whole * kLanes; c += kLanes)
        store(y + c, fma(numbers(x + i + first + c), load(factor + first + c), load(shift + first + c)));
      if (tail) {
        const int64_t c = first + whole * kLanes;
        store(y + whole * kLanes, fma(numbers(x + i + c, tail), load(factor + c, tail), load(shift + c, tail)));
      }
      finish(y, whole + (tail ? 1 : 0), [&](int64_t v, F result) {
        const int64_t to = i + first + v * kLanes, lanes = v < whole ? kLanes : tail;
        if (inverse) result = result * load(inverse + first + v * kLanes, lanes);
        if (a.y_codes)
          finish.put_codes(result, a.y_codes + to, a.y_fine ? a.y_fine + to : nullptr, lanes);
        else
          store(a.y + to, result, lanes);
      });
    }
}

// What becomes of each code of a channel.
inline void fill_table(const GroupNormArgs& a, float factor, float shift, float inverse, uint8_t* table,
                       uint8_t* fine) {
  const Finish finish(a);
  alignas(64) float y[kStretch];
  for (int64_t first = 0; first < kCodes; first += kStretch) {
    for (int64_t code = 0; code < kStretch; ++code)
      y[code] = __builtin_fmaf(static_cast<float>(first + code), factor, shift);
    finish(y, kStretch / kLanes, [&](int64_t v, F result) {
      const int64_t to = first + v * kLanes;
      finish.put_codes(result * splat(inverse), table + to, fine ? fine + to : nullptr, kLanes);
    });
  }
}

// tables u8 [channels, 256].
inline void look_up(const uint8_t* x, int64_t pixels, int64_t channels, const uint8_t* tables, uint8_t* y) {
  constexpr int64_t kAtOnce = 8;
  for (int64_t i = 0; i < pixels * channels; i += channels) {
    const uint8_t* table = tables;
    int64_t c = 0;
    for (; c + kAtOnce <= channels; c += kAtOnce, table += kAtOnce * kCodes) {
      uint8_t found[kAtOnce];
      NEXTSCALE_UNROLL
      for (int64_t j = 0; j < kAtOnce; ++j) found[j] = table[j * kCodes + x[i + c + j]];
      std::memcpy(y + i + c, found, kAtOnce);
    }
    for (; c < channels; ++c, table += kCodes) y[i + c] = table[x[i + c]];
  }
}

template <class T>
inline void group_norm_of(const GroupNormArgs& a, const T* x, const Parallel& parallel, const Workspace& workspace) {
  const int64_t span = span_of(a.channels), spans = ceil_div(a.pixels, span), image = a.pixels * a.channels;
  if (a.batch == 0 || image == 0) return;
  const bool by_table = a.codes && a.y_codes && a.pixels >= kTablePixels;
  float* sums = workspace.take<float>(a.batch * spans * 2 * a.channels);
  float* factor = workspace.take<float>(a.batch * a.channels);
  float* shift = workspace.take<float>(a.batch * a.channels);
  double* mean = workspace.take<double>(a.batch * a.channels);
  float* inverse = a.y_codes && a.y_scale ? workspace.take<float>(a.channels) : nullptr;
  for (int64_t c = 0; inverse && c < a.channels; ++c) inverse[c] = 1.0f / a.y_scale[c];
  const auto take_tables = [&](bool wanted) {
    return wanted ? workspace.take<uint8_t>(a.batch * a.channels * kCodes) : nullptr;
  };
  uint8_t *tables = take_tables(by_table), *fine_tables = take_tables(by_table && a.y_fine);
  struct Span {
    int64_t picture, begin, end;
  };
  const auto span_at = [&](int64_t task) {
    const int64_t begin = task % spans * span;
    return Span{task / spans, begin, least_of(a.pixels, begin + span)};
  };
  parallel(a.batch * spans, [&](int64_t task) {
    const Span s = span_at(task);
    const T* picture = x + s.picture * image;
    float* sum = sums + task * 2 * a.channels;
    for (int64_t c = 0; c < a.channels; c += 2 * kLanes) {
      const int64_t left = a.channels - c;
      const T* at = picture + s.begin * a.channels + c;
      if (left > kLanes)
        add_up<2>(at, s.end - s.begin, a.channels, least_of(left - kLanes, kLanes), picture + c, sum + c,
                  sum + a.channels + c);
      else
        add_up<1>(at, s.end - s.begin, a.channels, left, picture + c, sum + c, sum + a.channels + c);
    }
  });
  parallel(a.batch * a.groups, [&](int64_t task) {
    const int64_t picture = task / a.groups, first = picture * a.channels, size = a.channels / a.groups;
    group_affine(a, sums + picture * spans * 2 * a.channels, spans, x + picture * image, task % a.groups, mean + first,
                 factor + first, shift + first);
    if (by_table)
      for (int64_t c = task * size; c < (task + 1) * size; ++c)
        fill_table(a, factor[c], shift[c], inverse ? inverse[c - first] : 1.0f, tables + c * kCodes,
                   fine_tables ? fine_tables + c * kCodes : nullptr);
  });
  parallel(a.batch * spans, [&](int64_t task) {
    const Span s = span_at(task);
    const int64_t first = s.picture * a.channels, begin = s.picture * a.pixels + s.begin;
    const auto look_up_in = [&](const uint8_t* of_batch, uint8_t* y) {
      look_up(a.codes + begin * a.channels, s.end - s.begin, a.channels, of_batch + first * kCodes,
              y + begin * a.channels);
    };
    if (!by_table) return normalize(a, x, begin, begin + s.end - s.begin, factor + first, shift + first, inverse);
    look_up_in(tables, a.y_codes);
    if (fine_tables) look_up_in(fine_tables, a.y_fine);
  });
}

inline void group_norm(const GroupNormArgs& a, const Parallel& parallel, const Workspace& workspace) {
  if (a.codes)
    group_norm_of(a, a.codes, parallel, workspace);
  else
    group_norm_of(a, a.x, parallel, workspace);
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_GROUP_NORM_H_
