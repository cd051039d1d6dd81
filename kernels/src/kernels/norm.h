// LayerNorm, modulation and codes in one pass over each token.
#ifndef NEXTSCALE_KERNELS_NORM_H_
#define NEXTSCALE_KERNELS_NORM_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

// Mean and 1 / standard deviation of a token.
struct Moments {
  float mean, inverse;
};

// Of x [k]; the second sum is of what is left without the mean, whatever its size.
inline Moments moments_of(const float* x, int64_t k, float epsilon) {
  constexpr int kSums = 4;
  const float n = static_cast<float>(k);
  F sums[kSums];
  each_of<kSums>([&](int v) { sums[v] = splat(0.0f); });
  int64_t i = 0;
  for (; i + kSums * kLanes <= k; i += kSums * kLanes)
    each_of<kSums>([&](int v) { sums[v] = sums[v] + load(x + i + v * kLanes); });
  for (; i < k; i += kLanes) sums[0] = sums[0] + load(x + i, k - i);
  const float mean = sum((sums[0] + sums[1]) + (sums[2] + sums[3])) / n;
  const F means = splat(mean);
  each_of<kSums>([&](int v) { sums[v] = splat(0.0f); });
  for (i = 0; i + kSums * kLanes <= k; i += kSums * kLanes)
    each_of<kSums>([&](int v) {
      const F off = load(x + i + v * kLanes) - means;
      sums[v] = fma(off, off, sums[v]);
    });
  for (; i < k; i += kLanes) {  // lanes past the end are as if they had the mean
    float rest[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) rest[lane] = i + lane < k ? x[i + lane] : mean;
    const F off = load(rest) - means;
    sums[0] = fma(off, off, sums[0]);
  }
  return {mean, 1.0f / sqrtf(sum((sums[0] + sums[1]) + (sums[2] + sums[3])) / n + epsilon)};
}

// x -> (x - mean) inverse gain + shift of one token.
class Modulation {
 public:
  Modulation(const float* x, Moments moments, const float* gain, const float* shift)
      : x_(x), gain_(gain), shift_(shift), mean_(splat(moments.mean)), inverse_(splat(moments.inverse)) {}
  // As InMemory's.
  F operator()(int64_t i) const { return fma((load(x_ + i) - mean_) * inverse_, load(gain_ + i), load(shift_ + i)); }
  F operator()(int64_t i, int64_t n) const {
    return fma((load(x_ + i, n) - mean_) * inverse_, load(gain_ + i, n), load(shift_ + i, n));
  }

 private:
  const float *x_, *gain_, *shift_;
  F mean_, inverse_;
};

inline void norm(const NormArgs& a, const Parallel& parallel, const Workspace& workspace) {
  const Coding& coding = a.coding;
  const int64_t k = a.k, all = a.rows * a.tokens;
  const int64_t together = most_of(1, kTaskNumbers / 4 / most_of(1, k));  // tokens of a task
  const auto moments = [&](int64_t t) { return moments_of(a.x + t * k, k, a.epsilon); };
  const auto token = [&](int64_t t, Moments of) {
    const int64_t r = t / a.tokens;
    return Modulation(a.x + t * k, of, a.gain + r * k, a.shift + r * k);
  };
  const auto each_token = [&](int64_t tokens, auto f) {
    parallel(ceil_div(tokens, together), [&](int64_t task) {
      for (int64_t t = task * together; t < least_of(tokens, (task + 1) * together); ++t) f(t);
    });
  };
  switch (coding.ranges) {
    case Ranges::kNone:
      break;
    case Ranges::kStatic: {
      const Quantizer q(coding.known[0], coding.qmax);
      each_token(all, [&](int64_t t) { quantize_span(token(t, moments(t)), k, q, coding.codes[0] + t * k); });
      break;
    }
    case Ranges::kPair: {
      const int64_t half = all / 2;
      const Quantizer u(coding.known[0], coding.qmax), d(coding.known[1], coding.qmax);
      each_token(half, [&](int64_t t) {
        quantize_pairs(token(t, moments(t)), token(half + t, moments(half + t)), k, u, d, coding.codes[0] + t * k,
                       coding.codes[1] + t * k);
      });
      break;
    }
    case Ranges::kImage: {  // numbers are made twice: less to do than to keep them
      Moments* of = workspace.take<Moments>(all);
      Ends* table = workspace.take<Ends>(all);  // [image_rows, tokens, images]
      const int64_t images = a.rows / coding.image_rows;
      each_token(all, [&](int64_t t) {
        of[t] = moments(t);
        const int64_t r = t / a.tokens, part = r / images * a.tokens + t % a.tokens;
        table[part * images + r % images] = ends_of(token(t, of[t]), k);
      });
      set_image_ranges(a.rows, coding, table, coding.image_rows * a.tokens);
      each_token(all, [&](int64_t t) {
        const int64_t r = t / a.tokens;
        const Quantizer q({coding.scale[r], coding.zero_point[r]}, coding.qmax);
        quantize_span(token(t, of[t]), k, q, coding.codes[0] + t * k);
      });
      break;
    }
    case Ranges::kToken:
      each_token(all, [&](int64_t t) { quantize_token(token(t, moments(t)), k, t, coding); });
      break;
  }
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_NORM_H_
