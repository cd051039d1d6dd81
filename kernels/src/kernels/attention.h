// Attention in float, with guided rows.
#ifndef NEXTSCALE_KERNELS_ATTENTION_H_
#define NEXTSCALE_KERNELS_ATTENTION_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

// How the queries of a row and head are attended to, in tasks of some of them.
struct Form {
  void (*attend)(const AttentionArgs& a, int64_t r, int64_t h, int64_t first, int64_t n, float* y, int64_t y_pitch);
  int64_t queries;
};

// It depends on nothing that a batch or threads change: each form has its own bits.
inline Form form_of(const AttentionArgs& a) {
#ifdef NEXTSCALE_HAS_TILES
  if (a.tokens > kFewQueries) return {attend_on_tiles, queries_of_task(a)};
#endif
  (void)a;
  return {attend_on_vectors, kQueriesOnVectors};
}

// Some queries of a head: of a row, or of both rows of a pair.
struct Queries {
  int64_t of, h, first, n;  // of: the row, or the pair
};

// The results of a pair's queries become codes of what is without the class, and of the difference that it makes.
inline void attend_to_pair(const AttentionArgs& a, const Form& form, const Queries& q) {
  const int64_t d = a.size;
  auto* with = static_cast<float*>(thread_memory(3, static_cast<size_t>(2 * q.n * d) * sizeof(float)));
  float* without = with + q.n * d;
  form.attend(a, q.of, q.h, q.first, q.n, with, d);
  form.attend(a, a.rows / 2 + q.of, q.h, q.first, q.n, without, d);
  const Quantizer u(a.coding.known[0], a.coding.qmax), v(a.coding.known[1], a.coding.qmax);
  for (int64_t i = 0; i < q.n; ++i) {
    const int64_t to = ((q.of * a.tokens + q.first + i) * a.heads + q.h) * d;
    quantize_pair_span(with + i * d, without + i * d, d, u, v, a.coding.codes[0] + to, a.coding.codes[1] + to);
  }
}

inline void attend_to_row(const AttentionArgs& a, const Form& form, const Queries& q) {
  const int64_t width = a.heads * a.size;
  float* y = a.y + (q.of * a.tokens + q.first) * width + q.h * a.size;
  form.attend(a, q.of, q.h, q.first, q.n, y, width);
}

inline void attention(const AttentionArgs& a, const Parallel& parallel, const Workspace&) {
  parallel(a.rows * a.heads, [&](int64_t task) { grow_caches(a, task / a.heads, task % a.heads); });
  if (a.tokens == 0) return;
  const Form form = form_of(a);
  const bool pairs = a.coding.ranges == Ranges::kPair;
  const int64_t per = ceil_div(a.tokens, form.queries);
  parallel((pairs ? a.rows / 2 : a.rows) * a.heads * per, [&](int64_t task) {
    const int64_t first = task % per * form.queries;
    const Queries q{task / per / a.heads, task / per % a.heads, first, least_of(form.queries, a.tokens - first)};
    pairs ? attend_to_pair(a, form, q) : attend_to_row(a, form, q);
  });
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_ATTENTION_H_
