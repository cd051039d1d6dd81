// Attention in float, with guided rows.
#ifndef NEXTSCALE_KERNELS_ATTENTION_H_
#define NEXTSCALE_KERNELS_ATTENTION_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

inline void grow(const AttentionArgs& a, int64_t r, int64_t h) {
  a.coded.present_key ? grow_coded_caches(a, r, h) : grow_caches(a, r, h);
}

// y [n, d], rows `y_pitch` apart, of n queries of one row and head from token `first` on. Each form has its own bits, so
// that the choice depends on nothing that a batch or threads change.
inline void attend(const AttentionArgs& a, int64_t r, int64_t h, int64_t first, int64_t n, float* y, int64_t y_pitch) {
  if (n == a.tokens) grow(a, r, h);  // none other reads them: they are near
#ifdef NEXTSCALE_HAS_TILES
  if (a.tokens > kFewQueries) return attend_on_tiles(a, r, h, first, n, y, y_pitch);
#endif
  attend_on_vectors(a, r, h, first, n, y, y_pitch);
}

// Some queries of a head: of a row, or of both rows of a pair.
struct Queries {
  int64_t of, h, first, n;  // of: the row, or the pair
};

inline void attend_to_row(const AttentionArgs& a, const Queries& q) {
  const int64_t width = a.heads * a.size;
  attend(a, q.of, q.h, q.first, q.n, a.y + (q.of * a.tokens + q.first) * width + q.h * a.size, width);
}

// The results become codes of what is without the class, and of the difference that the class makes.
inline void attend_to_pair(const AttentionArgs& a, const Queries& q) {
  const int64_t d = a.size;
  auto* with = static_cast<float*>(thread_memory(3, static_cast<size_t>(2 * q.n * d) * sizeof(float)));
  float* without = with + q.n * d;
  attend(a, q.of, q.h, q.first, q.n, with, d);
  attend(a, a.rows / 2 + q.of, q.h, q.first, q.n, without, d);
  const Quantizer u(a.coding.known[0], a.coding.qmax), v(a.coding.known[1], a.coding.qmax);
  for (int64_t i = 0; i < q.n; ++i) {
    const int64_t to = ((q.of * a.tokens + q.first + i) * a.heads + q.h) * d;
    quantize_pair_span(with + i * d, without + i * d, d, u, v, a.coding.codes[0] + to, a.coding.codes[1] + to);
  }
}

// Queries of a task of one of `heads` heads: keys are laid out once for all of them, so that they are few only where
// threads would be without a task.
inline int64_t queries_of_task(int64_t tokens, int64_t heads, int64_t threads) {
  constexpr int64_t kMost = 256, kFew = 32;
  const int64_t parts = most_of(ceil_div(tokens, kMost), ceil_div(threads, most_of(1, heads)));
  return most_of(1, ceil_div(ceil_div(tokens, parts), kFew)) * kFew;
}

inline void attention(const AttentionArgs& a, const Parallel& parallel, const Workspace&) {
  const bool pairs = a.coding.ranges == Ranges::kPair;
  const int64_t heads = (pairs ? a.rows / 2 : a.rows) * a.heads;
  const int64_t most = queries_of_task(a.tokens, heads, parallel.threads()), parts = ceil_div(a.tokens, most);
  if (parts != 1) parallel(a.rows * a.heads, [&](int64_t task) { grow(a, task / a.heads, task % a.heads); });
  parallel(heads * parts, [&](int64_t task) {
    const int64_t of_head = task / parts, first = task % parts * most;
    const Queries q{of_head / a.heads, of_head % a.heads, first, least_of(most, a.tokens - first)};
    pairs ? attend_to_pair(a, q) : attend_to_row(a, q);
  });
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_ATTENTION_H_
