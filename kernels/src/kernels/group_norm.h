// GroupNorm as an affine of each channel, then SiLU, then codes: one pass for the moments and one for the rest.
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

template <class T>
inline void normalize(const GroupNormArgs& a, const T* x, int64_t begin, int64_t end, const float* factor,
                      const float* shift) {
  const Quantizer quantizer(a.range, 255);
  const auto result = [&](F number, int64_t c, int64_t n) {
    const F y = n < kLanes ? fma(number, load(factor + c, n), load(shift + c, n))
                           : fma(number, load(factor + c), load(shift + c));
    return a.silu ? silu(y) : y;
  };
  for (int64_t i = begin * a.channels; i < end * a.channels; i += a.channels) {
    int64_t c = 0;
    for (; c + kLanes <= a.channels; c += kLanes) {
      const F y = result(numbers(x + i + c), c, kLanes);
      if (a.y_codes)
        store_bytes(a.y_codes + i + c, quantizer(y));
      else
        store(a.y + i + c, y);
    }
    if (const int64_t n = a.channels - c) {
      const F y = result(numbers(x + i + c, n), c, n);
      if (a.y_codes)
        store_bytes(a.y_codes + i + c, quantizer(y), n);
      else
        store(a.y + i + c, y, n);
    }
  }
}

template <class T>
inline void group_norm_of(const GroupNormArgs& a, const T* x, const Parallel& parallel, const Workspace& workspace) {
  const int64_t span = span_of(a.channels), spans = ceil_div(a.pixels, span), image = a.pixels * a.channels;
  if (a.batch == 0 || image == 0) return;
  float* sums = workspace.take<float>(a.batch * spans * 2 * a.channels);
  float* factor = workspace.take<float>(a.batch * a.channels);
  float* shift = workspace.take<float>(a.batch * a.channels);
  double* mean = workspace.take<double>(a.batch * a.channels);
  const auto task_pixels = [&](int64_t task, int64_t& begin, int64_t& end) {
    begin = task % spans * span;
    end = least_of(a.pixels, begin + span);
    return task / spans;
  };
  parallel(a.batch * spans, [&](int64_t task) {
    int64_t begin, end;
    const T* picture = x + task_pixels(task, begin, end) * image;
    float* sum = sums + task * 2 * a.channels;
    for (int64_t c = 0; c < a.channels; c += 2 * kLanes) {
      const int64_t left = a.channels - c;
      const T* at = picture + begin * a.channels + c;
      if (left > kLanes)
        add_up<2>(at, end - begin, a.channels, least_of(left - kLanes, kLanes), picture + c, sum + c,
                  sum + a.channels + c);
      else
        add_up<1>(at, end - begin, a.channels, left, picture + c, sum + c, sum + a.channels + c);
    }
  });
  parallel(a.batch * a.groups, [&](int64_t task) {
    const int64_t picture = task / a.groups, first = picture * a.channels;
    group_affine(a, sums + picture * spans * 2 * a.channels, spans, x + picture * image, task % a.groups, mean + first,
                 factor + first, shift + first);
  });
  parallel(a.batch * spans, [&](int64_t task) {
    int64_t begin, end;
    const int64_t picture = task_pixels(task, begin, end);
    normalize(a, x, picture * a.pixels + begin, picture * a.pixels + end, factor + picture * a.channels,
              shift + picture * a.channels);
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
