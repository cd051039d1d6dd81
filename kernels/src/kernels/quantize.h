// Codes of numbers, in known ranges or in those of the numbers at hand.
#ifndef NEXTSCALE_KERNELS_QUANTIZE_H_
#define NEXTSCALE_KERNELS_QUANTIZE_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

constexpr float kLeastScale = 7.888609052210118e-31f;  // 2^-100, of a range in which all is zero
constexpr int64_t kTaskNumbers = 1 << 14;              // of a task: some microseconds

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most_of(int64_t a, int64_t b) { return a > b ? a : b; }

// Codes in one range.
struct Quantizer {
  F inverse, least, most;
  I zero_point;
  Quantizer(QParams q, int32_t qmax)
      : inverse(splat(1.0f / q.scale)),
        least(splat(static_cast<float>(-q.zero_point))),
        most(splat(static_cast<float>(qmax - q.zero_point))),
        zero_point(splat(q.zero_point)) {}
  I operator()(F x) const { return quantize(x, inverse, least, most, zero_point); }
};

// The least and largest of numbers and zero.
struct Extremes {
  F low = splat(0.0f), high = splat(0.0f);
  void add(F x) {
    low = min(x, low);
    high = max(x, high);
  }
};

// The range from `low` to `high`, which hold zero between them.
inline QParams range_of(float low, float high, int32_t qmax) {
  const float wide = (high - low) / static_cast<float>(qmax);
  const float scale = wide > kLeastScale ? wide : kLeastScale;
  const float zero = __builtin_rintf(-low / scale);
  return {scale, static_cast<int32_t>(zero < static_cast<float>(qmax) ? zero : static_cast<float>(qmax))};
}

inline void quantize_span(const float* x, int64_t n, const Quantizer& q, uint8_t* codes) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_bytes(codes + i, q(load(x + i)));
  if (i < n) store_bytes(codes + i, q(load(x + i, n - i)), n - i);
}

inline void quantize(const QuantizeArgs& a, const Parallel& parallel, const Workspace& workspace) {
  const int64_t row = a.tokens * a.k;
  if (a.ranges == Ranges::kStatic) {
    const int64_t n = a.rows * row;
    parallel(ceil_div(n, kTaskNumbers), [&](int64_t task) {
      const int64_t i = task * kTaskNumbers;
      quantize_span(a.x + i, least_of(n - i, kTaskNumbers), Quantizer(a.known[0], a.qmax), a.codes[0] + i);
    });
    return;
  }
  (void)workspace;
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_QUANTIZE_H_
