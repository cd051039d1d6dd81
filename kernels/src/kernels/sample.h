// One token of each row of logits, as docs/bundle.md, "Sampling", has it.
#ifndef NEXTSCALE_KERNELS_SAMPLE_H_
#define NEXTSCALE_KERNELS_SAMPLE_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

constexpr int kTogetherSums = 4;
constexpr int64_t kEntries = kTogetherSums * kLanes;  // of a block, whose weights are summed together
constexpr float kMostUniform = 1 - 0x1p-23f;          // times a sum it stays below the sum
constexpr float kLeastExponent = -87.0f;              // e to less has no weight

// Floats as integers of the same order, and back.
inline int32_t key_of(float x) {
  int32_t key;
  std::memcpy(&key, &x, sizeof key);
  return key < 0 ? key ^ 0x7fffffff : key;
}
inline float from_key(int32_t key) {
  if (key < 0) key ^= 0x7fffffff;
  float x;
  std::memcpy(&x, &key, sizeof x);
  return x;
}

// The largest number from `least` to `most` that reaches; `least` does, and all that is smaller than one that does.
template <class Reaches>
inline float largest(float least, float most, Reaches reaches) {
  int64_t low = key_of(least), high = int64_t{key_of(most)} + 1;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (reaches(from_key(static_cast<int32_t>(middle))) ? low : high) = middle;
  }
  return from_key(static_cast<int32_t>(low));
}

// The logits of one row, and e to their distances from the largest; both are filled up to whole blocks.
class Entries {
 public:
  Entries(const float* logits, int64_t count) : count_(count), blocks_(ceil_div(count, kEntries)) {
    const int64_t all = blocks_ * kEntries;
    logits_ = static_cast<float*>(thread_memory(2, static_cast<size_t>(2 * all) * sizeof(float)));
    mass_ = logits_ + all;
    std::memcpy(logits_, logits, static_cast<size_t>(count) * sizeof(float));
    for (int64_t i = count; i < all; ++i) logits_[i] = -INFINITY;
    F high = splat(-INFINITY);
    for (int64_t i = 0; i < all; i += kLanes) high = max(load(logits_ + i), high);
    most_ = maximum(high);
    const F farthest = splat(kLeastExponent), largest = splat(most_);
    for (int64_t i = 0; i < all; i += kEntries) {
      F x[kTogetherSums];
      I near[kTogetherSums];
      each_of<kTogetherSums>([&](int v) { x[v] = load(logits_ + i + v * kLanes) - largest; });
      each_of<kTogetherSums>([&](int v) { near[v] = at_least(x[v], farthest); });
      exp(x);
      each_of<kTogetherSums>([&](int v) { store(mass_ + i + v * kLanes, from_bits(bits(x[v]) & near[v])); });
    }
  }

  // The smallest logit that top_k and top_p keep.
  float smallest_kept(int64_t top_k, float top_p) const {
    float kept = -INFINITY;
    if (top_k > 0) kept = largest(kept, most_, [&](float x) { return how_many(x) >= top_k; });
    if (top_p <= 0) return kept;
    const float wanted = top_p * mass_from(kept);
    return largest(kept, most_, [&](float x) { return mass_from(x) >= wanted; });
  }

  // The first entry whose cumulated mass, of those kept, exceeds uniform times all of it: found block by block, and then
  // inside the block. Rounding may leave less in the block than is looked for: then its last entry that has any.
  int64_t first_past(float smallest, float uniform) const {
    float total = 0;
    for (int64_t b = 0; b < blocks_; ++b) total += sum(kept_mass(b * kEntries, splat(smallest)));
    const float target = (uniform < kMostUniform ? uniform : kMostUniform) * total;
    int64_t block = 0;
    float begin = 0;
    for (;; ++block) {
      const float end = begin + sum(kept_mass(block * kEntries, splat(smallest)));
      if (end > target || block + 1 == blocks_) break;
      begin = end;
    }
    float inside = 0;
    int64_t last = block * kEntries;
    for (int64_t i = last; i < least_of(count_, (block + 1) * kEntries); ++i) {
      if (!(logits_[i] >= smallest) || !(mass_[i] > 0)) continue;
      last = i;
      inside += mass_[i];
      if (inside > target - begin) break;
    }
    return last;
  }

 private:
  int64_t how_many(float smallest) const {
    const F from = splat(smallest);
    I count = splat(int32_t{0});
    for (int64_t i = 0; i < blocks_ * kEntries; i += kLanes) count = count - at_least(load(logits_ + i), from);
    return sum(count);
  }
  float mass_from(float smallest) const {
    const F from = splat(smallest);
    F sums[kTogetherSums];
    each_of<kTogetherSums>([&](int v) { sums[v] = splat(0.0f); });
    for (int64_t i = 0; i < blocks_ * kEntries; i += kEntries)
      each_of<kTogetherSums>([&](int v) { sums[v] = sums[v] + kept(i + v * kLanes, from); });
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
  F kept_mass(int64_t i, F from) const {
    return (kept(i, from) + kept(i + kLanes, from)) + (kept(i + 2 * kLanes, from) + kept(i + 3 * kLanes, from));
  }
  F kept(int64_t i, F from) const { return from_bits(bits(load(mass_ + i)) & at_least(load(logits_ + i), from)); }

  float *logits_, *mass_;
  int64_t count_, blocks_;
  float most_;
};

inline void sample(const SampleArgs& a, const Parallel& parallel) {
  const int64_t together = most_of(1, kTaskNumbers / a.entries / 4);
  parallel(ceil_div(a.rows, together), [&](int64_t task) {
    for (int64_t r = task * together; r < least_of(a.rows, (task + 1) * together); ++r) {
      a.tokens[r] = a.forced[r];
      if (a.forced[r] >= 0) continue;
      const Entries entries(a.logits + r * a.entries, a.entries);
      a.tokens[r] = entries.first_past(entries.smallest_kept(a.top_k, a.top_p), a.uniforms[r]);
    }
  });
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_SAMPLE_H_
