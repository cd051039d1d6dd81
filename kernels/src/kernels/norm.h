// LayerNorm, modulation and codes in one pass over each token.
#ifndef NEXTSCALE_KERNELS_NORM_H_
#define NEXTSCALE_KERNELS_NORM_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

// x -> (x - mean) inverse gain + shift of one token [k], which is read from the cache twice before.
class Modulation {
 public:
  Modulation(const float* x, int64_t k, const float* gain, const float* shift, float epsilon)
      : x_(x), gain_(gain), shift_(shift) {
    constexpr int kSums = 4;
    const float n = static_cast<float>(k);
    F sums[kSums];
    each_of<kSums>([&](int v) { sums[v] = splat(0.0f); });
    int64_t i = 0;
    for (; i + kSums * kLanes <= k; i += kSums * kLanes)
      each_of<kSums>([&](int v) { sums[v] = sums[v] + load(x + i + v * kLanes); });
    for (; i < k; i += kLanes) sums[0] = sums[0] + load(x + i, k - i);
    const float mean = sum((sums[0] + sums[1]) + (sums[2] + sums[3])) / n;
    mean_ = splat(mean);
    each_of<kSums>([&](int v) { sums[v] = splat(0.0f); });
    for (i = 0; i + kSums * kLanes <= k; i += kSums * kLanes)
      each_of<kSums>([&](int v) {
        const F off = load(x + i + v * kLanes) - mean_;
        sums[v] = fma(off, off, sums[v]);
      });
    for (; i < k; i += kLanes) {  // lanes past the end are as if they had the mean
      float rest[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) rest[lane] = i + lane < k ? x[i + lane] : mean;
      const F off = load(rest) - mean_;
      sums[0] = fma(off, off, sums[0]);
    }
    inverse_ = splat(1.0f / sqrtf(sum((sums[0] + sums[1]) + (sums[2] + sums[3])) / n + epsilon));
  }
  // The 16 numbers of the token from i on, or the n that are left.
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
  const auto token = [&](int64_t t) {
    const int64_t r = t / a.tokens;
    return Modulation(a.x + t * k, k, a.gain + r * k, a.shift + r * k, a.epsilon);
  };
  switch (coding.ranges) {
    case Ranges::kNone:
      break;
    case Ranges::kStatic: {
      const Quantizer q(coding.known[0], coding.qmax);
      parallel(ceil_div(all, together), [&](int64_t task) {
        for (int64_t t = task * together; t < least_of(all, (task + 1) * together); ++t) {
          const Modulation x = token(t);
          uint8_t* codes = coding.codes[0] + t * k;
          int64_t i = 0;
          for (; i + 4 * kLanes <= k; i += 4 * kLanes)
            store_bytes(codes + i, q(x(i)), q(x(i + kLanes)), q(x(i + 2 * kLanes)), q(x(i + 3 * kLanes)));
          for (; i < k; i += kLanes) store_bytes(codes + i, q(x(i, k - i)), k - i);
        }
      });
      break;
    }
    case Ranges::kPair: {
      const int64_t half = all / 2;
      parallel(ceil_div(half, together), [&](int64_t task) {
        const Quantizer u(coding.known[0], coding.qmax), d(coding.known[1], coding.qmax);
        for (int64_t t = task * together; t < least_of(half, (task + 1) * together); ++t)
          quantize_pairs(token(t), token(half + t), k, u, d, coding.codes[0] + t * k, coding.codes[1] + t * k);
      });
      break;
    }
    case Ranges::kImage: {
      const int64_t images = a.rows / coding.image_rows, per = ceil_div(a.tokens, together);
      const int64_t parts = coding.image_rows * per;
      Ends* table = workspace.take<Ends>(parts * images);
      float* kept = workspace.take<float>(all * k);
      parallel(a.rows * per, [&](int64_t task) {
        const int64_t r = task / per, first = task % per * together;
        Extremes extremes;
        for (int64_t t = r * a.tokens + first; t < r * a.tokens + least_of(a.tokens, first + together); ++t) {
          const Modulation x = token(t);
          int64_t i = 0;
          for (; i + kLanes <= k; i += kLanes) {
            const F y = x(i);
            extremes.add(y);
            store(kept + t * k + i, y);
          }
          if (i < k) {
            const F y = x(i, k - i);  // zero past the end, which every range holds
            extremes.add(y);
            store(kept + t * k + i, y, k - i);
          }
        }
        table[((r / images) * per + task % per) * images + r % images] = {minimum(extremes.low), maximum(extremes.high)};
      });
      quantize_images(kept, a.rows, a.tokens, k, coding, table, parts, parallel);
      break;
    }
    case Ranges::kToken:
      parallel(ceil_div(all, together), [&](int64_t task) {
        auto* kept = static_cast<float*>(thread_memory(1, static_cast<size_t>(k) * sizeof(float)));
        for (int64_t t = task * together; t < least_of(all, (task + 1) * together); ++t) {
          const Modulation x = token(t);
          int64_t i = 0;
          for (; i + kLanes <= k; i += kLanes) store(kept + i, x(i));
          if (i < k) store(kept + i, x(i, k - i), k - i);
          quantize_token(kept, k, ends_of(kept, k), t, coding);
        }
      });
      break;
  }
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_NORM_H_
